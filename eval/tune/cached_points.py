"""Points with a cache: masks on a named solver, and tables and masks that are chosen together."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from torch import Tensor

from ...samplers.plan import make_plan
from ...samplers.run_settings import RunSettings
from ...solvers import Schedule
from ...solvers.artefact import ANSWER, SCALE
from ...solvers.cached_calls import CachedCalls
from ...solvers.linear import Encoder
from ..search.mask_run import find_weights, measure_gram
from ..search.masks import find_best_mask, sum_gaps, tabulate_errors
from ..search.problem import Block
from ..search.refit import RIDGES, find_targets, record_states, refit
from ..search.search import Search
from ..search.size import SearchSize
from ..search.strategies.grow import find_widest, insert_evaluation
from ..search.uncached import list_even
from .judge import PointChoice

PREDICTORS = ("taylor:order=1", "hermite:order=2")
GRAM_NOISES = 8
FITTED = 64  # training noises that tables of masks are fitted on
BONDS = ("model", ANSWER, SCALE)  # of a provenance, which an extended table keeps
GUIDED_MORE = (2, 4)  # forecast evaluations that a guided table is given

Mask = tuple[int, ...]
FindTargets = Callable[[Schedule, Block], Tensor]


def list_masked(search: Search, size: SearchSize) -> Iterator[PointChoice]:
    """Yields cached runs of the default: masks spread evenly, and the best by inner products."""
    problem = search.problem
    plan = make_plan(problem.network.schedule, nfe=size.nfe)
    if not isinstance(plan.settings, Encoder):
        return
    plain = plan.settings.encode(plan.grid)
    masks = [
        (mask, predictor)
        for _, mask in list_even(size.nfe, size.amount)
        for predictor in PREDICTORS
    ]
    masks += _find_masks(search, plain, size)
    for mask, predictor in dict.fromkeys(masks):
        cached = plain.with_cache(CachedCalls(compute=mask, predictor=predictor))
        settings = RunSettings(schedule=cached, cfg_scale=problem.cfg_scale)
        name = f"{plan.settings.info.name}, {_describe_mask(mask, size.nfe, predictor)}"
        yield PointChoice(name, "cache", settings)


def _describe_mask(mask: Mask, steps: int, predictor: str) -> str:
    return f"computed at {','.join(map(str, mask))} of {steps}, {predictor}"


@dataclass(frozen=True)
class JointPoints:
    """Tables and masks together: every table is fitted to the mask that it runs with.

    search: whose training noises they are fitted on; the tables are kept in its folder.
    """

    search: Search

    def fit_masks(self, cached: Sequence[PointChoice]) -> Iterator[PointChoice]:
        """Yields cached runs of named solvers, their tables fitted to the reference."""
        for each in cached:
            if each.settings is not None and each.settings.schedule is not None:
                yield from self._fit(each.name, each.settings, self._find_targets)

    def extend(self, plain: PointChoice, sizes: Sequence[SearchSize]) -> Iterator[PointChoice]:
        """Yields a table with further evaluations that a cache forecasts, and masks on all of them.

        The further ones weigh nothing at first. So where its own are the ones that are computed,
        the run ends where that of the table does, before it is fitted.

        Args:
            plain: a setting that is a table without a cache.
            sizes: of the extended tables. Those of a table that combines the branches itself are
                its own evaluations and some more.
        """
        assert plain.settings is not None
        table = plain.settings.schedule
        if table is None or None in table.evaluations:
            return
        if table.correction is not None or any(table.table().functions):
            return  # what is no weight is not fitted row by row
        own = len(table.evaluations)
        if table.guided:
            sizes = [SearchSize(own, "full", own + more) for more in GUIDED_MORE]
        for size in sizes:
            if size.nfe <= own:
                continue
            grown, places = extend_table(table, size.nfe)
            masks = list(product([places], PREDICTORS)) if size.amount == own else []
            masks += [] if table.guided else _find_masks(self.search, grown, size)
            for mask, predictor in dict.fromkeys(masks):
                cached = grown.with_cache(CachedCalls(compute=mask, predictor=predictor))
                settings = plain.settings.model_copy(update={"schedule": cached})
                name = f"{plain.name}, extended, {_describe_mask(mask, size.nfe, predictor)}"
                yield from self._fit(name, settings, self._follow)

    def _fit(self, name: str, settings: RunSettings, find: FindTargets) -> Iterator[PointChoice]:
        """Yields a cached run with its table fitted to the mask, as strongly as each ridge lets."""
        problem, schedule, targets = self.search.problem, settings.schedule, None
        assert schedule is not None
        block = problem.block("train").first(min(FITTED, len(problem.train)))
        for ridge in RIDGES:
            mark = f"{schedule.schedule_id[:16]}-{len(block)}-{ridge:g}"
            path = self.search.folder / f"refitted-{mark}.json"
            if not path.exists():
                targets = find(schedule, block) if targets is None else targets
                made = refit(problem, schedule, block, targets, ridge)
                made.write(path)
            fitted = settings.model_copy(update={"schedule": Schedule.load(path)})
            yield PointChoice(f"{name}, fitted with {ridge:g}", "joint", fitted)

    def _find_targets(self, schedule: Schedule, block: Block) -> Tensor:
        return find_targets(self.search.problem, schedule.grid(), block)

    def _follow(self, schedule: Schedule, block: Block) -> Tensor:
        """Returns where the table is without its cache, and at the end the reference."""
        states = record_states(self.search.problem, schedule.with_cache(None), block)
        states[-1] = block.ends
        return states


def extend_table(table: Schedule, steps: int) -> tuple[Schedule, Mask]:
    """Returns a table with more evaluations, which weigh nothing yet, and the places of its own."""
    facts = {key: table.provenance[key] for key in BONDS if key in table.provenance}
    own = list(range(table.nfe))
    while table.nfe < steps:
        place = find_widest(table)
        table = insert_evaluation(table, place)
        own = [i + (i > place) for i in own]
    return table.model_copy(update={"provenance": facts}), tuple(own)


def _find_masks(search: Search, plain: Schedule, size: SearchSize) -> list[tuple[Mask, str]]:
    """Returns the masks of least predicted error, with their predictors."""
    block = search.problem.block("train").first(min(GRAM_NOISES, len(search.problem.train)))
    gram, masks = measure_gram(search.problem, plain, block).numpy(), []
    for predictor, power in product(PREDICTORS, (1.0, 0.5)):
        weigh = find_weights(predictor, size.nfe)
        if weigh is not None:
            costs = sum_gaps(tabulate_errors(gram, weigh) ** power)
            masks.append((find_best_mask(costs, size.amount), predictor))
    return masks
