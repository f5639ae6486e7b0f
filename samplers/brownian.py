"""One Brownian path for each seed: runs of any number of steps draw their noise from it.

A solver that follows an SDE tells by a clock C >= 0 how much noise there was up to a node: over a
step, noise is the increment of a path W(C). Its logarithm is what is passed around here.

Cells e^k <= C < e^(k+1) are independent of each other. A cell is cut in halves DEPTH times: in the
middle of an interval of length l, W is the mean of its ends plus z sqrt(l) / 2, and at a and b from
the ends of the shortest, it is where the chord is plus z sqrt(a b / l) (arXiv:2405.06464, without
the area). So an increment is a weighted sum of a few normals z, which depend on the seed and on
their place in the tree alone: every grid sees one path, whatever was asked before, and what is
remembered, the rows of the last places, does not grow.

A normal is the quantile of 16 bits of Philox (the seed is its key, the place its counter), scaled
to variance 1; it is at most 4.4 in size, and its law differs from the normal one by 1e-5.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cached_property, lru_cache
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models.errors import SettingError, UnknownNameError
from ..solvers import dry_run
from ..solvers.base import Span, list_spans
from .plan import Plan

DEPTH = 12
REACH = 34.0  # how far in ln C a step looks back; e^-17 of its noise is below float32
CELL = math.expm1(1.0)  # the length of a cell is e^k times that
STREAM = 0x62726F776E69616E  # the second word of every key, so that other uses have others
FRESH, BROWNIAN = "fresh", "brownian"
ROOM = DEPTH + 2  # normals that W at a place takes
TOO_SHORT = (
    f"steps are too short for noise=brownian, which tells a clock apart to 1 in {2**DEPTH:,}; take"
    " fewer steps, or fresh noise"
)

Place = tuple[int, int, int]  # of a normal: cell, depth, interval; depth -1 is the whole cell


class BrownianNoise:
    """Standard normal noise for a batch: row i of every draw is of the path of seeds[i] alone."""

    def __init__(self, seeds: Sequence[int], shape: tuple[int, ...]) -> None:
        self.shape, size = (len(seeds), *shape), math.prod(shape)
        self.streams = [np.random.Philox(key=np.array([s, STREAM], np.uint64)) for s in seeds]
        self.states, self.counter = [s.state for s in self.streams], np.zeros(4, np.uint64)
        for state in self.states:
            state["state"]["counter"] = self.counter  # one place for all seeds
        self.bits = np.zeros((len(seeds), -(-size // 4)), np.uint64)
        self.slots: dict[Place, int] = {}  # rows by what they hold, the least recently used first

    def draw(self, span: Span) -> Tensor:
        """Returns the increment over a span, of variance 1: float32 (len(seeds), *shape), on a CPU.

        Raises:
            SettingError: if its ends are too near for the path to tell them apart.
        """
        terms = list(weigh_increment(*span).items())
        noise = np.zeros(self.rows.shape[1], np.float32)
        for first in range(0, len(terms), ROOM):
            weights = np.zeros(len(self.rows), np.float32)
            for place, weight in terms[first : first + ROOM]:
                weights[self._find_row(place)] = weight
            noise += weights @ self.rows
        images = noise.reshape(len(self.bits), -1)[:, : math.prod(self.shape[1:])]
        return torch.from_numpy(images.reshape(self.shape))

    @cached_property
    def rows(self) -> NDArray[np.float32]:
        """The normals of the last places, for all images."""
        return np.zeros((2 * ROOM, 4 * self.bits.size), np.float32)

    def _find_row(self, place: Place) -> int:
        """Returns the row that holds the normals of a place, drawn unless it does already."""
        row = self.slots.pop(place, None)
        if row is None:
            full = len(self.slots) == len(self.rows)
            row = self.slots.pop(next(iter(self.slots))) if full else len(self.slots)
            self._fill(row, place)
        self.slots[place] = row
        return row

    def _fill(self, row: int, place: Place) -> None:
        cell, depth, interval = place
        self.counter[:] = 0, interval, depth + 1, cell % 2**64
        for bits, stream, state in zip(self.bits, self.streams, self.states, strict=True):
            stream.state = state
            bits[:] = stream.random_raw(len(bits))
        places = self.bits.reshape(-1).view(np.uint16)
        make_quantiles().take(places, out=self.rows[row], mode="clip")


@lru_cache(1)
def make_quantiles() -> NDArray[np.float32]:
    """Returns the 2^16 values of a normal, in rising order."""
    values = torch.special.ndtri((torch.arange(2**16, dtype=torch.float64) + 0.5) / 2**16)
    quantiles: NDArray[np.float32] = (values / values.square().mean().sqrt()).float().numpy()
    return quantiles


@lru_cache(1024)  # each batch asks for those of the plan again
def weigh_increment(start: float, end: float) -> dict[Place, float]:
    """Returns (W_end - W_start) / sqrt(C_end - C_start), C given by ln C, as weights of normals.

    Raises:
        SettingError: for two ends in one of the shortest intervals.
    """
    cell, start = math.floor(end), max(start, end - REACH)
    length = math.exp(end - cell) - math.exp(start - cell)
    if not length > 0.0:
        raise SettingError(TOO_SHORT)
    weights: dict[Place, float] = {}
    for k in range(math.floor(start), math.ceil(end)):
        low, high = (math.expm1(at - k) / CELL for at in (max(start, k), min(end, k + 1)))
        _check_apart(low, high)
        part = {place: -weight for place, weight in weigh_place(k, low)}  # in memory from before
        for place, weight in weigh_place(k, high):
            part[place] = part.get(place, 0.0) + weight
        scale = math.sqrt(CELL * math.exp(k - cell) / length)
        weights |= {place: scale * weight for place, weight in part.items() if weight}
    return weights


def _check_apart(low: float, high: float) -> None:
    """Raises SettingError for two shares of a cell within one of its shortest intervals."""
    inner, interval = math.modf(math.ldexp(low, DEPTH))
    if inner and math.floor(math.ldexp(high, DEPTH)) == interval:
        raise SettingError(TOO_SHORT)


def weigh_place(cell: int, share: float) -> Iterator[tuple[Place, float]]:
    """Yields W at a share of a cell, less that at its beginning, by the root of its length."""
    yield (cell, -1, 0), share
    for depth in range(DEPTH + 1):
        inner, interval = math.modf(math.ldexp(share, depth))
        if inner:
            last = depth == DEPTH
            hat = math.sqrt(inner * (1.0 - inner)) if last else min(inner, 1.0 - inner)
            yield (cell, depth, int(interval)), hat * 2.0 ** (-0.5 * depth)


def take_source(name: str, plan: Plan) -> bool:
    """Returns whether the noise of a plan's steps comes from Brownian paths.

    Raises:
        FewstepError: for any other name than fresh, or a plan that cannot draw from paths.
    """
    if name not in (FRESH, BROWNIAN):
        raise UnknownNameError("noise", name, (FRESH, BROWNIAN))
    if name == BROWNIAN:
        check_path(plan)
    return name == BROWNIAN


def check_path(plan: Plan) -> None:
    """Raises SettingError unless all noise of a plan can be drawn from Brownian paths."""
    name = "a schedule" if plan.settings is None else plan.settings.info.name
    asked = [] if plan.adaptive else dry_run(plan.solver, plan.grid.nodes)
    if not any(None in step for step in asked):
        raise SettingError(
            f"{name} adds no noise; drop noise=brownian, or take a stochastic solver such as"
            " sde-dpmpp-2"
        )
    reached = -math.inf
    for n, (step, (t, s)) in enumerate(zip(asked, pairwise(plan.grid.nodes), strict=True)):
        spans = list_spans(plan.solver, n, t, s)[: step.count(None)]
        if step.count(None) > len(spans) or any(start < reached for start, _ in spans[:1]):
            raise SettingError(
                f"the noise of {name} follows no Brownian path; drop noise=brownian, or take"
                " sde-dpmpp-2, sa-solver, er-sde-2 or euler-ancestral"
            )
        for span in spans:
            weigh_increment(*span)
            reached = span[1]
