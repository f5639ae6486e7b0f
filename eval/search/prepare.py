"""From what is typed to searches: every name and number is checked before anything is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from ...models.arguments import MOST_NUMBERS, parse_ranges
from ...models.caching.predictors import take_predictor
from ...models.denoiser import Network
from ...models.errors import SettingError, UnknownNameError
from ...models.load import load
from ...models.registry import parse_spec
from ...models.user_code import LENT
from ...samplers.conditions import parse_classes
from ...samplers.grid import Final, choose_default_grid
from ...samplers.placement import list_grids
from ...solvers import Schedule, take_solver
from ...solvers.mean_image import MeanImage
from ..requests import SearchRequest
from . import toy
from .budget import Budget
from .objective import Objective, find_features, objective
from .objective import names as objectives
from .problem import Block, Problem, Teacher
from .reference_end import ReferenceEnd
from .search import Search
from .size import SearchSize
from .space import DECISIONS, DEFAULT, Space
from .strategies import STRATEGIES, read_beyond, strategies_of
from .uncached import DRIFT, drift_of

MOST_SEARCHED = 200  # evaluations of a schedule
SCORED = {"nfe": 256, "rows": 128, "full": 32}  # a fitted candidate runs its noises twice
NOISES, OF_MASKS = "1024,256,1024", "64,128,256"  # by default, and with --full
STEPS = "30"  # of a run whose full evaluations are searched
RENAMED = {"distance": "terminal"}  # objectives
PLAIN_GRID = "logsnr"
AFS = ("none", "zero", "mean", "any")
TOY = "toy"  # the name of a distribution
TEACHER = "teacher"  # where the folder of a log keeps its reference


def sizes_of(request: SearchRequest) -> tuple[SearchSize, ...]:
    """Returns the sizes asked for, each once and rising."""
    nfe, nfe_range, rows, full = request.nfe, request.nfe_range, request.rows, request.full
    if [nfe, nfe_range, rows, full].count(None) != 3:
        raise SettingError(
            "give --nfe, such as 5, or --nfe-range, such as 3-10, or, under guidance, --rows, or,"
            " for a cache, --full"
        )
    if full is not None:
        steps = sorted(set(parse_ranges(request.steps or STEPS)))
        if request.objective == DRIFT and len(steps) > 1:
            raise SettingError(
                "objective drift compares with the run of one number of steps; give one number to"
                " --steps"
            )
        return tuple(SearchSize(full, "full", number) for number in steps)
    if request.steps is not None or request.predictor != "auto":
        raise SettingError("--steps and --predictor belong to --full; drop them, or give --full")
    if rows is not None:
        return (SearchSize(rows, "rows"),)
    numbers = [nfe] if nfe is not None else parse_ranges(nfe_range or "")
    if max(numbers) > MOST_SEARCHED:
        raise SettingError(
            f"schedules of at most {MOST_SEARCHED} evaluations are searched, not {max(numbers)}:"
            " with more, named solvers are as near"
        )
    return tuple(SearchSize(number) for number in sorted(set(numbers)))


def prepare_searches(request: SearchRequest) -> list[Search]:
    """One search per size, all on one problem, checked before anything is computed or written."""
    sizes = sizes_of(request)
    budget = Budget.parse(request.budget).divide(len(sizes))
    strategies = _strategies(request, sizes)
    free = _free(request.free)
    _check_names(request)
    problem = replace(_problem(request), cache=request.folder / TEACHER)
    features = find_features(request.features, problem.network, request.weights)
    spaces = [
        Space(
            process=problem.network.schedule,
            free=free | ({"afs"} if request.afs != "none" else set()),
            ends=_ends(problem),
            solver=request.base,
            grid=_name_grid(request, problem, size),
        )
        for size in sizes
    ]
    aim = _find_objective(request, problem, spaces[0], sizes[0])
    searches = [
        Search(
            problem=problem,
            objective=aim,
            space=space,
            size=size,
            strategies=strategies,
            budget=budget,
            folder=request.folder,
            seed=request.seed,
            scored=SCORED[size.unit] if request.scored is None else request.scored,
            features=features,
            settings=_read_settings(request),
        )
        for size, space in zip(sizes, spaces, strict=True)
    ]
    for search in searches:
        search.check()
    return searches


def _check_names(request: SearchRequest) -> None:
    """Raises FewstepError for names and numbers that need no network to be told wrong."""
    grid = parse_spec(request.grid_type or PLAIN_GRID)[0]
    for kind, name, known in (
        ("analytic first step", request.afs, AFS),
        ("objective", request.objective, [*objectives(), *RENAMED, DRIFT]),
        ("grid", grid, list_grids()),
    ):
        if name not in known:
            raise UnknownNameError(kind, name, known)
    take_solver(request.base)
    take_solver(request.teacher)
    Final.named(request.final)
    _count_noises(request)


def _strategies(request: SearchRequest, sizes: Sequence[SearchSize]) -> tuple[str, ...]:
    beyond, text = read_beyond(request.beyond), request.strategy
    if text == "auto":
        return (*strategies_of(sizes[0].unit), *beyond)
    chosen = (*(part.strip() for part in text.split(",")), *beyond)
    for name in chosen:
        if name not in STRATEGIES:
            raise UnknownNameError("strategy", name, ["auto", *STRATEGIES])
    if len(set(chosen)) < len(chosen):
        given = text if request.beyond is None else f"{text},{request.beyond}"
        raise SettingError(f"{given!r} names a strategy twice; each runs once")
    return chosen


def _free(text: str | None) -> frozenset[str]:
    if text is None:
        return DEFAULT
    chosen = {part.strip() for part in text.split(",")}
    for name in sorted(chosen - DECISIONS.keys()):
        raise UnknownNameError("decision", name, DECISIONS)
    return frozenset(chosen)


def _problem(request: SearchRequest) -> Problem:
    if request.network == TOY and TOY not in LENT:
        return toy.toy(_count_noises(request))
    network = load(request.network, dtype=request.dtype, device=request.device)
    teacher = Teacher(
        solver=request.teacher,
        nfe=request.teacher_nfe,
        final=request.final,
    )
    fields: dict[str, Any] = {
        "cfg_scale": request.cfg_scale,
        "teacher": teacher,
        "batch": request.batch,
        **_read_seeds(request),
    }
    if request.classes is not None:
        fields["labels"] = _labels(request.classes, network)
    problem = Problem.of(network, _count_noises(request), **fields)
    return ReferenceEnd(time=request.reference_end or 0.0).apply_to(problem)


def _labels(text: str, network: Network) -> tuple[int, ...]:
    labels = parse_classes(text, network)
    if labels is None:
        raise SettingError("a search asks for classes; give some, or leave --classes out for all")
    return tuple(labels)


def _name_grid(request: SearchRequest, problem: Problem, size: SearchSize) -> str:
    """Returns the grid of times to start from."""
    if request.grid_type is not None or size.unit != "full":
        return request.grid_type or PLAIN_GRID
    return choose_default_grid(problem.network.schedule, size.nfe)


def _find_objective(
    request: SearchRequest, problem: Problem, space: Space, size: SearchSize
) -> Objective:
    name = RENAMED.get(request.objective, request.objective)
    if name == DRIFT:
        if size.unit != "full":
            raise SettingError("drift compares with the run without a cache; give --full")
        return drift_of(problem, Schedule.of_steps(space.base(size.nfe)))
    return objective(name, problem.network, reference=request.reference, weights=request.weights)


def _read_settings(request: SearchRequest) -> Mapping[str, Any]:
    """Returns what strategies are told; raises FewstepError for predictors that cannot be tried."""
    if request.predictor == "auto":
        return {}
    chosen = tuple(part.strip() for part in request.predictor.split(";"))
    for each in chosen:
        kind = take_predictor(each)
        if not kind.suits_any_mask:
            raise SettingError(
                f"{kind.info.name} does not run on every list of full evaluations, and a search"
                " tries many; take taylor, newton, hermite, foca or reuse"
            )
    return {"predictors": chosen}


def _count_noises(request: SearchRequest) -> tuple[int, int, int]:
    """Returns how many noises each block has."""
    text = request.noises or (NOISES if request.full is None else OF_MASKS)
    try:
        train, validation, test = (int(part) for part in text.split(","))
    except ValueError:
        raise SettingError(
            f"{text!r} is not a list of three sizes; write --noises TRAIN,VALIDATION,TEST"
        ) from None
    if min(train, validation, test) < 1:
        raise SettingError("each block needs at least one noise")
    if max(train, validation, test) > MOST_NUMBERS:
        raise SettingError(f"a block holds at most {MOST_NUMBERS:,} noises, in memory at once")
    return train, validation, test


def _read_seeds(request: SearchRequest) -> Mapping[str, list[int]]:
    given = (request.train_seeds, request.validation_seeds, request.test_seeds)
    blocks = zip(("train", "validation", "test"), given, strict=True)
    return {name: parse_ranges(text) for name, text in blocks if text is not None}


def _ends(problem: Problem) -> tuple[float, ...]:
    """Where runs may end: where the teacher does, and just above zero if that is at zero."""
    process = problem.network.schedule
    if problem.teacher.final == "sigma_min":
        return (process.t_min,)
    return (process.t_zero, process.t_min)


def find_afs(request: SearchRequest, problem: Problem) -> tuple[Any, ...]:
    """Returns the analytic first steps to choose from; the mean is that of the training ends."""
    if request.afs in ("none", "zero"):
        return ("zero",)
    mean = mean_image(problem.block("train"))
    return (mean,) if request.afs == "mean" else ("zero", mean)


def mean_image(block: Block) -> MeanImage:
    """Returns the mean of the teacher's ends."""
    mean = block.ends.double().mean(0)
    return MeanImage.of(mean.flatten().tolist(), tuple(mean.shape))
