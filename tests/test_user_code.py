"""Networks that a user's code makes: named, refused in files, hashed, moved, and lent alive."""

import json
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

import fewstep
from fewstep.cli import app, sample_app
from fewstep.eval.experiments.fid_sweep import Sweep
from fewstep.models.errors import ModelError, SettingError
from fewstep.models.load import load
from fewstep.models.user_code import LENT, WEIGHTS, lend
from fewstep.models.weights import hash_weights
from fewstep.samplers.run_record import read_run

CODE = """
import helper
import torch
from torch import nn
from fewstep import RectifiedFlow, from_module

class MLP(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Linear(3, 8), nn.SiLU(), nn.Linear(8, 2))

    def forward(self, x, time):
        return self.layers(torch.cat([x, time[:, None].to(x.dtype)], dim=1))

def network(seed=helper.SEED, **facts):
    shape = {"schedule": RectifiedFlow(time_scale=1), "prediction": "flow", "shape": (2,)}
    return from_module(MLP(seed), **shape, **facts)

def broken():
    raise ValueError("no checkpoint here")

def make_placed(device, dtype):
    return network(name=f"{device} {dtype}")

class Zoo:
    made = network(seed=1)

plain, number = MLP(), 3

def lacks_weights():
    return torch.load("absent.pt", weights_only=True)

def other_weights():
    MLP().load_state_dict({"layers.0.weight": torch.zeros(3, 3)})

def without_units():
    return from_module(plain, schedule="flow", prediction="flow", shape=(2,))

def misspelt():
    return network(num_class=3)

def narrow():
    facts = {"schedule": RectifiedFlow(time_scale=1), "prediction": "flow"}
    return from_module(plain, shape=(3,), **facts)
"""
RUN = ["--nfe", "3", "--seeds", "0-3"]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "helper.py").write_text("SEED = 0\n")
    (tmp_path / "nets.py").write_text(CODE)
    path = list(sys.path)
    WEIGHTS.clear()
    yield
    assert sys.path == path
    sys.modules.pop("helper", None)
    sys.modules.pop("nets", None)


def sample(*words):
    return CliRunner().invoke(sample_app, list(words))


def test_a_file_and_a_module_name_the_same_network(capsys, tmp_path):
    x = fewstep.Sampler.from_pretrained("nets.py:network")([0, 1], nfe=3).samples
    assert capsys.readouterr().err == f"nets.py:network: imported from {tmp_path / 'nets.py'}\n"
    for name in ("nets:network", str(tmp_path / "nets.py:network")):
        assert torch.equal(x, fewstep.Sampler.from_pretrained(name)([0, 1], nfe=3).samples)
    assert load("nets.py:Zoo.made").name == "nets.py:Zoo.made"


def test_weights_are_hashed_as_they_are_here():
    assert hash_weights("nets.py:network") is None  # nothing is imported in order to hash it
    first = load("nets.py:network") and hash_weights("nets.py:network")
    load("nets.py:Zoo.made")
    assert hash_weights("nets.py:Zoo.made") not in (None, first)
    load("nets:network")
    assert hash_weights("nets:network") == first


