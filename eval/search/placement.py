"""Where a run asks the network, and how well that can go, judged without asking it.

A guided run of N steps of which K evaluate the unconditional branch too costs N + K rows; one that
weighs what the guidance makes of them has N evaluations. If every step
gives what is nearest to the teacher's state among all combinations of the noise and the columns so
far, its error is that of a least-squares problem. With the teacher's own columns in place of the
run's, that problem needs their inner products only: one matrix, taken once, judges thousands of
placements in seconds. What the errors of early steps do to later columns is not in it.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from ...models.denoiser import Branch
from ...models.errors import SettingError
from ...solvers.table import BOTH
from .size import SearchSize

RIDGE = 1e-7  # of each column's own size, for columns that are nearly combinations of others
SEEDS = 15  # a mutant comes from one of so many of the best
FAR = 3  # nodes that one is moved at most


@dataclass(frozen=True)
class Placement:
    """The nodes of a grid where a run asks for the conditional branch, and those where for both.

    nodes: rising, from 0.
    both:  some of them, rising; none where it asks for what the guidance makes of the branches.
    """

    nodes: tuple[int, ...]
    both: tuple[int, ...]

    @property
    def rows(self) -> int:
        return len(self.nodes) + len(self.both)

    @property
    def guided(self) -> tuple[int, ...]:
        """The steps that ask both branches."""
        return tuple(step for step, node in enumerate(self.nodes) if node in self.both)

    def branches(self, node: int) -> tuple[Branch, ...] | None:
        """Returns the branches to evaluate at a node; None leaves it to the guidance."""
        if not self.both:
            return None
        return BOTH if node in self.both else BOTH[1:]

    def __str__(self) -> str:
        return "nodes " + ",".join(f"{n}*" if n in self.both else f"{n}" for n in self.nodes)


def list_guided_steps(rows: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(N, the K guided steps) with N + K = rows, from full guidance to a third of the steps.

    The K come first, are spread evenly, or are dense in the first half: guidance matters most where
    an image is laid out.
    """
    check_rows(rows)
    for steps in range(-(-rows // 2), 3 * rows // 4 + 1):
        count = rows - steps
        even = {round(i * (steps - 1) / max(count - 1, 1)) for i in range(count)}
        half = (count + 1) // 2
        rest = count - half
        late = (half + (i + 1) * (steps - half) // (rest + 1) for i in range(rest))
        choices = {tuple(sorted(each)) for each in (even, {*range(half), *late}, set(range(count)))}
        yield from ((steps, each) for each in sorted(choices) if len(each) == count)


def check_rows(rows: int) -> None:
    """Raises SettingError for too few."""
    if rows < 2:
        raise SettingError(f"a guided run needs at least 2 network rows, not {rows}")


@dataclass(frozen=True)
class Judge:
    """Judges placements by the inner products of what the teacher saw.

    gram: (3 M + 1, 3 M + 1) float64, of M + 1 states, M conditional and M unconditional
        predictions on a grid of M steps.
    """

    gram: Tensor

    @property
    def steps(self) -> int:
        """M."""
        return (len(self.gram) - 1) // 3

    def errors(self, placed: Placement) -> Tensor:
        """(N,): mean square that each step must leave, relative to that of the teacher's ends."""
        last, columns, left = self.steps, [0], []
        for node, after in zip(placed.nodes, (*placed.nodes[1:], last), strict=True):
            columns += [2 * last + 1 + node] if node in placed.both else []
            columns.append(last + 1 + node)
            left.append(self._left(columns, after))
        return torch.stack(left) / self.gram[last, last]

    def __call__(self, placed: Placement) -> float:
        """Returns the sum of the errors: lower is better."""
        return float(self.errors(placed).sum())

    def _left(self, columns: list[int], target: int) -> Tensor:
        products, against = self.gram[columns][:, columns], self.gram[columns, target]
        return (self.gram[target, target] - against @ solve_ridge(products, against)).clamp_min(0.0)


def solve_ridge(products: Tensor, against: Tensor) -> Tensor:
    """(W,): least-squares weights of columns with inner products (W, W), (W,) with the target."""
    ridge = RIDGE * torch.diag(products.diagonal())
    weights: Tensor = torch.linalg.solve(products + ridge, against)
    return weights


def spread_evenly(size: SearchSize, last: int) -> list[Placement]:
    """Nodes evenly on a grid of `last` steps, with every choice of guided steps."""
    placed = []
    rows = size.unit == "rows"
    for steps, guided in list_guided_steps(size.amount) if rows else [(size.amount, ())]:
        nodes = tuple(i * last // steps for i in range(steps))
        if len(set(nodes)) == steps:
            placed.append(Placement(nodes, tuple(nodes[i] for i in guided)))
    if not placed:
        raise SettingError(f"{size} cannot be placed on a grid of {last} steps; take a finer grid")
    return placed


def search_placements(judge: Judge, size: SearchSize, tries: int, rng: Random) -> list[Placement]:
    """Returns what so many mutations of evenly spread nodes lead to, best first by the judge."""
    known = {each: judge(each) for each in spread_evenly(size, judge.steps)}
    best = sorted(known, key=known.__getitem__)
    for _ in range(tries):
        child = mutate(rng.choice(best[:SEEDS]), judge.steps, rng)
        if child is not None and child not in known:
            known[child] = judge(child)
            best = sorted([*best[:SEEDS], child], key=known.__getitem__)
    return sorted(known, key=known.__getitem__)


def mutate(placed: Placement, last: int, rng: Random) -> Placement | None:
    """Returns a neighbour of the same size, or None if the change that was drawn does not fit."""
    nodes, both = set(placed.nodes), set(placed.both)
    moves = (_move, _move, _swap, _split, _join) if both else (_move,)
    rng.choice(moves)(nodes, both, last, rng)
    fits = min(nodes) == 0 and max(nodes) < last and both <= nodes
    if not fits or len(nodes) + len(both) != placed.rows:
        return None
    return Placement(tuple(sorted(nodes)), tuple(sorted(both)))


def _move(nodes: set[int], both: set[int], last: int, rng: Random) -> None:
    """One node, with its branches."""
    old = rng.choice(sorted(nodes))
    new = old + rng.choice([-1, 1]) * rng.randint(1, FAR)
    if old and new not in nodes:
        nodes ^= {old, new}
        both ^= {old, new} if old in both else set()


def _swap(nodes: set[int], both: set[int], last: int, rng: Random) -> None:
    """Guidance from one node to another."""
    if both and nodes - both:
        both ^= {rng.choice(sorted(both)), rng.choice(sorted(nodes - both))}


def _split(nodes: set[int], both: set[int], last: int, rng: Random) -> None:
    """The guidance of a node becomes a node of its own."""
    if len(both) > 1:
        both.remove(rng.choice(sorted(both)))
        nodes.add(rng.randrange(1, last))


def _join(nodes: set[int], both: set[int], last: int, rng: Random) -> None:
    """A node without guidance is given up for the guidance of another."""
    if len(nodes - both - {0}) > 1:
        gone = rng.choice(sorted(nodes - both - {0}))
        nodes.remove(gone)
        both.add(rng.choice(sorted(nodes - both)))
