"""Measures grids and coordinates on networks, and chooses the default ones of named solvers.

    python recipes/choose_defaults.py NETWORK ... [--store FILE] [--nfe 5,8,10] [--noises 96]

A network is what `Sampler.from_pretrained` takes. The distance of a candidate is that from a
converged run (`fewstep.eval.experiments.distances`), with the range over three blocks of noises.
The store keeps what was measured, so that a run that was stopped goes on, and further networks are
added to the choice.

The rule, for each kind of process and number of evaluations: of the candidates that on no network
are more than CAP times as far away as the default of 0.1.0, those are taken whose ratio to the best
candidate of each network has a geometric mean over the networks within NEAR of the least; of
these, the one whose worst ratio to the default of 0.1.0 is least. What is chosen, and what is the
default today, then stands beside that of 0.1.0 in both columns: distances, and those of features
on networks whose images an extractor sees.
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import geometric_mean

from fewstep.eval.experiments.distances import (
    Distance,
    DistanceMeter,
    format_parts,
    open_distances,
)
from fewstep.models.arguments import parse_ranges
from fewstep.samplers.grid import choose_default_grid

CAP, NEAR = 1.2, 1.05
SOLVER = "unipc-2"  # as published; other coordinates are shown and not chosen
OLD = {
    "flow": ("unipc-2:coordinate=lam", "beta"),
    "vp": ("unipc-2", "quadratic"),
    "edm": ("unipc-2", "karras"),
}
CANDIDATES = {
    "flow": [
        *(("unipc-2", grid) for grid in ("beta", "beta:shift=1.5", "beta:shift=2")),
        *(("unipc-2", f"uniform:shift={shift}") for shift in (1.5, 2, 3)),
        *(("unipc-2", f"beta:alpha=0.8,beta=0.8,shift={shift}") for shift in (1.2, 1.5)),
        ("unipc-2", "beta:alpha=0.7,beta=0.7,shift=1.5"),
        *((f"unipc-2:coordinate={c}", "beta:shift=1.5") for c in ("t", "lam+.001", "lam+.1")),
    ],
    "vp": [
        *(("unipc-2", f"quadratic:start={start}") for start in (0.95, 0.9, 0.85)),
        *(("unipc-2", f"quadratic:start={start},end=0.01") for start in (0.95, 0.9)),
        ("unipc-2", "uniform"),
        *(("unipc-2", f"uniform:start={start}") for start in (0.95, 0.9, 0.85, 0.8)),
        *(("unipc-2", f"beta:alpha={a},beta={b}") for a, b in ((0.8, 0.8), (0.7, 0.7), (0.7, 0.9))),
        *(("unipc-2", grid) for grid in ("karras", "logsnr")),
    ],
    "edm": [
        *(("unipc-2", f"karras:start={start},end=0.02") for start in (80, 40)),
        *(("unipc-2", f"karras:start={start},end=0.05") for start in (80, 40)),
        *(("unipc-2", f"karras:start={start},end=0.1") for start in (80, 40)),
        *(("unipc-2", f"logsnr:start={start},end=0.1") for start in (80, 60, 40)),
        ("unipc-2", "karras:rho=14,end=0.1"),
    ],
}
Candidate = tuple[str, str]


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("networks", nargs="+", metavar="NETWORK")
    asked.add_argument("--store", type=Path, default=Path("defaults.jsonl"))
    asked.add_argument("--nfe", default="5,8,10")
    asked.add_argument("--noises", type=int, default=96)
    asked.add_argument("--seed", type=int, default=30_000, help="the first")
    options = asked.parse_args()
    store = open_distances(options.store)
    seeds = range(options.seed, options.seed + options.noises)
    meters = [DistanceMeter(name, seeds, store) for name in options.networks]
    for kind in dict.fromkeys(map(kind_of, meters)):
        mine = [each for each in meters if kind_of(each) == kind]
        for nfe in parse_ranges(options.nfe):
            print("\n".join(format_choice(kind, nfe, mine)), flush=True)


def kind_of(meter: DistanceMeter) -> str:
    """Returns the kind of process of a network: vp, edm or flow; all VP are one kind."""
    return meter.schedule.family.partition("-")[0]


def list_candidates(kind: str) -> list[Candidate]:
    """Returns what is compared on a kind of process, the default of 0.1.0 first."""
    return [OLD[kind], *CANDIDATES[kind]]


def format_choice(kind: str, nfe: int, meters: Sequence[DistanceMeter]) -> Iterator[str]:
    """Yields the table of a process at a budget, what the rule chooses from it, and its columns."""
    names, candidates = [meter.name for meter in meters], list_candidates(kind)
    rows = [[meter.measure(*each, nfe) for meter in meters] for each in candidates]
    yield f"\n## {kind}, {nfe} evaluations\n"
    yield "| solver | grid | " + " | ".join(names) + " | to the best | worst to 0.1.0 |"
    yield "|---|---|" + "---:|" * (len(names) + 2)
    means, worsts = rate(rows)
    for (solver, grid), row, mean, worst in zip(candidates, rows, means, worsts, strict=True):
        figures = " | ".join(map(str, row))
        yield f"| {solver} | {grid} | {figures} | {mean:.3f} | {worst:.3f} |"
    chosen = choose(candidates, means, worsts)
    yield f"\nchosen: {chosen or 'none, keep that of 0.1.0'}\n"
    today = choose_default_grid(meters[0].schedule, nfe)
    grids = dict.fromkeys(grid for grid in (chosen, today) if grid)
    yield from format_columns(meters, nfe, OLD[kind], list(grids))


def rate(rows: Sequence[Sequence[Distance]]) -> tuple[list[float], list[float]]:
    """Returns the geometric mean ratio of each candidate to the best, and the worst to the first.

    rows: one per candidate, a distance on each network.
    """
    best = [min(each.rms for each in column) for column in zip(*rows, strict=True)]
    means = [geometric_mean([a.rms / b for a, b in zip(row, best, strict=True)]) for row in rows]
    worsts = [max(a.rms / b.rms for a, b in zip(row, rows[0], strict=True)) for row in rows]
    return means, worsts


def choose(
    candidates: Sequence[Candidate], means: Sequence[float], worsts: Sequence[float]
) -> str | None:
    """Returns the grid that the rule chooses."""
    fair = [
        (mean, worst, grid)
        for (solver, grid), mean, worst in zip(candidates, means, worsts, strict=True)
        if solver == SOLVER and worst <= CAP
    ]
    near = [each for each in fair if each[0] <= NEAR * min(fair)[0]]
    return min(near, key=lambda each: each[1])[2] if near else None


def format_columns(
    meters: Sequence[DistanceMeter], nfe: int, old: Candidate, grids: Sequence[str]
) -> Iterator[str]:
    """Yields both columns of some grids beside the default of 0.1.0, network by network."""
    yield "| network | grid | distance | ratio to 0.1.0 | features | ratio to 0.1.0 |"
    yield "|---|---|---:|---:|---:|---:|"
    for meter in meters:
        first = meter.measure(*old, nfe, seen=True)
        for grid in grids:
            row = meter.measure(SOLVER, grid, nfe, seen=True)
            yield (
                f"| {meter.name} | {grid} | {row} | {row.rms / first.rms:.2f}"
                f" | {' | '.join(compare_features(row, first))} |"
            )


def compare_features(row: Distance, first: Distance) -> tuple[str, str]:
    """Returns the distance of features and its ratio to that of another run, where it is known."""
    if not row.features or not first.features:
        return "", ""
    ratio = math.sqrt(sum(row.features) / sum(first.features))
    return format_parts(row.features), f"{ratio:.2f}"


if __name__ == "__main__":
    main()
