"""Grids of whole training timesteps, as diffusers spaces them (its `timestep_spacing`).

They say at which of the N labels of a discrete schedule the steps begin; where the run ends comes
after the last. Schedulers of diffusers do not agree on them: those of multistep solvers take one
point more than there are steps and leave out the cleanest (spare=1), and those like EulerDiscrete
do not round `linspace` (whole=false).
"""

from collections.abc import Callable

from ..models.errors import ScheduleError, SettingError
from ..models.schedule import NoiseSchedule, VPDiscrete


def trailing(schedule: NoiseSchedule, steps: int) -> list[float]:
    """Labels round(N - i N / steps) - 1: the first is the last trained one (arXiv:2305.08891)."""
    n = _count_labels(schedule)
    gap = (n - n / steps) - n  # rounded as numpy.arange does it, which decides about halves
    return [round(n + i * gap) / n for i in range(steps)]


def leading(schedule: NoiseSchedule, steps: int, offset: int = 0, spare: int = 0) -> list[float]:
    """Labels i floor(N / steps) + offset: the noisiest are left out."""
    n = _count_labels(schedule)
    gap = n // (steps + spare)
    return [(i * gap + offset + 1) / n for i in reversed(range(spare, steps + spare))]


def linspace(
    schedule: NoiseSchedule, steps: int, spare: int = 0, whole: bool = True
) -> list[float]:
    """Labels evenly from N - 1 to 0, with both: at 0 a step of its own."""
    n, points = _count_labels(schedule), steps + spare
    gap = (n - 1) / (points - 1) if points > 1 else 0.0
    labels = [min(i * gap, n - 1.0) for i in reversed(range(spare, points))]
    return [((round(label) if whole else label) + 1) / n for label in labels]


def lcm(schedule: NoiseSchedule, steps: int, original: int = 50) -> list[float]:
    """Returns an even choice of the `original` labels that an LCM was distilled at."""
    n = _count_labels(schedule)
    if not steps <= original <= n:
        raise SettingError(
            f"{steps} steps are not to be had of {original} trained ones; take {original} at most"
        )
    labels = [n // original * (original - i) for i in range(original)]
    return [labels[i * original // steps] / n for i in range(steps)]


SPACINGS: dict[str, Callable[..., list[float]]] = {
    "lcm": lcm,
    "leading": leading,
    "linspace": linspace,
    "trailing": trailing,
}


def _count_labels(schedule: NoiseSchedule) -> int:
    """Returns N; raises ScheduleError where a schedule is not discrete."""
    if isinstance(schedule, VPDiscrete):
        return schedule.num_train_timesteps
    raise ScheduleError(
        f"a {schedule.family} schedule has no whole training timesteps to space steps by; take"
        " another grid, such as uniform"
    )