def test_it_is_moved_or_told_where_to_be():
    network = load("nets.py:network", dtype="bf16", device="cpu")
    assert next(network.module.parameters()).dtype == torch.bfloat16
    assert load("nets.py:make_placed", dtype="fp16").name == "nets.py:make_placed"
    with open("nets.py", "a") as file:
        file.write("def function():\n    return from_module(lambda x, t: x, **FACTS)\n")
        file.write(
            "FACTS = dict(schedule=RectifiedFlow(time_scale=1), prediction='flow', shape=(2,))\n"
        )
    with pytest.raises(ModelError, match="is a function, which cannot be moved"):
        load("nets.py:function", dtype="bf16")
    assert load("nets.py:function").module is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("none.py:network", "there is no file 'none.py'"),
        ("nets.py", "to run its code, name the network in it: nets.py:ATTRIBUTE"),
        ("absent.part:network", "no module 'absent.part' can be imported here"),
        ("nets.py:netwrok", "no attribute of nets.py 'netwrok'; did you mean 'network'?"),
        ("nets.py:broken", "raises ValueError: no checkpoint here (.*nets.py, line 21)"),
        ("nets.py:lacks_weights", "FileNotFoundError: No such file or directory 'absent.pt' (.*"),
        ("nets.py:other_weights", "Error(s) in loading state_dict for MLP: Missing key(s) in"),
        ("nets.py:without_units", "nets.py:without_units: RectifiedFlow does not say in which"),
        ("nets.py:misspelt", "no argument 'num_class'; did you mean 'num_classes'?"),
        ("nets.py:plain", "nets.py:plain is a MLP, not a Network; wrap it: from_module"),
        ("nets.py:number", "is a int, not a Network"),
        ("nets.py:MLP", "returns a MLP, not a Network"),
        ("bad.py:x", "bad.py:x raises SyntaxError"),
        ("lacks.py:x", "raises ModuleNotFoundError: No module named 'absent'"),
        ("quits.py:x", "raises SystemExit: 3"),
    ],
)
def test_what_cannot_be_had_is_one_clear_line(name, text, tmp_path):
    for file, body in {
        "bad": "def",
        "lacks": "import absent",
        "quits": "raise SystemExit(3)",
    }.items():
        (tmp_path / f"{file}.py").write_text(body)
    done = sample(name, *RUN)
    assert done.exit_code == 2
    assert done.output.startswith("error: ")
    assert done.output.count("\n") == 1
    pattern = text.replace("(", r"\(").replace(")", r"\)").replace("?", r"\?")
    with pytest.raises(fewstep.FewstepError, match=pattern):
        load(name)


def test_a_call_that_fails_says_what_was_handed_over():
    done = sample("nets.py:narrow", *RUN)
    assert done.exit_code == 2
    assert (
        "(4x4 and 3x8)); its code or its config does not fit a state of shape (4, 3)" in done.output
    )


def test_samples_that_are_no_pictures_are_written_as_they_are(tmp_path):
    assert sample("nets.py:network", *RUN).exit_code == 0
    run = read_run(tmp_path / "samples.safetensors")
    assert (run.model, run.nfe) == ("nets.py:network", 3)
    for words in (["--out", "a.png"], ["--save-images", "a"]):
        done = sample("nets.py:network", *RUN, *words)
        assert (done.exit_code, "pictures" in done.output) == (2, True)
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == [
        "helper.py",
        "nets.py",
        "samples.safetensors",
    ]


def test_a_record_does_not_import_what_it_names(tmp_path):
    assert sample("nets.py:network", *RUN).exit_code == 0
    sys.modules.pop("helper")
    again = ["--from-png", "samples.safetensors", "--out", "b.safetensors"]
    refused = sample(*again)
    assert (refused.exit_code, "helper" in sys.modules) == (2, False)
    assert "sample nets.py:network --from-png samples.safetensors" in refused.output
    assert sample("nets.py:network", *again).exit_code == 0
    files = [(tmp_path / name).read_bytes() for name in ("samples.safetensors", "b.safetensors")]
    assert files[0] == files[1]
    other = sample("nets.py:Zoo.made", *again)
    assert (other.exit_code, "by other weights of 'nets.py:Zoo.made'" in other.output) == (2, True)
    assert sample("nets.py:Zoo.made", *again, "--force").exit_code == 0


def test_neither_a_guidance_in_a_record_nor_a_sweep_imports_code(tmp_path):
    words = ["--guidance", "auto:scale=2,network=nets.py:Zoo.made"]
    assert sample("nets.py:network", *RUN, *words).exit_code == 0
    done = sample("nets.py:network", "--from-png", "samples.safetensors", "--out", "b.safetensors")
    assert (done.exit_code, "names 'nets.py:Zoo.made', which is code" in done.output) == (2, True)
    for entry in (
        {"models": ["nets.py:network"], "solvers": ["ddim"]},
        {"models": ["fashion-dit"], "guidances": [words[1]], "cfg_scales": [2.0]},
    ):
        (tmp_path / "sweep.json").write_text(json.dumps({"entries": [entry]}))
        with pytest.raises(SettingError, match=r"the sweep .* names 'nets\.py"):
            Sweep.load(tmp_path / "sweep.json")


