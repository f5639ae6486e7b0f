"""Bad inputs by the thousand: options, files and arguments as nobody means them (`make fuzz`).

Every example is one command, or one call of a public function, in a folder of its own. Right is a
result, or a refusal: exit code 2, one line and nothing written; a `FewstepError` from Python. Kinds
that were once taken in silence must be refused.
"""

import argparse
import copy
import json
import os
import shutil
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hostile import SECONDS, TooSlow, examine, limit
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from fewstep import EDM, RectifiedFlow, Schedule, SolverScheduler, __version__, from_module
from fewstep.models.errors import FewstepError
from fewstep.samplers.grid import time_grid
from fewstep.samplers.plan import make_plan
from fewstep.solvers import solver

LONG, HUGE = "x" * 300, "9" * 20
NUMBERS: list[Any] = [0, -1, 10**20, -(10**20), 1e39, 1e300, 1e-300, -1.5, 0.0, 2.5, 10**400]
VALUES: list[Any] = [*NUMBERS, None, True, "", "x", LONG, "nan", [], {}, [[]], [1e300], {"a": 1}]
TEXTS = ["x", "0", "-1", HUGE, "1e39", "nan", "inf", "-inf", "1e-300", "1.5", "null", "[1]", "{}"]
TEXTS += [":", ",", "+", "=", "a=b", "0-" + HUGE, "5-3", "a\0b", "\x1b[31m", "é", LONG, "-", " "]
TEXTS += ["pipe", "/dev/zero", "/dev/null", "loop", "dangling", "folder", "text.txt", "no/such"]
SPECS = ["karras:rho=", "beta:alpha=", "polyexponential:rho=", "uniform:", "unipc-2:order="]
SPECS += ["unipc-2:lower_order_final=", "heun:s_churn=", "sa-solver:tau=", "cfg:scale=", "nope:a="]
SPECS += ["taylorseer:interval=", "cfg:scale=2+interval:low=", "adaptive:threshold=", "pag:scale="]
SPECS += ["dpm-solver-v3:stats=", "linear-ag:file=", "evodiff:", "ode-dopri5:rtol=", "rf-edit:"]

SMALL = ["--seeds", "0", "--nfe", "2"]
TOY = ["search", "toy", "--budget", "candidates=2", "--noises", "4,4,4", "--strategy", "grid"]
COMMANDS: dict[tuple[str, ...], str] = {
    ("sample", *SMALL): "solver steps grid times final schedule seed classes per-class cfg-scale"
    " cfg-interval guidance threshold cache batch dtype device out save-images from-png nfe",
    (*TOY, "--nfe", "2"): "objective budget cfg-scale seed out log noises scored free afs base"
    " grid plot strategy",
    ("invert", "picture.png", "--nfe", "2"): "class solver steps grid t-min out strip device model",
    ("edit", "picture.png", "--to-class", "3"): "from-class to-class editor seed out strip device"
    " model",
    ("bench", "accuracy", "--solver", "ddim"): "solver nfe",
    ("bench", "fid-nfe", "--n", "0"): "solver rival grid final nfe cfg-scale guidance cache"
    " metric reference floor blocks batch dtype sweep parts weights device store table plot html",
    ("bench", "table", "text.txt"): "table plot html",
    ("bench", "overhead", "--repeats", "0"): "steps repeats",
    ("calibrate", "fashion-dit", "--images", "1"): "solver nfe quality cache guidance saving out"
    " grid cfg-scale plot device",
    ("stats", "fashion-dit", "--samples", "0", "--out", "s.safetensors"): "data nodes cfg-scale"
    " seed batch device out",
    ("fid", "folder"): "reference metrics extractor weights n reference-n batch device",
    ("list",): "",
}


@dataclass
class Tally:
    """What came of the examples.

    faults: what is wrong, with the example.
    """

    examples: int = 0
    tracebacks: int = 0
    silent: int = 0
    slow: int = 0
    others: int = 0
    faults: list[str] = field(default_factory=list)

    def count(self, example: str, fault: str | None) -> None:
        """Counts an example and its fault, if it has one."""
        self.examples += 1
        if fault is None:
            return
        self.faults.append(f"{example}: {fault}")
        self.tracebacks += fault.startswith("traceback")
        self.silent += fault.startswith("silent")
        self.slow += fault.startswith("over")
        self.others += not fault.startswith(("traceback", "silent", "over"))

    def __str__(self) -> str:
        slow = f"{self.slow} over" if self.slow else "none over"
        others = f", {self.others} refused in another way than they should be" * bool(self.others)
        return (
            f"Fuzz: {self.examples:,} generated bad inputs, {self.tracebacks} tracebacks,"
            f" {self.silent} silent acceptances of the listed kinds, {slow} {SECONDS:g} s{others}"
        )


