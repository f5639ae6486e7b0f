"""The formulas of named time grids, and the published tables.

A formula spreads n numbers from the noisy end to the clean one, both included: times t, or lam.
"""

import math
from collections.abc import Callable, Sequence

from ..models.errors import ScheduleError, SettingError
from ..models.schedule import NoiseSchedule, RectifiedFlow

FLOW_EDGE = 1e-3  # grids in lam start at tau = 1 - FLOW_EDGE on rectified flow, where lam is finite


def uniform(start: float, end: float, n: int) -> list[float]:
    """Returns t evenly spaced, n of them with both ends exact; a single one is the start.

    On rectified flow it is the time before the shift of the process.
    """
    if n == 1:
        return [start]
    return [*(start + (end - start) * i / (n - 1) for i in range(n - 1)), end]


def quadratic(start: float, end: float, n: int) -> list[float]:
    """Returns sqrt(t) evenly spaced: denser towards the data."""
    return [v * v for v in uniform(math.sqrt(start), math.sqrt(end), n)]


def beta(start: float, end: float, n: int, alpha: float = 0.6, beta: float = 0.6) -> list[float]:
    """Returns t at even quantiles of Beta(alpha, beta): denser at both ends (arXiv:2407.12173)."""
    from scipy.special import betaincinv

    if alpha <= 0.0 or beta <= 0.0:
        raise SettingError("grid 'beta' needs alpha > 0 and beta > 0; 0.6 and 0.6 are usual")
    return [end + (start - end) * float(betaincinv(alpha, beta, v)) for v in uniform(1.0, 0.0, n)]


def logsnr(low: float, high: float, n: int) -> list[float]:
    """Returns lam evenly spaced."""
    return uniform(low, high, n)


def karras(low: float, high: float, n: int, rho: float = 7.0) -> list[float]:
    """kappa^(1/rho) evenly spaced, kappa = sigma / alpha (arXiv:2206.00364, eq. 5)."""
    if rho <= 0.0:
        raise SettingError(f"grid 'karras' needs rho > 0, not {rho:g}; 7 is usual")
    roots = uniform(math.exp(-low / rho), math.exp(-high / rho), n)
    return [-rho * math.log(root) for root in roots]


def polyexponential(low: float, high: float, n: int, rho: float = 1.0) -> list[float]:
    """log kappa = log kappa_min + (1 - i/N)^rho log(kappa_max / kappa_min); rho = 1 is logsnr."""
    if rho <= 0.0:
        raise SettingError(f"grid 'polyexponential' needs rho > 0, not {rho:g}; 1 is logsnr")
    return [high + v**rho * (low - high) for v in uniform(1.0, 0.0, n)]


IN_TIME: dict[str, Callable[..., list[float]]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "beta": beta,
}
IN_LAM: dict[str, Callable[..., list[float]]] = {
    "logsnr": logsnr,
    "exponential": logsnr,
    "karras": karras,
    "polyexponential": polyexponential,
}
AYS = {  # kappa of 10 steps; the last is used only where a run ends above zero (arXiv:2404.14507)
    "ays-sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays-sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays-svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def place_ays(kappas: Sequence[float], schedule: NoiseSchedule, n: int, end: float) -> list[float]:
    """Returns a published Align Your Steps table, log-linearly interpolated to n times."""
    table = [-math.log(kappa) for kappa in kappas]
    low, high = find_lam_ends(schedule)
    lams = [_interpolate(table, place) for place in uniform(0.0, len(table) - 1.0, n)]
    if table[0] < low - 0.01 or table[-1] > high + 0.01:
        raise ScheduleError(
            f"this AYS table runs from sigma/alpha = {kappas[0]:g} to {kappas[-1]:g}, the"
            f" network's schedule from {math.exp(-low):.4g} to {math.exp(-high):.4g}; take the"
            " table of its own family, or logsnr"
        )
    times = [schedule.at_lam(min(max(lam, low), high)).t for lam in lams]
    return times if end > schedule.t_zero else [*times[:-1], end]


def _interpolate(table: Sequence[float], place: float) -> float:
    """Returns the table read at a fractional index."""
    i = min(int(place), len(table) - 2)
    return table[i] + (place - i) * (table[i + 1] - table[i])


def find_lam_ends(
    schedule: NoiseSchedule, start: float | None = None, end: float | None = None
) -> tuple[float, float]:
    """Returns lam where sampling starts and at t_min, or at other times; both are finite.

    Raises:
        SettingError: for a time at which lam is infinite.
    """
    low = schedule.at(schedule.t_max if start is None else start).lam
    high = schedule.at(schedule.t_min if end is None else end).lam
    if start is None and isinstance(schedule, RectifiedFlow):
        low = math.log(FLOW_EDGE) - math.log1p(-FLOW_EDGE)
    for name, t, lam, near in (("start", start, low, "0.999"), ("end", end, high, "0.001")):
        if math.isinf(lam):
            raise SettingError(
                f"{name}={t:g} is no place of a grid in lam, which is infinite there; take a time"
                f" such as {near}, or the grid uniform"
            )
    return low, high


def stretch(schedule: NoiseSchedule, times: list[float], terminal: float) -> list[float]:
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
