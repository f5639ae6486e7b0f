"""The masks that `fewstep calibrate` tries: lists of full calls, searched as `search --full` does.

A mask is searched on noises of its own, by how far it takes a run from the run without a cache. For
every number of full calls that a fixed interval has, the best few come back as settings of a cache,
to stand beside intervals and gates on the noises of the calibration.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ..models.caching import take_cache
from ..models.caching.full_calls import list_full_calls
from ..models.caching.predictors import take_predictor
from ..models.denoiser import Network
from ..models.errors import SettingError
from ..models.hashing import hash_json
from ..models.registry import format_spec
from .cache_candidates import BLOCKS
from .calibration_request import CalibrationRequest
from .search.budget import Budget
from .search.identity import describe_search
from .search.log import Trial
from .search.objective import objective
from .search.problem import Problem, Teacher
from .search.progress import Progress
from .search.run import explore
from .search.search import Search
from .search.size import SearchSize
from .search.space import Space
from .search.strategies import STRATEGIES, strategies_of
from .search.strategies.masks import PREDICTORS, REFITTED

NAME = "fixed-mask"
AUTO = ("mask-even", "mask-dp", "mask-climb")
NOISES = 16  # that a mask is scored on
BEST, OF_EACH = 3, 1  # masks of one number of full calls that are tried, and of each predictor
DIGITS = 12  # of the name of a log


def list_strategies(request: CalibrationRequest) -> tuple[str, ...]:
    """Returns the strategies that search masks; none where a calibration tries none.

    Raises:
        FewstepError: for a name that is none of theirs, or that searches tables too.
    """
    tried = NAME in (request.cache or (NAME,))
    if request.masks == "none" or (request.masks == "auto" and not tried):
        return ()
    if not tried:
        raise SettingError(f"--masks searches for {NAME} alone; drop it, or give --cache {NAME}")
    if request.masks == "auto":
        return AUTO
    able = [each for each in strategies_of("full") if each != REFITTED]
    chosen = tuple(part.strip() for part in request.masks.split(","))
    for name in chosen:
        STRATEGIES.get(name)
        if name not in able:
            raise SettingError(f"{name} does not search masks; take {', '.join(able)}, or none")
    return chosen


def list_amounts(nfe: int) -> list[int]:
    """Returns the numbers of full calls that fixed intervals have in a run of so many calls."""
    known = {len(list_full_calls(take_cache(each), nfe) or ()) for each in BLOCKS}
    return sorted(each for each in known if 1 < each < nfe)


def choose_predictors(given: Sequence[str]) -> tuple[str, ...]:
    """Returns those of some predictors that run on every mask; of none and "all" the usual ones.

    Raises:
        SettingError: for an unknown one.
    """
    if not given or "all" in given:
        return PREDICTORS
    return tuple(each for each in given if take_predictor(each).suits_any_mask)


def search_masks(
    request: CalibrationRequest, network: Network, grid: str, folder: Path, progress: bool = False
) -> list[str]:
    """Returns masks as settings of a cache, the best few for each number of full calls.

    Args:
        request: what is calibrated.
        network: the one that it names.
        grid: of the run, by name.
        folder: an existing one, in which searches keep their logs; one that was stopped goes on.
        progress: shows how far it is.

    Raises:
        FewstepError: where masks cannot be searched, as for a solver that is no multistep one.
    """
    watch, made = Progress(None, progress), list[str]()
    try:
        for search in list_searches(request, network, grid, folder):
            with explore(search, watch) as task:
                made += list_best(task.best(), search.settings["predictors"])
    finally:
        watch.close()
    return made


def list_searches(
    request: CalibrationRequest, network: Network, grid: str, folder: Path
) -> list[Search]:
    """Returns the searches of masks, one for each number of full calls, all on one log."""
    amounts, predictors = list_amounts(request.nfe), choose_predictors(request.predictor or ())
    strategies = list_strategies(request)
    if not (amounts and predictors and strategies):
        return []
    problem = Problem.of(
        network,
        (NOISES, 1, 1),
        teacher=Teacher(request.solver, request.nfe, grid=grid),
        cfg_scale=request.cfg_scale,
        cache=folder,
    )
    searches = [
        Search(
            problem=problem,
            objective=objective("terminal", network),
            space=Space(process=network.schedule, solver=request.solver, grid=grid),
            size=SearchSize(amount, "full", request.nfe),
            strategies=strategies,
            budget=Budget.parse(request.budget).divide(len(amounts)),
            folder=folder,
            settings={"predictors": predictors},
        )
        for amount in amounts
    ]
    log = folder / hash_json(describe_search(searches[0]))[:DIGITS]
    return [replace(each, folder=log) for each in searches]


def list_best(trials: Sequence[Trial], predictors: Sequence[str]) -> list[str]:
    """Returns the best masks of some trials, best first, as settings of a cache."""
    policies = [each.schedule.cache_policy for each in trials if each.score is not None]
    masks = [replace(each, calls=None) for each in policies if each is not None]
    best = masks[:BEST]
    for name in predictors:
        kind = take_predictor(name)
        best += [each for each in masks if each.keep.predictor == kind][:OF_EACH]
    return [format_spec(each) for each in dict.fromkeys(best)]
