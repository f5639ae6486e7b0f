"""The effect of a cache in a schedule, and its worth: beside no cache, and beside fewer steps."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from torch import Tensor, stack

from ...models.ledger import Ledger
from ...samplers.plan import DEFAULT_SOLVER, Plan, choose_default_schedule, make_plan
from ...samplers.sampler import Sampler
from ...solvers import Schedule
from ...solvers.artefact import Artefact
from ...solvers.linear import Encoder
from .columns import RESAMPLED, Column, square_distances
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


@dataclass(frozen=True)
class PlainRun:
    """A run without a cache at the cost of one with a cache.

    name:    what it is; typed: what `sample` draws it with.
    """

    name: str
    typed: str
    schedule: Artefact


def list_plain_runs(problem: Problem, base: str, nfe: int) -> list[PlainRun]:
    """Returns the runs without a cache of so many evaluations: of the same solver, and the best.

    The best is what `sample` draws with where nothing but an NFE is asked for: a schedule of the
    package that was searched for this network, if there is one, and else the default solver.
    """
    process, words = problem.network.schedule, f"--nfe {nfe}"
    plan = make_plan(process, base, nfe=nfe)
    rivals = [PlainRun(f"{base}, {nfe} evaluations", f"--solver {base} {words}", _encode(plan))]
    preset = choose_default_schedule(problem.network.name, {"nfe": nfe}, problem.guidance)
    default = _encode(make_plan(process, nfe=nfe))
    if preset is not None:
        rivals.append(PlainRun(f"the searched schedule of {nfe} evaluations", words, preset))
    elif default.schedule_id != rivals[0].schedule.schedule_id:
        rivals.append(PlainRun(f"{DEFAULT_SOLVER}, {nfe} evaluations", words, default))
    return rivals


def _encode(plan: Plan) -> Schedule:
    assert isinstance(plan.settings, Encoder)
    return plan.settings.encode(plan.grid)


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


def compare_pairs(mine: Tensor, theirs: Tensor) -> tuple[float, float, float]:
    """Returns the ratio of two root mean squares over the same noises, and its 95 % interval.

    mine, theirs: mean squares (n,) of single noises, which are drawn again in pairs.
    """
    a, b = mine.double().numpy(), theirs.double().numpy()
    drawn = np.random.default_rng(0).integers(len(a), size=(RESAMPLED, len(a)))
    ratios = np.sqrt(a[drawn].mean(1) / b[drawn].mean(1))
    low, high = np.quantile(ratios, [0.025, 0.975])
    return float(np.sqrt(a.mean() / b.mean())), float(low), float(high)


def list_even(calls: int, full: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the masks that anyone could type, with their names."""
    yield "full evaluations spread evenly", tuple(i * calls // full for i in range(full))
    for interval in range(2, calls):
        mask = (0, *range(1, calls, interval))
        if len(mask) == full:
            yield f"taylorseer:interval={interval}", mask
            return


def describe_cache(
    problem: Problem, schedule: Schedule, rivals: Sequence[PlainRun]
) -> dict[str, Any]:
    """Returns what the cache of a schedule does on test noises, and what it is worth.

    Args:
        problem: whose test noises are looked at.
        schedule: one with a cache, whose ends are finite.
        rivals: runs without a cache at its cost.
    """
    assert schedule.cache is not None
    block, full = problem.block("test"), len(schedule.cache.compute)
    full_run = UncachedEnds(problem, schedule.with_cache(None)).beside(block)
    ends = problem.ends(schedule, block)
    drift = square_distances(ends, full_run)
    mine = square_distances(ends, block)
    facts: dict[str, Any] = {"noises": len(block), "drift": _write_column(drift), "even": []}
    facts |= {"distance": _write_column(mine), "beside": []}
    for name, mask in list_even(schedule.nfe, full):
        even = schedule.with_cache(schedule.cache.model_copy(update={"compute": mask}))
        theirs = square_distances(problem.ends(even, block), full_run)
        blocks = zip(drift.chunk(BLOCKS), theirs.chunk(BLOCKS), strict=True)
        told = {"name": name, "drift": _write_column(theirs), "ratio": compare_pairs(drift, theirs)}
        worst = max(float((a.mean() / b.mean()).sqrt()) for a, b in blocks)
        facts["even"].append({**told, "worst": worst})
    for rival in rivals:
        theirs = square_distances(problem.ends(rival.schedule, block), block)
        told = {"name": rival.name, "typed": rival.typed, "distance": _write_column(theirs)}
        facts["beside"].append({**told, "ratio": compare_pairs(mine, theirs)})
    return facts


def _write_column(squares: Tensor) -> dict[str, Any]:
    return Column.of(squares).model_dump(mode="json")


def judge_cache(facts: Mapping[str, Any], network: str) -> str:
    """Returns in one line whether a cache is worth it, from what `describe_cache` gives."""
    best = min(facts["beside"], key=lambda each: float(each["distance"]["value"]))
    ratio, low, high = best["ratio"]
    told = f"its distance over that of {best['name']} is {ratio:.2f} [{low:.2f}, {high:.2f}]"
    if high < 1.0:
        return f"the cache pays: {told}"
    what = "is nearer" if low > 1.0 else "is as near"
    return f"the cache does not pay: `sample {network} {best['typed']}` {what} without it; {told}"


def list_cache_lines(facts: Mapping[str, Any], network: str) -> Iterator[str]:
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
    yield judge_cache(facts, network)


def _format_column(written: Mapping[str, float]) -> str:
    return str(Column.model_validate(written))
