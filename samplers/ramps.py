"""The formulas of named time grids, and the published tables.

A formula spreads n numbers from the noisy end to the clean one, both included: times t, lam, or
sigma.
"""

import math
from bisect import bisect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from ..models.errors import ScheduleError, SettingError
from ..models.schedule import NoiseSchedule

FLOW_EDGE = 1e-3  # for alpha = 0, grids in lam start at sigma / (alpha + sigma) = 1 - FLOW_EDGE


def uniform(start: float, end: float, n: int) -> list[float]:
    """Returns n evenly spaced t; both ends are exact, and a single one is the start.

    On rectified flow it is the time before the shift of the process.
    """
    if n == 1:
        return [start]
    return [*(start + (end - start) * i / (n - 1) for i in range(n - 1)), end]


def quadratic(start: float, end: float, n: int) -> list[float]:
    """Returns evenly spaced sqrt(t): denser towards the data."""
    return [v * v for v in uniform(math.sqrt(start), math.sqrt(end), n)]


def beta(start: float, end: float, n: int, alpha: float = 0.6, beta: float = 0.6) -> list[float]:
    """Returns t at even quantiles of Beta(alpha, beta): denser at both ends (arXiv:2407.12173)."""
    from scipy.special import betaincinv

    if alpha <= 0.0 or beta <= 0.0:
        raise SettingError("grid 'beta' needs alpha > 0 and beta > 0; 0.6 and 0.6 are usual")
    return [end + (start - end) * float(betaincinv(alpha, beta, v)) for v in uniform(1.0, 0.0, n)]


def logsnr(low: float, high: float, n: int) -> list[float]:
    """Returns evenly spaced lam = ln(alpha / sigma), half the log signal-to-noise ratio."""
    return uniform(low, high, n)


def karras(low: float, high: float, n: int, rho: float = 7.0) -> list[float]:
    """Returns evenly spaced (sigma / alpha)^(1/rho) (arXiv:2206.00364, eq. 5)."""
    if rho <= 0.0:
        raise SettingError(f"grid 'karras' needs rho > 0, not {rho:g}; 7 is usual")
    roots = uniform(math.exp(-low / rho), math.exp(-high / rho), n)
    return [-rho * math.log(root) for root in roots]


def polyexponential(low: float, high: float, n: int, rho: float = 1.0) -> list[float]:
    """Returns lam such that ln(sigma / alpha) falls as (1 - i/N)^rho; rho = 1 is logsnr."""
    if rho <= 0.0:
        raise SettingError(f"grid 'polyexponential' needs rho > 0, not {rho:g}; 1 is logsnr")
    return [high + v**rho * (low - high) for v in uniform(1.0, 0.0, n)]


def kl_optimal(start: float, end: float, n: int) -> list[float]:
    """Returns sigma = tan(angle) at even angles between the arc tangents of both ends.

    sigma is sigma / alpha, and on rectified flow tau itself (arXiv:2404.14507).
    """
    return [math.tan(angle) for angle in uniform(math.atan(start), math.atan(end), n)]


def linear_quadratic(start: float, end: float, n: int, threshold: float = 0.025) -> list[float]:
    """Returns tau of which half of the steps are small and even and the others grow (Mochi, LTX).

    threshold: how far the even steps reach in all, of the way from the start to the end.
    """
    if not 0.0 < threshold < 1.0:
        raise SettingError(
            f"grid 'linear-quadratic' needs 0 < threshold < 1, not {threshold:g}; 0.025 is usual"
        )
    steps, half = n - 1, (n - 1) // 2
    if half == 0:
        return uniform(start, end, n)
    a = (half - threshold * steps) / (half * (steps - half) ** 2)
    b = threshold / half - 2.0 * a * half
    ways = [threshold * j / half for j in range(half)]
    ways += [a * j * j + b * j + a * half * half for j in range(half, steps)]
    return [*(start + (end - start) * way for way in ways), end]


def bong_tangent(start: float, end: float, n: int) -> list[float]:
    """Returns tau on two arc tangents that meet halfway: denser at both ends (RES4LYF)."""
    if n < 3:
        return uniform(start, end, n)
    points, middle = n + 1, int(0.6 * (n + 1))
    first = _scale_arc(middle, middle, 8.0 / points)[:-1]
    second = _scale_arc(points - middle, 0, 8.0 / points)
    shares = [0.5 + 0.5 * v for v in first] + [0.5 * v for v in second]
    return [end + (start - end) * share for share in shares]


def _scale_arc(n: int, pivot: int, slope: float) -> list[float]:
    """Returns n falling values of an arc tangent around its pivot, scaled to go from 1 to 0."""
    values = [-math.atan(slope * (x - pivot)) for x in range(n)]
    if n == 1:
        return [1.0]
    return [(value - values[-1]) / (values[0] - values[-1]) for value in values]


def sway(start: float, end: float, n: int, s: float = -1.0) -> list[float]:
    """Returns tau = 1 - u - s (cos(pi u / 2) - 1 + u) at even u: s < 0 is denser at the noise.

    s: between -1 and 2 / (pi - 2), where times still fall; 0 is even (arXiv:2410.06885).
    """
    return _sway_all(start, end, uniform(0.0, 1.0, n), s)


def epss(start: float, end: float, n: int, s: float = -1.0) -> list[float]:
    """Returns tau of F5-TTS: `sway` of published 32nds for few steps, of even ones otherwise."""
    parts = EPSS.get(n - 1)
    ways = uniform(0.0, 1.0, n) if parts is None else [part / 32.0 for part in parts]
    return _sway_all(start, end, ways, s)


