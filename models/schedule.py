"""All noise schedules by name, and time grids on them.

Rectified flow stands here, EDM in `edm`, the variance-preserving schedules in `vp` and
`trigonometric`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any, ClassVar

from .edm import EDM
from .errors import FewstepError, ScheduleError, SettingError, UnknownNameError
from .node import Node, NoiseSchedule, TargetNode, check_range, scale_time
from .registry import parse_spec
from .trigonometric import Trigonometric
from .vp import Cosine, VPDiscrete, VPLinear

__all__ = [
    "EDM",
    "FAMILIES",
    "Cosine",
    "Node",
    "NoiseSchedule",
    "RectifiedFlow",
    "TargetNode",
    "TimeGrid",
    "Trigonometric",
    "VPDiscrete",
    "VPLinear",
    "dynamic_shift",
    "noise_schedule",
    "process_of",
    "share_path",
    "take_schedule",
]


@dataclass(frozen=True)
class RectifiedFlow:
    """Straight paths: alpha = 1 - tau, sigma = tau (arXiv:2209.03003), at a shifted time.

    tau = shift t / (1 + (shift - 1) t), t in [0, 1] (arXiv:2403.03206, eq. 23). A shift k moves lam
    by -log k and spends more steps on noise. The network's label is time_scale * tau, or
    time_scale * (1 - tau) where it was trained with noise at time 0.

    shift:    3 for Stable Diffusion 3 and SANA; see `dynamic_shift` for Flux.
    terminal: the last tau before 0 of a uniform grid, if the grid is to be stretched there (LTX).
    time_scale: 1 for networks trained with t in [0, 1], 1000 for those of diffusers. None is not
              stated, which suffices for a grid but not for a network.
    noise_at: the network's own time of pure noise before the scale, 1 or 0; the prediction that
              goes with 0 is usually "flow-to-data".
    """

    family: ClassVar[str] = "flow"
    shift: float = 1.0
    terminal: float | None = None
    time_scale: float | None = None
    noise_at: int = 1

    t_min: ClassVar[float] = 1e-3
    t_max: ClassVar[float] = 1.0
    t_zero: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if not self.shift > 0.0:
            raise SettingError(f"shift={self.shift:g} must be positive; 1 is no shift")
        if self.noise_at not in (0, 1):
            raise SettingError(
                f"noise_at={self.noise_at!r} must be 1 (t = 0 is data) or 0 (t = 0 is noise)"
            )

    def at(self, t: float) -> Node:
        check_range(0.0 <= t <= 1.0, t, self)
        scale = self._scale(t)
        alpha, sigma = (1.0 - t) / scale, self.shift * t / scale
        if alpha == 0.0 or sigma == 0.0:
            return Node(t, alpha, sigma, -math.inf if alpha == 0.0 else math.inf)
        return Node(t, alpha, sigma, math.log(alpha) - math.log(sigma))

    def _scale(self, t: float) -> float:
        """Returns 1 + (shift - 1) t, as a sum of positive parts, which cancels nothing."""
        return (1.0 - t) + self.shift * t

    def at_lam(self, lam: float) -> Node:
        """Returns the node at t = sigmoid(-(lam + log(shift)))."""
        return self.at(_sigmoid(-(lam + math.log(self.shift))))

    def unshift(self, tau: float) -> float:
        """Returns the time before the shift at which sigma is tau."""
        return tau / (self.shift - (self.shift - 1.0) * tau)

    def slope(self, t: float) -> tuple[float, float]:
        d_sigma = self.shift / self._scale(t) ** 2
        return -d_sigma, d_sigma

    def label(self, node: Node) -> float:
        return scale_time(self, self.time_scale, node.sigma if self.noise_at else node.alpha)

    def noise_scale(self, node: Node) -> float:
        """Returns sigma, and 1 where grids in lam start, at 1e-3 from noise: it is taken for it."""
        return 1.0 if node.alpha < 0.002 else node.sigma


def _sigmoid(v: float) -> float:
    return 1.0 / (1.0 + math.exp(-v)) if v >= 0.0 else math.exp(v) / (1.0 + math.exp(v))


def dynamic_shift(
    tokens: int,
    *,
    base_shift: float = 0.5,
    max_shift: float = 1.15,
    base_tokens: int = 256,
    max_tokens: int = 4096,
) -> float:
    """Returns the shift e^mu that Flux uses for an image of that many tokens.

    mu = base_shift + (tokens - base_tokens) (max_shift - base_shift) / (max_tokens - base_tokens).
    """
    rate = (max_shift - base_shift) / (max_tokens - base_tokens)
    return math.exp(base_shift + (tokens - base_tokens) * rate)


MIN_LAM_GAP = 1e-6  # nearer nodes make derivative weights singular in float64

FAMILIES: dict[str, type[Any]] = {
    cls.family: cls for cls in (VPDiscrete, VPLinear, Cosine, Trigonometric, EDM, RectifiedFlow)
}


def process_of(schedule: NoiseSchedule) -> dict[str, Any]:
    """Returns the schedule as plain data: {"family": name, "params": fields}."""
    fields: dict[str, Any] = asdict(schedule)  # type: ignore[call-overload]
    params = {name: list(v) if isinstance(v, tuple) else v for name, v in fields.items()}
    if params.get("aug_dim", 0) is None:  # files from before it keep their ids
        del params["aug_dim"]
    return {"family": schedule.family, "params": params}


def noise_schedule(family: str, **params: Any) -> NoiseSchedule:
    """Rebuilds a schedule from `process_of`; raises on an unknown family or parameter."""
    if not isinstance(family, str) or family not in FAMILIES:
        raise UnknownNameError("noise schedule family", family, FAMILIES)
    cls = FAMILIES[family]
    unknown = params.keys() - cls.__dataclass_fields__.keys()
    if unknown:
        raise UnknownNameError(f"parameter of {family!r}", min(unknown), cls.__dataclass_fields__)
    try:
        schedule: NoiseSchedule = cls(**params)
        schedule.at(schedule.t_max)
    except FewstepError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise SettingError(
            f"the parameters of {family!r} are not of their types or out of range: {error}"
        ) from error
    return schedule


def take_schedule(given: NoiseSchedule | str) -> NoiseSchedule:
    """Returns a schedule given as such, or as `family:key=value,...`, such as edm:aug_dim=128.

    Raises:
        FewstepError: as `noise_schedule`.
    """
    if not isinstance(given, str):
        return given
    family, params = parse_spec(given)
    return noise_schedule(family, **params)


def share_path(a: NoiseSchedule, b: NoiseSchedule) -> bool:
    """Tells whether two schedules have the same pairs (alpha, sigma), whatever their times."""
    return _describe_path(a) == _describe_path(b)


NAMES_AND_RANGES = {"shift", "terminal", "time_scale", "noise_at", "time_label", "sigma_data"}
NAMES_AND_RANGES |= {"t_min", "t_max", "sigma_min", "sigma_max", "aug_dim"}


def _describe_path(schedule: NoiseSchedule) -> dict[str, Any]:
    """Returns the family and the parameters that alpha as a function of lam depends on."""
    process = process_of(schedule)
    names = process["params"].keys() - NAMES_AND_RANGES
    return {"family": process["family"], **{name: process["params"][name] for name in names}}


def _explain_rounding(schedule: NoiseSchedule) -> str:
    """Says why times that were listed apart may be one, where they may."""
    if not getattr(schedule, "whole_times", False):
        return ""
    return (
        "; each is moved to the nearest of the whole timesteps that the network takes, so take"
        " fewer steps or times farther apart"
    )


@dataclass(frozen=True)
class TimeGrid:
    """The N + 1 nodes on a schedule, noisiest first, that a solver steps over.

    denoise: the last step is the extra evaluation x <- x0(x, t_min) after a run that ended at
             t_min, so that a solver which lowers its order at the end does so before it.
    """

    schedule: NoiseSchedule
    nodes: tuple[Node, ...]
    denoise: bool = False

    def __post_init__(self) -> None:
        if len(self.nodes) < 2:
            raise ScheduleError("a time grid needs at least two nodes, noise and data")
        for i, (t, s) in enumerate(pairwise(self.nodes)):
            if not s.lam > t.lam:
                raise ScheduleError(
                    f"a time grid must fall: node {i} has t={t.t:g}, node {i + 1} has t={s.t:g};"
                    " list times from noise to data, each one once"
                    f"{_explain_rounding(self.schedule)}"
                )

    @classmethod
    def of(
        cls, schedule: NoiseSchedule, times: Sequence[float], denoise: bool = False
    ) -> "TimeGrid":
        """Returns the grid with nodes `schedule.at(t)` at the given falling times."""
        return cls(schedule, tuple(schedule.at(t) for t in times), denoise)

    def check_gaps(self) -> None:
        """Raises ScheduleError for nodes so near that a solver's weights are lost in rounding."""
        for t, s in pairwise(self.nodes):
            if s.lam - t.lam < MIN_LAM_GAP:
                raise ScheduleError(
                    f"times {t.t!r} and {s.t!r} are too close to tell apart; leave one out"
                )

    @property
    def steps(self) -> int:
        return len(self.nodes) - 1

    def part(self, first: int, end: int) -> "TimeGrid":
        """Returns the nodes of the steps from `first` to the one before `end`."""
        denoise = self.denoise and end == self.steps
        return TimeGrid(self.schedule, self.nodes[first : end + 1], denoise)

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)
