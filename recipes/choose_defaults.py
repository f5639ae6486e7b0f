"""Measures grids and coordinates on networks, and chooses the default ones of named solvers.

    python recipes/choose_defaults.py NETWORK ... [--store FOLDER] [--nfe 5,8,10] [--noises 96]

A network is what `Sampler.from_pretrained` takes. The distance of a candidate is the root mean
square difference of its samples from those of REFERENCE on the same noises, classes in turn and
without guidance; the interval is that over three blocks of seeds. The store keeps what was
measured, so that a run that was stopped goes on, and further networks are added to the choice.

The rule, for each kind of process and number of evaluations: of the candidates that on no network
are more than CAP times as far away as the default of 0.1.0, those are taken whose ratio to the best
candidate of each network has a geometric mean over the networks within NEAR of the least; of
these, the one whose worst ratio to the default of 0.1.0 is least.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import geometric_mean
from typing import Any

from torch import Tensor

from fewstep import Sampler
from fewstep.eval.line_file import LineFile
from fewstep.eval.teacher import compute_digest, teacher
from fewstep.models.arguments import parse_ranges
from fewstep.models.files import make_folder
from fewstep.models.reading import StrictModel

CAP, NEAR = 1.2, 1.05
SOLVER = "unipc-2"  # as published; other coordinates are shown and not chosen
BLOCKS = 3
REFERENCE = {"solver": "unipc-3", "nfe": 100}  # on the grid of 0.1.0
OLD = {
    "flow": ("unipc-2:coordinate=lam", "beta"),
    "vp": ("unipc-2", "quadratic"),
    "edm": ("unipc-2", "karras"),
}
CANDIDATES = {
    "flow": [
        *(("unipc-2", grid) for grid in ("beta", "beta:shift=1.5", "beta:shift=2")),
        *(("unipc-2", f"uniform:shift={shift}") for shift in (1.5, 2, 3)),
        *((f"unipc-2:coordinate={c}", "beta:shift=1.5") for c in ("t", "lam+.001", "lam+.1")),
    ],
    "vp": [
        *(("unipc-2", f"quadratic:start={start}") for start in (0.95, 0.9, 0.85)),
        *(("unipc-2", f"quadratic:start={start},end=0.01") for start in (0.95, 0.9)),
        ("unipc-2", "uniform"),
        *(("unipc-2", f"uniform:start={start}") for start in (0.95, 0.9, 0.85, 0.8)),
    ],
    "edm": [
        *(("unipc-2", f"karras:start={start},end=0.02") for start in (80, 40)),
        *(("unipc-2", f"karras:start={start},end=0.05") for start in (80, 40)),
        *(("unipc-2", f"karras:start={start},end=0.1") for start in (80, 40)),
    ],
}
Candidate = tuple[str, str]


class Distance(StrictModel):
    """The mean square difference of each noise's sample from the reference.

    reference: digest of the reference samples, which tells the network and the noises.
    """

    network: str
    process: str
    reference: str
    solver: str
    grid: str
    nfe: int
    squares: tuple[float, ...]

    @property
    def rms(self) -> float:
        return math.sqrt(sum(self.squares) / len(self.squares))

    def __str__(self) -> str:
        size = len(self.squares) // BLOCKS
        blocks = (self.squares[i * size : (i + 1) * size] for i in range(BLOCKS))
        each = [math.sqrt(sum(block) / size) for block in blocks]
        return f"{self.rms:.4f} ({min(each):.4f}..{max(each):.4f})"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("networks", nargs="+", metavar="NETWORK")
    asked.add_argument("--store", type=Path, default=Path("defaults"), help="a folder")
    asked.add_argument("--nfe", default="5,8,10")
    asked.add_argument("--noises", type=int, default=96)
    asked.add_argument("--seed", type=int, default=30_000, help="the first")
    options = asked.parse_args()
    make_folder(options.store)
    seeds = range(options.seed, options.seed + options.noises)
    found: list[Distance] = []
    for name in options.networks:
        found += measure_network(name, parse_ranges(options.nfe), seeds, options.store)
    for kind, nfe in sorted({(kind_of(each.process), each.nfe) for each in found}):
        rows = [each for each in found if (kind_of(each.process), each.nfe) == (kind, nfe)]
        print("\n".join(format_choice(kind, nfe, rows)), flush=True)


def measure_network(
    name: str, budgets: Sequence[int], seeds: range, folder: Path
) -> Iterator[Distance]:
    """Yields the distance of each candidate at each budget, measured or from the store."""
    sampler = Sampler.from_pretrained(name)
    process, classes = sampler.network.schedule.family, sampler.network.num_classes
    old, *others = list_candidates(kind_of(process))
    labels = [seed % classes for seed in seeds] if classes else None
    call: dict[str, Any] = {**REFERENCE, "grid": old[1], "class_labels": labels, "batch": 64}
    reference = teacher(sampler.network, seeds, cache=folder, **call)
    store = LineFile(folder / "distances.jsonl", Distance)
    digest = compute_digest(reference)
    known = {key_of(each): each for _, each in store.read() if isinstance(each, Distance)}
    for nfe in budgets:
        for solver, grid in (old, *others):
            key = (digest, solver, grid, nfe)
            if key not in known:
                samples = sampler(
                    seeds, class_labels=labels, solver=solver, grid=grid, nfe=nfe, batch=64
                ).samples
                squares = square_each(samples, reference)
                facts = {"network": name, "process": process, "reference": digest}
                facts |= {"solver": solver, "grid": grid, "nfe": nfe, "squares": squares}
                known[key] = Distance.model_validate(facts)
                with store.lock():
                    store.append([known[key].model_dump_json()])
            yield known[key]


def kind_of(process: str) -> str:
    """Returns the kind of process a family belongs to: vp, edm or flow; all VP are one kind."""
    return process.partition("-")[0]


def list_candidates(kind: str) -> list[Candidate]:
    """Returns what is compared on a kind of process, the default of 0.1.0 first."""
    return [OLD[kind], *CANDIDATES[kind]]


def key_of(each: Distance) -> tuple[str, str, str, int]:
    return each.reference, each.solver, each.grid, each.nfe


def square_each(samples: Tensor, reference: Tensor) -> tuple[float, ...]:
    """Returns the mean square difference of each sample."""
    squares: list[float] = (samples - reference).flatten(1).square().mean(1).tolist()
    return tuple(squares)


def format_choice(kind: str, nfe: int, rows: Sequence[Distance]) -> Iterator[str]:
    """Yields the table of a process at a budget, and what the rule chooses from it."""
    networks = list(dict.fromkeys(each.network for each in rows))
    by = {(each.network, each.solver, each.grid): each for each in rows}
    best = {name: min(each.rms for each in rows if each.network == name) for name in networks}
    yield f"\n## {kind}, {nfe} evaluations\n"
    yield "| solver | grid | " + " | ".join(networks) + " | to the best | worst to 0.1.0 |"
    yield "|---|---|" + "---:|" * (len(networks) + 2)
    fair: list[tuple[float, float, str]] = []
    candidates = list_candidates(kind)
    for solver, grid in candidates:
        each = [by[name, solver, grid] for name in networks]
        mean = geometric_mean(one.rms / best[one.network] for one in each)
        worst = max(one.rms / by[(one.network, *candidates[0])].rms for one in each)
        figures = " | ".join(map(str, each))
        yield f"| {solver} | {grid} | {figures} | {mean:.3f} | {worst:.3f} |"
        if solver == SOLVER and worst <= CAP:
            fair.append((mean, worst, grid))
    near = [each for each in fair if each[0] <= NEAR * min(fair)[0]]
    choice = min(near, key=lambda each: each[1])[2] if near else "none, keep that of 0.1.0"
    yield f"\nchosen: {choice}"


if __name__ == "__main__":
    main()