# --- what is generated


@st.composite
def typed(draw: st.DrawFn) -> tuple[list[str], bool]:
    """A command with one or two bad options; and whether it must be refused."""
    words, named = draw(st.sampled_from(sorted(COMMANDS.items())))
    options, extra = named.split(), list[str]()
    values = st.sampled_from(TEXTS) | st.text(max_size=8)
    specs = st.tuples(st.sampled_from(SPECS), values).map("".join)
    empty = False
    for option in draw(st.lists(st.sampled_from(options or ["help"]), min_size=1, max_size=2)):
        value = draw(values | specs | st.just(""))
        extra += [f"--{option}", value] if options else [draw(values)]
        empty |= value == "" and bool(options)
    return [*words, *extra], empty


@st.composite
def mutated(draw: st.DrawFn, body: Any) -> str:
    """JSON text with something wrong in it: a value, a key, a key twice, a byte."""
    body = copy.deepcopy(body)
    places = list(_places(body))
    holder, key = draw(st.sampled_from(places))
    how = draw(st.sampled_from(["value", "value", "value", "gone", "more", "twice", "cut", "byte"]))
    if how == "value":
        holder[key] = draw(st.sampled_from(VALUES))
    elif how == "gone":
        del holder[key]
    elif how == "more" and isinstance(holder, dict):
        holder[draw(st.text(max_size=5))] = draw(st.sampled_from(VALUES))
    text = json.dumps(body)
    at = draw(st.integers(0, max(0, len(text) - 1)))
    if how == "twice":
        return _twice(text)
    if how == "cut":
        return text[:at]
    return (
        text[:at] + draw(st.characters(codec="latin-1")) + text[at + 1 :] if how == "byte" else text
    )


def _places(body: Any) -> Iterator[tuple[Any, Any]]:
    for key in body.keys() if isinstance(body, dict) else range(len(body)):
        yield body, key
        if isinstance(body[key], dict | list):
            yield from _places(body[key])


def _twice(text: str) -> str:
    """The object with its first key once more at its end."""
    key, value = next(iter(json.loads(text).items()))
    return f"{text[:-1]}, {json.dumps(key)}: {json.dumps(value)}}}"


SCHEDULE = json.loads(solver("unipc-2").encode(time_grid("uniform", RectifiedFlow(), 3)).dump())
RUN = {"model": "fashion-edm", "solver": "ddim", "nfe": 2, "seeds": [0], "classes": [3]}
RUN |= {"cfg_scale": 1.5, "batch": 2, "version": __version__, "columns": 1, "final": "zero"}
CACHE = {"version": 1, "cache": "taylorseer:interval=2", "network": "fashion-dit", "nfe": 2}
CACHE |= {"solver": "ddim", "metric": "rel-l2", "wanted": 0.1}
CACHE |= {"figures": {"effective": 1.0, "quality": 0.1, "images": 4}}
MEMORY = {"model": "toy", "cfg_scale": 1.0, "labels": [], "objective": "terminal", "scored": 4}
SWEEP = {"metric": "fd-small", "n": 2, "entries": [{"models": ["fashion-dit"], "nfe": "2"}]}


@st.composite
def damaged(draw: st.DrawFn) -> tuple[str, str, list[str], bool]:
    """A file by name, what is in it, the command that reads it, and whether it must refuse."""
    kind = draw(st.sampled_from(["schedule", "run", "cache", "memory", "sweep", "newer", "null"]))
    if kind in ("newer", "null"):
        change: dict[str, Any] = {"version": "99.0"} if kind == "newer" else {"classes": [10]}
        return "in.png", json.dumps(RUN | change), ["sample", "--from-png", "in.png"], True
    body, name, words = {
        "schedule": (SCHEDULE, "s.json", ["sample", "--seeds", "0", "--schedule", "s.json"]),
        "run": (RUN, "in.png", ["sample", "--from-png", "in.png"]),
        "cache": (
            CACHE,
            "c.json",
            ["sample", "fashion-dit", *SMALL, "--solver", "ddim", "--cache", "c.json"],
        ),
        "memory": (MEMORY, "s.search/search.json", [*TOY, "--nfe", "2", "--out", "s.json"]),
        "sweep": (SWEEP, "w.json", ["bench", "fid-nfe", "--sweep", "w.json"]),
    }[kind]
    text = draw(mutated(body))
    return name, text, words, text == _twice(json.dumps(body))


