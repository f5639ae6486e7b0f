"""The effect of a cache in a schedule, and its worth: beside no cache, and beside fewer steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from torch import Tensor, stack

from ...models.ledger import Ledger
from ...samplers.columns import Column
from ...samplers.plan import make_plan
from ...samplers.sampler import Sampler
from ...solvers import Schedule
from ...solvers.artefact import Artefact
from ...solvers.linear import Encoder
from ..cache_worth import Interval95, PlainRun, compare_pairs, judge_cache
from .columns import square_distances
from .objective import OfEnds, rmse
from .problem import Block, Problem

DRIFT = "drift"
BLOCKS = 4  # of the test noises, in each of which the gain of a mask is looked at


@dataclass(frozen=True)
class UncachedEnds:
    """Where a schedule without a cache takes the noises of a problem; uncounted, each once."""

    problem: Problem
    schedule: Artefact
    _known: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False)

    def ends(self, block: Block) -> Tensor:
        """Returns where it takes a block, (n, *)."""
        new = [i for i, seed in enumerate(block.seeds) if seed not in self._known]
        if new:
            apart = replace(self.problem, ledger=Ledger())
            chosen = block.pick(new)
            self._known.update(zip(chosen.seeds, apart.ends(self.schedule, chosen), strict=True))
        return stack([self._known[seed] for seed in block.seeds])

    def beside(self, block: Block) -> Block:
        """Returns the block with these ends in the place of the teacher's."""
        return replace(block, ends=self.ends(block))

    def figure(self, ends: Tensor, block: Block) -> float:
        """Returns the root mean square of ends (n, *) minus these."""
        return rmse(ends, self.beside(block))


def drift_of(problem: Problem, schedule: Artefact) -> OfEnds:
    """Returns the objective that compares with the run of a schedule without its cache."""
    return OfEnds(DRIFT, UncachedEnds(problem, schedule).figure)


def measure_cost(problem: Problem, schedule: Artefact) -> tuple[float, int]:
    """Returns the effective evaluations of a schedule with a cache, and the parts it can skip."""
    seeds = problem.seeds_of("train")[:2]
    guidance = None if problem.cfg_scale == 1.0 else problem.guidance
    given = {name: each for name, each in problem.conditions_of(seeds).items() if each}
    result = Sampler(replace(problem.network, decode=None))(
        seeds, class_labels=problem.labels_of(seeds), solver=schedule, guidance=guidance, **given
    )
    assert result.ledger.cache is not None
    return result.ledger.effective_nfe, result.ledger.cache.parts


def list_even(calls: int, full: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the masks that anyone could type, with their names."""
    yield "full evaluations spread evenly", tuple(i * calls // full for i in range(full))
    for interval in range(2, calls):
        mask = (0, *range(1, calls, interval))
        if len(mask) == full:
            yield f"taylorseer:interval={interval}", mask
            return


def describe_cache(
    problem: Problem, schedule: Schedule, plain: Schedule, beside: Sequence[PlainRun]
) -> dict[str, Any]:
    """Returns what the cache of a schedule does on test noises, and what it is worth.

    Args:
        problem: whose test noises are looked at.
        schedule: one with a cache, whose ends are finite.
        plain: the run that drift is from, whose table may have been refitted to the cache.
        beside: runs without a cache at its cost.
    """
    block = problem.block("test")
    full_run = UncachedEnds(problem, plain).beside(block)
    ends = problem.ends(schedule, block)
    drift = square_distances(ends, full_run)
    mine = square_distances(ends, block)
    compared = list(_compare_plain(problem, mine, beside))
    return {
        "noises": len(block),
        "drift": _write_column(drift),
        "even": list(_compare_even(problem, plain.with_cache(schedule.cache), drift, full_run)),
        "distance": _write_column(mine),
        "beside": [
            {"name": run.name, "distance": _write_column(theirs), "ratio": ratio}
            for run, theirs, ratio in compared
        ],
        "verdict": judge_cache([(run, ratio) for run, _, ratio in compared], problem.network.name),
    }


def _compare_even(
    problem: Problem, schedule: Schedule, drift: Tensor, full_run: Block
) -> Iterator[dict[str, Any]]:
    """Yields the drift of even masks in the place of a searched one, which has drift (n,)."""
    assert schedule.cache is not None
    for name, mask in list_even(schedule.nfe, len(schedule.cache.compute)):
        even = schedule.with_cache(schedule.cache.model_copy(update={"compute": mask}))
        theirs = square_distances(problem.ends(even, full_run), full_run)
        blocks = zip(drift.chunk(BLOCKS), theirs.chunk(BLOCKS), strict=True)
        worst = max(float((a.mean() / b.mean()).sqrt()) for a, b in blocks)
        ratio = compare_pairs(drift, theirs)
        yield {"name": name, "drift": _write_column(theirs), "ratio": ratio, "worst": worst}


def _compare_plain(
    problem: Problem, mine: Tensor, beside: Sequence[PlainRun]
) -> Iterator[tuple[PlainRun, Tensor, Interval95]]:
    """Yields runs without a cache, with their squares and the ratio of a cached one's, (n,)."""
    block = problem.block("test")
    for run in beside:
        plan = make_plan(problem.network.schedule, **run.choices)
        schedule = run.choices.get("solver")
        if not isinstance(schedule, Artefact):
            assert isinstance(plan.settings, Encoder)
            schedule = plan.settings.encode(plan.grid)
        theirs = square_distances(problem.ends(schedule, block), block)
        yield run, theirs, compare_pairs(mine, theirs)


def _write_column(squares: Tensor) -> dict[str, Any]:
    return Column.of(squares).model_dump(mode="json")


def list_cache_lines(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yields what is printed of a cache."""
    yield (
        f"cache: {facts['effective']:.2f} effective evaluations; on {facts['noises']} test noises,"
        " with the interval of 95 % and the median:"
    )
    yield f"  drift from the run without it: {_format_column(facts['drift'])}"
    for even in facts["even"]:
        ratio, low, high = even["ratio"]
        yield (
            f"  drift of {even['name']}: {_format_column(even['drift'])}; the searched mask has"
            f" {ratio:.2f} [{low:.2f}, {high:.2f}] of it, at most {even['worst']:.2f} in each of"
            f" {BLOCKS} blocks"
        )
    yield f"  distance from the reference: {_format_column(facts['distance'])}"
    for each in facts["beside"]:
        yield f"  distance of {each['name']}: {_format_column(each['distance'])}"
    yield str(facts["verdict"])


def _format_column(written: Mapping[str, float]) -> str:
    return str(Column.model_validate(written))
