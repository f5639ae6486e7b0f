"""Variance-preserving noise schedules: alpha^2 + sigma^2 = 1."""

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import ClassVar

from .errors import ScheduleError, SettingError, UnknownNameError
from .node import Node, check_range, scale_time

MOST_TIMESTEPS = 100_000  # of a discrete schedule; published ones have 1000 or 4000


def _half_log_snr(log_alpha: float) -> float:
    """Returns lam of a variance-preserving node from ln(alpha); expm1 keeps digits near t = 0."""
    if log_alpha == 0.0:
        return math.inf
    return log_alpha - 0.5 * math.log(-math.expm1(2.0 * log_alpha))


def _vp_node(t: float, log_alpha: float) -> Node:
    sigma = math.sqrt(abs(math.expm1(2.0 * log_alpha)))
    return Node(t, math.exp(log_alpha), sigma, _half_log_snr(log_alpha))


def _vp_log_alpha(lam: float) -> float:
    """Returns ln(alpha) of the VP node with half log-SNR lam: -log1p(e^{-2 lam}) / 2."""
    if lam < 0.0:  # the same with e^{2 lam} factored out, so that nothing overflows
        return lam - 0.5 * math.log1p(math.exp(2.0 * lam))
    return -0.5 * math.log1p(math.exp(-2.0 * lam))


def _snap(t: float) -> float:
    """Returns t, put back into [0, 1] if only rounding carried it out."""
    return min(max(t, 0.0), 1.0) if -1e-12 < t < 1.0 + 1e-12 else t


class _VariancePreserving:
    """A base of schedules with alpha^2 + sigma^2 = 1: noise of unit variance at the start."""

    def noise_scale(self, node: Node) -> float:
        return 1.0


