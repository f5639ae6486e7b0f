"""DPM-Solver-v3 (arXiv:2310.13268): an exponential integrator whose linear part is measured.

With tables l, s, b along lam (see `model_statistics`), L and S the integrals of l and s from node
t, and f = (sigma eps - l x) / alpha, the trajectory is

    x_s = (alpha_s / alpha_t) e^{-L_s} x_t - alpha_s int_t^s e^{-(L_s - L_u)} f_u du,
    f_u = e^{S_u} (g_u + int_t^u e^{-S_r} b_r dr),

where g changes slowly because f' = s f + b holds on average. Step n takes the Taylor polynomial of
g at t, of degree order - 1, from g_j of the nodes before:

    x_s = (alpha_s / alpha_t) e^{-L_s} x_t - alpha_s (sum_k E_k g^{(k)} + O)

with E_k and O as in `Cells.weights` (eq. 10, 11). The corrector redoes a step with the prediction
at its end among the nodes, at no call; that prediction's f stays (sec. 3.4). l = 1, s = b = 0 is
DPM-Solver++ and l = b = 0, s = -1 DPM-Solver. The step to sigma = 0 is x0; a start at alpha = 0 is
left with DDIM.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass as plain
from dataclasses import field
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from pydantic import ConfigDict, Field
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..models.denoiser import Network
from ..models.devices import send
from ..models.schedule import Node, TimeGrid
from .base import Revision, SolverInfo, Step, register
from .exponential import find_derivative_weights
from .linear import LowerOrderFinal, plan_orders
from .model_statistics import ModelStatistics, take_statistics


@register
@dataclass(frozen=True, config=ConfigDict(arbitrary_types_allowed=True))
class DPMSolverV3:
    """Needs the statistics of the network that it runs on.

    stats:     a file that `fewstep stats` wrote; "data" or "noise" are the tables of the special
               cases, which need no file.
    order:     1 to 4; the corrector has one more.
    predictor: "full" solves for all derivatives at once; "pseudo" takes the k-th from the k
               nearest nodes alone (better in 5 evaluations or fewer, by the paper).
    corrector: the same two for the corrector, or "off". The paper's settings are order 3 without
               on CIFAR-10 in more than 6 evaluations, order 2 with "pseudo" on latents.
    lower_order_final: see `LowerOrderFinal`.

    The single first step of order 1 caps an uncorrected run at order 2, and so do pseudo
    derivatives in the corrector; with the "full" one order k becomes k + 1.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="dpm-solver-v3", order=2, source="arXiv:2310.13268 alg. 2, eq. 11"
    )
    stats: str | ModelStatistics | None = None
    order: Annotated[int, Field(ge=1, le=4)] = 2
    predictor: Literal["full", "pseudo"] = "full"
    corrector: Literal["full", "pseudo", "off"] = "pseudo"
    lower_order_final: LowerOrderFinal = LowerOrderFinal.ALWAYS

    def on(self, grid: TimeGrid) -> "V3Steps":
        stats = take_statistics(self.stats)
        stats.check_grid(grid)
        levels = [_compute_level(stats, node) for node in grid.nodes[:-1]]
        correctors = _make_correctors(self, stats, grid)
        predictors = _make_predictors(self, stats, grid)
        corrected = [each is not None for each in correctors]
        needs = _count_needed(_choose_orders(self, grid), corrected)
        return V3Steps(stats, list(map(Stage, levels, correctors, predictors)), needs)


@plain(frozen=True, eq=False)
class Piece:
    """One linear combination: weight of the state, of each f newest first, and what is added."""

    x: Tensor
    f: tuple[Tensor, ...]
    shift: Tensor

    def __call__(self, x: Tensor, f: Sequence[Tensor]) -> Tensor:
        out = x * self.x + self.shift
        for weight, value in zip(self.f, f, strict=False):
            out.addcmul_(weight.expand_as(value), value)
        return out

    def to(self, x: Tensor) -> "Piece":
        """Returns the same numbers in the dtype and on the device of a state."""
        weights = tuple(send(weight, x.device, x.dtype) for weight in self.f)
        slope, shift = (send(each, x.device, x.dtype) for each in (self.x, self.shift))
        return Piece(slope, weights, shift)


