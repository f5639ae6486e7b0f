"""Named time grids: where N steps put their N + 1 nodes.

`final` says how a run ends. "zero": the last node is sigma = 0 exactly. "sigma_min": the last node
is the schedule's t_min, and some noise stays. "denoise": as "sigma_min", and then the evaluation
x <- x0(x, t_min), one call more.

Grids in t (uniform, quadratic, beta, the AYS tables) spread N + 1 nodes and let the last be zero;
grids in lam cannot reach zero, so they spread N nodes down to t_min and add it. The spacings of
training timesteps (leading, lcm, linspace, trailing) say where N steps begin, and the end is added.
"""

import math
from collections.abc import Callable, Sequence
from enum import StrEnum
from numbers import Integral
from typing import Any

from ..models.errors import FewstepError, ScheduleError, SettingError, UnknownNameError
from ..models.schedule import NoiseSchedule, RectifiedFlow, TimeGrid
from ..solvers.artefact import MAX_STEPS
from .spacing import SPACINGS

Ramp = Callable[..., list[float]]

FLOW_EDGE = 1e-3  # grids in lam start at tau = 1 - FLOW_EDGE on rectified flow, where lam is finite


class Final(StrEnum):
    """How a run ends; see the module."""

    ZERO = "zero"
    SIGMA_MIN = "sigma_min"
    DENOISE = "denoise"

    @classmethod
    def named(cls, name: str) -> "Final":
        if name not in list(cls):
            raise UnknownNameError("end rule", name, cls)
        return cls(name)


def uniform(schedule: NoiseSchedule, n: int, end: float) -> list[float]:
    """t evenly spaced; on rectified flow in the time before the shift."""
    times = _find_ramp(schedule.t_max, end, n)
    terminal = getattr(schedule, "terminal", None)
    return times if terminal is None else _stretch(schedule, times, terminal)


def quadratic(schedule: NoiseSchedule, n: int, end: float) -> list[float]:
    """sqrt(t) evenly spaced: denser towards the data."""
    return [v * v for v in _find_ramp(math.sqrt(schedule.t_max), math.sqrt(end), n)]


def beta(
    schedule: NoiseSchedule, n: int, end: float, alpha: float = 0.6, beta: float = 0.6
) -> list[float]:
    """t at even quantiles of Beta(alpha, beta): denser at both ends (arXiv:2407.12173)."""
    from scipy.special import betaincinv

    if alpha <= 0.0 or beta <= 0.0:
        raise SettingError("grid 'beta' needs alpha > 0 and beta > 0; 0.6 and 0.6 are usual")
    span = schedule.t_max - end
    return [end + span * float(betaincinv(alpha, beta, v)) for v in _find_ramp(1.0, 0.0, n)]


def logsnr(schedule: NoiseSchedule, n: int) -> list[float]:
    """lam evenly spaced."""
    low, high = find_lam_ends(schedule)
    return [schedule.at_lam(lam).t for lam in _find_ramp(low, high, n)]


def karras(schedule: NoiseSchedule, n: int, rho: float = 7.0) -> list[float]:
    """kappa^(1/rho) evenly spaced, kappa = sigma / alpha (arXiv:2206.00364, eq. 5)."""
    if rho <= 0.0:
        raise SettingError(f"grid 'karras' needs rho > 0, not {rho:g}; 7 is usual")
    low, high = find_lam_ends(schedule)
    roots = _find_ramp(math.exp(-low / rho), math.exp(-high / rho), n)
    return [schedule.at_lam(-rho * math.log(root)).t for root in roots]


def polyexponential(schedule: NoiseSchedule, n: int, rho: float = 1.0) -> list[float]:
    """log kappa = log kappa_min + (1 - i/N)^rho log(kappa_max / kappa_min); rho = 1 is logsnr."""
    if rho <= 0.0:
        raise SettingError(f"grid 'polyexponential' needs rho > 0, not {rho:g}; 1 is logsnr")
    low, high = find_lam_ends(schedule)
    return [schedule.at_lam(high + v**rho * (low - high)).t for v in _find_ramp(1.0, 0.0, n)]


AYS = {  # kappa of 10 steps; the last is used only where a run ends above zero (arXiv:2404.14507)
    "ays-sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays-sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays-svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def _make_ays(kappas: Sequence[float]) -> Ramp:
    table = [-math.log(kappa) for kappa in kappas]

    def ramp(schedule: NoiseSchedule, n: int, end: float) -> list[float]:
        """Returns a published Align Your Steps table, log-linearly interpolated to n nodes."""
        low, high = find_lam_ends(schedule)
        lams = [_interpolate(table, place) for place in _find_ramp(0.0, len(table) - 1.0, n)]
        if table[0] < low - 0.01 or table[-1] > high + 0.01:
            raise ScheduleError(
                f"this AYS table runs from sigma/alpha = {kappas[0]:g} to {kappas[-1]:g}, the"
                f" network's schedule from {math.exp(-low):.4g} to {math.exp(-high):.4g}; take the"
                " table of its own family, or logsnr"
            )
        times = [schedule.at_lam(min(max(lam, low), high)).t for lam in lams]
        return times if end > schedule.t_zero else [*times[:-1], end]

    return ramp


IN_TIME: dict[str, Ramp] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "beta": beta,
    **{name: _make_ays(kappas) for name, kappas in AYS.items()},
}
IN_LAM: dict[str, Ramp] = {
    "logsnr": logsnr,
    "exponential": logsnr,
    "karras": karras,
    "polyexponential": polyexponential,
}