@dataclass(frozen=True)
class VPDiscrete(_VariancePreserving):
    """A DDPM schedule of N training steps, read between them (arXiv:2206.00927, app. D.4).

    ln(alpha) is piecewise linear in t through (0, 0) and t_n = (n + 1) / N, n = 0..N-1, where it is
    ln(abar_n) / 2; so t = 0 is clean data exactly. The network's label is N t - 1, in [0, N - 1];
    below t = 1/N it stays 0.

    beta_schedule: "linear" | "scaled_linear" (Stable Diffusion) | "squaredcos_cap_v2" | "sigmoid".
    trained_betas: N explicit betas; then the three fields above do not count.
    zero_snr:      rescale sqrt(abar) so that it ends at zero (arXiv:2305.08891, alg. 1). An eps
                   network cannot start there, so the last abar is then 2^-24, as in diffusers, or
                   half of the one before it if that is less.
    whole_times:   the network takes whole timesteps only, as an embedding looks them up: every node
                   but t = 0 is then at the nearest t_n, and the label is the integer n.
    """

    family: ClassVar[str] = "vp"
    beta_schedule: str = "linear"
    beta_start: float = 1e-4
    beta_end: float = 0.02
    num_train_timesteps: int = 1000
    zero_snr: bool = False
    trained_betas: tuple[float, ...] | None = None
    whole_times: bool = False

    def __post_init__(self) -> None:
        if self.trained_betas is not None:  # JSON brings a list
            object.__setattr__(self, "trained_betas", tuple(self.trained_betas))
            object.__setattr__(self, "num_train_timesteps", len(self.trained_betas))
        if self.num_train_timesteps > MOST_TIMESTEPS:
            raise SettingError(
                f"a network is trained on at most {MOST_TIMESTEPS:,} timesteps, not"
                f" {self.num_train_timesteps:g}"
            )
        betas = self._betas() if self.num_train_timesteps > 1 else []
        if not betas or not all(0.0 < beta < 1.0 for beta in betas):
            raise SettingError("betas must be at least two numbers strictly between 0 and 1")

    @classmethod
    def from_alphas_cumprod(cls, alphas_cumprod: Sequence[float]) -> "VPDiscrete":
        """Makes a schedule with the given abar_0 > abar_1 > ... > abar_{N-1} > 0."""
        ratios = (b / a for a, b in pairwise([1.0, *alphas_cumprod]))
        return cls(trained_betas=tuple(1.0 - ratio for ratio in ratios))

    @property
    def t_min(self) -> float:
        return 1.0 / self.num_train_timesteps

    @property
    def t_max(self) -> float:
        return 1.0

    @property
    def t_zero(self) -> float:
        return 0.0

    def at(self, t: float) -> Node:
        check_range(0.0 <= t <= 1.0, t, self)
        if self.whole_times and t > 0.0:
            n = max(round(t * self.num_train_timesteps), 1)
            return _vp_node(n / self.num_train_timesteps, self._log_alpha[n])
        n, share = self._segment(t)
        low, high = self._log_alpha[n], self._log_alpha[n + 1]
        return _vp_node(t, low + share * (high - low))

    def at_lam(self, lam: float) -> Node:
        target = _vp_log_alpha(lam)
        n = bisect_right(self._log_alpha, -target, key=lambda v: -v) - 1
        n = min(max(n, 0), self.num_train_timesteps - 1)
        low, high = self._log_alpha[n], self._log_alpha[n + 1]
        return self.at(_snap((n + (target - low) / (high - low)) / self.num_train_timesteps))

    def slope(self, t: float) -> tuple[float, float]:
        node, (n, _) = self.at(t), self._segment(t)
        rate = (self._log_alpha[n + 1] - self._log_alpha[n]) * self.num_train_timesteps
        return _vp_slope(node, rate)

    def label(self, node: Node) -> float:
        label = max(self.num_train_timesteps * node.t - 1.0, 0.0)
        if not self.whole_times:
            return label
        if abs(label - round(label)) > 1e-6:
            raise ScheduleError(
                f"t={node.t:g} lies between timesteps {math.floor(label)} and {math.ceil(label)},"
                " and this network takes whole ones only; take times of its own schedule"
            )
        return float(round(label))

    @property
    def alphas_cumprod(self) -> tuple[float, ...]:
        """abar_n = prod_{k <= n} (1 - beta_k), n = 0..N-1, in float64."""
        return tuple(math.exp(2.0 * value) for value in self._log_alpha[1:])

    @cached_property
    def _log_alpha(self) -> tuple[float, ...]:
        """ln(alpha) at t = 0, 1/N, ..., 1."""
        sums = [0.0]
        for beta in self._betas():
            sums.append(sums[-1] + 0.5 * math.log1p(-beta))
        return tuple(_rescale_to_zero(sums)) if self.zero_snr else tuple(sums)

    def _segment(self, t: float) -> tuple[int, float]:
        n = min(int(t * self.num_train_timesteps), self.num_train_timesteps - 1)
        return n, t * self.num_train_timesteps - n

    def _betas(self) -> list[float]:
        if self.trained_betas is not None:
            return list(self.trained_betas)
        if self.beta_schedule not in BETAS:
            raise UnknownNameError("beta schedule", self.beta_schedule, BETAS)
        return BETAS[self.beta_schedule](self.beta_start, self.beta_end, self.num_train_timesteps)


def _vp_slope(node: Node, rate: float) -> tuple[float, float]:
    """Returns (d alpha, d sigma) / dt from rate = d ln(alpha) / dt, for alpha^2 + sigma^2 = 1."""
    d_alpha = node.alpha * rate
    return d_alpha, -math.inf * d_alpha if node.sigma == 0.0 else -node.alpha * d_alpha / node.sigma


def _rescale_to_zero(log_alpha: Sequence[float]) -> Iterator[float]:
    """Yields ln of (alpha - alpha_N) alpha_1 / (alpha_1 - alpha_N), with a floor for the last."""
    first, last = math.exp(log_alpha[1]), math.exp(log_alpha[-1])
    yield 0.0
    for before in log_alpha[1:-1]:
        value = math.log((math.exp(before) - last) * first / (first - last))
        yield value
    yield min(-12.0 * math.log(2.0), value - 0.5 * math.log(2.0))


def _linspace(start: float, stop: float, n: int) -> list[float]:
    return [start + (stop - start) * i / (n - 1) for i in range(n)]


def _linear_betas(start: float, end: float, n: int) -> list[float]:
    return _linspace(start, end, n)


def _scaled_linear_betas(start: float, end: float, n: int) -> list[float]:
    return [root * root for root in _linspace(math.sqrt(start), math.sqrt(end), n)]


