"""The coefficients of a schedule as differentiable functions of its nodes, in torch float64.

This is the executor's arithmetic once more, for gradients: `solvers.exponential` on Python floats
says what a schedule is, and a test holds this to it at every point. A state is written as its
weights in a basis of W columns, the first of which is the noise a run starts from; so a whole
schedule becomes one matrix, and correctors and noise predictions leave no trace in it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...models.schedule import Node, NoiseSchedule
from ...solvers.exponential import Relax, StepSpec

SERIES = 20  # terms of phi near zero
FACTORIALS = torch.tensor([math.factorial(i) for i in range(SERIES + 6)], dtype=torch.float64)


def f64(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def phi(k: int, z: Tensor) -> Tensor:
    """phi_k(z) for k >= 1, as `solvers.exponential.phi`; the series of |z| < 1 is smooth at 0."""
    if abs(float(z.detach())) < 1.0:
        powers = z ** torch.arange(SERIES, dtype=torch.float64)
        return (powers / FACTORIALS[k : k + SERIES]).sum()
    value = torch.expm1(z) / z
    for i in range(1, k):
        value = (value - 1.0 / math.factorial(i)) / z
    return value


def derivative_weights(offsets: Tensor, k: int) -> Tensor:
    """Weights (n,) of the k-th derivative at 0 from n places, as `solvers.exponential`."""
    if len(offsets) == 1:
        return 1.0 / offsets
    orders = torch.arange(1, len(offsets) + 1)
    rows = offsets ** orders[:, None] / FACTORIALS[orders][:, None]
    target = (orders == k).to(torch.float64)
    solved: Tensor = torch.linalg.solve(rows, target)
    return solved


def relaxation(kind: Relax, h: Tensor, signed_h: Tensor, c: float) -> Tensor:
    """R(h), as `solvers.exponential.relaxation`."""
    match kind:
        case "bh1":
            return 0.5 / phi(2, signed_h)
        case "bh2":
            return 0.5 * phi(1, signed_h) / phi(2, signed_h)
        case "linear":
            return 1.0 + c * h
        case _:
            return torch.ones((), dtype=torch.float64)


@dataclass(frozen=True)
class MovingNode:
    """A node whose place may carry a gradient: alpha, sigma and lam, float64 scalars."""

    alpha: Tensor
    sigma: Tensor
    lam: Tensor

    @property
    def finite(self) -> bool:
        return math.isfinite(float(self.lam.detach()))

    @classmethod
    def of(cls, node: Node) -> "MovingNode":
        """A node that stays where it is."""
        return cls(f64(node.alpha), f64(node.sigma), f64(node.lam))

    @classmethod
    def at(cls, schedule: NoiseSchedule, lam: Tensor) -> "MovingNode":
        """The node of a schedule at a finite lam."""
        match schedule.family:
            case "edm":
                return cls(torch.ones_like(lam), torch.exp(-lam), lam)
            case "flow":
                return cls(torch.sigmoid(lam), torch.sigmoid(-lam), lam)
            case _:
                return cls(torch.sigmoid(2.0 * lam).sqrt(), torch.sigmoid(-2.0 * lam).sqrt(), lam)


@dataclass(frozen=True)
class Theory:
    """Steps over points, written in a basis.

    points:      N + 1 nodes.
    specs:       N steps; their dA and dB do not count.
    predictions: (N, W), each prediction in the basis; column 0 is the first state.
    """

    points: Sequence[MovingNode]
    specs: Sequence[StepSpec]
    predictions: Tensor

    def table(self, scale: Tensor, free: Tensor) -> Tensor:
        """(N, W): the states 1 .. N in the basis.

        scale: (N,), added to the weight of each step's state, corrected or not.
        free:  (N, W), added to the state that each step gives.
        """
        first = torch.zeros(self.predictions.shape[1], dtype=torch.float64)
        first[0] = 1.0
        states, shift = [first], torch.zeros_like(first)
        for n, spec in enumerate(self.specs):
            weight, rest = self._taylor(states, n, spec, range(n - 1, -1, -1))
            states.append((weight + scale[n]) * (states[n] + shift) + rest + free[n])
            shift = self._correction(states, n, spec, rest) if spec.corr.on else 0.0 * shift
        return torch.stack(states[1:])

    def residual(self, table: Tensor) -> tuple[Tensor, Tensor]:
        """The (scale, free) with which `table` gives a certain table back; free[:, 0] is 0."""
        first = torch.zeros(self.predictions.shape[1], dtype=torch.float64)
        first[0] = 1.0
        states, shift = [first, *table], torch.zeros_like(first)
        scales, frees = [], []
        for n, spec in enumerate(self.specs):
            weight, rest = self._taylor(states, n, spec, range(n - 1, -1, -1))
            before = states[n] + shift
            left = states[n + 1] - weight * before - rest
            scale = left[0] / before[0] if left[0] else left[0]
            scales.append(scale)
            frees.append(left - scale * before)
            shift = self._correction(states, n, spec, rest) if spec.corr.on else 0.0 * shift
        return torch.stack(scales), torch.stack(frees)

    def _correction(
        self, states: Sequence[Tensor], n: int, spec: StepSpec, predicted: Tensor
    ) -> Tensor:
        """Step n redone at one order more with the prediction at its end, minus step n."""
        relax = spec.corr.relax if spec.order == 1 else "none"
        more = {"order": spec.order + 1, "est": (), "kmul": None, "relax": relax}
        history = (n + 1, *range(n - 1, -1, -1))
        _, corrected = self._taylor(states, n, spec.model_copy(update=more), history)
        return corrected - predicted

    def _taylor(
        self, states: Sequence[Tensor], n: int, spec: StepSpec, history: Sequence[int]
    ) -> tuple[Tensor, Tensor]:
        """The step from node n: the weight of its state, and all else in the basis."""
        s, t = self.points[n], self.points[n + 1]
        near = [j for j in history if self.points[j].finite] if s.finite else []
        near = near[: spec.order - 1]
        if not near and not (s.finite and t.finite):  # the limit of data form
            ratio = t.sigma / s.sigma
            return ratio, (t.alpha - s.alpha * ratio) * self.predictions[n]
        ell, h = spec.ell, t.lam - s.lam
        z = (2.0 * ell - 1.0) * h
        outer = -t.alpha * torch.exp((ell - 1.0) * h) * h
        rest = outer * phi(1, -z) * self._scaled(states, n, n, ell)
        counts = spec.points if spec.order - 1 == len(near) else (len(near),) * len(near)
        for k, count in enumerate(counts, start=1):
            slope = self._derivative(states, n, near[:count], (ell, h, k))
            rest = rest + outer * phi(k + 1, -z) * _factor(spec, k, h, z) * slope
        return t.alpha / s.alpha * torch.exp(-ell * h), rest

    def _derivative(
        self, states: Sequence[Tensor], n: int, near: Sequence[int], how: tuple[float, Tensor, int]
    ) -> Tensor:
        """h^k g^(k) at node n from the predictions of the nodes `near`, in the basis."""
        ell, h, k = how
        offsets = torch.stack([(self.points[j].lam - self.points[n].lam) / h for j in near])
        own = self._scaled(states, n, n, ell)
        values = torch.stack([self._scaled(states, n, j, ell) - own for j in near])
        return derivative_weights(offsets, k) @ values

    def _scaled(self, states: Sequence[Tensor], n: int, j: int, ell: float) -> Tensor:
        """g_j = e^{(1-l) (lam_j - lam_n)} ((1 - l) kappa_j eps_j - l x0_j), in the basis."""
        node, x0 = self.points[j], self.predictions[j]
        if ell == 1.0:
            return -x0
        eps = (states[j] - node.alpha * x0) / node.sigma
        scale = torch.exp((1.0 - ell) * (node.lam - self.points[n].lam))
        return scale * ((1.0 - ell) * torch.exp(-node.lam) * eps - ell * x0)


def _factor(spec: StepSpec, k: int, h: Tensor, z: Tensor) -> Tensor:
    """What multiplies the k-th derivative."""
    relaxed = relaxation(spec.relax if k == 1 else "none", h, -z, spec.c)
    return relaxed if spec.kmul is None else relaxed * spec.kmul[k - 1]