def _sway_all(start: float, end: float, ways: Sequence[float], s: float) -> list[float]:
    largest = 2.0 / (math.pi - 2.0)
    if not -1.0 <= s <= largest:
        raise SettingError(f"sway needs -1 <= s <= {largest:.4f}, not {s:g}; -1 is usual")
    moved = [way + s * (math.cos(0.5 * math.pi * way) - 1.0 + way) for way in ways]
    return [start + (end - start) * way for way in moved]


EPSS = {  # 32nds of the way from noise to data, by the number of steps
    5: (0, 2, 4, 8, 16, 32),
    6: (0, 2, 4, 6, 8, 16, 32),
    7: (0, 2, 4, 6, 8, 16, 24, 32),
    10: (0, 2, 4, 6, 8, 12, 16, 20, 24, 28, 32),
    12: (0, 2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32),
    16: (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32),
}


def dpm_fast(low: float, high: float, n: int) -> list[float]:
    """Returns lam in even blocks of three steps, the last of them shorter: for `dpm-3s`."""
    steps = n - 1
    sizes = [3] * (steps // 3) + ([steps % 3] if steps % 3 else [])
    if steps % 3 == 0 and steps:
        sizes = [*sizes[:-1], 2, 1]
    places = [(i + j / size) / len(sizes) for i, size in enumerate(sizes) for j in range(size)]
    return [*(low + (high - low) * place for place in places), high] if steps else [low]


@dataclass(frozen=True)
class Formula:
    """How a named grid spreads values from noise to data.

    place:      (first, last, n) and its settings -> n values, both ends included.
    coordinate: of the values: "t" of the process, "lam", or "sigma", which is tau on rectified flow
                and sigma / alpha elsewhere.
    to_zero:    whether the last value may be that of clean data.
    flow:       whether it was made for rectified flow and is refused elsewhere.
    """

    place: Callable[..., list[float]]
    coordinate: Literal["t", "lam", "sigma"]
    to_zero: bool = True
    flow: bool = False


FORMULAS = {
    "uniform": Formula(uniform, "t"),
    "quadratic": Formula(quadratic, "t"),
    "beta": Formula(beta, "t"),
    "logsnr": Formula(logsnr, "lam", to_zero=False),
    "exponential": Formula(logsnr, "lam", to_zero=False),
    "karras": Formula(karras, "lam", to_zero=False),
    "polyexponential": Formula(polyexponential, "lam", to_zero=False),
    "dpm-fast": Formula(dpm_fast, "lam", to_zero=False),
    "kl-optimal": Formula(kl_optimal, "sigma", to_zero=False),
    "linear-quadratic": Formula(linear_quadratic, "sigma", flow=True),
    "bong-tangent": Formula(bong_tangent, "sigma", flow=True),
    "sway": Formula(sway, "sigma", flow=True),
    "epss": Formula(epss, "sigma", flow=True),
}
AYS = {  # kappa of 10 steps; the last is used only where a run ends above zero (arXiv:2404.14507)
    "ays-sd15": (14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152, 0.029),
    "ays-sdxl": (14.615, 6.315, 3.771, 2.181, 1.342, 0.862, 0.555, 0.380, 0.234, 0.113, 0.029),
    "ays-svd": (700.0, 54.5, 15.886, 7.977, 4.248, 1.789, 0.981, 0.403, 0.173, 0.034, 0.002),
}


def place_ays(
    kappas: Sequence[float],
    schedule: NoiseSchedule,
    ends: tuple[float | None, float | None],
    n: int,
) -> list[float]:
    """Returns a published Align Your Steps table, log-linearly interpolated to n times.

    ends: the times to start and to end at; None, and sigma = 0, are those of the table.
    """
    table = [-math.log(kappa) for kappa in kappas]
    low, high = find_lam_ends(schedule)
    if table[0] < low - 0.01 or table[-1] > high + 0.01:
        raise ScheduleError(
            f"this AYS table runs from sigma/alpha = {kappas[0]:g} to {kappas[-1]:g}, the"
            f" network's schedule from {math.exp(-low):.4g} to {math.exp(-high):.4g}; take the"
            " table of its own family, or logsnr"
        )
    first, last = (t and _find_place(table, schedule.at(t).lam) for t in ends)
    places = uniform(first or 0.0, last or len(table) - 1.0, n)
    lams = [_interpolate(table, place) for place in places]
    return [schedule.at_lam(min(max(lam, low), high)).t for lam in lams]


def _interpolate(table: Sequence[float], place: float) -> float:
    """Returns the table read at a fractional index."""
    i = min(int(place), len(table) - 2)
    return table[i] + (place - i) * (table[i + 1] - table[i])


def _find_place(table: Sequence[float], lam: float) -> float:
    """Returns the fractional index of a value; outside the table, that of the nearer end."""
    i = min(max(bisect(table, lam) - 1, 0), len(table) - 2)
    return min(max(i + (lam - table[i]) / (table[i + 1] - table[i]), 0.0), len(table) - 1.0)


def find_lam_ends(
    schedule: NoiseSchedule, start: float | None = None, end: float | None = None
) -> tuple[float, float]:
    """Returns lam where sampling starts and at t_min, or at other times; both are finite.

    Raises:
        SettingError: for a time at which lam is infinite.
    """
    low = schedule.at(schedule.t_max if start is None else start).lam
    high = schedule.at(schedule.t_min if end is None else end).lam
    if start is None and math.isinf(low):
        low = math.log(FLOW_EDGE) - math.log1p(-FLOW_EDGE)
    for name, t, lam, near in (("start", start, low, "0.999"), ("end", end, high, "0.001")):
        if math.isinf(lam):
            raise SettingError(
                f"{name}={t:g} is not a place of a grid in lam, which is infinite there; take a"
                f" time such as {near}, or the grid uniform"
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
