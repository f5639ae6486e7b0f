"""`fewstep fit linear-ag`: the weights of past outputs that forecast c - u at skipped steps.

One run of many images, in which both branches are evaluated at every step. At a step that the
pattern skips, the weights are found by least squares over all entries of all images, and the run
goes on with the forecast, as later runs will. So the weights of a step are fitted to the states
that the forecasts before it lead to.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from ..models.denoiser import Ask, Network
from ..models.errors import SettingError, shorten
from ..models.load import load
from ..models.probe import sketch
from ..samplers.guidance.base import BOTH, Guide, Moment
from ..samplers.guidance.forecast import Pattern
from ..samplers.guidance.linear_ag import (
    LinearWeights,
    PastOutputs,
    Weights,
    fit_weights,
)
from ..samplers.guidance.settings import Checked, check_scale
from ..samplers.guidance.signature import compute_signature
from ..solvers import take_solver
from .calibration_request import LinearFitRequest
from .guidance_runs import Images, plan_of, run_guided

MOST_TERMS = 100  # of past outputs, each


@dataclass(frozen=True, kw_only=True)
class Fit(Checked):
    """The run that weights are fitted for.

    solver, nfe, grid, scale: of the run that it is for.
    pattern: where both branches are evaluated.
    terms:   how many past differences a forecast takes, and how many changes of c; of the latest.
    ridge:   of the least squares; see `linear_ag.fit_weights`.
    """

    solver: str
    nfe: Annotated[int, Field(ge=2)]
    scale: float
    grid: str | None = None
    pattern: Pattern = field(default_factory=lambda: Pattern(1, 2))
    terms: tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=0)]] = (2, 2)
    ridge: Annotated[float, Field(ge=0)] = 1e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        take_solver(self.solver)
        check_scale(self.scale)
        if self.scale == 1.0:
            raise SettingError(
                "a scale of 1 is no guidance, so there is nothing to fit; give --cfg-scale 3"
            )


def fit(network: Network, what: Fit, images: Images, *, progress: bool = False) -> LinearWeights:
    """Returns the weights for one network, solver, grid, scale and pattern.

    Raises:
        SettingError: if the network cannot be guided, or the solver has no fixed steps of one
            evaluation each.
    """
    plan = plan_of(network, what.solver, what.nfe, what.grid)
    if plan.nfe != plan.grid.steps:
        raise SettingError(
            f"{what.solver} has several evaluations a step; take dpmpp-2m or another"
        )
    flags = what.pattern.list_flags(plan.grid.steps)
    if all(flags):
        raise SettingError("the pattern skips no step; give --every 2 or more, or a mask with a 0")
    guide = FittingGuide(what, flags)
    run_guided(network, plan, images, lambda setup: guide, progress=progress)
    return LinearWeights(
        network=network.name,
        solver=what.solver,
        nfe=what.nfe,
        scale=what.scale,
        answer=sketch(network),
        times=tuple(node.t for node in plan.grid.nodes),
        signature=compute_signature(plan.solver, plan.grid),
        mask="".join("1" if flag else "0" for flag in flags),
        steps=guide.weights,
        images=images.count,
        ridge=what.ridge,
    )


def fit_request(request: LinearFitRequest, *, progress: bool = False) -> LinearWeights:
    """Returns the weights that were asked for; raises SettingError as `fit` does."""
    pattern = pattern_of(request.warmup, request.every, request.tail, request.mask)
    what = Fit(
        solver=request.solver,
        nfe=request.nfe,
        scale=request.cfg_scale,
        grid=request.grid_type,
        pattern=pattern,
        terms=terms_of(request.terms),
        ridge=request.ridge,
    )
    network = load(request.model, device=request.device)
    return fit(network, what, Images(request.images, request.batch), progress=progress)


class FittingGuide(Guide):
    """Evaluates both branches everywhere, and guides by the forecast where the pattern skips."""

    def __init__(self, what: Fit, flags: Sequence[bool]) -> None:
        self.what, self.flags, self.past = what, flags, PastOutputs()
        self.weights: dict[int, Weights] = {}

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        return BOTH

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        uncond, cond = outputs
        true = cond - uncond
        if self.flags[moment.step]:
            self.past.add(cond, true)
            return torch.lerp(uncond, cond, self.what.scale)
        d, c = self.what.terms
        parts = self.past.list_regressors(cond, d, c)
        # nine digits: the last bits of a least-squares fit depend on where its arrays lie in memory
        weights = [float(f"{w:.9g}") for w in fit_weights(true, parts, self.what.ridge)]
        forecast = sum(w * part for w, part in zip(weights, parts, strict=True))
        split = min(d, len(self.past.d))
        self.weights[moment.step] = Weights(
            d=tuple(weights[:split]),
            c=tuple(weights[split:]),
            error=float((forecast - true).norm() / true.norm()),
        )
        self.past.add(cond, None)
        return cond + (self.what.scale - 1.0) * forecast


def pattern_of(warmup: int, every: int, tail: int, mask: str | None) -> Pattern:
    """Returns the pattern as typed; raises SettingError for a number out of range."""
    if warmup < 1 or every < 0 or tail < 0:
        raise SettingError("warmup must be at least 1, every and tail at least 0")
    return Pattern(warmup, every, mask or "", tail)


def terms_of(text: str) -> tuple[int, int]:
    """Returns `2,2` as a pair of numbers."""
    try:
        d, c = map(int, text.split(","))
    except ValueError:
        raise SettingError(f"{text!r} are not terms; write DIFFERENCES,CHANGES as in 2,2") from None
    if not (0 <= d <= MOST_TERMS and 0 <= c <= MOST_TERMS):
        raise SettingError(
            f"terms lie between 0 and {MOST_TERMS}, not {shorten(text)}: a run has no more steps"
            " to look back on"
        )
    return d, c
