"""A schedule's run as a differentiable function of its parameters, in memory that is flat in NFE.

Of each network call only the state and the time are kept; on the way back the call is made again
with its gradients (activation checkpointing). The network's time is a label that no gradient goes
through, so the derivative by it is a difference of two calls.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...models.denoiser import Branch, Denoiser
from ...models.errors import FewstepError, ModelError
from ...samplers.guidance import Guidance, guide_x0
from .parameters import Coordinate, Parameters
from .problem import Block, Problem

DIFFERENCE = 3e-4  # between the two calls, as a share of the range of u


@dataclass(frozen=True)
class NetworkFunction:
    """The network as a function of a state (B, *) and a place u, answering (B, columns, *).

    branches: what the columns are; None gives the one column that the guidance makes.
    """

    denoiser: Denoiser
    coordinate: Coordinate
    guidance: Guidance
    branches: tuple[Branch, ...] | None

    def __call__(self, x: Tensor, u: float) -> Tensor:
        node = self.coordinate.schedule.at(self.coordinate.time(u))
        if self.branches is not None:
            return torch.stack(self.denoiser.x0(x, node, self.branches), 1)
        return guide_x0(self.denoiser, self.guidance, x, node)[:, None]

    def aside(self, u: float) -> float:
        """A place near u to take a difference with, inside the range of the network."""
        low, high = self.coordinate.ends
        step = DIFFERENCE * (high - low)
        return u + step if u + step <= high else u - step


class _Call(torch.autograd.Function):
    """One network call, differentiable in its state and its place."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, u: Tensor, ask: NetworkFunction) -> Tensor:
        ctx.ask = ask
        ctx.save_for_backward(x, u)
        return ask(x, float(u))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None]:
        (x, place), (grad,) = ctx.saved_tensors, grads
        ask, u = ctx.ask, float(place)
        with torch.enable_grad():
            inner = x.detach().requires_grad_()
            out = ask(inner, u)
            (by_x,) = torch.autograd.grad(out, inner, grad)
        with torch.no_grad():
            near = ask.aside(u)
            slope = (ask(x, near) - out) / (near - u)
            by_u = (grad * slope).sum().to(place)
        return by_x, by_u, None


@dataclass(frozen=True)
class Student:
    """Runs parameters on blocks of a problem.

    Raises:
        ModelError: as it is made, if the network lets no gradients through.
    """

    problem: Problem
    parameters: Parameters

    def __post_init__(self) -> None:
        check_differentiable(self.problem)

    def ends(self, block: Block) -> Tensor:
        """(n, *) in the dtype of the noise, on the network's device, with gradients."""
        parameters, network = self.parameters, self.problem.network
        scale = network.schedule.noise_scale(parameters.nodes[0])
        start = block.noise.to(network.device) * scale
        weights, asked = parameters.table().to(start), parameters.asked()
        denoiser, columns, x = self.problem.denoiser(block), [start], start
        for n in range(parameters.steps):
            ask = NetworkFunction(
                denoiser, parameters.coordinate, self.problem.guidance, parameters.branches(n)
            )
            columns.extend(self._answers(n, x, asked[n], ask))
            x = _combined(weights[n], columns)
        return x

    def _answers(self, n: int, x: Tensor, u: Tensor, ask: NetworkFunction) -> list[Tensor]:
        """The columns of step n."""
        base = self.parameters.base
        if n == 0 and base.afs:
            mean = base.given
            return [torch.zeros_like(x) if mean is None else mean.to(x).expand_as(x)]
        out: Tensor = _Call.apply(x, u, ask)  # type: ignore[no-untyped-call]
        return list(out.unbind(1))


def _combined(weights: Tensor, columns: list[Tensor]) -> Tensor:
    """sum_w weights[w] columns[w] over the columns there are."""
    out = weights[0] * columns[0]
    for weight, column in zip(weights[1 : len(columns)], columns[1:], strict=True):
        out = out + weight * column
    return out


def check_differentiable(problem: Problem) -> None:
    """Raises ModelError, before any work, if the network gives no gradient of its answer."""
    network, seeds = problem.network, tuple(problem.train[:1])
    noise = torch.zeros(1, *network.shape)
    denoiser = problem.denoiser(Block("train", seeds, problem.labels_of(seeds), noise, noise))
    coordinate = Coordinate(network.schedule)
    node = network.schedule.at(coordinate.time(sum(coordinate.ends) / 2.0))
    x = noise.to(network.device).requires_grad_()
    try:
        with torch.enable_grad():
            (out,) = denoiser.x0(x, node)
            (grad,) = torch.autograd.grad(out.sum(), x, allow_unused=True)
        reason = "its answer does not depend on the state" if grad is None else ""
    except FewstepError as error:
        if not isinstance(error.__cause__, RuntimeError):
            raise
        reason = str(error.__cause__).splitlines()[0]
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
    if reason:
        raise ModelError(
            f"{network.name} lets no gradients through ({reason}); search it with strategy evolve"
        )
