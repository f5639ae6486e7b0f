"""EVODiff (arXiv:2509.26096) as its authors released it for EDM networks.

It is a predictor-corrector on two past predictions, with coefficients that are measured on the
predictions themselves (`evodiff_weights`).

In y = x / alpha and kappa = sigma / alpha, for i = 2 .. N - 1, with m0 and m1 the newest prediction
and the one before, g = 1 - kappa_i / kappa_{i-1}, q = 1 / kappa_i - 1 / kappa_{i-1}, S the logistic
function and [.] clamping to [-2, 2]:

    r = log(kappa_{i-2} / kappa_{i-1}) / log(kappa_{i-1} / kappa_i)
    b = sqrt(kappa_i kappa_{i-2}) / kappa_{i-1}
    w = (1 - ((kappa_i + kappa_N) / (kappa_0 + kappa_N))^2) / 2
    p(u, v) = (1 - w) b + w [<u, v> / <v, v>]

    base  = (kappa_i / kappa_{i-1}) y + g m0
    D1    = m0 - p(m0, m1) m1
    probe = base + g D1 / (2 rho),                   rho = r S(|p(m0, m1)| / 4)
    m     = x0(probe, i)
    D2    = m - p(m, m0) m0
    B     = (1 - eta) B2 - eta B1,                   B1 = D1 / r,  B2 = r D2
    eta   = S(|[<B2 + B1, B2 - B1> / |B2 - B1|^2]| / 2) / 2
    zeta  = S(d),  d = |[<P, D1> / <D1, D1>] / g| - 1/2,  P = probe - base - g B / (2 rho)
    y_i   = base + g B / (2 zeta)

and then m1, m0 <- m0, m: the prediction at the probe stays. With N > 20, zeta = S(-d S(k (2 -
(kappa_i / kappa_{i-1})^2))), k = [q <m0, m0 - m1> / |m0 - m1|^2]. Step 1 is DDIM. Step N is

    y_N = (1 - sqrt(kappa_N kappa_{N-1})) y' + g (m0 - k m1) / 2,    y' = DDIM's y_N,
    k   = 1 - sqrt(R) / 2 if R < 1/2, else 1 - sqrt(R - 1/2) / 2,    R = kappa_N / kappa_{N-1}.

A division by zero, or by what is zero to within rounding, gives 1 in p, 2 in eta and 0 in zeta and
k; the released code gives NaN. Its clamp of rho to [r / 4, 3 r / 2] never acts.

What is handed from step to step is the probe: as a corrected state is the probe plus predictions,
a step is one linear combination. It is worked out in m0 and the differences of predictions, so
that nothing cancels where they have settled.
"""

import math
from collections.abc import Generator, Sequence
from dataclasses import dataclass as plain
from dataclasses import replace
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic.dataclasses import dataclass
from torch import Tensor

from ..models.prediction import combine
from ..models.schedule import Node, TimeGrid
from .base import Query, Revision, SolverInfo, register
from .evodiff_weights import (
    Balance,
    Change,
    EVODiffRow,
    Probe,
    Weight,
    divide,
    find_weights,
    measure_probe,
)


@register
@dataclass(frozen=True)
class EVODiff:
    """Settings. It converges with order 1, not with the 2 that the paper shows of an ideal form.

    inner:      what <u, v> sums over: "channel", every channel by itself (axis 1; as released), or
                "sample", all of them; for tokens (B, L, D) take "sample".
    final_step: "reference" is the released step N. It is no ODE step but a gain of contrast: where
                predictions have settled it multiplies the sample by
                G = 1 - sqrt(kappa_N kappa_{N-1}) + (1 - R) (1 - k) / 2, 1.09 in 10 evaluations on
                EDM's logsnr grid, and its error does not vanish with N. "plain" is DDIM, with which
                the order is 1.
    lower_order_final: False makes step N like those before it, for one evaluation more.

    It is made for few steps: with N > 20, 1 / zeta is bounded only by 1 + e^{2/g}, and a sample
    overshoots where its predictions had settled to within rounding and then move.

    It was released for EDM alone. On VP and rectified flow there is no reference: it runs in y and
    kappa there, which keeps the meaning of every constant. It depends on the grid more than others
    do: a constant x0 is reproduced on log-uniform grids (b = 1) only.

    A last step to sigma = 0 is the evaluation x <- x0, whether the grid calls it `denoise` or not;
    it is not one of the N, and kappa_N is that of the node before. A node with alpha = 0 has no
    kappa: the step from it is the limit of DDIM, and the run is counted from the next node on.
    """

    info: ClassVar[SolverInfo] = SolverInfo(
        name="evodiff", order=1, source="arXiv:2509.26096, the released code"
    )
    inner: Literal["channel", "sample"] = "channel"
    final_step: Literal["reference", "plain"] = "reference"
    lower_order_final: bool = True

    def on(self, grid: TimeGrid) -> "EVODiffSteps":
        nodes = list(grid.nodes)
        before, after = [], []
        if grid.denoise or nodes[-1].sigma == 0.0:
            after = [EVODiffRow(x=0.0, m=nodes.pop().alpha)]
        if nodes[0].alpha == 0.0 and len(nodes) > 1:
            before = [_make_ddim(nodes.pop(0), nodes[0])]
        rows = _make_rows(nodes, self.final_step == "reference", self.lower_order_final)
        return EVODiffSteps((*before, *rows, *after), axis=1 if self.inner == "sample" else 2)


class EVODiffMemory(NamedTuple):
    """The number of the next step; m0 and m0 - m1, as far as they are needed; the probe made."""

    n: int = 0
    past: tuple[Tensor, ...] = ()
    probe: Probe | None = None


