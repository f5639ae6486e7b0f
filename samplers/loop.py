"""The one loop. It knows no solver by name, no network by type and no policy's insides."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..models.denoiser import Denoiser
from ..models.errors import SettingError
from ..models.ledger import Ledger
from ..models.schedule import Node, TimeGrid
from ..solvers import GuidedExecutor, Solver, drive
from ..solvers.base import Asked, Split
from .guidance import CFG, Guidance, Unguided

Callback = Callable[[int, Node, Tensor, Tensor, Ledger], None]


def integrate(
    denoiser: Denoiser,
    solver: Solver[Any],
    grid: TimeGrid,
    x: Tensor,
    guidance: Guidance,
    callback: Callback | None = None,
    noise: Callable[[], Tensor] | None = None,
) -> Tensor:
    """Carries x (B, *) from the first node of the grid to its last.

    noise: draws standard normal noise like x, for stochastic solvers.
    callback: called once after each step with (step, node reached, x, the last x0, ledger); of a
        solver that combines the branches itself, the x0 is that of the conditional one.

    Raises:
        SettingError: if noise is wanted and there is none, or if a guidance stands beside a solver
            that brings its own.
    """
    _check_guidance(solver, guidance)
    state, x0 = solver.init(), x

    def answer(x_t: Tensor, node: Asked) -> Tensor:
        nonlocal x0
        if node is None:
            return _fresh(noise, x_t)
        if isinstance(node, Split):
            outputs = denoiser.x0(x_t, node.node, node.branches)
            x0 = outputs[-1]
            return torch.stack(outputs)
        x0 = guidance.combine(denoiser.x0(x_t, node, guidance.branches(node)), node)
        return x0

    for n, (t, s) in enumerate(pairwise(grid.nodes)):
        x, state = drive(solver.step(x, state, t, s), answer)
        if callback is not None:
            callback(n, s, x, x0, denoiser.ledger)
    denoiser.check()
    return x


def _check_guidance(solver: Solver[Any], guidance: Guidance) -> None:
    off = isinstance(guidance, Unguided) or (isinstance(guidance, CFG) and guidance.scale == 1.0)
    if isinstance(solver, GuidedExecutor) and not off:
        raise SettingError(
            "this schedule brings its own guidance; drop the guidance scale, interval and threshold"
        )


def _fresh(noise: Callable[[], Tensor] | None, x: Tensor) -> Tensor:
    if noise is None:
        raise SettingError("this solver adds noise; give integrate a source of it")
    return noise().to(x)
