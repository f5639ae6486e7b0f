"""`sample --operator`: pictures that agree with a measurement, their record, and bad input."""

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from fewstep import Measured, Sampler
from fewstep.cli import app
from fewstep.models.errors import FewstepError
from fewstep.samplers.guidance.inverse import METHODS, Inpaint, LinearMap, take_operator
from fewstep.samplers.images import read_pixels
from fewstep.samplers.run_record import read_run

SHORT = ["sample", "fashion-dit", "--nfe", "2", "--seeds", "0,1", "--classes", "3"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a picture y.png, a small one, and masks, in which commands run."""
    monkeypatch.chdir(tmp_path)
    ramp = np.linspace(0, 255, 1024).astype(np.uint8).reshape(32, 32)
    Image.fromarray(ramp).save("y.png")
    Image.fromarray(ramp[::4, ::4]).save("small.png")
    Image.fromarray(np.stack([ramp, ramp, ramp // 2], -1)).save("colour.png")
    mask = np.zeros((32, 32), np.uint8)
    Image.fromarray(mask).save("black.png")
    mask[:16] = 255
    Image.fromarray(mask).save("mask.png")
    Image.fromarray(mask[:, :16]).save("narrow.png")
    return tmp_path


def call(*words, short=SHORT):
    return CliRunner().invoke(app, [*short, *words])


def test_a_measured_picture_is_drawn_recorded_and_repeated(folder):
    asked = "--operator", "inpaint:mask.png", "--measurement", "y.png", "--sigma-y", "0"
    result = call(*asked, "--save-images", "each", "--out", "out.png")
    assert result.exit_code == 0, result.output
    drawn, known = read_pixels(folder / "each/000001-3.png"), read_pixels(folder / "y.png")
    assert torch.equal(drawn[:, :, :16], known[:, :, :16])
    run = read_run(folder / "out.png")
    assert (run.solver, run.measured.method, run.measured.sigma_y) == ("ddpm", "diffpir", 0.0)
    assert set(run.measured.files) == {"mask.png", "y.png"}
    again = call("--from-png", "out.png", "--out", "again.png", short=["sample"])
    assert again.exit_code == 0, again.output
    assert (folder / "again.png").read_bytes() == (folder / "out.png").read_bytes()
    Image.open("mask.png").transpose(Image.Transpose.FLIP_TOP_BOTTOM).save("mask.png")
    for words, said in ((["--from-png", "out.png"], "mask.png"), (["--force"], "")):
        refused = call("--from-png", "out.png", *words[-1:] * (not said), short=["sample"])
        assert (refused.exit_code == 2) == bool(said)
        assert said in refused.output
    (folder / "y.png").unlink()
    gone = call("--from-png", "out.png", short=["sample"])
    assert gone.exit_code == 2
    assert "y.png" in gone.output


BAD = {
    "--operator inpaint:mask.png": "go together",
    "--sigma-y 0.1": "belong to a measurement",
    "--operator inpaint:mask.png --measurement none.png": "none.png",
    "--operator inpaint:none.png --measurement y.png": "none.png",
    "--operator inpaint:black.png --measurement y.png": "leaves nothing",
    "--operator inpaint:y.png --measurement y.png": "other colours than black and white",
    "--operator inpaint:narrow.png --measurement y.png": "16x32 pixels in grey",
    "--operator inpaint:mask.png --measurement small.png": "8x8 pixels in grey",
    "--operator inpaint:mask.png --measurement colour.png": "32x32 pixels in colour",
    "--operator inpaint --measurement y.png": "inpaint needs mask",
    "--operator downsample:3 --measurement y.png": "sides 3 divides",
    "--operator downsample:1 --measurement y.png": "greater than or equal to 2",
    "--operator downsample:half --measurement y.png": "factor='half'",
    "--operator downsample:4 --measurement y.png": "8x8 pixels in grey",
    "--operator blur:0 --measurement y.png": "greater than 0",
    "--operator grey --measurement y.png": "takes samples in colour",
    "--operator grey:3 --measurement y.png": "has no settings",
    "--operator blurr:1 --measurement y.png": "did you mean 'blur'",
    "--operator blur:1 --measurement y.png --method dsp": "did you mean 'dps'",
    "--operator blur:1 --measurement y.png --method dps:scale=0": "greater than 0",
    "--operator blur:1 --measurement y.png --sigma-y -1": "at least 0",
    "--operator blur:1 --measurement y.png --sigma-y nan": "at least 0",
    "--operator blur:1 --measurement y.png --method dps --solver heun": "order 1",
    "--operator blur:1 --measurement y.png --method dps --cache taylorseer:interval=2": "cache",
    "--operator blur:1 --measurement y.png --method mmps --guidance apg:scale=2": "course of a run",
    "--operator blur:1 --measurement y.png --out y.png": "y.png",
}


def test_bad_measurements_are_one_line_and_leave_nothing_behind(folder):
    before = {path: path.read_bytes() for path in folder.iterdir()}
    for words, said in BAD.items():
        result = call(*words.split(), short=[*SHORT[:3], "3", *SHORT[4:]])
        assert result.exit_code == 2, (words, result.output)
        lines = [each for each in result.output.splitlines() if each.startswith("error")]
        assert len(lines) == 1, (words, result.output)
        assert said in lines[0], (words, lines)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before


def bad_values():
    x = torch.zeros(1, 1, 32, 32)
    return {
        "reaches 255": lambda: Measured("blur:1", x + 255.0),
        "NaN": lambda: Measured("blur:1", x * float("nan")),
        "of floats": lambda: Measured("blur:1", x.byte()),
        "3 rows for 2 images": lambda: Measured("blur:1", x.expand(3, 1, 32, 32)),
        "is not an operator": lambda: Measured(torch.nn.Identity(), x),
        "of 0 and 1": lambda: Inpaint(torch.full((32, 32), 0.5)),
        "not linear": lambda: LinearMap(lambda x: x + 1.0, (1, 32, 32)),
        "<A x, y>": lambda: LinearMap(lambda x: 2.0 * x, (1, 32, 32), adjoint=lambda y: y),
        "cannot be called": lambda: LinearMap(lambda x: x @ torch.eye(3), (1, 32, 32)),
        "of shape (1, 8, 8)": lambda: Measured(LinearMap(lambda x: 2.0 * x, (1, 8, 8)), x),
        "rewrite_history": lambda: Measured(
            "blur:1", x, inner="cfg:scale=2+interval:low=0,high=1e9,rewrite_history=true"
        ),
    }


def test_bad_values_are_refused():
    sampler = Sampler.from_pretrained("fashion-dit")
    for said, make in bad_values().items():
        with pytest.raises(FewstepError) as raised:
            sampler([0, 1], nfe=2, guidance=make())
        assert said in str(raised.value), said


def test_an_image_depends_on_its_own_row_alone():
    sampler = Sampler.from_pretrained("fashion-dit")
    y = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2.0 - 1.0
    for method in METHODS:
        method = "stsl:rounds=1" if method == "stsl" else method

        def draw(seeds, rows, batch, method=method):
            policy = Measured("downsample:4", y[rows], 0.05, method, "cfg:scale=2")
            run = sampler(seeds, nfe=2, guidance=policy, class_labels=5, batch=batch)
            return run.samples

        whole = draw([4, 5, 6], slice(0, 3), 2)
        last = draw([6], slice(2, 3), 1)
        torch.testing.assert_close(whole[2:], last, rtol=0, atol=1e-3, msg=method)
    assert take_operator("blur:1.5").sigma == 1.5
