"""`fewstep.search`, `fewstep.calibrate` and `fewstep.evaluate`: the commands, from Python."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

import fewstep
from fewstep.cli import app
from fewstep.eval.options import make_request
from fewstep.eval.requests import SearchRequest
from fewstep.models.errors import SettingError, UnknownNameError
from fewstep.samplers.cache_file import CacheFile
from fewstep.solvers import Schedule

QUICK = {"noises": "8,4,4", "strategy": "grid", "budget": "candidates=4"}
LITE = "taylorseer:interval=2,level=last-block"


def test_a_search_gives_what_the_command_writes(tmp_path):
    found = fewstep.search("toy", nfe_range="3,4", out=str(tmp_path / "a.json"), **QUICK)
    words = [word for name, value in QUICK.items() for word in (f"--{name}", value)]
    words += ["--nfe-range", "3,4", "--out", str(tmp_path / "b.json")]
    assert CliRunner().invoke(app, ["search", "toy", *words, "--quiet"]).exit_code == 0
    for result, nfe in zip(found, (3, 4), strict=True):
        assert result.schedule.nfe == nfe
        assert (tmp_path / f"a-nfe{nfe}.json").read_text() == result.schedule.dump() + "\n"
        written = Schedule.load(tmp_path / f"b-nfe{nfe}.json")
        assert written.provenance["scores"] == result.schedule.provenance["scores"]
        assert result.scores["test"] > 0.0


def test_a_calibration_gives_what_it_writes(tmp_path):
    out = tmp_path / "c.json"
    settings = {"solver": "ddim", "nfe": 6, "images": 2, "quality": "psnr=3", "reference_nfe": 12}
    file = fewstep.calibrate("fashion-dit", cache=[LITE], out=out, **settings)
    assert file == CacheFile.load(out)
    assert (file.cache, file.nfe, file.metric) == (LITE, 6, "psnr")
    assert 3.0 <= file.figures.effective < 6.0
    with pytest.raises(SettingError, match="finds caches"):
        fewstep.calibrate("fashion-dit", guidance="adaptive", cfg_scale=3.0, out=out)


def test_an_evaluation_has_the_figures_of_the_command(tmp_path):
    dark = np.arange(3 * 8 * 8 * 3, dtype=np.uint8).reshape(3, 8, 8, 3) // 2
    np.savez(tmp_path / "a.npz", arr_0=dark)
    np.savez(tmp_path / "b.npz", arr_0=dark + 51)
    pair = str(tmp_path / "a.npz"), str(tmp_path / "b.npz")
    report = fewstep.evaluate(*pair, metrics="rmse", n=2, reference_n=2)
    (figure,) = report.figures
    assert (figure.label, figure.n) == ("rmse", 2)
    assert figure.value == pytest.approx(51 / 127.5)
    words = [pair[0], "--reference", pair[1], "--metrics", "rmse", "--json"]
    done = CliRunner().invoke(app, ["fid", *words, "--n", "2", "--reference-n", "2"])
    assert json.loads(done.stdout) == json.loads(report.as_json())


def test_a_slip_names_the_option():
    with pytest.raises(UnknownNameError, match=r"no option 'nef'.*nfe"):
        fewstep.search("toy", nef=3)
    with pytest.raises(UnknownNameError, match="no option 'started'"):
        make_request(SearchRequest, network="toy", started=0.0)
    with pytest.raises(SettingError, match="batch must lie between 1 and 1,000,000, not 0"):
        fewstep.search("toy", nfe=3, batch=0)
    with pytest.raises(SettingError, match="seed must lie between 0"):
        fewstep.search("toy", nfe=3, seed=-1)
