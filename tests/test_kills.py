"""Long commands that are killed with -9 end, typed again, as if they had not been.

`make kills` does so sixty times, ten for each command at random moments, and prints the count.
"""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import time

import pytest
import torch
from safetensors import safe_open

from fewstep.cli import app
from fewstep.eval import calibrate, measure_statistics
from fewstep.eval.experiments import cache, fid_evaluator, fid_nfe, guidance
from fewstep.eval.search import command
from fewstep.models import load

pytestmark = pytest.mark.slow

IMPORTED = (
    cache,
    calibrate,
    fid_nfe,
    guidance,
    fid_evaluator,
    command,
    load,
    measure_statistics,
)
KILLS = int(os.environ.get("KILLS", "6"))
FRONT = "--images 2 --solver dpmpp-2m"
TAYLOR = "taylorseer:level=last-block,interval"
COMMANDS = {
    "search": "search fashion-dit --nfe 3 --strategy grid,fit,evolve,refine --teacher-nfe 6"
    " --budget candidates=16 --noises 4,2,2 --out three.json --quiet",
    "calibrate": f"calibrate fashion-dit {FRONT} --nfe 8 --cache {TAYLOR}=2 --cache {TAYLOR}=3"
    f" --cache {TAYLOR}=4 --quality rel-l2=0.9 --out cache.json --quiet",
    "stats": "stats fashion-dit --samples 2 --nodes 8 --out dit.safetensors",
    "fid-nfe": "bench fid-nfe --nfe 3-4 --n 30 --batch 10 --solver unipc-2 --rival euler --quiet",
    "cache": f"bench cache fashion-dit {FRONT} --cache {TAYLOR}=3 --steps 6,8 --baseline dpmpp-2m"
    " --budgets 3,4,5 --reference-nfe 20 --quiet",
    "guidance": f"bench guidance --model fashion-dit {FRONT} --cfg-scale 2 --steps 6,7,8 --quiet"
    " --guidance linear-ag:every=2,warmup=1 --reference-nfe 20 --fit-images 4",
}


def run(folder, words):
    """A child process that is at a command in a folder; it saves parts of cells at every batch."""

    def work():
        os.chdir(folder)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        fid_nfe.SAVE_EVERY = fid_nfe.SAVE_REST = 0.0
        torch.set_num_threads(1)
        app(words.split())

    child = multiprocessing.get_context("fork").Process(target=work)
    child.start()
    return child


def finish(folder, words):
    child = run(folder, words)
    child.join()
    assert child.exitcode == 0, words


def kill(folder, words, seconds):
    """Whether the command was killed after so many seconds, and not done before."""
    child = run(folder, words)
    child.join(seconds)
    alive = child.is_alive()
    child.kill()
    child.join()
    return alive


def facts(path):
    """What a file says, less the times and what was spent twice."""
    if path.suffix == ".jsonl":
        return sorted(json.dumps(row(json.loads(line))) for line in path.open())
    if path.name == "three.json":
        body = json.loads(path.read_text())
        body["provenance"].pop("budget")
        return body
    if path.suffix == ".safetensors":  # its header lists the metadata in an order of chance
        with safe_open(path, framework="np") as file:
            each = {key: hashlib.sha256(file.get_tensor(key)).hexdigest() for key in file.keys()}  # noqa: SIM118
            return [each, file.metadata()]
    return hashlib.sha256(path.read_bytes()).hexdigest()


def row(body):
    """Of a line of a store or of a log of trials, what is the same whenever it was measured."""
    if "protocol" not in body:
        return [body["id"], body["score"], body["strategy"], body["parent"]]
    return [body["hash"], body["value"], body["cost"]["rows"], body["cost"]["effective"]]


def digest(folder):
    """sha256 of what a command has found, and the names of all files that it has left.

    Half lines that were set aside do not count, nor pictures of the way.
    """
    paths = sorted(
        path for path in folder.rglob("*") if path.is_file() and path.suffix != ".broken"
    )
    named = {path.relative_to(folder).as_posix(): path for path in paths}
    said = {name: facts(path) for name, path in named.items() if path.suffix not in (".svg", ".pt")}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest(), list(named)


def tell(line):
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def test_killed_commands_end_as_if_they_had_not_been(tmp_path):
    chance, outcomes = random.Random(0), []
    for name, words in COMMANDS.items():
        whole = tmp_path / name
        whole.mkdir()
        start = time.monotonic()
        finish(whole, words)
        seconds, wanted = time.monotonic() - start, digest(whole)
        for i in range(-(-KILLS // len(COMMANDS))):
            folder = tmp_path / f"{name}-{i}"
            folder.mkdir()
            after = chance.uniform(0.0, seconds)
            while not kill(folder, words, after):
                after *= 0.8  # it was done before
                shutil.rmtree(folder)
                folder.mkdir()
            finish(folder, words)
            found = digest(folder)
            outcomes.append(found == wanted)
            left = sorted(set(found[1]) ^ set(wanted[1]))
            tell(
                f"{name}: killed after {after:.2f} of {seconds:.2f} s, {found[0][:12]} {left or ''}"
            )
    tell(f"{sum(outcomes)} of {len(outcomes)} resumed runs: same hash, no temporary file left")
    assert all(outcomes)
