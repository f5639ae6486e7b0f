"""Methods of posterior sampling: from x0 = E[x0 | x_t] to one that knows y = A x0 + noise.

Each corrects the prediction m by the residual e = y - A m. The covariance of x0 given x_t is
(sigma^2 / alpha) J with the Jacobian J = dm/dx, exactly (Tweedie's formula of second order);
methods differ in what they take for it. kappa = sigma / alpha.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from pydantic import Field
from torch import Tensor

from ....models.registry import SettingsRegistry
from ....models.schedule import Node
from ..settings import Checked
from .operators import Operator, sum_conjugate_steps

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True)
class Observation:
    """A measurement of each row of a batch.

    y:       (B, *measured).
    sigma_y: the standard deviation of its noise, in the units of the samples.
    """

    operator: Operator
    y: Tensor
    sigma_y: float

    def compare(self, m: Tensor) -> Tensor:
        """Returns the residual y - A m (B, *measured) of a prediction (B, *)."""
        return self.y - self.operator.forward(m)

    def weigh(self, residual: Tensor, a: float, noise: float = 1.0) -> Tensor:
        """Returns A^T (a A A^T + noise sigma_y^2 I)^-1 residual, (B, *)."""
        operator = self.operator
        return operator.adjoint(operator.solve(residual, a, noise * self.sigma_y**2))


@dataclass(frozen=True)
class Estimate:
    """A prediction that is to be corrected.

    m:       (B, *), as a function of the state x (B, *) where the method takes a gradient.
    weights: (a, b) of the step x_s = a x + b x0 + noise; None unless the method moves the state.
    predict: the prediction at another state of this node; it is counted.
    draw:    standard normal noise (B, *), row by row from the seeds.
    """

    m: Tensor
    x: Tensor
    node: Node
    weights: tuple[float, float] | None
    predict: Callable[[Tensor], Tensor]
    draw: Callable[[], Tensor]

    def smooth(self, v: Tensor) -> Tensor:
        """Returns (sigma^2 / alpha) J^T v, by one backward pass; (B, *) in and out."""
        (back,) = torch.autograd.grad(self.m, self.x, v, retain_graph=True)
        return back * (self.node.sigma**2 / self.node.alpha)

    def shift(self, m: Tensor, move: Tensor) -> Tensor:
        """Returns the x0 (B, *) with which the step from x goes where m goes from x + move."""
        assert self.weights is not None
        a, b = self.weights
        return m + (a / b) * move


class InverseMethod(ABC):
    """Settings of a method.

    name:      what users type; source: paper of the rule.
    cost:      its rows and backward passes in each evaluation, in words.
    gradient:  whether it differentiates the network.
    moves:     whether it moves the state, so that its solver must be of first order.
    """

    name: ClassVar[str] = ""
    source: ClassVar[str] = ""
    cost: ClassVar[str] = ""
    gradient: ClassVar[bool] = True
    moves: ClassVar[bool] = False

    @abstractmethod
    def correct(self, given: Observation, estimate: Estimate) -> Tensor:
        """Returns the x0 (B, *) that the solver sees."""


METHODS: SettingsRegistry[InverseMethod] = SettingsRegistry("method", InverseMethod, "diffpir")


@METHODS.register
@dataclass(frozen=True)
class DiffPIR(Checked, InverseMethod):
    """x0 = m + A^T (A A^T + sigma_y^2 weight / kappa^2 I)^-1 e, without a gradient.

    weight: of the network against the measurement, 1 to 10 in the paper.
    """

    name: ClassVar[str] = "diffpir"
    source: ClassVar[str] = "arXiv:2305.08995"
    cost: ClassVar[str] = "1 row"
    gradient: ClassVar[bool] = False

    weight: Positive = 1.0

    def correct(self, given: Observation, estimate: Estimate) -> Tensor:
        m, kappa = estimate.m, estimate.node.kappa
        return m + given.weigh(given.compare(m), 1.0, self.weight / kappa**2)


@dataclass(frozen=True)
class Tweedie(Checked, InverseMethod):
    """The common part of methods that take the covariance of x0 from the network's Jacobian.

    above: where kappa is larger, the covariance is r^2 I, as of data of unit variance, with
        r^2 = sigma^2 / (alpha^2 + sigma^2). There J is small and sigma^2 / alpha large, and their
        product is mostly the network's error.
    """

    above: Annotated[float, Field(gt=0)] = 3.0

    def correct(self, given: Observation, estimate: Estimate) -> Tensor:
        m, node = estimate.m.detach(), estimate.node
        variance = node.sigma**2 / (node.alpha**2 + node.sigma**2)
        if node.alpha == 0.0 or node.kappa > self.above:
            return m + variance * given.weigh(given.compare(m), variance)
        return m + self.shift(given, estimate, given.compare(m), variance)

    @abstractmethod
    def shift(
        self, given: Observation, estimate: Estimate, residual: Tensor, variance: float
    ) -> Tensor:
        """Returns what is added to m (B, *), where kappa is not above the bound."""


@METHODS.register
@dataclass(frozen=True)
class PiGDM(Tweedie):
    """x0 = m + (sigma^2 / alpha) J^T A^T (r^2 A A^T + sigma_y^2 I)^-1 e."""

    name: ClassVar[str] = "pigdm"
    source: ClassVar[str] = "Song et al., ICLR 2023 (PiGDM)"
    cost: ClassVar[str] = "1 row, 1 backward"

    def shift(
        self, given: Observation, estimate: Estimate, residual: Tensor, variance: float
    ) -> Tensor:
        return estimate.smooth(given.weigh(residual, variance))


@METHODS.register
@dataclass(frozen=True)
class MMPS(Tweedie):
    """x0 = m + S A^T (A S A^T + sigma_y^2 I)^-1 e with the covariance S = (sigma^2 / alpha) J.

    The inverse is taken by conjugate gradients, of which each round is one product with J. Exact
    for Gaussian data, once the rounds are as many as measured values that depend on each other.

    rounds: of conjugate gradients.
    """

    name: ClassVar[str] = "mmps"
    source: ClassVar[str] = "arXiv:2405.13712"
    cost: ClassVar[str] = "1 row, `rounds` backward"

    rounds: Annotated[int, Field(ge=1, le=1000, strict=True)] = 1

    def shift(
        self, given: Observation, estimate: Estimate, residual: Tensor, variance: float
    ) -> Tensor:
        def apply(v: Tensor) -> tuple[Tensor, Tensor]:
            back = estimate.smooth(given.operator.adjoint(v))
            return given.operator.forward(back) + given.sigma_y**2 * v, back

        return sum_conjugate_steps(apply, residual, self.rounds)


@METHODS.register
@dataclass(frozen=True)
class DPS(Checked, InverseMethod):
    """After each step, x_s <- x_s - scale d|e|/dx, with the norm of each image and not its square.

    scale: 0.3 to 1 in the paper, of 1000 steps; runs of 30 steps take more, such as 4.
    """

    name: ClassVar[str] = "dps"
    source: ClassVar[str] = "arXiv:2209.14687 alg. 1"
    cost: ClassVar[str] = "1 row, 1 backward"
    moves: ClassVar[bool] = True

    scale: Positive = 1.0

    def correct(self, given: Observation, estimate: Estimate) -> Tensor:
        assert estimate.weights is not None
        distance = torch.linalg.vector_norm(given.compare(estimate.m).flatten(1), dim=1)
        (slope,) = torch.autograd.grad(distance.sum(), estimate.x)
        return estimate.m - (self.scale / estimate.weights[1]) * slope


@METHODS.register
@dataclass(frozen=True)
class STSL(Checked, InverseMethod):
    """Before each step, x <- x - dL/dx, `rounds` times, with a loss of second order.

    L = scale |e|^2 + (curvature / d) delta^T (s(x + delta) - s(x)), where s = -eps / sigma is the
    score, d the number of values of a sample, and delta a new draw of N(0, I): its second term
    estimates the trace of the Hessian of log p, and has no gradient where the data are Gaussian.

    No code was found: scale, and the sign of the second term, are not checked against any.
    """

    name: ClassVar[str] = "stsl"
    source: ClassVar[str] = "arXiv:2312.00852"
    cost: ClassVar[str] = "2 `rounds` + 1 rows, 2 `rounds` backward"
    moves: ClassVar[bool] = True

    scale: Positive = 0.3
    curvature: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.02
    rounds: Annotated[int, Field(ge=1, le=1000, strict=True)] = 5

    def correct(self, given: Observation, estimate: Estimate) -> Tensor:
        start = x = estimate.x
        m, node = estimate.m, estimate.node
        for n in range(self.rounds):
            if n:
                m = estimate.predict(x)
            loss = self.scale * given.compare(m).square().sum()
            delta = estimate.draw()
            trace = estimate_trace(estimate.predict, x, m, node, delta).sum()
            loss = loss + (self.curvature / x[0].numel()) * trace
            (slope,) = torch.autograd.grad(loss, x)
            x = (x - slope).detach().requires_grad_()
        end = x.detach()
        return estimate.shift(estimate.predict(end), end - start)


def estimate_trace(
    predict: Callable[[Tensor], Tensor], x: Tensor, m: Tensor, node: Node, delta: Tensor
) -> Tensor:
    """Returns delta^T (s(x + delta) - s(x)) of each row (B,), s = (alpha x0 - x) / sigma^2.

    m: the prediction at x.
    """
    change = (node.alpha * (predict(x + delta) - m) - delta) / node.sigma**2
    return (delta * change).flatten(1).sum(1)