def list_grids() -> list[str]:
    """Returns all named grids, sorted."""
    return sorted([*IN_TIME, *IN_LAM, *SPACINGS])


def choose_default_grid(schedule: NoiseSchedule) -> str:
    """Returns the default grid: karras for EDM, beta for flow, quadratic for VP.

    On VP, logsnr is a little better from 8 evaluations on and far worse below (docs/results.md).
    """
    return {"edm": "karras", "flow": "beta"}.get(schedule.family, "quadratic")


def time_grid(
    name: str,
    schedule: NoiseSchedule,
    steps: int,
    final: Final = Final.ZERO,
    **settings: Any,
) -> TimeGrid:
    """Returns the named grid of `steps` steps on a schedule; with "denoise" one more step is added.

    Raises:
        UnknownNameError: for a grid that does not exist.
        SettingError: for fewer than one step, or a setting that the grid does not take.
        ScheduleError: if the nodes do not fall.
    """
    check_steps(steps, "a grid needs", " step")
    for key, value in settings.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise SettingError(f"grid {name!r}: {key}={value} is no finite number")
    try:
        times = _place_times(name, schedule, steps, final is Final.ZERO, settings)
    except FewstepError:
        raise
    except (TypeError, ValueError, ArithmeticError) as error:
        raise SettingError(f"grid {name!r}: {error}") from error
    if final is Final.DENOISE:
        times = [*times, schedule.t_zero]
    return TimeGrid.of(schedule, times, denoise=final is Final.DENOISE)


def check_steps(number: int, begin: str, unit: str = "") -> None:
    """Raises SettingError for a number of steps, or of evaluations, that no run has.

    begin, unit: around the number in the message: "nfe must be", or "a grid needs" and " step".
    """
    if isinstance(number, bool) or not isinstance(number, Integral):
        raise SettingError(f"{begin} a whole number{unit and f' of{unit}s'}, not {number!r}")
    if number < 1:
        raise SettingError(f"{begin} at least 1{unit}, not {number}")
    if number > MAX_STEPS:
        raise SettingError(
            f"{begin} at most {MAX_STEPS:,}{unit and f'{unit}s'}, not {number}: float32 states"
            " round away more than further steps gain"
        )


def _place_times(
    name: str, schedule: NoiseSchedule, steps: int, zero: bool, settings: dict[str, Any]
) -> list[float]:
    end = schedule.t_zero if zero else schedule.t_min
    if name in SPACINGS:
        return [*SPACINGS[name](schedule, steps, **settings), end]
    if name in IN_TIME:
        return IN_TIME[name](schedule, steps + 1, end, **settings)
    if name not in IN_LAM:
        raise UnknownNameError("grid", name, list_grids())
    if zero:
        return [*IN_LAM[name](schedule, steps, **settings), schedule.t_zero]
    return IN_LAM[name](schedule, steps + 1, **settings)


def _find_ramp(start: float, stop: float, n: int) -> list[float]:
    """Returns n evenly spaced numbers with both ends exact; a single one is the start."""
    if n == 1:
        return [start]
    return [*(start + (stop - start) * i / (n - 1) for i in range(n - 1)), stop]


def _interpolate(table: Sequence[float], place: float) -> float:
    """Returns the table read at a fractional index."""
    i = min(int(place), len(table) - 2)
    return table[i] + (place - i) * (table[i + 1] - table[i])


def find_lam_ends(schedule: NoiseSchedule) -> tuple[float, float]:
    """Returns lam where sampling starts and at t_min, both finite."""
    low = schedule.at(schedule.t_max).lam
    if isinstance(schedule, RectifiedFlow):
        low = math.log(FLOW_EDGE) - math.log1p(-FLOW_EDGE)
    return low, schedule.at(schedule.t_min).lam


def _stretch(schedule: NoiseSchedule, times: list[float], terminal: float) -> list[float]:
    """Returns times stretched so that the last tau above 0 is `terminal`.

    1 - tau' = (1 - tau) (1 - terminal) / (1 - tau_last).
    """
    if not 0.0 < terminal < 1.0:
        raise ScheduleError(f"a grid cannot be stretched to end at {terminal:g}; use 0 < value < 1")
    noisy = [schedule.at(t) for t in times if t > schedule.t_zero]
    scale = (1.0 - terminal) / noisy[-1].alpha if noisy[-1].alpha > 0.0 else 1.0
    alphas = [node.alpha * scale for node in noisy]
    moved = [schedule.at_lam(math.log(a) - math.log1p(-a)).t for a in alphas if a > 0.0]
    return [*times[: len(noisy) - len(moved)], *moved, *times[len(noisy) :]]
