"""Bad inputs by the hundred, and those that once were taken, hung or ended in a traceback."""

import hashlib
import json
import os
import sys
from pathlib import Path

import pytest
from fuzz import fuzz, hostile_folder, write_run
from hostile import examine, run_command

from fewstep import RectifiedFlow
from fewstep.cli import app
from fewstep.samplers.plan import make_plan

LONG, HUGE = "a" * 300, "9" * 20
QUICK = ["sample", "--seeds", "0", "--nfe", "2"]
TOY = ["search", "toy", "--nfe", "2", "--budget", "candidates=2", "--noises", "4,4,4"]
TOY += ["--strategy", "grid"]
RUN = '"model": "fashion-edm", "version": "0.1.0", '
RUNS = {
    '{%s"seeds": [0], "nfe": 1%s}' % (RUN, "0" * 20): "at most 10,000",  # noqa: UP031
    '{%s"seeds": "0-%s"}' % (RUN, HUGE): "at most 1,000,000",  # noqa: UP031
    '{%s"seeds": [0], "seeds": [1]}' % RUN: "the key 'seeds' twice",  # noqa: UP031
    '{%s"seeds": [0], "nfe": 2, "columns": -3}' % RUN: "columns",  # noqa: UP031
    '{%s"seeds": [0], "nfe": 2, "device": "meta"}' % RUN: "'meta' cannot be used",  # noqa: UP031
    '{%s"seeds": [0], "nfe": 2, "cfg_scale": 1e300}' % RUN: "within 1e+06",  # noqa: UP031
    "[" * 100_000: "nests too deeply",
}
REFUSED = [
    ([*QUICK, "--out", f"{LONG}.png"], "File name too long"),
    ([*QUICK, "--save-images", LONG], "File name too long"),
    (["sample", LONG], "no embedded network"),
    (["sample", "loop"], "no embedded network"),
    (["sample", "pipe"], "no embedded network"),
    *[
        ([*command, name], text)
        for command in (["sample", "--from-png"], ["sample", "--schedule"], ["invert"])
        for name, text in {
            "pipe": "is a pipe",
            "/dev/zero": "a device",
            "loop": "symbolic links",
            "dangling": "no such file",
        }.items()
    ],
    (["sample", "--from-png", "folder"], "is a folder"),
    (["sample", "--schedule", "folder"], "'folder/schedule.json': there is no such file"),
    (["invert", "folder"], "is a folder"),
    (["data", "fashion-mnist", "--path", "pipe", "--out", "d"], "is a pipe"),
    (["data", "fashion-mnist", "--path", "/dev/zero", "--out", "d"], "a device"),
    ([*QUICK, "--grid", "karras:rho=1e-300"], "grid 'karras'"),
    ([*QUICK, "--grid", "karras:rho=NaN"], "not a finite number"),
    ([*QUICK, "--cache", "pipe.json"], "no such file"),
    ([*QUICK, "--guidance", "linear-ag:file=pipe"], "is a pipe"),
    (["edit", "picture.png", "--to-class", "3", "--seed", HUGE], "--seed"),
    ([*TOY, "--seed", HUGE], "--seed"),
    (["bench", "command", "--repeats", "0"], "--repeats"),
    (["bench", "overhead", "--repeats", "0"], "--repeats"),
    (["bench", "overhead", "--steps", HUGE], "--steps"),
    (["bench", "inception", "--repeats", "0"], "--repeats"),
    (["bench", "cache", "--reference-nfe", "0"], "--reference-nfe"),
    (["bench", "accuracy", "--solver", "nope"], "no solver 'nope'"),
    (["bench", "accuracy", "--nfe", HUGE], "at most 10,000"),
    (["invert", "picture.png", "--nfe", HUGE], "at most 10,000"),
    (["search", "toy", "--nfe", HUGE, "--out", "s.json"], "at most 200 evaluations"),
    ([*TOY, "--out", "s.txt"], ".json"),
    (["search", "fashion-dit", "--nfe", "3", "--base", "nope", "--out", "s.json"], "no solver"),
    (["bench", "fid-nfe", "--floor", ""], "an empty string after --floor"),
    (["fit", "linear-ag", "--mask", ""], "an empty string after --mask"),
    ([*QUICK, "--device", ""], "an empty string after --device"),
    ([*TOY, "--log="], "an empty string after --log"),
    (["sample", "--nfe", "two"], "--nfe"),
    (["sample", "--nope"], "No such option"),
]


@pytest.fixture(autouse=True)
def _folder():
    with hostile_folder() as folder:
        yield folder


