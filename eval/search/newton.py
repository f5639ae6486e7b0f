"""Gauss-Newton on a canonical table: all its weights and evaluation times at once, no gradients.

Where a run ends is a function of the numbers of its table. What each of them does to the end is
found forwards, beside the run: a weight of row n moves state n by its column; a time moves the
prediction that is asked for there; and what moves a state moves the predictions at it by a
difference of two network calls. With J those sensitivities and r = ends - teacher's ends,

    (J^T J + mu diag(J^T J)) step = -J^T r                                (Levenberg-Marquardt).

One such step costs about N^2 / 2 times as many network rows as a run of N evaluations, and does
what hundreds of steps of gradient descent do.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ...models.denoiser import Branch
from ...models.schedule import Node
from ...solvers import Schedule
from ...solvers.artefact import Artefact
from ...solvers.prediction_functions import read_function
from ...solvers.table import Table
from .canonical import make_canonical, rows_of, schedule_of, times_of
from .coordinate import Coordinate
from .problem import Block, Problem

NUDGE = 1e-2  # of a state in the direction of a tangent, relative to the state's size
DIFFERENCE = 1e-3  # of an evaluation time, as a share of the range
APART = 1e-3  # of the range, between the start and the next node
REACH = 0.05  # an evaluation time moves by so much of the range in one step at most
NUMBERS = 1 << 27  # of sensitivities that are held at once: half a gigabyte


@dataclass(frozen=True, eq=False)
class TablePoint:
    """A table as numbers that can be moved.

    A run starts from the same noise where it is evaluated first, so the first time moves its start.

    base:  the schedule whose times it has, but for that.
    table: what is moved, in its canonical form.
    u:     (N,) float64, evaluation times in the search's coordinate.
    rows:  N rows of weights, of the columns there are by then, the first of which is the noise as
           the base scales it.
    """

    base: Artefact
    table: Table
    u: Tensor
    rows: tuple[Tensor, ...]

    @classmethod
    def of(cls, schedule: Artefact) -> "TablePoint":
        """Returns the point of a schedule; times at the rim of the process are moved inside."""
        table, coordinate = make_canonical(schedule), Coordinate(schedule.process.schedule())
        places = [coordinate.clamp(coordinate.schedule.at(t)) for t in times_of(schedule)]
        rows = tuple(torch.tensor(row, dtype=torch.float64) for row in rows_of(table))
        return cls(schedule, table, torch.tensor(places, dtype=torch.float64), rows)

    @cached_property
    def coordinate(self) -> Coordinate:
        return Coordinate(self.base.process.schedule())

    @property
    def asks(self) -> list[int]:
        """The steps that evaluate the network: all, or all but the first."""
        return [n for n, each in enumerate(self.table.evaluations) if each is not None]

    @property
    def start(self) -> Node:
        """The node that a run starts at."""
        if 0 not in self.asks:
            return self.table.nodes[0]
        return self.coordinate.schedule.at(self.coordinate.time(float(self.u[0])))

    def stretch(self, start: Node) -> float:
        """Returns the scale of the noise at a start, relative to that of the base."""
        schedule = self.coordinate.schedule
        return schedule.noise_scale(start) / schedule.noise_scale(self.table.nodes[0])

    @property
    def times(self) -> list[int]:
        """The places of evaluation times among the numbers."""
        places, place = [], 0
        for n, row in enumerate(self.rows):
            places += [place] if n in self.asks else []
            place += len(row) + (n in self.asks)
        return places

    def branches(self, n: int) -> tuple[Branch, ...] | None:
        """Returns what step n evaluates into columns; None leaves it to the guidance."""
        each = self.table.evaluations[n]
        return each.branches or None if each else None

    def move(self, step: Tensor) -> "TablePoint":
        """Returns the point a step away; its numbers are in the order of `Sensitivities`."""
        low, high = self.coordinate.ends
        u, rows, place = self.u.clone(), [], 0
        first = self.coordinate.of(self.table.nodes[1]) - APART * (high - low)
        for n, row in enumerate(self.rows):
            if n in self.asks:
                reach = REACH * (high - low)
                most = high if n else max(min(high, first), low)
                u[n] = (u[n] + step[place].clamp(-reach, reach)).clamp(low, most)
                place += 1
            rows.append(row + step[place : place + len(row)])
            place += len(row)
        return replace(self, u=u, rows=tuple(rows))

    def schedule(self) -> Schedule:
        """Returns the schedule that runs the moved table."""
        nodes = [self.coordinate.schedule.at(self.coordinate.time(float(u))) for u in self.u]
        evaluations = [
            each and each._replace(node=node)
            for each, node in zip(self.table.evaluations, nodes, strict=True)
        ]
        stretch = self.stretch(self.start)
        rows = [[first / stretch, *rest] for first, *rest in map(Tensor.tolist, self.rows)]
        grid = replace(self.base.grid(), nodes=(self.start, *self.table.nodes[1:]))
        given, functions = self.table.given, self.table.functions
        return schedule_of(rows, grid, evaluations, given, functions=functions)


def find_shares(schedule: Artefact) -> Tensor:
    """Returns the (N,) evaluation times in the search's coordinate, as shares of its range."""
    coordinate = Coordinate(schedule.process.schedule())
    low, high = coordinate.ends
    places = [coordinate.clamp(coordinate.schedule.at(t)) for t in times_of(schedule)]
    return (torch.tensor(places, dtype=torch.float64) - low) / (high - low)


