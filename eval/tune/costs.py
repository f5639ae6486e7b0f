"""The costs of a run: its parts measured here in turns, and the time of a plan as their sum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from statistics import quantiles

from torch.utils.flop_counter import FlopCounterMode

from ...models.denoiser import Network
from ...models.errors import FewstepError
from ...models.ledger import Ledger
from ...samplers.guidance.base import COND
from ...samplers.noise import Noise, draw_noise
from ...samplers.plan_file import PlanCost, Spread
from ...samplers.run_settings import RunSettings
from ...samplers.sampler import Result, Sampler
from ..bench.timing import record_turns
from ..search.problem import Block, Problem
from .report import CostParts

SHORT, LONG = 2, 8  # evaluations of two runs, whose difference is that of so many
REPEATS = 5  # turns at least
LAST_BLOCK = "last-block"  # the level of the masks that are tried
SOLVER = "unipc-2"


@dataclass(frozen=True)
class RunTimer:
    """Times runs of a network: so many images at once, of the first training seeds."""

    problem: Problem
    batch: int

    def run(self, settings: RunSettings) -> Result:
        """Returns the result of a run of a batch."""
        problem = self.problem
        seeds = [problem.train[i % len(problem.train)] for i in range(self.batch)]
        given = {name: each for name, each in problem.conditions_of(seeds).items() if each}
        labels = problem.labels_of(seeds)
        call = {"class_labels": labels, "batch": self.batch, **given, **settings.arguments()}
        return Sampler(problem.network)(seeds, **call)

    def time(self, settings: RunSettings) -> float:
        """Returns the milliseconds of a run."""
        return 1000.0 * self.run(settings).ledger.seconds

    def time_all(
        self, settings: Mapping[str, RunSettings], seconds: float = 0.0
    ) -> dict[str, Spread]:
        """Returns the milliseconds of runs in turns with one another, by name."""
        works = {name: partial(self.time, each) for name, each in settings.items()}
        return {
            name: make_spread(values)
            for name, values in record_turns(works, REPEATS, 1, seconds).items()
        }


def make_spread(values: Sequence[float]) -> Spread:
    """Returns median and quartiles of at least two values, none below 0."""
    low, middle, high = quantiles([max(each, 0.0) for each in values], n=4, method="inclusive")
    return Spread(median=middle, low=low, high=high, repeats=len(values))


def measure_parts(problem: Problem, batch: int, seconds: float) -> CostParts:
    """Returns the costs of the parts of a run, from runs in turns with one another.

    With T_n the time of a run of n evaluations, one of them is (T_8 - T_2) / 6 and the start is T_2
    less two of them. A step is the same where the network answers at once; and of a cached run
    that computes the first evaluation alone seven are forecast.

    seconds: about as long as this takes; at least five turns.
    """
    timer, scale = RunTimer(problem, batch), problem.cfg_scale
    quick = RunTimer(replace(problem, network=_make_quick(problem.network)), batch)
    runs = {f"row {n}": (timer, RunSettings(solver=SOLVER, nfe=n)) for n in (SHORT, LONG)}
    runs |= {f"step {n}": (quick, runs[f"row {n}"][1]) for n in (SHORT, LONG)}
    whole = "row" if scale == 1.0 else "pair"
    for n in (SHORT, LONG):
        guided = runs[f"row {n}"][1].model_copy(update={"cfg_scale": scale})
        runs[f"{whole} {n}"] = timer, guided
    mask = {"cache": f"fixed-mask:compute=[0],calls={LONG}"}
    cached = runs[f"{whole} {LONG}"][1].model_copy(update=mask)
    share = _find_share(timer, cached)
    if share is not None:
        runs[LAST_BLOCK] = timer, cached
    works = {name: partial(each.time, settings) for name, (each, settings) in runs.items()}
    parts = _divide(record_turns(works, REPEATS, 1, seconds))
    return parts.model_copy(update={"flops": _count_flops(problem), "share": share})


def _make_quick(network: Network) -> Network:
    """Returns a network of the same shape that answers at once."""
    return replace(network, forward=lambda x, *_: x, module=None, hooks=None, graphs=None)


def _divide(taken: Mapping[str, Sequence[float]]) -> CostParts:
    """Returns the parts of the times of runs, turn by turn."""

    def each_evaluation(kind: str) -> list[float]:
        pairs = zip(taken[f"{kind} {LONG}"], taken[f"{kind} {SHORT}"], strict=True)
        return [(long - short) / (LONG - SHORT) for long, short in pairs]

    rows = each_evaluation("row")
    starts = [a - SHORT * b for a, b in zip(taken[f"row {SHORT}"], rows, strict=True)]
    pairs = each_evaluation("pair") if f"pair {LONG}" in taken else None
    forecast = {}
    if LAST_BLOCK in taken:
        times = zip(taken[LAST_BLOCK], starts, pairs or rows, strict=True)
        forecast[LAST_BLOCK] = make_spread([(t - s - w) / (LONG - 1) for t, s, w in times])
    return CostParts(
        start=make_spread(starts),
        row=make_spread(rows),
        step=make_spread(each_evaluation("step")),
        pair=None if pairs is None else make_spread(pairs),
        partial=forecast,
    )


def _find_share(timer: RunTimer, settings: RunSettings) -> float | None:
    """Returns the FLOPs of a forecast evaluation as a share; None if the network has no cache."""
    try:
        cache = timer.run(settings).ledger.cache
    except FewstepError:
        return None
    return None if cache is None else (LONG * cache.relative_cost - 1.0) / (LONG - 1)


def _count_flops(problem: Problem) -> float | None:
    """Returns the FLOPs of one row of the network; None if it is no torch module."""
    if problem.network.module is None:
        return None
    seeds = tuple(problem.train[:1])
    noise = draw_noise(Noise(seeds, problem.network.shape), problem.network.schedule)
    block = Block("train", seeds, problem.labels_of(seeds), noise, noise)
    apart = replace(problem, ledger=Ledger())
    with FlopCounterMode(display=False) as counter:
        apart.answers(block, noise, problem.network.schedule.at(0.5), COND)
    return float(counter.get_total_flops()) or None


def count_forecasts(ledger: Ledger) -> float:
    """Returns the evaluations of an image that a cache forecast."""
    if ledger.cache is None or not ledger.cache.calls:
        return 0.0
    return ledger.nfe * ledger.cache.hits / len(ledger.cache.calls)


def predict_ms(nfe: float, rows: float, forecasts: float, parts: CostParts) -> float:
    """Returns the milliseconds of a run: start + sum over its evaluations.

    nfe, rows, forecasts: of an image; an evaluation has one row or two, and forecast ones are like
    the others.
    """
    share = 1.0 - forecasts / nfe if nfe else 1.0
    both = max(rows - nfe, 0.0)
    pair = parts.row.median * 2.0 if parts.pair is None else parts.pair.median
    whole = both * pair + (nfe - both) * parts.row.median
    partial_ms = parts.partial[LAST_BLOCK].median if LAST_BLOCK in parts.partial else 0.0
    return parts.start.median + share * whole + forecasts * partial_ms


def describe_cost(ledger: Ledger, parts: CostParts, guided: bool) -> PlanCost:
    """Returns the cost of a run by its ledger; guided: the whole evaluation has two rows.

    A learned correction counts by its FLOPs, as the share of a row that they are.
    """
    relative = 1.0 if ledger.cache is None else ledger.cache.relative_cost
    rows = ledger.rows_per_image
    added = 0.0 if parts.flops is None else ledger.correction_flops / parts.flops
    predicted = predict_ms(ledger.nfe, rows, count_forecasts(ledger), parts)
    return PlanCost(
        nfe=ledger.nfe,
        rows=rows,
        effective=(rows * relative + added) / (2.0 if guided else 1.0),
        flops=None if parts.flops is None else parts.flops * (rows * relative + added),
        predicted=predicted + added * parts.row.median,
    )
