"""PAB: outputs of attention are broadcast over the middle of a run (arXiv:2408.12588)."""

from typing import ClassVar

from pydantic.dataclasses import dataclass

from ..errors import SettingError
from .base import CacheInfo, CallPosition, Keep, Policy, check_whole, register
from .predictors import PredictorSetting, choose_predictor


@dataclass(frozen=True)
class AttentionPolicy(Policy):
    """The settings of policies that leave out attention alone; all else stays true.

    In the window, attention of a kind runs at every so many-th call of the run. The count is of
    all calls, those before the window too, as published: the phase depends on where it begins.

    spatial:  attention among the tokens of a picture, or of a whole video; 1 or None is off.
    temporal: attention among frames, in networks that have it apart.
    cross:    attention to the text.
    window:   (low, high), fractions of the run: calls i with low <= i / calls < high.
    """

    spatial: int | None = 2
    temporal: int | None = None
    cross: int | None = None
    window: tuple[float, float] = (0.2, 0.9)

    def __post_init__(self) -> None:
        for kind in ("spatial", "temporal", "cross"):
            every = getattr(self, kind)
            check_whole(kind, 1 if every is None else every, 1, "1 is off, 2 is every other call")
        low, high = self.window
        if not 0.0 <= low < high <= 1.0:
            raise SettingError(
                f"window lists two rising fractions of the run, 0 to 1, not [{low:g},{high:g}];"
                " [0.2,0.9] is usual"
            )

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of attention that are skipped."""
        every = {"spatial": self.spatial, "temporal": self.temporal, "cross": self.cross}
        return tuple(kind for kind, calls in every.items() if calls is not None and calls > 1)

    @property
    def off(self) -> bool:
        return not self.kinds

    @property
    def needs_calls(self) -> bool:
        return not self.off

    @property
    def by_module(self) -> bool:
        return True

    def check(self, calls: int) -> None:
        positions = (CallPosition(index, 1, calls) for index in range(1, calls))
        if not self.off and all(self.must(now) for now in positions):
            raise SettingError(
                f"window [{self.window[0]:g},{self.window[1]:g}] of a run of {calls} calls leaves"
                " none to skip; widen it, or take more steps"
            )

    def must(self, now: CallPosition) -> bool | None:
        return not any(self.skips(kind, now) for kind in self.kinds)

    def skips(self, kind: str, now: CallPosition) -> bool:
        """Tells whether attention of a kind is skipped."""
        low, high = self.window
        calls = now.calls or 0
        inside = low * calls <= now.index < high * calls
        return inside and now.index % getattr(self, kind) != 0


@register
@dataclass(frozen=True)
class PAB(AttentionPolicy):
    """Runs attention of each kind at every so many-th call of a window, and repeats its output.

    Cross-attention changes least from call to call, attention among frames more, spatial attention
    most. Published: spatial, temporal and cross 2, 4 and 6 for Open-Sora, 2, 3 and 6 for Latte,
    spatial 2 for CogVideoX; the window is from timestep 800 or 850 to 100.

    spatial, temporal, cross, window: see `AttentionPolicy`.
    predictor: of each output; reuse by default (published).
    """

    info: ClassVar[CacheInfo] = CacheInfo(
        name="pab",
        decides="call index, in a window of the run",
        keeps="outputs of attention",
        runs_on="networks with attention",
        source="arXiv:2408.12588",
    )

    predictor: PredictorSetting | None = None

    @property
    def keep(self) -> Keep:
        return Keep("state", choose_predictor(self.predictor, 0))
