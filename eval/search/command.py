"""`fewstep search`: from what is typed to a search, and from its result to a file."""

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...models.arguments import format_ranges
from ...models.errors import SettingError
from ...models.files import (
    check_apart,
    check_folder,
    check_writable,
    make_folder,
)
from ...models.network import Network
from ...models.reading import ordinary_file
from ...models.user_code import lend
from ...samplers.columns import Columns
from ...solvers.correction import Correction
from ..options import make_request
from ..requests import SearchRequest
from .budget import Budget
from .identity import IDENTITY_FILE, RIVALS_FILE, SCORES_FILE, check_memory
from .prepare import TEACHER, find_afs, prepare_searches, sizes_of
from .progress import Progress
from .reference import REFERENCE_FILE, SizedReference, Timetable, resize
from .reference_end import END_FILE, keep_end
from .run import run
from .search import Search, SearchResult
from .size import SearchSize, size_of
from .uncached import list_cache_lines

REMEMBERED = (IDENTITY_FILE, SCORES_FILE, RIVALS_FILE, REFERENCE_FILE, END_FILE)  # in the log


def search(network: str | Network, *, progress: bool = False, **options: Any) -> list[SearchResult]:
    """Searches for schedules that suit a network and writes them, as `fewstep search` does.

    >>> (found,) = fewstep.search("fashion-dit", nfe=5, budget="10m", out="five.json")
    >>> Sampler.from_pretrained("fashion-dit")(range(8), solver=found.schedule)

    Args:
        network: what `load` takes by name, or a `Network`.
        progress: shows how far the search is.
        options: the fields of `SearchRequest`, of which nfe, nfe_range, rows or full is needed.

    Returns:
        One result for each size, in the order of the sizes.

    Raises:
        FewstepError: for anything that cannot be searched, before any work where possible.
    """
    with lend(network) as name:
        request = make_request(SearchRequest, network=name, **options)
        return [result for _, result in run_search(request, progress)]


def schedule_path(request: SearchRequest, size: SearchSize) -> Path:
    """Returns the file of the schedule of a size."""
    if len(sizes_of(request)) == 1:
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
    with make_log_folder(request.folder):
        for search in start_searches(searches, request):
            watch = Progress(
                request.plot or request.folder / f"progress-{search.size.mark}.svg", progress
            )
            try:
                result = run(search, watch)
            finally:
                watch.close()
            out = schedule_path(request, search.size)
            result.schedule.write(out)
            yield out, result


@contextmanager
def make_log_folder(folder: Path) -> Iterator[None]:
    """Makes the folder of a log; where it is still empty at the end, it is removed again."""
    made = [each for each in (folder / TEACHER, folder) if not each.exists()]
    make_folder(folder / TEACHER)
    try:
        yield
    finally:
        for each in made:
            with suppress(OSError):  # it holds something
                each.rmdir()


def start_searches(
    searches: Sequence[Search], request: SearchRequest, started: float | None = None
) -> Iterator[Search]:
    """Yields each search when its turn comes, with its reference and its share of the budget.

    started: from where a budget of time counts, as `time.perf_counter` tells it; None is now, once
             the network is there.
    """
    budget, started = Budget.parse(request.budget), started or time.perf_counter()
    timetable = Timetable(budget, started) if budget.kind == "seconds" else None
    if request.reference_end is None:
        searches = _end_references(searches)
    searches = resize(searches) if timetable is None else timetable.size(searches)
    afs = find_afs(request, searches[0].problem)
    for i, search in enumerate(searches):
        granted = search if timetable is None else timetable.grant(searches[i:])
        yield replace(granted, space=replace(search.space, afs=afs))


def _end_references(searches: Sequence[Search]) -> Sequence[Search]:
    """Returns the searches with the end of their reference, which is measured once for a folder."""
    problem, features, folder = searches[0].problem, searches[0].features, searches[0].folder
    end = keep_end(problem, features, folder)
    return [replace(each, problem=end.apply_to(problem), end=end) for each in searches]


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
        if inside and path.name in REMEMBERED:
            raise SettingError(f"{str(path)!r} is a file of the search itself; give another name")


