"""The searches that a request of `fewstep tune` needs: one for each size of tables."""

from collections.abc import Iterator
from dataclasses import replace

from ..requests import SearchRequest
from ..search.budget import Budget
from ..search.search import Search
from ..search.size import SearchSize
from ..search.strategies import read_beyond, strategies_of
from ..tune_request import BRIEF, CONVERGED, FEWER, NEARLY, NOISES, TuneRequest
from .sizes import PlanSizes

SEARCHED = 0.8  # of a budget of time, at which the searches and their reference are done
SCORED, LESS = 128, 64  # training noises of a candidate, and in a short time
QUICK = ("grid", "fit", "refine")  # strategies of it,
QUICKLY = {"fine": 30, "ladder": (), "wide": 96}  # on fewer times and noises, from the best start
LARGEST = 24  # evaluations of tables that are searched; with more, named ones are as near
MOST_ROWS = 40  # network rows of guided tables that are
FIRST = 1  # evaluations of the search that the others are made of


def make_search_request(request: TuneRequest) -> SearchRequest:
    """Returns the search that has the same network, noises and reference."""
    brief, budget = is_brief(request), Budget.parse(request.budget)
    if budget.kind == "seconds":
        budget = Budget("seconds", SEARCHED * budget.amount)
    return SearchRequest(
        network=request.network,
        nfe=FIRST,
        features=request.features,
        weights=request.weights,
        budget=str(budget),
        cfg_scale=request.cfg_scale,
        seed=request.seed,
        out=request.out,
        log=request.folder,
        noises=request.noises or (FEWER if brief else NOISES),
        scored=LESS if brief else SCORED,
        train_seeds=request.train_seeds,
        validation_seeds=request.validation_seeds,
        test_seeds=request.test_seeds,
        classes=request.classes,
        teacher_nfe=request.teacher_nfe or (NEARLY if brief else CONVERGED),
        reference_end=request.reference_end,
        beyond=request.beyond,
        dtype=request.dtype,
        device=request.device,
    )


def is_brief(request: TuneRequest) -> bool:
    """Returns whether the budget is a short time."""
    budget = Budget.parse(request.budget)
    return budget.kind == "seconds" and budget.amount < BRIEF


def list_searches(request: TuneRequest, first: Search, sizes: PlanSizes) -> Iterator[Search]:
    """Yields the searches of tables of these sizes.

    first: the one that they are made of, of no size that matters.
    """
    if sizes.nfe:
        size = SearchSize(sizes.nfe)
        yield replace(first, size=size, strategies=choose_strategies(request, sizes.nfe))
    if sizes.rows is not None and 2 <= sizes.rows <= MOST_ROWS:
        size = SearchSize(sizes.rows, "rows")
        able = strategies_of("rows", beyond=True)
        further = [name for name in read_beyond(request.beyond) if name in able]
        yield replace(first, size=size, strategies=(*strategies_of("rows"), *further))


def choose_strategies(request: TuneRequest, nfe: int) -> tuple[str, ...]:
    """Returns the strategies for tables of so many evaluations, fewer in a short time."""
    if nfe > LARGEST:
        return QUICK[:1]
    usual = QUICK if is_brief(request) else strategies_of("nfe")
    return (*usual, *read_beyond(request.beyond))
