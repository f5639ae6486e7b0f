"""The coefficients of EVODiff that are measured on the predictions; `evodiff` has the formulas."""

from dataclasses import dataclass as plain
from typing import NamedTuple

import torch
from torch import Tensor


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
    """One step: x_s = x x' + m m' + f (m' - m0), with m' its x0 and x' the corrected state.

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


Weight = Tensor | float


def find_weights(
    row: EVODiffRow, made: Probe | None, to: Change
) -> tuple[list[Weight], Probe | None]:
    """Returns what m, f and e are multiplied by in x_s, and the next probe."""
    weights: list[Weight] = [row.m, row.f, 0.0]
    if row.back and made:
        weights = _correct(row, row.back, made, to)
    if not row.ahead:
        return weights, None
    probe = measure_probe(row.ahead, to)
    weights[0] = weights[0] + probe.gain * probe.a
    weights[1] = weights[1] + probe.gain * probe.p
    return weights, probe


def measure_probe(n: Balance, to: Change) -> Probe:
    """Returns the probe of the step ahead, whose m0 and e are m and f here."""
    a = to.v * n.w + n.drift
    p = 1.0 - a
    gain = (torch.exp(-0.25 * p.abs()) + 1.0) * (n.half / n.r)
    me = to.mf + to.ff
    mm, rounding = to.mm + to.mf + me, (to.mm + to.ff) * (16.0 * torch.finfo(me.dtype).eps)
    return Probe(a, p, gain, torch.where(mm > rounding, mm, 0.0), me, to.ff)


def _correct(row: EVODiffRow, n: Balance, made: Probe, to: Change) -> list[Weight]:
    """Returns the weights of m, f and e in x_s with the state corrected.

    D1 = a m0 + p e and D2 = f + a2 m0.
    """
    a, p, gain, mm, me, ee = made
    a2 = to.v * n.w + n.drift
    d1m, d1e, d1f = _dot(a, mm, p, me), _dot(a, me, p, ee), _dot(a, to.mf, p, to.ef)
    d11, d12 = _dot(a, d1m, p, d1e), torch.addcmul(d1f, a2, d1m)
    d22 = torch.addcmul(to.ff, a2, torch.addcmul(2.0 * to.mf, a2, mm))
    b11, b22, rounding = d11 / n.r**2, d22 * n.r**2, 16.0 * torch.finfo(mm.dtype).eps
    both = b11 + b22
    balance = _clamp_ratio(b22 - b11, both - 2.0 * d12, 2.0, rounding * both)
    eta = 0.5 * torch.sigmoid(0.5 * balance.abs())
    of_d1, of_d2 = eta / -n.r, (1.0 - eta) * n.r  # B = of_d1 D1 + of_d2 D2
    excess = gain / n.alpha * (d11 - _dot(of_d1, d11, of_d2, d12))  # <P, D1>
    d = (_clamp_ratio(excess, d11, 0.0, rounding**2 * mm) / n.g).abs() - 0.5
    scale = (torch.exp(_find_exponent(n, d, made)) + 1.0) * n.half  # alpha_i g / (2 zeta)
    of_d1, of_d2 = (scale * of_d1 - gain) * row.x, scale * of_d2 * row.x
    of_m0 = _dot(of_d1, a, of_d2, a2)
    return [of_m0 + row.m, of_d2 - of_m0 + row.f, of_d1 * p]  # m0 = m - f


def _find_exponent(n: Balance, d: Tensor, made: Probe) -> Tensor:
    """Returns z with 1 / zeta = 1 + e^z."""
    if n.factor is None:
        return -d
    return d * torch.sigmoid(n.factor * _clamp_ratio(n.q * made.me, made.ee, 0.0))


def _dot(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> Tensor:
    """Returns a b + c d."""
    return (a * b).addcmul_(c, d)


def _clamp_ratio(a: Tensor, b: Tensor, otherwise: float, floor: Tensor | float = 0.0) -> Tensor:
    """Returns [a / b]."""
    return divide(a, b, otherwise, floor).clamp_(-2.0, 2.0)


def divide(a: Tensor, b: Tensor, otherwise: float, floor: Tensor | float = 0.0) -> Tensor:
    """Returns a / b where b > floor; a sum of squares can be rounded to below zero."""
    return torch.where(b > floor, a / b, otherwise)
