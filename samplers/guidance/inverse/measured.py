"""A measurement as guidance: samples that agree with y = A x0 + noise."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import BeforeValidator, Field, InstanceOf
from torch import Tensor

from ....models.denoiser import Ask, Branch, Network
from ....models.devices import send
from ....models.errors import SettingError
from ....models.node import check_normal
from ....models.schedule import TimeGrid
from ....solvers.rehearsal import measure_step_weights
from ...images import read_pixels
from ..base import Guidance, Guide, Inner, Moment, Setup, Unguided
from ..settings import Checked
from .linear_map import LinearMap
from .methods import METHODS, Estimate, InverseMethod, Observation
from .operators import Operator, Shape, take_operator
from .pictures import describe_shape

BEYOND = 6.0  # standard deviations of the noise that a measurement may lie outside of its range
SLACK = 1.5  # the range itself, of pictures in [-1, 1]


@dataclass(frozen=True, eq=False)
class Measured(Checked, Guidance):
    """Corrects x0 by a measurement y = A x0 + sigma_y n of every image, n ~ N(0, I).

    operator: A, a text such as `inpaint:mask.png`, `downsample:4`, `blur:1.5` or `grey`, or an
              `Operator`; `LinearMap` makes one of a function.
    y:        the path of a picture, for all images, or a tensor (1, *measured) for all or
              (n, *measured), one row per image. Image i depends on its row alone.
    sigma_y:  in the units of the samples, at least 0; 8 bits of a picture are 0.0023.
    method:   a text such as `diffpir`, `dps:scale=0.5` or `mmps:rounds=3`, or its settings.
    inner:    the guidance whose x0 is corrected; gradients go back through all its branches.

    Without a solver it runs with ddpm. Multistep solvers take the corrected x0 as the prediction.
    Methods that move the state itself (dps, stsl) do so by the x0 that leads a step of first order
    to the same place.
    """

    name: ClassVar[str] = "measured"
    solver: ClassVar[str] = "ddpm"  # whose noise lets what is not measured adapt to what is

    operator: Annotated[InstanceOf[Operator], BeforeValidator(take_operator)]
    y: Any
    sigma_y: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.01
    method: Annotated[InstanceOf[InverseMethod], BeforeValidator(METHODS.take)] = "diffpir"  # type: ignore[assignment]
    inner: Inner = field(default_factory=Unguided)

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.y, str | Path):
            object.__setattr__(self, "y", read_pixels(Path(self.y)))
        if not isinstance(self.y, Tensor) or not self.y.is_floating_point() or self.y.ndim < 2:
            raise SettingError(
                "y must be the path of a picture, or a tensor (1 or n, *measured) of floats"
            )
        if not bool(self.y.isfinite().all()):
            raise SettingError("y holds NaN or infinity; a missing pixel is black in the mask")

    @property
    def source(self) -> str:  # type: ignore[override]
        return self.method.source

    @property
    def gradient(self) -> bool:
        return self.method.gradient

    def needs(self, grid: TimeGrid) -> set[Branch]:
        return self.inner.needs(grid)

    def check(self, setup: Setup) -> None:
        claim = f"{self.method.name} takes the noise for normal"
        check_normal(setup.network.schedule, claim, "take a network of EDM")
        self.inner.check(setup)
        self._check_inner()
        self._fit(setup)
        if self.method.moves and (setup.reach or not setup.one_call):
            raise SettingError(
                f"{self.method.name} moves the state after each step, which only a solver of order"
                " 1 with one evaluation a step can be told of; take --solver ddim or ddpm, or"
                " --method diffpir, pigdm or mmps"
            )

    def networks(self, main: Network) -> Mapping[Branch, Network]:
        return self.inner.networks(main)

    def begin(self, setup: Setup) -> Guide:
        y = self._fit(setup)
        if len(y) > 1:
            y = y[setup.first : setup.first + setup.images]
        y = self.operator.restrict(send(y, setup.network.device))
        weights = None
        if self.method.moves:
            weights = measure_step_weights(setup.solver, setup.whole)[len(setup.earlier) :]
        return MeasuredGuide(self, self.inner.begin(setup), y, setup, weights)

    def _check_inner(self) -> None:
        """Raises SettingError for a guidance whose x0 cannot be corrected."""
        if self.inner.rewrites:
            raise SettingError(
                "rewrite_history knows no measurement; drop it, or take the interval without it"
            )
        if self.gradient:
            self.inner.stateless()

    def _fit(self, setup: Setup) -> Tensor:
        """Returns y (1 or n, *measured); raises SettingError if it does not fit the run."""
        shape = self.operator.measure(setup.network.shape)
        y, total = _as_grey(self.y, shape), setup.images if setup.total is None else setup.total
        if tuple(y.shape[1:]) != shape:
            raise SettingError(
                f"the measurement has {describe_shape(tuple(y.shape[1:]))}, and"
                f" {self.operator.name} makes {describe_shape(shape)} of what"
                f" {setup.network.name} draws; crop, resize or convert it"
            )
        if len(y) not in (1, total):
            raise SettingError(f"y has {len(y)} rows for {total} images; give one, or one for each")
        if setup.network.decode is None and not isinstance(self.operator, LinearMap):
            self._check_range(y)
        return y

    def _check_range(self, y: Tensor) -> None:
        most = float(y.abs().max())
        if most > SLACK + BEYOND * self.sigma_y:
            raise SettingError(
                f"the measurement reaches {most:.3g}, and pictures lie in [-1, 1]; 0..255 is"
                " x / 127.5 - 1, and a larger noise is a larger sigma_y"
            )


class MeasuredGuide(Guide):
    """Asks what the inner guide asks, and corrects what it makes of the answers."""

    def __init__(
        self,
        policy: Measured,
        inner: Guide,
        y: Tensor,
        setup: Setup,
        weights: Sequence[tuple[float, float]] | None,
    ) -> None:
        self.policy, self.inner, self.setup, self.weights = policy, inner, setup, weights
        self.given = Observation(policy.operator, y, policy.sigma_y)

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        return self.inner.ask(moment)

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        m = self.inner.combine(outputs, x, moment)
        if moment.node.sigma == 0.0:
            return m
        given = replace(self.given, y=self.given.y.to(m.dtype))

        def predict(state: Tensor) -> Tensor:
            assert self.setup.evaluate is not None
            answers = self.setup.evaluate(state, moment.node, self.inner.ask(moment))
            return self.inner.combine(answers, state, moment)

        def draw() -> Tensor:
            assert self.setup.draw is not None
            return send(self.setup.draw(), x.device, x.dtype)

        weights = None if self.weights is None else self.weights[moment.step]
        estimate = Estimate(m, x, moment.node, weights, predict, draw)
        return self.policy.method.correct(given, estimate)


def _as_grey(y: Tensor, shape: Shape) -> Tensor:
    """Returns a picture in colour whose channels are equal as grey, where grey is measured."""
    if shape[0] == 1 and y.ndim == 4 and y.shape[1] == 3 and bool((y == y[:, :1]).all()):
        return y[:, :1]
    return y