def _squared_cosine_betas(start: float, end: float, n: int) -> list[float]:
    """Returns 1 - abar(t + 1/N) / abar(t), at most 0.999 (arXiv:2102.09672, eq. 17)."""
    abar = [math.cos((i / n + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(n + 1)]
    return [min(1.0 - b / a, 0.999) for a, b in pairwise(abar)]


def _sigmoid_betas(start: float, end: float, n: int) -> list[float]:
    return [start + (end - start) / (1.0 + math.exp(-v)) for v in _linspace(-6.0, 6.0, n)]


BETAS = {
    "linear": _linear_betas,
    "scaled_linear": _scaled_linear_betas,
    "squaredcos_cap_v2": _squared_cosine_betas,
    "sigmoid": _sigmoid_betas,
}


@dataclass(frozen=True)
class VPLinear(_VariancePreserving):
    """Continuous VP with beta(t) = beta_0 + t (beta_1 - beta_0) (arXiv:2011.13456, eq. 33).

    ln(alpha_t) = -t^2 (beta_1 - beta_0) / 4 - t beta_0 / 2, t in [0, 1]. The label is
    t * time_scale: 999 for the networks of that paper, 1 for networks that get t itself;
    None is not stated, which is enough for a grid.
    """

    family: ClassVar[str] = "vp-linear"
    beta_0: float = 0.1
    beta_1: float = 20.0
    t_min: float = 1e-3
    time_scale: float | None = None

    t_max: ClassVar[float] = 1.0
    t_zero: ClassVar[float] = 0.0

    def at(self, t: float) -> Node:
        check_range(0.0 <= t <= 1.0, t, self)
        return _vp_node(t, -0.25 * t * t * (self.beta_1 - self.beta_0) - 0.5 * t * self.beta_0)

    def at_lam(self, lam: float) -> Node:
        """Returns the node at t = 2 L / (sqrt(beta_0^2 + 2 (beta_1 - beta_0) L) + beta_0).

        L = log1p(e^{-2 lam}).
        """
        big = -2.0 * _vp_log_alpha(lam)
        root = math.sqrt(self.beta_0**2 + 2.0 * (self.beta_1 - self.beta_0) * big)
        return self.at(_snap(2.0 * big / (root + self.beta_0)))

    def slope(self, t: float) -> tuple[float, float]:
        rate = -0.5 * (t * (self.beta_1 - self.beta_0) + self.beta_0)
        return _vp_slope(self.at(t), rate)

    def label(self, node: Node) -> float:
        return scale_time(self, self.time_scale, node.t)


@dataclass(frozen=True)
class Cosine(_VariancePreserving):
    """alpha_t = cos(pi/2 (t + s)/(1 + s)) / cos(pi/2 s/(1 + s)), s = 0.008 (arXiv:2102.09672).

    Unstable near t = 1, where lam falls without bound, so sampling starts at t_max = 0.9946. The
    label is t * time_scale; None is not stated, which is enough for a grid.
    """

    family: ClassVar[str] = "vp-cosine"
    s: float = 0.008
    t_min: float = 1e-3
    t_max: float = 0.9946
    time_scale: float | None = None

    t_zero: ClassVar[float] = 0.0

    def at(self, t: float) -> Node:
        check_range(0.0 <= t <= 1.0, t, self)
        if t == 0.0:
            return Node(0.0, 1.0, 0.0, math.inf)
        return _vp_node(t, math.log(math.cos(self._angle(t)) / math.cos(self._angle(0.0))))

    def at_lam(self, lam: float) -> Node:
        cosine = math.exp(_vp_log_alpha(lam)) * math.cos(self._angle(0.0))
        t = 2.0 * (1.0 + self.s) / math.pi * math.acos(cosine) - self.s
        return self.at(_snap(t))

    def slope(self, t: float) -> tuple[float, float]:
        rate = -math.tan(self._angle(t)) * math.pi / (2.0 * (1.0 + self.s))
        return _vp_slope(self.at(t), rate)

    def label(self, node: Node) -> float:
        return scale_time(self, self.time_scale, node.t)

    def _angle(self, t: float) -> float:
        return math.pi / 2 * (t + self.s) / (1.0 + self.s)