@st.composite
def broken(draw: st.DrawFn) -> tuple[list[str], str, bytes]:
    """A command, and a binary file that it reads with bytes changed or cut off."""
    words, name = draw(st.sampled_from(BINARY))
    body = bytearray((_models() / name).read_bytes())
    for _ in range(draw(st.integers(1, 3))):
        body[draw(st.integers(0, min(len(body), 4096) - 1))] = draw(st.integers(0, 255))
    cut = draw(st.sampled_from([None, None, 0, 1, 8, 100, len(body) // 2]))
    return words, name, bytes(body[:cut])


BINARY: list[tuple[list[str], str]] = [
    (["invert", "picture.png", "--nfe", "2"], "picture.png"),
    (["sample", "--from-png", "run.png"], "run.png"),
    (["sample", "net", *SMALL], "net/diffusion_pytorch_model.safetensors"),
    (["sample", "net", *SMALL], "net/config.json"),
    (["fid", "images.npz", "--reference", "images.npz", "--extractor", "small"], "images.npz"),
    (
        ["sample", "fashion-dit", *SMALL, "--solver", "dpm-solver-v3:stats=stats.safetensors"],
        "stats.safetensors",
    ),
]


@st.composite
def folders(draw: st.DrawFn) -> tuple[str, str]:
    """A JSON file of a model's folder, and what is wrong in it."""
    name = draw(st.sampled_from(["config.json", "scheduler_config.json"]))
    return name, draw(mutated(json.loads((_models() / "net" / name).read_text())))


def _call_plan(draw: st.DrawFn) -> Callable[[], Any]:
    names = st.sampled_from(["solver", "nfe", "steps", "grid", "final"])
    given_ = draw(
        st.dictionaries(names, st.sampled_from([*VALUES, "ddim", "heun", [1.0, 0.5, 0.0]]))
    )
    return lambda: make_plan(RectifiedFlow(), **given_)


def _call_grid(draw: st.DrawFn) -> Callable[[], Any]:
    name = draw(st.sampled_from(["uniform", "quadratic", "beta", "karras", "logsnr", "nope"]))
    more = draw(st.dictionaries(st.sampled_from(["rho", "alpha", "x"]), st.sampled_from(VALUES)))
    steps = draw(st.sampled_from([3, *VALUES]))
    return lambda: time_grid(name, EDM(), steps, **more)


def _call_parse(draw: st.DrawFn) -> Callable[[], Any]:
    text = draw(mutated(SCHEDULE))
    return lambda: Schedule.parse(text)


def _call_module(draw: st.DrawFn) -> Callable[[], Any]:
    facts = {"shape": (1, 4, 4), "prediction": "x0", "schedule": EDM(time_label="sigma")}
    names = st.sampled_from([*facts, "num_classes", "null_class", "name"])
    facts |= draw(st.dictionaries(names, st.sampled_from(VALUES), max_size=2))
    return lambda: from_module(lambda x, time: x, **facts)


def _call_config(draw: st.DrawFn) -> Callable[[], Any]:
    config = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}
    config |= {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000, "trained_betas": None}
    config |= {"prediction_type": "epsilon"}
    config |= draw(st.dictionaries(st.sampled_from(sorted(config)), st.sampled_from(VALUES)))
    return lambda: SolverScheduler.from_config(config, solver="ddim").set_timesteps(3)


CALLS = [_call_plan, _call_grid, _call_parse, _call_module, _call_config]


@st.composite
def calls(draw: st.DrawFn) -> tuple[str, Callable[[], Any]]:
    """A call of a public function with arguments of any kind."""
    make = draw(st.sampled_from(CALLS))
    return make.__name__, make(draw)


# --- what is run


def find_call_fault(call: Callable[[], Any]) -> str | None:
    """Returns what is wrong with how a function refuses, None if nothing is."""
    try:
        with limit():
            call()
    except FewstepError:
        return None
    except TooSlow:
        return f"over {SECONDS:g} s"
    except Exception as error:
        return "traceback: " + "".join(traceback.format_exception(error))[-900:]
    return None


@contextmanager
def hostile_folder() -> Iterator[Path]:
    """A folder to be in, with what is no ordinary file and a picture, a network and others."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copytree(_models(), folder, dirs_exist_ok=True)
        os.mkfifo(folder / "pipe")
        (folder / "loop").symlink_to("loop")
        (folder / "dangling").symlink_to("nowhere")
        (folder / "folder").mkdir()
        (folder / "text.txt").write_text("a thesis\n")
        os.chdir(folder)
        try:
            yield folder
        finally:
            os.chdir(before)


def find_command_fault(words: list[str], must_refuse: bool = False) -> str | None:
    """Returns what is wrong with a command in the folder that this process is in.

    One that takes too long is tried again: others may have had the processor.
    """
    answer = examine(words, Path.cwd())
    if answer.fault is not None and answer.fault.startswith("over"):
        answer = examine(words, Path.cwd())
    if answer.fault is None and must_refuse and answer.code == 0:
        return "silent: taken without a word"
    return answer.fault


def try_typed(example: tuple[list[str], bool]) -> str | None:
    words, must_refuse = example
    with hostile_folder():
        return find_command_fault(words, must_refuse)


def try_damaged(example: tuple[str, str, list[str], bool]) -> str | None:
    name, text, words, must_refuse = example
    with hostile_folder() as folder:
        (folder / name).parent.mkdir(exist_ok=True)
        if name.endswith(".png"):
            write_run(folder / name, text)
        else:
            (folder / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        return find_command_fault(words, must_refuse)


def try_broken(example: tuple[list[str], str, bytes]) -> str | None:
    words, name, body = example
    with hostile_folder() as folder:
        (folder / name).write_bytes(body)
        return find_command_fault(words)


def try_folder(example: tuple[str, str]) -> str | None:
    name, text = example
    with hostile_folder() as folder:
        (folder / "net" / name).write_text(text, encoding="utf-8")
        return find_command_fault(["sample", "net", *SMALL])


def try_call(example: tuple[str, Callable[[], Any]]) -> str | None:
    fault = find_call_fault(example[1])
    return find_call_fault(example[1]) if fault and fault.startswith("over") else fault


PARTS: list[tuple[int, Callable[[], Any], Callable[[Any], str | None]]] = [
    (8, typed, try_typed),
    (5, damaged, try_damaged),
    (3, broken, try_broken),
    (2, folders, try_folder),
    (6, calls, try_call),
]


def fuzz(examples: int, start: int = 0) -> Tally:
    """Tries about so many examples, the same for the same start."""
    tally, shares = Tally(), sum(share for share, _, _ in PARTS)
    for share, strategy, attempt in PARTS:
        most = settings(
            max_examples=-(-examples * share // shares),
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        seed(start)(most(given(strategy())(_counter(tally, attempt))))()
    return tally


def _counter(tally: Tally, attempt: Callable[[Any], str | None]) -> Callable[[Any], None]:
    def one(example: Any) -> None:
        tally.count(repr(example)[:300], attempt(example))

    return one


# --- what lies in the folder


def write_run(path: Path, text: str) -> None:
    """Writes a picture that carries this text as its run."""
    chunks = PngInfo()
    chunks.add_text("fewstep", text.encode("utf-8", "replace").decode())
    Image.new("L", (4, 4)).save(path, pnginfo=chunks)


_KEPT: list[tempfile.TemporaryDirectory[str]] = []


def _models() -> Path:
    """A folder with a picture, a run, a tiny network, images and statistics, made once."""
    if not _KEPT:
        _KEPT.append(tempfile.TemporaryDirectory())
        _make(Path(_KEPT[0].name))
    return Path(_KEPT[0].name)


def _make(folder: Path) -> None:
    import numpy as np
    import torch
    from diffusers import DDPMScheduler, UNet2DModel
    from safetensors.torch import save_file

    Image.new("L", (32, 32), 90).save(folder / "picture.png")
    write_run(folder / "run.png", json.dumps(RUN))
    unet = UNet2DModel(
        sample_size=8,
        in_channels=1,
        out_channels=1,
        layers_per_block=1,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    unet.save_pretrained(folder / "net")
    DDPMScheduler().save_pretrained(folder / "net")
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 1), np.uint8)
    np.savez(folder / "images.npz", pixels)
    tables = {name: torch.zeros(2) for name in "lsb"} | {"lam": torch.tensor([-5.0, 5.0])}
    save_file(tables, folder / "stats.safetensors", {"facts": "{}"})


def main() -> None:
    """Prints every fault and the count."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--examples", type=int, default=3000)
    parser.add_argument("--start", type=int, default=0)
    chosen = parser.parse_args()
    tally = fuzz(chosen.examples, chosen.start)
    sys.stdout.write("\n".join([*tally.faults, f"{tally}\n"]))
    sys.exit(bool(tally.faults))


if __name__ == "__main__":
    main()