@plain(frozen=True, eq=False)
class Stage:
    """Coefficients of a step: the level of its node, the corrector before it, and the predictor.

    level: (1 - l) / alpha, so that f = level x - x0.
    """

    level: Tensor
    corrector: Piece | None
    predictor: Piece

    def to(self, x: Tensor) -> "Stage":
        """Returns the same numbers in the dtype and on the device of a state."""
        corrector = None if self.corrector is None else self.corrector.to(x)
        level = send(self.level, x.device, x.dtype)
        return Stage(level, corrector, self.predictor.to(x))


class V3Memory(NamedTuple):
    """The number of the next step, the state that the last step left and the f before it."""

    n: int = 0
    start: Tensor | None = None
    f: tuple[Tensor, ...] = ()

    @property
    def past(self) -> tuple[Tensor, ...]:
        """All tensors of the memory."""
        return self.f if self.start is None else (self.start, *self.f)


@plain(frozen=True, eq=False)
class V3Steps:
    """The steps of one grid, their weights worked out in float64.

    needs: how many f the step after each needs.
    """

    stats: ModelStatistics
    stages: list[Stage]
    needs: list[int]
    _sent: dict[tuple[torch.dtype, torch.device], list[Stage]] = field(default_factory=dict)

    def init(self) -> V3Memory:
        return V3Memory()

    def step(self, x: Tensor, state: V3Memory, t: Node, s: Node) -> Step[V3Memory]:
        """Takes the stage numbered `state.n`; the nodes are those it was made for."""
        n, stages = state.n, self._send_stages(x)
        x0 = yield x, t
        f = ((x * stages[n].level).sub_(x0), *state.f)
        corrector = stages[n].corrector
        if corrector is not None and state.start is not None:
            x = corrector(state.start, f)
        redone = n + 1 < len(stages) and stages[n + 1].corrector is not None
        start = x if redone else None
        return stages[n].predictor(x, f), V3Memory(n + 1, start, f[: self.needs[n]])

    @property
    def reach(self) -> int:
        """As `Revisable` has it."""
        return max(self.needs)

    def revise(self, state: V3Memory, changes: Sequence[Revision]) -> V3Memory:
        """As `Revisable` has it, by f = level x - x0.

        The corrector redoes the last step from its start. That start is moved to where the step
        with the new f leads to the same state.
        """
        moved = [change.old - change.new for change in changes[: len(state.f)]]
        f = (*[a + b for a, b in zip(state.f, moved, strict=False)], *state.f[len(moved) :])
        if state.start is None:
            return state._replace(f=f)
        predictor = self._send_stages(state.start)[state.n - 1].predictor
        start = state.start
        for weight, each in zip(predictor.f, moved, strict=False):
            start = start - each * (weight / predictor.x)
        return state._replace(start=start, f=f)

    def _send_stages(self, x: Tensor) -> list[Stage]:
        """Returns the stages where the state is; sent once, as a step must not wait for a copy."""
        key = x.dtype, x.device
        if key not in self._sent:
            self._sent[key] = [stage.to(x) for stage in self.stages]
        return self._sent[key]

    def check_network(self, network: Network) -> None:
        """Raises SettingError if the statistics are another network's."""
        self.stats.check_network(network)


def _compute_level(stats: ModelStatistics, node: Node) -> Tensor:
    if node.alpha == 0.0:
        return torch.zeros((), dtype=torch.float64)
    return (1.0 - stats.at(node.lam)[0]) / node.alpha


