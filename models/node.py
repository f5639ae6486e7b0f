"""Points of a time grid, and the interface of noise schedules: x_t = alpha_t x0 + sigma_t eps.

Everything here and in the schedules is Python floats, which are IEEE float64: the coefficients are
the same on every device, cost no synchronisation, and never change the dtype of a state. lam =
log(alpha / sigma) is half the log-SNR in nats; it rises while a sample is denoised. Both ends are
closed forms: alpha = 0 gives lam = -inf, sigma = 0 gives lam = +inf, and no logarithm of
zero is ever taken.
"""

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

from .errors import ScheduleError, SettingError

ROUNDING = 1e-7  # of a sigma that was float32


@dataclass(frozen=True, slots=True)
class Node:
    """One point of a time grid.

    t:     time in the schedule's own units; larger is noisier.
    alpha: signal scale alpha_t >= 0, dimensionless.
    sigma: noise scale sigma_t >= 0, dimensionless.
    lam:   log(alpha_t / sigma_t) in nats; -inf at alpha = 0, +inf at sigma = 0.
    """

    t: float
    alpha: float
    sigma: float
    lam: float

    @property
    def kappa(self) -> float:
        """sigma / alpha: the noise scale in variance-exploding (EDM) coordinates."""
        return math.exp(-self.lam)


def is_above(node: Node, sigma: float) -> bool:
    """Tells whether a node lies at a noise level or above, as pipelines compare float32 labels."""
    return node.sigma >= sigma - ROUNDING


@dataclass(frozen=True, slots=True)
class TargetNode(Node):
    """A node at which a network is told too where the step goes, as flow maps are.

    target: the node that it goes to.
    """

    target: Node

    @classmethod
    def of(cls, node: Node, target: Node) -> "TargetNode":
        """Returns a node with its target."""
        return cls(node.t, node.alpha, node.sigma, node.lam, target)


@runtime_checkable
class NoiseSchedule(Protocol):
    """Maps a time to a `Node`; lam falls strictly as t grows.

    family:  the name under which `noise_schedule` rebuilds this schedule from its fields.
    t_min:   the cleanest time a network is evaluated at, sigma > 0.
    t_max:   the time sampling starts from.
    t_zero:  the time of clean data, where sigma = 0 exactly.
    """

    family: ClassVar[str]

    @property
    def t_min(self) -> float: ...
    @property
    def t_max(self) -> float: ...
    @property
    def t_zero(self) -> float: ...

    def at(self, t: float) -> Node:
        """Returns the node at time t; raises ScheduleError outside the schedule's range."""
        ...

    def at_lam(self, lam: float) -> Node:
        """Returns the node whose half log-SNR is lam: `at(t)` for the t that has it."""
        ...

    def slope(self, t: float) -> tuple[float, float]:
        """Returns (d alpha / dt, d sigma / dt) at time t."""
        ...

    def label(self, node: Node) -> float:
        """Returns the network's own time at this node; a float, never truncated."""
        ...

    def noise_scale(self, node: Node) -> float:
        """Returns the standard deviation of the noise that sampling starts from at this node."""
        ...


def scale_time(schedule: NoiseSchedule, time_scale: float | None, time: float) -> float:
    """Returns the network's time for a time in [0, 1]; a scale of None was never stated.

    Raises:
        SettingError: without a scale, since networks that get t and 1000 t look the same.
    """
    if time_scale is None:
        name, usual = type(schedule).__name__, 999 if schedule.family == "vp-linear" else 1000
        raise SettingError(
            f"{name} does not say in which unit its network takes the time; write"
            f" {name}(time_scale=1) if it was trained with t in [0, 1], time_scale={usual} if it is"
            f" told {usual} t"
        )
    return time_scale * time


def check_range(inside: bool, t: float, schedule: NoiseSchedule) -> None:
    if not inside:
        raise ScheduleError(
            f"t={t:g} lies outside the {schedule.family} schedule;"
            f" use times from {schedule.t_zero:g} (data) to {schedule.t_max:g} (noise)"
        )


def check_normal(
    schedule: NoiseSchedule,
    claim: str,
    remedy: str = "take a solver that adds no noise, such as unipc-2",
) -> None:
    """Raises SettingError if the noise of a process is not normal, as a claim has it."""
    if (aug_dim := getattr(schedule, "aug_dim", None)) is not None:
        raise SettingError(
            f"{claim}, and that of PFGM++ (aug_dim={aug_dim}) is Student's t; {remedy}"
        )
