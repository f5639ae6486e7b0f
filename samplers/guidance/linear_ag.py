"""LinearAG: at some steps c - u is a fitted combination of past outputs (arXiv:2312.12487).

With d = c - u, the forecast at a skipped step n is

    d_n = sum_j a_j d_(j) + sum_j b_j (c_n - c_{n-j}),

where d_(1), d_(2), .. are the differences last evaluated and c_{n-1}, .. the conditional
predictions before. It is the general affine combination of past c and u whose weights sum to that
of u_n, in the well-conditioned variables. The weights are numbers, shared by all pixels and images,
fitted to one network, solver, grid and scale by `fewstep fit linear-ag`, and refused elsewhere.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import Field, InstanceOf
from torch import Tensor

from ...models.denoiser import Ask, Branch, Network
from ...models.errors import SettingError, shorten
from ...models.probe import are_alike, sketch
from ...models.reading import StrictModel, parse_as, read_text
from ...models.schedule import TimeGrid
from ...solvers import Solver
from .base import BOTH, COND, Guidance, Guide, Moment, Setup, register
from .settings import Checked
from .signature import are_near, compute_signature

Finite = Annotated[float, Field(allow_inf_nan=False)]


class Weights(StrictModel):
    """Of one skipped step: d, of the differences last evaluated; c, of c_n - c_{n-j}; newest first.

    error: |forecast - true| / |true| over the images it was fitted to.
    """

    d: tuple[Finite, ...]
    c: tuple[Finite, ...]
    error: Finite


class LinearWeights(StrictModel):
    """The file of `fewstep fit linear-ag`, version 1.

    network, solver, nfe: as they were called; scale: of guidance.
    answer: a sketch of what the network answers, or None if it cannot be asked.
    times:  of the grid; signature: what the solver makes of fixed answers on it.
    mask:   one digit per step, 1 where both branches are evaluated.
    steps:  the weights at each 0 of the mask, by its number.
    images: how many they were fitted to; ridge: see `fit_weights`.
    """

    format: Literal["fewstep-linear-ag"] = "fewstep-linear-ag"
    version: Literal[1] = 1
    network: str
    solver: str
    nfe: int
    scale: Finite
    answer: tuple[Finite, ...] | None = None
    times: tuple[Finite, ...]
    signature: tuple[Finite, ...]
    mask: Annotated[str, Field(pattern="^1[01]*$")]
    steps: dict[int, Weights]
    images: int = 0
    ridge: Finite = 0.0

    @classmethod
    def load(cls, path: Path | str) -> "LinearWeights":
        """Returns the weights of a file; raises SettingError if it cannot be read or holds none."""
        try:
            return parse_as(cls, read_text(path))
        except SettingError as error:
            raise SettingError(
                f"{shorten(path)} holds no weights of linear-ag: {error};"
                " `fewstep fit linear-ag` makes such a file"
            ) from error

    def check(self, network: Network, solver: Solver[Any], grid: TimeGrid) -> None:
        """Raises SettingError if they were fitted to another run."""
        remedy = "fit it for this run with `fewstep fit linear-ag`"
        times = [node.t for node in grid.nodes]
        if len(times) != len(self.times) or not are_near(times, self.times):
            raise SettingError(
                f"linear-ag was fitted to {self.nfe} evaluations of {self.solver} on another grid;"
                f" {remedy}"
            )
        if not are_near(compute_signature(solver, grid), self.signature):
            raise SettingError(
                f"linear-ag was fitted to {self.solver}, and this is another solver; {remedy}"
            )
        answer = sketch(network) if self.answer else None
        if answer and self.answer and not are_alike(answer, self.answer):
            raise SettingError(
                f"linear-ag was fitted to another network ({self.network}): {network.name} answers"
                f" a fixed noise otherwise; {remedy}"
            )


@register
@dataclass(frozen=True)
class LinearAG(Checked, Guidance):
    """CFG whose difference c - u is a fitted combination of past outputs at some steps.

    file:  what `fewstep fit linear-ag` wrote, or its content.
    scale: of guidance; that of the file, which it must be.
    """

    name: ClassVar[str] = "linear-ag"
    source: ClassVar[str] = "arXiv:2312.12487 sec. 5"

    file: str | InstanceOf[LinearWeights]
    scale: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        fitted_to = self.weights.scale
        if self.scale is not None and self.scale != fitted_to:
            raise SettingError(
                f"linear-ag was fitted to scale {fitted_to:g}, not {self.scale:g};"
                " drop the scale, or fit it for that one with `fewstep fit linear-ag`"
            )

    @property
    def weights(self) -> LinearWeights:
        if isinstance(self.file, LinearWeights):
            return self.file
        path = Path(self.file)
        return _load(self.file, path.stat().st_mtime_ns if path.is_file() else 0)

    def needs(self, grid: TimeGrid) -> set[Branch]:
        return {ask.branch for ask in BOTH}

    def check(self, setup: Setup) -> None:
        if not setup.one_call:
            raise SettingError(
                "linear-ag has one set of weights for each step, so it runs on solvers with one"
                " evaluation a step, such as dpmpp-2m"
            )
        self.weights.check(setup.network, setup.solver, setup.grid)

    def begin(self, setup: Setup) -> Guide:
        return LinearGuide(self.weights)


@lru_cache(maxsize=8)
def _load(path: str, changed: int) -> LinearWeights:
    return LinearWeights.load(path)


class PastOutputs:
    """Past outputs as the regressors of the next difference."""

    def __init__(self) -> None:
        self.d: list[Tensor] = []  # newest first
        self.c: list[Tensor] = []

    def add(self, cond: Tensor, difference: Tensor | None) -> None:
        """Takes in c, and c - u where u was evaluated."""
        self.c.insert(0, cond)
        if difference is not None:
            self.d.insert(0, difference)

    def has(self, d: int, c: int) -> bool:
        """Returns whether so many are known; inside an interval a run may begin late."""
        return len(self.d) >= d and len(self.c) >= c

    def list_regressors(self, cond: Tensor, d: int, c: int) -> list[Tensor]:
        """Returns the last d differences and c_n - c_{n-j} for the last c predictions."""
        return [*self.d[:d], *[cond - each for each in self.c[:c]]]


class LinearGuide(Guide):
    """Evaluates both branches where the mask says so, and combines past outputs elsewhere."""

    def __init__(self, weights: LinearWeights) -> None:
        self.weights, self.past = weights, PastOutputs()

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        weights = self.weights.steps.get(moment.step)
        known = weights is not None and self.past.has(len(weights.d), len(weights.c))
        return COND if known else BOTH

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        scale, cond = self.weights.scale, outputs[-1]
        if len(outputs) == 2:
            self.past.add(cond, cond - outputs[0])
            return torch.lerp(outputs[0], cond, scale)
        weights = self.weights.steps[moment.step]
        parts = self.past.list_regressors(cond, len(weights.d), len(weights.c))
        guided = cond.clone()
        for weight, part in zip((*weights.d, *weights.c), parts, strict=True):
            guided.add_(part, alpha=(scale - 1.0) * weight)
        self.past.add(cond, None)
        return guided


def fit_weights(target: Tensor, parts: Sequence[Tensor], ridge: float) -> list[float]:
    """Returns the weights of the parts that give the target best, all (B, *).

    They solve least squares over all entries by the normal equations in float64. The diagonal of
    the k x k Gram matrix G has ridge tr(G) / k added, which bounds the weights of parts that are
    alike.
    """
    wide = torch.float32 if target.device.type == "mps" else torch.float64
    columns = torch.stack([part.flatten() for part in parts]).to(wide)
    gram = (columns @ columns.T).cpu().double()
    right = (columns @ target.flatten().to(wide)).cpu().double()
    added = ridge * gram.trace() / len(parts)
    matrix = gram + added * torch.eye(len(parts), dtype=torch.float64)
    weights: list[float] = torch.linalg.lstsq(matrix, right[:, None]).solution[:, 0].tolist()
    return weights