@plain(frozen=True, slots=True)
class EVODiffSteps:
    """EVODiff's steps; axis: the first that inner products sum over."""

    rows: tuple[EVODiffRow, ...]
    axis: int

    def init(self) -> EVODiffMemory:
        return EVODiffMemory()

    def step(
        self, x: Tensor, state: EVODiffMemory, t: Node, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, EVODiffMemory]]:
        """Takes the row numbered `state.n`; the nodes are those it was made for."""
        n, row = state.n, self.rows[state.n]
        x_s, state = self._advance(row, x, state, (yield x, t))
        if row.close:
            close = EVODiffRow(x=1.0, m=0.0, back=row.ahead)
            x_s, state = self._advance(close, x_s, state, (yield x_s, s))
        return x_s, state._replace(n=n + 1)

    @property
    def reach(self) -> int:
        """As `Revisable` has it."""
        return max(row.keep for row in self.rows)

    def revise(self, state: EVODiffMemory, changes: Sequence[Revision]) -> EVODiffMemory:
        """As `Revisable` has it; the probe is measured anew, on the new predictions."""
        if not state.past:
            return state
        m, moved = changes[0].new, [change.new - change.old for change in changes[:2]]
        if len(state.past) == 1:
            return state._replace(past=(m,))
        f = state.past[1] + moved[0] - (moved[1] if len(moved) > 1 else 0.0)
        probe, row = state.probe, self.rows[state.n - 1]
        if probe is not None and row.ahead is not None:
            probe = measure_probe(row.ahead, self._measure_change(EVODiffMemory(past=(m - f,)), f))
        return state._replace(past=(m, f), probe=probe)

    def _advance(
        self, row: EVODiffRow, x: Tensor, state: EVODiffMemory, m: Tensor
    ) -> tuple[Tensor, EVODiffMemory]:
        """Returns x_s and the memory, once x0 = m is known at x."""
        if not state.past:
            return combine((row.x, row.m), x, m), EVODiffMemory(past=(m,)[: row.keep])
        f = m - state.past[0]
        weights: Sequence[Weight] = (row.m, row.f)
        probe = None
        if row.back or row.ahead:
            weights, probe = find_weights(row, state.probe, self._measure_change(state, f))
        x_s = x * row.x
        for tensor, weight in zip((m, f, *state.past[1:]), weights, strict=False):
            if isinstance(weight, Tensor):
                x_s.addcmul_(tensor, weight.to(x.dtype))
            elif weight:
                x_s.add_(tensor, alpha=weight)
        return x_s, EVODiffMemory(past=(m, f)[: row.keep], probe=probe)

    def _measure_change(self, state: EVODiffMemory, f: Tensor) -> Change:
        """Takes three sums over the whole state; the others are known from the step before."""
        wide = torch.float32 if f.device.type == "mps" else torch.float64
        m0, *earlier, f = (tensor.to(wide) for tensor in (*state.past, f))
        mm = state.probe.mm if state.probe else self._sum(m0 * m0)
        mf, ff = self._sum(m0 * f), self._sum(f * f)
        ef = self._sum(earlier[0] * f) if state.probe else mf
        return Change(mm, mf, ff, ef, divide(mf, mm, 0.0).neg_().clamp_(-1.0, 3.0))

    def _sum(self, a: Tensor) -> Tensor:
        axes = tuple(range(self.axis, a.ndim))
        return a.sum(axes, keepdim=True) if axes else a  # to torch no axes are all axes


def _make_rows(nodes: Sequence[Node], reference: bool, lower: bool) -> list[EVODiffRow]:
    """Returns steps 1 .. N between nodes whose kappa is finite."""
    last = len(nodes) - 1
    steps = {i: _find_balance(nodes, i) for i in range(2, last + (not lower))}
    rows = []
    for i in range(1, last + 1):
        final = reference and lower and i == last > 1
        row = (_make_contrast if final else _make_ddim)(nodes[i - 1], nodes[i])
        keep = min(i, 2) if i < last or i in steps else 0
        back, ahead, close = steps.get(i - 1), steps.get(i), i == last and i in steps
        rows.append(replace(row, back=back, ahead=ahead, keep=keep, close=close))
    return rows


def _make_ddim(t: Node, s: Node) -> EVODiffRow:
    ratio = s.sigma / t.sigma
    return EVODiffRow(x=ratio, m=s.alpha - t.alpha * ratio)


def _make_contrast(t: Node, s: Node) -> EVODiffRow:
    """Returns the released last step."""
    plain_row, ratio = _make_ddim(t, s), s.kappa / t.kappa
    fade = 1.0 - math.sqrt(s.kappa * t.kappa)
    k = 1.0 - 0.5 * math.sqrt(ratio if ratio < 0.5 else ratio - 0.5)
    m, f = 0.5 * plain_row.m * (1.0 - k), 0.5 * plain_row.m * k  # of g (m0 - k m1) / 2
    return EVODiffRow(x=fade * plain_row.x, m=fade * plain_row.m + m, f=f)


def _find_balance(nodes: Sequence[Node], i: int) -> Balance:
    first, t, s, last = (nodes[j].kappa for j in (0, i - 1, i, -1))
    lams = [nodes[j].lam for j in (i - 2, i - 1, i)]
    w = 0.5 * (1.0 - ((s + last) / (first + last)) ** 2)
    log_b = lams[1] - 0.5 * (lams[0] + lams[2])
    g = -math.expm1(lams[1] - lams[2])
    return Balance(
        alpha=nodes[i].alpha,
        half=0.5 * nodes[i].alpha * g,
        g=g,
        q=1.0 / s - 1.0 / t,
        r=(lams[1] - lams[0]) / (lams[2] - lams[1]),
        w=w,
        drift=(1.0 - w) * -math.expm1(log_b),
        factor=2.0 - (s / t) ** 2 if len(nodes) > 21 else None,
    )