def _choose_orders(settings: DPMSolverV3, grid: TimeGrid) -> list[int]:
    """Returns the order of each step; 0 where only the limit holds, as next to alpha = 0."""
    finite = [math.isfinite(node.lam) for node in grid.nodes]
    chosen = plan_orders(grid, settings.order, settings.lower_order_final)
    return [
        min(p, n + 1 - finite.index(True)) if finite[n] and finite[n + 1] else 0
        for n, p in enumerate(chosen)
    ]


def _make_predictors(settings: DPMSolverV3, stats: ModelStatistics, grid: TimeGrid) -> list[Piece]:
    pieces = []
    for n, p in enumerate(_choose_orders(settings, grid)):
        near = [n - j for j in range(1, p)]
        pseudo = settings.predictor == "pseudo"
        piece = _make_piece(stats, grid, n, near, pseudo) if p else _make_limit(stats, grid, n)
        pieces.append(piece)
    return pieces


def _make_correctors(
    settings: DPMSolverV3, stats: ModelStatistics, grid: TimeGrid
) -> list[Piece | None]:
    """Returns before each step the corrector of the step before it."""
    pieces: list[Piece | None] = [None]
    for n, p in enumerate(_choose_orders(settings, grid)[:-1]):
        near = [n + 1, *(n - j for j in range(1, p))]
        on, pseudo = settings.corrector != "off" and p > 0, settings.corrector == "pseudo"
        pieces.append(_make_piece(stats, grid, n, near, pseudo) if on else None)
    return pieces


def _make_piece(
    stats: ModelStatistics, grid: TimeGrid, n: int, near: Sequence[int], pseudo: bool
) -> Piece:
    """Returns the step from node n to the next; near: the other nodes whose f it takes."""
    t, s = grid.nodes[n], grid.nodes[n + 1]
    cells = stats.cells(t.lam, s.lam)
    moments, drift = cells.weights(len(near) + 1)
    weights = {j: torch.zeros_like(moments[0]) for j in near}
    offsets = [grid.nodes[j].lam - t.lam for j in near]
    for k in range(1, len(near) + 1):
        solved = find_derivative_weights(offsets[:k] if pseudo else offsets, k)
        for j, weight in zip(near, solved, strict=False):
            weights[j] = weights[j] + moments[k] * weight
    weights[n] = moments[0] - sum(weights.values())
    carried = {j: _carry(stats, grid.nodes[j], t) for j in weights}
    added = drift + sum(weights[j] * carried[j][1] for j in weights)
    newest_first = sorted(weights, reverse=True)
    return Piece(
        x=s.alpha / t.alpha * (-cells.total(cells.l)).exp(),
        f=tuple(-s.alpha * weights[j] * carried[j][0] for j in newest_first),
        shift=-s.alpha * added,
    )


def _carry(stats: ModelStatistics, node: Node, to: Node) -> tuple[Tensor, Tensor]:
    """Returns (a, b) with g = a f + b: f of a node carried to another along f' = s f + b."""
    if node.lam <= to.lam:
        return stats.cells(node.lam, to.lam).transport()
    grown, added = stats.cells(to.lam, node.lam).transport()
    return 1.0 / grown, -added / grown


def _make_limit(stats: ModelStatistics, grid: TimeGrid, n: int) -> Piece:
    """Returns DDIM, x_s = (sigma_s / sigma_t) x + (alpha_s - alpha_t sigma_s / sigma_t) x0."""
    t, s = grid.nodes[n], grid.nodes[n + 1]
    ratio = s.sigma / t.sigma
    weight = s.alpha - t.alpha * ratio
    level = _compute_level(stats, t)
    return Piece(x=ratio + weight * level, f=(torch.full_like(level, -weight),), shift=0 * level)


def _count_needed(orders_: Sequence[int], corrected: Sequence[bool]) -> list[int]:
    """Returns how many f the step after each step needs of the nodes before its own."""
    after = [*orders_[1:], 0]
    redone = [*corrected[1:], False]
    return [
        max(p_next - 1, p if again else 0, 0)
        for p, p_next, again in zip(orders_, after, redone, strict=True)
    ]