def test_a_search_takes_code_and_live_networks(tmp_path):
    options = {"nfe": 3, "noises": "8,4,4", "strategy": "grid", "budget": "candidates=4"}
    options |= {"teacher_nfe": 8}
    words = [w for n, v in options.items() for w in (f"--{n.replace('_', '-')}", str(v))]
    done = CliRunner().invoke(app, ["search", "nets.py:network", *words, "--out", "a.json"])
    assert done.exit_code == 0, done.output
    assert "sample nets.py:network --schedule a.json" in done.output
    assert sample("nets.py:network", "--schedule", "a.json", "--seeds", "0-3").exit_code == 0
    network = load("nets.py:network")
    (found,) = fewstep.search(network, **options, out=tmp_path / "b.json")
    assert found.schedule.schedule_id == fewstep.Schedule.load(tmp_path / "a.json").schedule_id
    assert found.schedule.provenance["weights"] == hash_weights("nets.py:network")
    assert not LENT
    with pytest.raises(SettingError, match="a Network or a name that `load` takes, not a MLP"):
        fewstep.search(network.module, nfe=3)


def test_a_lent_network_is_not_mistaken_for_the_toy(tmp_path):
    flow = {"schedule": fewstep.RectifiedFlow(time_scale=1), "prediction": "flow", "shape": (2,)}
    network = fewstep.from_module(lambda x, time: x, name="toy", **flow)
    with lend(network) as name:
        assert load(name) is network
    options = {"nfe": 2, "noises": "4,2,2", "strategy": "grid", "budget": "candidates=2"}
    (found,) = fewstep.search(network, **options, teacher_nfe=4, out=tmp_path / "b.json")
    assert found.schedule.process.family == "flow"


def test_a_calibration_takes_a_live_network_and_knows_it_by_its_weights(tmp_path):
    first, second = (load("fashion-dit") for _ in range(2))
    with torch.no_grad():
        next(second.module.parameters()).mul_(1.01)
    settings = {"solver": "ddim", "nfe": 4, "images": 2, "quality": "psnr=1", "reference_nfe": 6}
    settings |= {"cache": ["taylorseer:interval=2,level=last-block"], "out": tmp_path / "c.json"}
    fewstep.calibrate(replace(first, name="mine"), **settings)
    with pytest.raises(SettingError, match="rows of mine with other weights"):
        fewstep.calibrate(replace(second, name="mine"), **settings)
    rows = [json.loads(line) for line in (tmp_path / "c.json.figures.jsonl").open()]
    assert len({row["protocol"]["images"]["weights"] for row in rows}) == 1


class Told(nn.Module):
    """Answers the condition, and keeps those that it was told."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, x, time, text):
        self.seen += text.flatten().tolist()
        return text.expand_as(x)


def test_own_conditions_reach_samples_the_teacher_and_searches(tmp_path):
    module, rows = Told(), torch.tensor([[1.0], [2.0], [3.0]])
    flow = {"schedule": fewstep.RectifiedFlow(time_scale=1), "prediction": "flow", "shape": (2,)}
    facts = {"conditions": {"text": rows}, "negative": {"text": torch.zeros(1, 1)}}
    network = fewstep.from_module(module, **flow, **facts)
    sampler = fewstep.Sampler(network)
    drawn = sampler([4, 6], nfe=1, solver="ddim").samples
    assert module.seen == [2.0, 1.0]  # seed s has row s mod 3
    given = sampler([4, 6], nfe=1, solver="ddim", conditions={"text": rows[[1, 0]]}).samples
    assert torch.equal(drawn, given)
    module.seen.clear()
    sampler([0], nfe=1, solver="ddim", guidance="cfg:scale=2")
    assert sorted(module.seen) == [0.0, 1.0]
    module.seen.clear()
    options = {"nfe": 2, "noises": "3,3,3", "strategy": "grid", "budget": "candidates=1"}
    fewstep.search(network, **options, teacher_nfe=4, cfg_scale=2.0, out=tmp_path / "b.json")
    assert set(module.seen) == {0.0, 1.0, 2.0, 3.0}
