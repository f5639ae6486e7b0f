"""A policy narrowed to an interval of the run (arXiv:2404.07724)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ...models.denoiser import Ask, Branch, Network
from ...models.errors import SettingError
from ...models.schedule import TimeGrid
from .base import COND, Guidance, Guide, Inner, Moment, Setup, register
from .cfg import Coordinate, Span
from .settings import Checked


@register
@dataclass(frozen=True)
class Interval(Checked, Guidance):
    """The inner policy where low < place <= high; the conditional branch alone elsewhere.

    inner: any policy.
    low, high: the ends; in "step" low N <= n < high N, as diffusers' guiders count.
    in_:   "sigma" is kappa = sigma / alpha, as in `CFG.interval`; "lam", "t" and "step", the
           fraction of steps taken.
    rewrite_history: where guidance stops or starts, the predictions that a multistep solver
           remembers are replaced, so that it keeps its order; see `history`.
    """

    name: ClassVar[str] = "interval"
    source: ClassVar[str] = "arXiv:2404.07724"

    inner: Inner
    low: float
    high: float
    in_: Coordinate = "sigma"
    rewrite_history: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.span  # held to its range

    @property
    def span(self) -> Span:
        return Span(self.low, self.high, self.in_)

    @property
    def off(self) -> bool:
        return self.inner.off

    @property
    def rewrites(self) -> bool:
        return self.rewrite_history or self.inner.rewrites

    def needs(self, grid: TimeGrid) -> set[Branch]:
        return {Branch.COND} | self.inner.needs(grid)

    def check(self, setup: Setup) -> None:
        if not self.off:
            self.span.check(setup.grid)
        if self.rewrites and not self._knows_conditional(setup):
            raise SettingError(
                "a scale of 0 never asks for the conditional branch, which rewriting the solver's"
                " memory needs; drop rewrite_history"
            )
        if self.in_ == "step" and setup.adaptive:
            raise SettingError(
                "an adaptive solver has no number of steps; give the interval in sigma, lam or t"
            )
        self.inner.check(setup)

    def _knows_conditional(self, setup: Setup) -> bool:
        """Returns whether the conditional branch is evaluated where it guides."""
        steps, guide = setup.grid.steps, self.inner.begin(setup)
        moments = [Moment(node, n) for n, node in enumerate(setup.grid.nodes[:-1])]
        inside = [each for each in moments if self.span.covers(each.node, each.step, steps)]
        return guide.ask(inside[0])[-1].branch is Branch.COND if inside else True

    def networks(self, main: Network) -> Mapping[Branch, Network]:
        return self.inner.networks(main)

    def begin(self, setup: Setup) -> Guide:
        return InsideGuide(self.span, self.inner.begin(setup), setup.grid.steps)

    def stateless(self) -> Guide:
        if self.in_ == "step":
            return super().stateless()
        return InsideGuide(self.span, self.inner.stateless(), steps=1)


class InsideGuide(Guide):
    """Asks the inner guide inside the span."""

    def __init__(self, span: Span, inner: Guide, steps: int) -> None:
        self.span, self.inner, self.steps = span, inner, steps
        self.inside = False

    def ask(self, moment: Moment) -> tuple[Ask, ...]:
        self.inside = self.span.covers(moment.node, moment.step, self.steps)
        return self.inner.ask(moment) if self.inside else COND

    def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        return self.inner.combine(outputs, x, moment) if self.inside else outputs[0]

    @property
    def guided(self) -> bool | tuple[bool, ...]:
        return self.inside and self.inner.guided

    def conditional(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
        return self.inner.conditional(outputs, x, moment) if self.inside else outputs[0]
