"""`fewstep search`: from what is typed to a search, and from its result to a file."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...models.arguments import MOST_NUMBERS, parse_ranges
from ...models.denoiser import Network
from ...models.errors import SettingError, UnknownNameError
from ...models.files import (
    check_apart,
    check_folder,
    check_writable,
    make_folder,
    write_bytes,
)
from ...models.load import load
from ...models.reading import ordinary_file
from ...models.registry import parse_spec
from ...samplers.conditions import parse_classes
from ...samplers.grid import Final, list_grids
from ...solvers import take_solver
from ...solvers.artefact import MeanImage
from ..options import make_request
from ..requests import SearchRequest
from . import toy
from .budget import Budget
from .identity import check_memory
from .objective import names as objectives
from .objective import objective
from .problem import Block, Problem, Teacher
from .progress import Progress
from .reference import SizedReference, Timetable, resize
from .run import run
from .search import Search, SearchResult
from .size import SearchSize, size_of
from .space import DECISIONS, DEFAULT, Space
from .strategies import AUTO, OF_ROWS, STRATEGIES

MOST_SEARCHED = 200  # evaluations of a schedule
SCORED = {"nfe": 256, "rows": 128}  # a fitted candidate runs its noises twice
REMEMBERED = ("search.json", "test.json")  # in the folder of the log
AFS = ("none", "zero", "mean", "any")
TEACHER = "teacher"  # where the folder of a log keeps its reference


def sizes_of(request: SearchRequest) -> tuple[SearchSize, ...]:
    """Returns the sizes asked for, each once and rising."""
    nfe, nfe_range, rows = request.nfe, request.nfe_range, request.rows
    if [nfe, nfe_range, rows].count(None) != 2:
        raise SettingError(
            "give --nfe, such as 5, or --nfe-range, such as 3-10, or, under guidance, --rows"
        )
    if rows is not None:
        return (SearchSize(rows, "rows"),)
    numbers = [nfe] if nfe is not None else parse_ranges(nfe_range or "")
    if max(numbers) > MOST_SEARCHED:
        raise SettingError(
            f"schedules of at most {MOST_SEARCHED} evaluations are searched, not {max(numbers)}:"
            " with more, named solvers are as near"
        )
    return tuple(SearchSize(number) for number in sorted(set(numbers)))


def search(network: str, *, progress: bool = False, **options: Any) -> list[SearchResult]:
    """Searches for schedules that suit a network and writes them, as `fewstep search` does.

    >>> (found,) = fewstep.search("fashion-dit", nfe=5, budget="10m", out="five.json")
    >>> Sampler.from_pretrained("fashion-dit")(range(8), solver=found.schedule)

    Args:
        network: an embedded name, a folder or an id on the hub.
        progress: shows how far the search is.
        options: the fields of `SearchRequest`, of which nfe, nfe_range or rows is needed.

    Returns:
        One result for each size, in the order of the sizes.

    Raises:
        FewstepError: for anything that cannot be searched, before any work where possible.
    """
    request = make_request(SearchRequest, network=network, **options)
    return [result for _, result in run_search(request, progress)]


def schedule_path(request: SearchRequest, size: SearchSize) -> Path:
    """Returns the file of the schedule of a size."""
    if request.nfe_range is None or len(sizes_of(request)) == 1:
        return request.out
    return request.out.with_name(f"{request.out.stem}-{size.mark}{request.out.suffix}")


def run_search(
    request: SearchRequest, progress: bool = False
) -> Iterator[tuple[Path, SearchResult]]:
    """Runs the search of each size in turn, writes its schedule and yields the file with it.

    Raises:
        FewstepError: for anything that cannot be searched, before any work where possible.
    """
    _check_places(request)
    searches = prepare_searches(request)
    with _log_folder(request.folder):
        for search in _start_searches(searches, request):
            watch = Progress(
                request.plot or request.folder / f"progress-{search.size.mark}.svg", progress
            )
            try:
                found = run(search, watch)
            finally:
                watch.close()
            out = schedule_path(request, search.size)
            write_bytes(out, found.schedule.dump().encode() + b"\n")
            yield out, found


@contextmanager
def _log_folder(folder: Path) -> Iterator[None]:
    """Makes the folder of a log; what is still empty at the end is removed again."""
    made = [each for each in (folder / TEACHER, folder) if not each.exists()]
    make_folder(folder / TEACHER)
    try:
        yield
    finally:
        for each in made:
            with suppress(OSError):  # it holds something
                each.rmdir()


def _start_searches(searches: Sequence[Search], request: SearchRequest) -> Iterator[Search]:
    """Yields each search when its turn comes, with its reference and its share of the budget."""
    budget = Budget.parse(request.budget)
    timetable = Timetable(budget, request.started) if budget.kind == "seconds" else None
    searches = resize(searches) if timetable is None else timetable.size(searches)
    space = replace(searches[0].space, afs=_afs(request, searches[0].problem))
    for i, search in enumerate(searches):
        granted = search.budget if timetable is None else timetable.grant(searches[i:])
        yield replace(search, space=space, budget=granted)


def _check_places(request: SearchRequest) -> None:
    sizes = sizes_of(request)
    check_folder(request.folder)
    for path in request.folder.glob("worker-*.jsonl"):
        ordinary_file(path, missing_ok=True)
    check_memory(request.folder)
    outputs = [schedule_path(request, size) for size in sizes]
    for path in outputs:
        check_writable(path, ".json")
    if request.plot is not None:
        if len(sizes) > 1:
            raise SettingError(
                "--plot takes one .svg; several NFEs have theirs in the log's folder"
            )
        check_writable(request.plot, ".svg")
    check_apart([*outputs, request.plot], [request.weights, _file(request.reference)])
    for path in outputs:
        inside = path.parent.resolve() == request.folder.resolve()
        if inside and any(path.match(name) for name in REMEMBERED):
            raise SettingError(f"{str(path)!r} is a file of the search itself; give another name")


def _file(name: str | None) -> Path | None:
    """Returns the file that a name may stand for."""
    return None if name is None else Path(name)


def prepare_searches(request: SearchRequest) -> list[Search]:
    """One search per size, all on one problem, checked before anything is computed or written."""
    sizes = sizes_of(request)
    budget = Budget.parse(request.budget).divide(len(sizes))
    strategies = _strategies(request.strategy, sizes)
    free = _free(request.free)
    _check_names(request)
    problem = replace(_problem(request), cache=request.folder / TEACHER)
    known = {"reference": request.reference, "weights": request.weights}
    aim = objective(request.objective, problem.network, **known)  # type: ignore[arg-type]
    space = Space(
        process=problem.network.schedule,
        free=free | ({"afs"} if request.afs != "none" else set()),
        ends=_ends(problem),
        solver=request.base,
        grid=request.grid_type,
    )
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
        )
        for size in sizes
    ]
    for search in searches:
        search.check()
    return searches


def _check_names(request: SearchRequest) -> None:
    """Raises FewstepError for names and numbers that need no network to be told wrong."""
    grid = parse_spec(request.grid_type)[0]
    for kind, name, known in (
        ("analytic first step", request.afs, AFS),
        ("objective", request.objective, objectives()),
        ("grid", grid, list_grids()),
    ):
        if name not in known:
            raise UnknownNameError(kind, name, known)
    take_solver(request.base)
    take_solver(request.teacher)
    Final.named(request.final)
    _sizes(request.noises)


def _strategies(text: str, sizes: Sequence[SearchSize]) -> tuple[str, ...]:
    if text == "auto":
        return OF_ROWS if sizes[0].unit == "rows" else AUTO
    chosen = tuple(part.strip() for part in text.split(","))
    for name in chosen:
        if name not in STRATEGIES:
            raise UnknownNameError("strategy", name, ["auto", *STRATEGIES])
    if len(set(chosen)) < len(chosen):
        raise SettingError(f"{text!r} names a strategy twice; each runs once")
    return chosen


def _free(text: str | None) -> frozenset[str]:
    if text is None:
        return DEFAULT
    chosen = {part.strip() for part in text.split(",")}
    for name in sorted(chosen - DECISIONS.keys()):
        raise UnknownNameError("decision", name, DECISIONS)
    return frozenset(chosen)


def _problem(request: SearchRequest) -> Problem:
    if request.network == "toy":
        return toy.toy(_sizes(request.noises))
    network = load(request.network, dtype=request.dtype, device=request.device)
    teacher = Teacher(solver=request.teacher, nfe=request.teacher_nfe, final=request.final)
    fields: dict[str, Any] = {
        "cfg_scale": request.cfg_scale,
        "teacher": teacher,
        "batch": request.batch,
        **_given_seeds(request),
    }
    if request.classes is not None:
        fields["labels"] = _labels(request.classes, network)
    return Problem.of(network, _sizes(request.noises), **fields)


def _labels(text: str, network: Network) -> tuple[int, ...]:
    labels = parse_classes(text, network)
    if labels is None:
        raise SettingError("a search asks for classes; give some, or leave --classes out for all")
    return tuple(labels)


def _sizes(text: str) -> tuple[int, int, int]:
    try:
        train, validation, test = (int(part) for part in text.split(","))
    except ValueError:
        raise SettingError(
            f"{text!r} is no list of three sizes; write --noises TRAIN,VALIDATION,TEST"
        ) from None
    if min(train, validation, test) < 1:
        raise SettingError("each block needs at least one noise")
    if max(train, validation, test) > MOST_NUMBERS:
        raise SettingError(f"a block holds at most {MOST_NUMBERS:,} noises, in memory at once")
    return train, validation, test


def _given_seeds(request: SearchRequest) -> Mapping[str, list[int]]:
    given = (request.train_seeds, request.validation_seeds, request.test_seeds)
    blocks = zip(("train", "validation", "test"), given, strict=True)
    return {name: parse_ranges(text) for name, text in blocks if text is not None}


def _ends(problem: Problem) -> tuple[float, ...]:
    """Where runs may end: where the teacher does, and just above zero if that is at zero."""
    process = problem.network.schedule
    if problem.teacher.final == "sigma_min":
        return (process.t_min,)
    return (process.t_zero, process.t_min)


def _afs(request: SearchRequest, problem: Problem) -> tuple[Any, ...]:
    """The analytic first steps to choose from; the mean is that of the training reference."""
    if request.afs in ("none", "zero"):
        return ("zero",)
    mean = mean_image(problem.block("train"))
    return (mean,) if request.afs == "mean" else ("zero", mean)


def mean_image(block: Block) -> MeanImage:
    """Returns the mean of the teacher's ends."""
    mean = block.ends.double().mean(0)
    return MeanImage.of(mean.flatten().tolist(), tuple(mean.shape))


