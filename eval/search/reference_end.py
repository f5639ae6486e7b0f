"""The end of the reference: a last jump to the prediction, from where that looks best.

A network that is unsure near the data adds grain in many small steps there. So one short run of
some training noises is looked at: its predictions on the way are what runs would show that end in
one step from there, and each set of them has a Frechet distance to real images.
"""

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Self

import numpy as np
from pydantic import Field
from torch import Tensor

from ...models.files import hold_file, write_bytes
from ...models.ledger import Ledger
from ...models.load import embedded_names
from ...models.reading import StrictModel, load_kept
from ...models.registry import extend_spec
from ...models.schedule import Node
from ...models.weights import hash_weights
from ...samplers.grid import choose_default_grid, time_grid
from ...samplers.noise import Noise, draw_noise
from ...solvers.artefact import SCALE
from ...solvers.presets import preset, preset_names
from ..extractors.small import SMALL_CARDS, small_reference
from ..statistics import Moments, Statistics, frechet
from .fine_run import drive_teacher
from .objective import FeatureError
from .problem import Block, Problem

END_FILE, LOCK = "reference-end.json", "reference-end.lock"
NOISES, LEAST = 128, 96  # looked at, and the fewest that a distance of 64 features is made of
STEPS = 20
FARTHEST = 0.25  # sigma / alpha of the earliest jump
RESAMPLED = 100  # times; a distance takes milliseconds


class JudgedEnd(StrictModel):
    """A time from which the reference may jump, 0 for a run to the end, and how that looks.

    fd:   to real images.
    more: interval of 95 % of how much more that is than the run to the end has, over noises.
    """

    time: float
    fd: float
    more: tuple[float, float]


class ReferenceEnd(StrictModel):
    """The end of a reference, and what it was chosen from.

    time: of the last node before the end; 0 leaves that to the grid.
    judged: of the features of `extractor`, on so many noises; none where it was not measured.
    """

    time: Annotated[float, Field(ge=0.0)] = 0.0
    extractor: str | None = None
    noises: int = 0
    judged: tuple[JudgedEnd, ...] = ()

    @classmethod
    def load(cls, path: Path) -> Self | None:
        """Returns what a file keeps, if it is there; raises SettingError if it is damaged."""
        return load_kept(cls, path, "give another --log")

    def apply_to(self, problem: Problem) -> Problem:
        """Returns the problem whose teacher ends so."""
        if not self.time:
            return problem
        grid = end_grid(problem, self.time)
        return replace(problem, teacher=replace(problem.teacher, grid=grid))


def end_grid(problem: Problem, time: float) -> str:
    """Returns the default grid with its last node before the end at a time."""
    name = choose_default_grid(problem.network.schedule)
    return extend_spec(name, f"end={time:g}")


def keep_end(problem: Problem, features: FeatureError | None, folder: Path) -> ReferenceEnd:
    """Returns the end that a folder keeps, or finds it and keeps it there.

    A shipped schedule of the same network, weights and scale says what was measured for it. Where
    there is nothing to compare with, or too few noises, the run goes to the end.
    """
    real = find_real(problem, features)
    if features is None or real is None or len(problem.train) < LEAST:
        return ReferenceEnd()
    with hold_file(folder / LOCK):
        end = ReferenceEnd.load(folder / END_FILE)
        if end is None:
            end = find_shipped_end(problem, features) or measure_end(problem, features, real)
            write_bytes(folder / END_FILE, end.model_dump_json().encode())
        return end


def find_shipped_end(problem: Problem, features: FeatureError) -> ReferenceEnd | None:
    """Returns the end that was measured for a shipped schedule, if there is one."""
    name = problem.network.name
    mine = (name, hash_weights(name), problem.cfg_scale)
    for facts in (preset(each).provenance for each in preset_names()):
        theirs = (facts.get("model"), facts.get("weights"), facts.get(SCALE))
        if theirs == mine and facts.get("reference_end") is not None:
            end = ReferenceEnd.model_validate(facts["reference_end"], strict=False)
            if end.judged and end.extractor == features.extractor.name:
                return end
    return None


def find_real(problem: Problem, features: FeatureError | None) -> Statistics | None:
    """Returns the statistics of a network's own training images, if they come with the package."""
    if features is None or problem.network.name not in embedded_names():
        return None
    card = SMALL_CARDS.get(features.extractor.name)
    return None if card is None else small_reference(card)


def measure_end(problem: Problem, features: FeatureError, real: Statistics) -> ReferenceEnd:
    """Returns the end of the least distance, if that is less than 0 has beyond the interval."""
    noises = min(NOISES, len(problem.train))
    judged = _judge(_run(problem, noises), features, real)
    clear = [each for each in judged if each.more[1] < 0.0]
    best = min(clear, key=lambda each: each.fd, default=judged[0])
    return ReferenceEnd(
        time=best.time, extractor=features.extractor.name, noises=noises, judged=judged
    )


def _run(problem: Problem, noises: int) -> dict[float, Tensor]:
    """Returns the ends of a run, 0 first, by the time that they are jumped to from."""
    problem = replace(problem, ledger=Ledger())  # no part of what candidates cost
    seeds = tuple(problem.train[:noises])
    noise = draw_noise(Noise(seeds, problem.network.shape), problem.network.schedule)
    block = Block("train", seeds, problem.labels_of(seeds), noise, noise)
    schedule, jumps = problem.network.schedule, {}

    def predict(x: Tensor, node: Node) -> Tensor:
        (x0,) = problem.answers(block, x, node, None)
        if node.sigma <= FARTHEST * node.alpha:
            jumps[float(f"{node.t:.2g}")] = x0
        return x0

    grid = time_grid(choose_default_grid(schedule), schedule, STEPS)
    return {0.0: drive_teacher(grid, noise, predict)[-1], **jumps}


def _judge(
    ends: dict[float, Tensor], features: FeatureError, real: Statistics
) -> tuple[JudgedEnd, ...]:
    seen = [features.extract(x) for x in ends.values()]
    drawn = np.random.default_rng(0).integers(len(seen[0]), size=(RESAMPLED, len(seen[0])))
    again = np.array([[_distance(each[rows], real) for each in seen] for rows in drawn])
    low, high = np.quantile(again - again[:, :1], [0.025, 0.975], axis=0)
    rows = zip(ends, seen, low, high, strict=True)
    return tuple(
        JudgedEnd(time=time, fd=_distance(each, real), more=(least, most))
        for time, each, least, most in rows
    )


def _distance(seen: Tensor, real: Statistics) -> float:
    moments = Moments(seen.shape[1])
    moments.update(seen)
    return frechet(moments.statistics(real.origin), real)