def check_refused(words, says):
    """Asserts exit code 2, one line that says so, and nothing written."""
    answer = examine(words, Path.cwd())
    assert (answer.fault, answer.code) == (None, 2), words
    assert says in answer.output, words


def test_what_once_hung_or_ended_in_a_traceback_is_one_line():
    for words, says in REFUSED:
        check_refused(words, says)


def test_runs_that_no_picture_should_carry():
    for text, says in RUNS.items():
        write_run(Path("in.png"), text)
        check_refused(["sample", "--from-png", "in.png"], says)


def test_what_a_search_remembers_may_be_anything():
    os.mkdir("s.search")
    for body in ("[]", "3", "[" * 100_000, '{"model": "toy", "model": "toy"}', '{"model": 1}'):
        Path("s.search/search.json").write_text(body)
        check_refused([*TOY, "--out", "s.json"], "")


FOLDERS = [
    ("config.json", {"_class_name": None}, "names no model class of diffusers"),
    ("config.json", {"_class_name": 5}, "names no model class of diffusers"),
    ("config.json", {"sample_size": 0}, "sides lie between 1 and 4096"),
    ("config.json", {"sample_size": -8}, "sides lie between 1 and 4096"),
    ("config.json", {"sample_size": 10**12}, "sides lie between 1 and 4096"),
    ("config.json", {"sample_size": "x"}, "cannot load 'net'"),
    ("config.json", {"layers_per_block": 10**9}, "tensors in all"),
    ("config.json", {"down_block_types": 3}, "cannot load 'net'"),
    ("scheduler_config.json", {"trained_betas": "abc"}, "does not hold what it should"),
    ("scheduler_config.json", {"num_train_timesteps": 10**12}, "at most 100,000 timesteps"),
    ("scheduler_config.json", {"beta_schedule": [1]}, "does not hold what it should"),
    ("scheduler_config.json", {"prediction_type": {}}, "no prediction"),
]
CARDS = {"shape": ["x", 1], "num_classes": "many", "schedule": {"family": [[]], "params": {}}}
CARDS |= {"null_class": [], "prediction": {}}


def test_folders_of_models_that_are_none():
    for name, change, says in FOLDERS:
        path = Path("net") / name
        kept = path.read_text()
        path.write_text(json.dumps(json.loads(kept) | change))
        check_refused(["sample", "net"], says)
        path.write_text(kept)
    for text in ("[" * 100_000, '{"_class_name": "UNet2DModel", "_class_name": "UNet2DModel"}'):
        (Path("net") / "config.json").write_text(text)
        check_refused(["sample", "net"], "cannot read")


def test_cards_whose_facts_are_none():
    weights = Path("net/diffusion_pytorch_model.safetensors").read_bytes()
    facts = {"sha256": hashlib.sha256(weights).hexdigest(), "name": "net", "prediction": "flow"}
    facts |= {"schedule": {"family": "flow", "params": {"time_scale": 1000.0}}}
    facts |= {"shape": [1, 8, 8], "num_classes": 0, "null_class": None}
    Path("net/card.json").write_text(json.dumps(facts))
    assert run_command(["sample", "net", "--seeds", "0", "--nfe", "2"]).exit_code == 0
    Path("samples.png").unlink()
    for name, value in CARDS.items():
        Path("net/card.json").write_text(json.dumps(facts | {name: value}))
        check_refused(["sample", "net"], "")


def test_every_command_says_its_errors_in_one_line():
    groups = [group.typer_instance for group in app.registered_groups]
    for each in (app, *groups):
        assert all(command.cls.__name__ == "OneLineCommand" for command in each.registered_commands)


def test_some_generated_inputs():
    tally = fuzz(30)
    assert not tally.faults, "\n".join([*tally.faults, str(tally)])


@pytest.mark.slow
def test_many_generated_inputs():
    tally = fuzz(600, start=1)
    assert not tally.faults, "\n".join([*tally.faults, str(tally)])


def test_planning_takes_time_in_proportion_to_the_steps():
    """Twice the steps take twice the lines of Python, whatever the solver."""
    for name in ("unipc-3", "sde-dpmpp-3", "sa-solver", "er-sde-3", "dpm-3m"):
        few, many = (count_lines(name, steps) for steps in (150, 300))
        assert many < 2.2 * few, name


def count_lines(name, steps):
    """Returns how many calls and lines of Python it takes to plan a run."""
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += 1
        return count

    sys.settrace(count)
    try:
        make_plan(RectifiedFlow(), name, steps=steps)
    finally:
        sys.settrace(None)
    return calls