def summary(out: Path, found: SearchResult, request: SearchRequest) -> list[str]:
    """Returns what is printed of a result."""
    scores, facts = found.scores, found.schedule.provenance
    lines = [
        f"{out}: {size_of(found.schedule)}, {facts['objective']} {scores['test']:.4g} on test"
        f" (train {scores['train']:.4g}, validation {scores['val']:.4g}), by {facts['strategy']}"
        f" from {facts['budget']['candidates']} candidates"
    ]
    if found.baseline is not None:
        name, score = found.baseline
        lines.append(f"best hand-made: {score:.4g}, {name}")
    lines.append(_reference(facts, request.folder))
    if request.network != "toy":
        lines.append(f"sample {request.network} --schedule {out}")
    return lines


def _reference(facts: Mapping[str, Any], folder: Path) -> str:
    """What the scores compare with, and what had been asked for if there was no time for it."""
    teacher, (train, validation, test) = facts["teacher"], facts["noises"]
    run = next(f"{teacher[each]} {each}" for each in ("nfe", "steps") if each in teacher)
    line = (
        f"reference: {teacher['solver']}, {run.replace('nfe', 'evaluations')}, on {train} training,"
        f" {validation} validation and {test} test noises"
    )
    kept = SizedReference.load(folder)
    if kept is None or kept.asked == kept.used:
        return line
    return f"{line}; in more time it would be {kept.asked}"
