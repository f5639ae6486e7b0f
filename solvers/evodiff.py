"""EVODiff (arXiv:2509.26096) as its authors released it for EDM networks: a predictor-corrector on
two past predictions, with coefficients that are measured on the predictions themselves.

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

and then m1, m0 <- m0, m: the prediction at the probe is kept. With N > 20, zeta = S(-d S(k (2 -
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
from .base import Query, Revision
from .registry import SolverInfo, register


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
        name="evodiff", order=1, calls_per_step=1, source="arXiv:2509.26096, the released code"
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
            before = [_ddim(nodes.pop(0), nodes[0])]
        rows = _rows(nodes, self.final_step == "reference", self.lower_order_final)
        return EVODiffSteps((*before, *rows, *after), axis=1 if self.inner == "sample" else 2)


@plain(frozen=True, slots=True)
class Balance:
    """The numbers of the step to node i, named as in the module.

    half:   alpha_i g / 2.
    drift:  (1 - w) (1 - b).
    factor: 2 - (kappa_i / kappa_{i-1})^2 if N > 20, else None.
    """

    alpha: float
    half: float
    g: float
    q: float
    r: float
    w: float
    drift: float
    factor: float | None


@plain(frozen=True, slots=True)
class EVODiffRow:
    """One step: x_s = x x' + m m' + f (m' - m0), with m' the x0 found and x' the corrected state.

    back:  the step whose probe the state is; None if the state needs no correction.
    ahead: the step whose probe x_s shall be; None if x_s is no probe.
    keep:  how many of m' and m' - m0 are needed later.
    close: evaluate at s as well, and correct x_s.
    """

    x: float
    m: float
    f: float = 0.0
    back: Balance | None = None
    ahead: Balance | None = None
    keep: int = 0
    close: bool = False


class Probe(NamedTuple):
    """How a probe was made, with e = m0 - m1; (B, C, 1, 1) or, over samples, (B, 1, 1, 1), float64.

    a, p: D1 = a m0 + p e.
    gain: alpha_i g / (2 rho), the weight of D1.
    mm, me, ee: <m0, m0>, <m0, e> and <e, e>.
    """

    a: Tensor
    p: Tensor
    gain: Tensor
    mm: Tensor
    me: Tensor
    ee: Tensor


class Change(NamedTuple):
    """From m0 to a new prediction m = m0 + f, with e = m0 - m1: inner products, as in `Probe`.

    mm, mf, ff, ef: <m0, m0>, <m0, f>, <f, f> and <e, f>.
    v: 1 - [<m, m0> / <m0, m0>].
    """

    mm: Tensor
    mf: Tensor
    ff: Tensor
    ef: Tensor
    v: Tensor


class EVODiffMemory(NamedTuple):
    """The number of the next step; m0 and m0 - m1, as far as they are needed; the probe made."""

    n: int = 0
    past: tuple[Tensor, ...] = ()
    probe: Probe | None = None


Weight = Tensor | float


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
        """The row numbered `state.n`; the nodes are those it was made for."""
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
            probe = _probe(row.ahead, self._change(EVODiffMemory(past=(m - f,)), f))
        return state._replace(past=(m, f), probe=probe)

    def _advance(
        self, row: EVODiffRow, x: Tensor, state: EVODiffMemory, m: Tensor
    ) -> tuple[Tensor, EVODiffMemory]:
        """x_s, and what is kept, once x0 = m is known at x."""
        if not state.past:
            return combine((row.x, row.m), x, m), EVODiffMemory(past=(m,)[: row.keep])
        f = m - state.past[0]
        weights: Sequence[Weight] = (row.m, row.f)
        probe = None
        if row.back or row.ahead:
            weights, probe = _weights(row, state.probe, self._change(state, f))
        x_s = x * row.x
        for tensor, weight in zip((m, f, *state.past[1:]), weights, strict=False):
            if isinstance(weight, Tensor):
                x_s.addcmul_(tensor, weight.to(x.dtype))
            elif weight:
                x_s.add_(tensor, alpha=weight)
        return x_s, EVODiffMemory(past=(m, f)[: row.keep], probe=probe)

    def _change(self, state: EVODiffMemory, f: Tensor) -> Change:
        """Three sums over the whole state; the others are known from the step before."""
        wide = torch.float32 if f.device.type == "mps" else torch.float64
        m0, *earlier, f = (tensor.to(wide) for tensor in (*state.past, f))
        mm = state.probe.mm if state.probe else self._sum(m0 * m0)
        mf, ff = self._sum(m0 * f), self._sum(f * f)
        ef = self._sum(earlier[0] * f) if state.probe else mf
        return Change(mm, mf, ff, ef, _ratio(mf, mm, 0.0).neg_().clamp_(-1.0, 3.0))

    def _sum(self, a: Tensor) -> Tensor:
        axes = tuple(range(self.axis, a.ndim))
        return a.sum(axes, keepdim=True) if axes else a  # to torch no axes are all axes


def _weights(row: EVODiffRow, made: Probe | None, to: Change) -> tuple[list[Weight], Probe | None]:
    """What m, f and e are multiplied by in x_s, and the next probe."""
    weights: list[Weight] = [row.m, row.f, 0.0]
    if row.back and made:
        weights = _correction(row, row.back, made, to)
    if not row.ahead:
        return weights, None
    probe = _probe(row.ahead, to)
    weights[0] = weights[0] + probe.gain * probe.a
    weights[1] = weights[1] + probe.gain * probe.p
    return weights, probe


def _probe(n: Balance, to: Change) -> Probe:
    """What the step ahead will call m0 and e are m and f here."""
    a = to.v * n.w + n.drift
    p = 1.0 - a
    gain = (torch.exp(-0.25 * p.abs()) + 1.0) * (n.half / n.r)
    me = to.mf + to.ff
    mm, rounding = to.mm + to.mf + me, (to.mm + to.ff) * (16.0 * torch.finfo(me.dtype).eps)
    return Probe(a, p, gain, torch.where(mm > rounding, mm, 0.0), me, to.ff)


def _correction(row: EVODiffRow, n: Balance, made: Probe, to: Change) -> list[Weight]:
    """Weights of m, f and e in x_s with the state corrected, D1 = a m0 + p e and D2 = f + a2 m0."""
    a, p, gain, mm, me, ee = made
    a2 = to.v * n.w + n.drift
    d1m, d1e, d1f = _dot(a, mm, p, me), _dot(a, me, p, ee), _dot(a, to.mf, p, to.ef)
    d11, d12 = _dot(a, d1m, p, d1e), torch.addcmul(d1f, a2, d1m)
    d22 = torch.addcmul(to.ff, a2, torch.addcmul(2.0 * to.mf, a2, mm))
    b11, b22, rounding = d11 / n.r**2, d22 * n.r**2, 16.0 * torch.finfo(mm.dtype).eps
    both = b11 + b22
    balance = _clamped(b22 - b11, both - 2.0 * d12, 2.0, rounding * both)
    eta = 0.5 * torch.sigmoid(0.5 * balance.abs())
    of_d1, of_d2 = eta / -n.r, (1.0 - eta) * n.r  # B = of_d1 D1 + of_d2 D2
    excess = gain / n.alpha * (d11 - _dot(of_d1, d11, of_d2, d12))  # <P, D1>
    d = (_clamped(excess, d11, 0.0, rounding**2 * mm) / n.g).abs() - 0.5
    scale = (torch.exp(_exponent(n, d, made)) + 1.0) * n.half  # alpha_i g / (2 zeta)
    of_d1, of_d2 = (scale * of_d1 - gain) * row.x, scale * of_d2 * row.x
    of_m0 = _dot(of_d1, a, of_d2, a2)
    return [of_m0 + row.m, of_d2 - of_m0 + row.f, of_d1 * p]  # m0 = m - f


def _exponent(n: Balance, d: Tensor, made: Probe) -> Tensor:
    """z with 1 / zeta = 1 + e^z."""
    if n.factor is None:
        return -d
    return d * torch.sigmoid(n.factor * _clamped(n.q * made.me, made.ee, 0.0))


def _dot(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """a b + c d."""
    return (a * b).addcmul_(c, d)


def _clamped(a: Tensor, b: Tensor, otherwise: float, floor: Tensor | float = 0.0) -> Tensor:
    """[a / b]."""
    return _ratio(a, b, otherwise, floor).clamp_(-2.0, 2.0)


def _ratio(a: Tensor, b: Tensor, otherwise: float, floor: Tensor | float = 0.0) -> Tensor:
    """a / b where b > floor; a sum of squares can be rounded to below zero."""
    return torch.where(b > floor, a / b, otherwise)


def _rows(nodes: Sequence[Node], reference: bool, lower: bool) -> list[EVODiffRow]:
    """Steps 1 .. N between nodes whose kappa is finite."""
    last = len(nodes) - 1
    steps = {i: _balance(nodes, i) for i in range(2, last + (not lower))}
    rows = []
    for i in range(1, last + 1):
        final = reference and lower and i == last > 1
        row = (_contrast if final else _ddim)(nodes[i - 1], nodes[i])
        keep = min(i, 2) if i < last or i in steps else 0
        back, ahead, close = steps.get(i - 1), steps.get(i), i == last and i in steps
        rows.append(replace(row, back=back, ahead=ahead, keep=keep, close=close))
    return rows


def _ddim(t: Node, s: Node) -> EVODiffRow:
    ratio = s.sigma / t.sigma
    return EVODiffRow(x=ratio, m=s.alpha - t.alpha * ratio)


def _contrast(t: Node, s: Node) -> EVODiffRow:
    """The released last step."""
    plain_row, ratio = _ddim(t, s), s.kappa / t.kappa
    fade = 1.0 - math.sqrt(s.kappa * t.kappa)
    k = 1.0 - 0.5 * math.sqrt(ratio if ratio < 0.5 else ratio - 0.5)
    m, f = 0.5 * plain_row.m * (1.0 - k), 0.5 * plain_row.m * k  # of g (m0 - k m1) / 2
    return EVODiffRow(x=fade * plain_row.x, m=fade * plain_row.m + m, f=f)


def _balance(nodes: Sequence[Node], i: int) -> Balance:
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
