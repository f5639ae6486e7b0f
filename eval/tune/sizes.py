"""The sizes of what fits into a budget: of tables, of guided tables, and of masks of a cache."""

from dataclasses import dataclass

from ...models.errors import SettingError
from ...samplers.plan_file import Asked, Unit
from ..search.size import SearchSize
from ..tune_request import TuneRequest
from .report import CostParts

UNITS: tuple[Unit, ...] = ("ms", "nfe", "rows", "effective", "flops")
COUNTED = ("nfe", "rows", "effective")
MOST = 100  # evaluations of a plan: more gain nothing that is seen
STRETCHED = (1.25, 1.5, 2.0, 3.0)  # steps of cached runs, of those without a cache
OVER = 1.02  # of a budget, which the forecasts of a cache may exceed it by
LEAST_FULL = 2  # evaluations of a cached run that are computed
SUFFIXES = {"K": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15}


def read_asked(request: TuneRequest) -> Asked | None:
    """Returns the budget of a request; None for a front.

    Raises:
        SettingError: for several, or for one below one evaluation.
    """
    given = {unit: getattr(request, unit) for unit in UNITS if getattr(request, unit) is not None}
    if len(given) > 1:
        raise SettingError(f"give one of {', '.join(given)}: a plan fits into one budget")
    for unit, amount in given.items():
        value = read_flops(amount) if unit == "flops" else float(amount)
        least = 1.0 if unit in COUNTED else 0.0
        if not value > 0.0 or value < least:
            raise SettingError(
                f"a budget of {amount} {unit} is below one evaluation; the least is"
                f" {'1' if least else 'above 0'}"
            )
        return Asked(unit=unit, amount=value)
    return None


def read_flops(text: str) -> float:
    """Returns a number of FLOPs such as 2.5G; raises SettingError for other texts."""
    number, suffix = (text[:-1], text[-1]) if text[-1:] in SUFFIXES else (text, "")
    try:
        return float(number) * SUFFIXES.get(suffix, 1.0)
    except ValueError:
        raise SettingError(
            f"{text!r} is no number of FLOPs; write one such as 2.5G, with {', '.join(SUFFIXES)}"
        ) from None


@dataclass(frozen=True)
class UnitCosts:
    """The costs of a run in one unit: start + rows * row + evaluations.

    row, whole: an evaluation of one branch, and of all that the guidance has.
    forecast:   one that a cache forecasts; None where caches do not save this.
    """

    start: float
    row: float
    whole: float
    forecast: float | None = None

    @classmethod
    def of(cls, unit: Unit, parts: CostParts, guided: bool) -> "UnitCosts":
        """Returns those of a unit; raises SettingError where FLOPs are not known."""
        branches = 2.0 if guided else 1.0
        if unit == "nfe":
            return cls(0.0, 1.0, 1.0)
        if unit == "rows":
            return cls(0.0, 1.0, branches)
        if unit == "effective":
            return cls(0.0, 1.0 / branches, 1.0, parts.share)
        if unit == "flops":
            if parts.flops is None:
                raise SettingError("the FLOPs of this network are not known; give --ms or --nfe")
            share = None if parts.share is None else parts.share * parts.flops * branches
            return cls(0.0, parts.flops, parts.flops * branches, share)
        whole = (parts.pair if guided else None) or parts.row
        forecast = min((each.median for each in parts.partial.values()), default=None)
        return cls(parts.start.median, parts.row.median, whole.median, forecast)


@dataclass(frozen=True)
class PlanSizes:
    """Sizes that fit into a budget.

    nfe:    evaluations of runs without a cache, all of them guided where there is guidance; 0 where
            none fits.
    rows:   network rows of guided runs that ask one branch at some steps; None without guidance.
    masked: computed evaluations, of all, of cached runs.
    """

    nfe: int
    rows: int | None = None
    masked: tuple[SearchSize, ...] = ()

    @classmethod
    def of(cls, asked: Asked, parts: CostParts, guided: bool) -> "PlanSizes":
        """Returns the largest sizes that cost no more.

        Raises:
            SettingError: if nothing does, with the least that can be had.
        """
        costs = UnitCosts.of(asked.unit, parts, guided)
        left = asked.amount - costs.start
        nfe = min(int(left / costs.whole + 1e-9), MOST) if left > 0.0 else 0
        rows = int(left / max(costs.row, 0.5 * costs.whole) + 1e-9) if left > 0.0 else 0
        if max(nfe, rows if guided else 0) < 1:
            least = Asked(unit=asked.unit, amount=costs.start + costs.row)
            raise SettingError(
                f"nothing costs {asked} or less here: one evaluation costs {least}; ask for more"
            )
        able = guided and asked.unit != "nfe"
        masked = tuple(_list_masked(nfe, left, costs))
        return cls(nfe, min(rows, 2 * MOST) if able else None, masked)


def _list_masked(nfe: int, left: float, costs: UnitCosts) -> list[SearchSize]:
    """Returns sizes of cached runs that cost as much as a run of so many evaluations."""
    if costs.forecast is None or not 0.0 < costs.forecast < costs.whole:
        return []
    rest = int((left - nfe * costs.whole) / costs.forecast)  # forecasts that fill the budget
    sizes = []
    for steps in sorted({round(k * nfe) for k in STRETCHED} | {nfe + min(rest, nfe)}):
        full = int((OVER * left - steps * costs.forecast) / (costs.whole - costs.forecast))
        if LEAST_FULL <= full < steps <= MOST:
            sizes.append(SearchSize(full, "full", steps))
    return sizes