def _file(name: str | None) -> Path | None:
    """Returns the file that a name may stand for."""
    return None if name is None else Path(name)


def summarize(out: Path, result: SearchResult, request: SearchRequest) -> list[str]:
    """Returns what is printed of a result."""
    scores, facts = result.scores, result.schedule.provenance
    lines = [
        f"{out}: {size_of(result.schedule)}, {facts['objective']} {scores['test']:.4g} on test"
        f" (train {scores['train']:.4g}, validation {scores['val']:.4g}), by {facts['strategy']}"
        f" from {facts['budget']['candidates']} candidates"
    ]
    if result.baseline is not None:
        name, score = result.baseline
        lines.append(f"best hand-made: {score:.4g}, {name}")
    if facts["rivals_left_out"] is not None:
        lines.append(f"without diffusers' schedulers: {facts['rivals_left_out']}")
    lines += [*_write_columns(facts), *_write_last_row(facts)]
    if correction := result.schedule.correction:
        lines.append(_write_correction(correction, facts))
    if cache := facts.get("cache"):
        lines += list_cache_lines(cache)
    lines.append(_reference(facts, request.folder))
    lines += _write_end(facts["reference_end"])
    if request.network != "toy":
        lines.append(f"sample {request.network} --schedule {out}")
    return lines


def _write_columns(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yields both columns of the schedule and its rivals on test noises, with 95 % intervals."""
    columns = facts["columns"]
    yield f"on {columns['noises']} test noises, with the interval of 95 % and the median:"
    for key in ("searched", "linear", "hand_made", "default"):
        if written := columns.get(key):
            judged = Columns(distance=written["distance"], features=written["features"])
            name = f", {written['name']}" if "name" in written else ""
            yield f"  {key.replace('_', '-')}{name}: distance {judged.distance}"
            if judged.features is not None:
                yield f"    features of {columns['extractor']} {judged.features}"


def _write_correction(correction: Correction, facts: Mapping[str, Any]) -> str:
    """Returns what a correction is, and what it was trained on."""
    steps = ", ".join(map(str, correction.steps))
    flops = 2e-6 * correction.multiplications * len(correction.steps)
    labels = format_ranges(tuple(facts["labels"]))
    classes = f" of the classes {labels}; it saw no others" if labels else ""
    return (
        f"correction: {correction.parameters:,} parameters, {flops:.3g} MFLOPs, after the steps"
        f" {steps}; trained on {facts['noises'][0]} noises{classes}"
    )


def _write_last_row(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yields how the last step was chosen, if it was."""
    chosen = facts["last_row"]
    if chosen is None:
        return
    judged = []
    for row in chosen["validation"]:
        seen = row["features"]
        looks = "" if seen is None else f" and {seen['value']:.4f}"
        judged.append(f"{row['share']:g} has {row['distance']['value']:.4f}{looks}")
    rule = "the least in " + ("distance" if facts["columns"]["extractor"] is None else "features")
    yield (
        f"last step: moved by {chosen['share']:g} to the last prediction, {rule} within"
        f" {chosen['within'] - 1.0:.0%} of the least distance on validation ({'; '.join(judged)})"
    )


def _write_end(facts: Mapping[str, Any] | None) -> Iterator[str]:
    """Yields how the end of the reference was chosen, if it was measured."""
    if facts is None or not facts["judged"]:
        return
    judged = "; ".join(f"{each['time']:g} has {each['fd']:.3f}" for each in facts["judged"])
    how = f"in one step from {facts['time']:g}" if facts["time"] else "as the grid does"
    yield (
        f"the reference ends {how}, by {facts['extractor']} of {facts['noises']} images ({judged})"
    )


def _reference(facts: Mapping[str, Any], folder: Path) -> str:
    """Describes the reference, and the one that was asked for if there was no time for it."""
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