class Sensitivities:
    """A run of a point on a block, and what each number does to where it ends.

    columns:  the noise, then the predictions and their functions, (n, *) each.
    tangents: of each column, (P, n, *): its derivative by the P numbers met so far, which are, step
              after step, the evaluation time and the weights of the row.
    """

    def __init__(self, problem: Problem, point: TablePoint, block: Block) -> None:
        self.problem, self.point, self.block = problem, point, block
        x = block.noise * problem.network.schedule.noise_scale(point.table.nodes[0])
        self.columns, self.tangents = [x], [x.new_zeros(0, *x.shape)]
        self.x, self.moves = x * point.stretch(point.start), self.tangents[0]
        for n in range(len(point.rows)):
            if n in point.asks:
                self._ask(n)
            else:
                self._add_given()
            self._step(point.rows[n])

    def products(self) -> tuple[Tensor, Tensor]:
        """J^T J (P, P) and J^T r (P,), float64, sums over the block."""
        jacobian = self.moves.flatten(1).double()
        return jacobian @ jacobian.T, jacobian @ (self.x - self.block.ends).flatten().double()

    def _ask(self, n: int) -> None:
        """The columns of step n, their tangents, and those by its time."""
        u, ends = float(self.point.u[n]), self.point.coordinate.ends
        here = self._answers(n, self.x[None], u)
        aside = DIFFERENCE * (ends[1] - ends[0])
        aside = aside if u + aside <= ends[1] else -aside
        by_time = [
            (there - at) / aside
            for there, at in zip(self._answers_aside(n, u + aside), here, strict=True)
        ]
        by_state = self._along(n, u, here)
        self._pad(1)
        for at, state, time in zip(here, by_state, by_time, strict=True):
            self.columns.append(at[0])
            self.tangents.append(torch.cat([state, time]))

    def _along(self, n: int, u: float, here: Sequence[Tensor]) -> list[Tensor]:
        """Derivatives of the predictions at the state along what moves it."""
        if not len(self.moves):
            return [at[:0] for at in here]
        size = self.moves.flatten(1).square().mean(1).sqrt().clamp_min(1e-12)
        nudge = (NUDGE * self.x.square().mean().sqrt() / size).reshape(-1, *[1] * self.x.ndim)
        there = self._answers(n, self.x + nudge * self.moves, u)
        return [(moved - at) / nudge for moved, at in zip(there, here, strict=True)]

    def _add_given(self) -> None:
        """The column that stands for the first prediction, which nothing moves."""
        mean = self.point.table.given
        zero = torch.zeros_like(self.x)
        self.columns.append(zero if mean is None else mean.expand_as(self.x).clone())
        self.tangents.append(torch.zeros_like(self.tangents[0]))

    def _step(self, row: Tensor) -> None:
        """The next state, its tangents, and those by the weights of its row."""
        weights = row.to(self.x.dtype)
        self.x = torch.einsum("c,c...->...", weights, torch.stack(self.columns))
        moves = torch.zeros_like(self.tangents[0])
        for weight, tangent in zip(weights.tolist(), self.tangents, strict=True):
            moves.add_(tangent, alpha=weight)
        self.moves = torch.cat([moves, *(column[None] for column in self.columns)])
        self._pad(len(row))

    def _pad(self, count: int) -> None:
        """New numbers move no column there was before."""
        self.tangents = [
            torch.cat([each, each.new_zeros(count, *each.shape[1:])]) for each in self.tangents
        ]

    def _answers_aside(self, n: int, u: float) -> list[Tensor]:
        """Returns the columns of step n at another time, from which the run starts if n is 0."""
        if n:
            return self._answers(n, self.x[None], u)
        node = self.point.coordinate.schedule.at(self.point.coordinate.time(u))
        return self._answers(n, self.columns[0][None] * self.point.stretch(node), u)

    def _answers(self, n: int, states: Tensor, u: float) -> list[Tensor]:
        """Returns the columns of step n at states (k, n, *): (k, n, *) each."""
        node = self.point.coordinate.schedule.at(self.point.coordinate.time(u))
        block = self.block.pick(list(range(len(self.block))) * len(states))
        answers = self.problem.answers(block, states.flatten(0, 1), node, self.point.branches(n))
        answers += [read_function(each)(answers[-1]) for each in self.point.table.functions[n]]
        return [each.reshape(states.shape) for each in answers]


def sum_products(problem: Problem, point: TablePoint, block: Block) -> tuple[Tensor, Tensor]:
    """J^T J and J^T r over a block, in parts that fit into memory."""
    numbers = len(point.asks) + sum(map(len, point.rows))
    each = numbers * (len(point.rows[-1]) + 2) * block.noise[0].numel()
    size = max(1, NUMBERS // each)
    parts = [
        Sensitivities(problem, point, block.rows(slice(i, i + size))).products()
        for i in range(0, len(block), size)
    ]
    return sum(gram for gram, _ in parts), sum(against for _, against in parts)  # type: ignore[return-value]


def solve_damped(gram: Tensor, against: Tensor, damping: float) -> Tensor:
    """Returns the step (P,) of Levenberg-Marquardt; numbers that do nothing stay."""
    diagonal = gram.diagonal()
    scale = diagonal.clamp_min(1e-12 * float(diagonal.max())).sqrt()
    eye = torch.eye(len(gram), dtype=torch.float64)
    normal = gram / scale[:, None] / scale + damping * eye
    step: Tensor = -torch.linalg.solve(normal, against / scale) / scale
    return step
