"""`fewstep search`: from what is typed to a search, and from its result to a file."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...models.errors import SettingError, UnknownNameError
from ...models.files import check_apart, check_folder, check_writable, make_folder, write_bytes
from ...models.load import load
from ...samplers.run import parse_ranges
from ...solvers.schedule_data import MeanImage
from . import toy
from .budget import Budget
from .objective import objective
from .problem import Block, Problem, Teacher
from .progress import Progress
from .run import AUTO, OF_ROWS, Found, Search, run
from .size import Size, size_of
from .space import DECISIONS, DEFAULT, Space
from .strategies import names, strategy

SCORED = {"nfe": 256, "rows": 128}  # a fitted candidate runs its noises twice
REMEMBERED = ("search.json", "test.json", "grad-*.json")  # in the folder of the log
AFS = ("none", "zero", "mean", "any")


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a user asked for; see `fewstep search --help`."""

    model: str
    sizes: tuple[Size, ...]
    strategies: str
    objective: str
    budget: str
    out: Path
    log: Path | None = None
    plot: Path | None = None
    cfg_scale: float = 1.0
    seed: int = 0
    noises: str = "1024,256,1024"
    scored: int | None = None
    seeds: tuple[str | None, str | None, str | None] = (None, None, None)
    classes: str | None = None
    teacher: str = "unipc-3"
    teacher_nfe: int = 200
    final: str = "zero"
    free: str | None = None
    afs: str = "none"
    base: str = "dpmpp-2m"
    grid: str = "logsnr"
    predictor: bool = False
    reference: str | None = None
    weights: Path | None = None
    batch: int = 32
    dtype: str = "fp32"
    device: str = "cpu"

    @property
    def folder(self) -> Path:
        """Of the log, and what else the search remembers."""
        return self.log or self.out.with_name(f"{self.out.stem}.search")

    def out_at(self, size: Size) -> Path:
        """The file of the schedule of a size."""
        if len(self.sizes) == 1:
            return self.out
        return self.out.with_name(f"{self.out.stem}-{size.mark}{self.out.suffix}")


def sizes_of(nfe: int | None, nfe_range: str | None, rows: int | None) -> tuple[Size, ...]:
    """The sizes asked for, each once and rising."""
    if [nfe, nfe_range, rows].count(None) != 2:
        raise SettingError(
            "give --nfe, such as 5, or --nfe-range, such as 3-10, or, under guidance, --rows"
        )
    if rows is not None:
        return (Size(rows, "rows"),)
    numbers = [nfe] if nfe is not None else parse_ranges(nfe_range or "")
    return tuple(Size(number) for number in sorted(set(numbers)))


def searched(request: Request, progress: bool) -> Iterator[tuple[Path, Found]]:
    """Runs the search of each size in turn and writes its schedule.

    Raises:
        FewstepError: for anything that cannot be searched, before any work where possible.
    """
    _check_places(request)
    searches = prepared(request)
    for search in searches:
        search.check()
    for search in searches:
        watch = Progress(
            request.plot or request.folder / f"progress-{search.size.mark}.svg", progress
        )
        try:
            found = run(search, watch)
        finally:
            watch.close()
        out = request.out_at(search.size)
        write_bytes(out, found.schedule.dump().encode() + b"\n")
        yield out, found


def _check_places(request: Request) -> None:
    check_folder(request.folder)
    outputs = [request.out_at(size) for size in request.sizes]
    for path in outputs:
        check_writable(path, ".json")
    if request.plot is not None:
        if len(request.sizes) > 1:
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
    """The file that a name may stand for."""
    return None if name is None else Path(name)


def prepared(request: Request) -> list[Search]:
    """One search per size, all on one problem."""
    budget = Budget.parse(request.budget).divided(len(request.sizes))
    strategies = _strategies(request)
    free = _free(request.free)
    problem = _problem(request)
    known = {"reference": request.reference, "weights": request.weights}
    aim = objective(request.objective, problem.network, **known)  # type: ignore[arg-type]
    kept = request.folder / "teacher"
    make_folder(kept)
    problem = replace(problem, cache=kept)
    space = Space(
        process=problem.network.schedule,
        free=free | ({"afs"} if request.afs != "none" else set()),
        ends=_ends(problem),
        solver=request.base,
        grid=request.grid,
        afs=_afs(request, problem),
    )
    return [
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
            settings={"predictor": request.predictor},
        )
        for size in request.sizes
    ]


def _strategies(request: Request) -> tuple[str, ...]:
    text = request.strategies
    if text == "auto":
        return OF_ROWS if request.sizes[0].unit == "rows" else AUTO
    chosen = tuple(part.strip() for part in text.split(","))
    for name in chosen:
        if name not in names():
            raise UnknownNameError("strategy", name, ["auto", *names()])
        strategy(name)
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


def _problem(request: Request) -> Problem:
    if request.model == "toy":
        return toy.toy(_sizes(request.noises))
    network = load(request.model, dtype=request.dtype, device=request.device)
    teacher = Teacher(solver=request.teacher, nfe=request.teacher_nfe, final=request.final)
    fields: dict[str, Any] = {
        "cfg_scale": request.cfg_scale,
        "teacher": teacher,
        "batch": request.batch,
        **_given_seeds(request.seeds),
    }
    if request.classes is not None:
        fields["labels"] = tuple(parse_ranges(request.classes))
    return Problem.of(network, _sizes(request.noises), **fields)


def _sizes(text: str) -> tuple[int, int, int]:
    try:
        train, validation, test = (int(part) for part in text.split(","))
    except ValueError:
        raise SettingError(
            f"{text!r} is no list of three sizes; write --noises TRAIN,VALIDATION,TEST"
        ) from None
    if min(train, validation, test) < 1:
        raise SettingError("each block needs at least one noise")
    return train, validation, test


def _given_seeds(given: Sequence[str | None]) -> Mapping[str, list[int]]:
    blocks = zip(("train", "validation", "test"), given, strict=True)
    return {name: parse_ranges(text) for name, text in blocks if text is not None}


def _ends(problem: Problem) -> tuple[float, ...]:
    """Where runs may end: where the teacher does, and just above zero if that is at zero."""
    process = problem.network.schedule
    if problem.teacher.final == "sigma_min":
        return (process.t_min,)
    return (process.t_zero, process.t_min)


def _afs(request: Request, problem: Problem) -> tuple[Any, ...]:
    if request.afs not in AFS:
        raise UnknownNameError("analytic first step", request.afs, AFS)
    if request.afs in ("none", "zero"):
        return ("zero",)
    mean = mean_image(problem.block("train"))
    return (mean,) if request.afs == "mean" else ("zero", mean)


def mean_image(block: Block) -> MeanImage:
    """The mean of the teacher's ends."""
    mean = block.ends.double().mean(0)
    return MeanImage.of(mean.flatten().tolist(), tuple(mean.shape))


def summary(out: Path, found: Found, model: str) -> list[str]:
    """What is printed of a result."""
    scores, facts = found.scores, found.schedule.provenance
    lines = [
        f"{out}: {size_of(found.schedule)}, {facts['objective']} {scores['test']:.4g} on test"
        f" (train {scores['train']:.4g}, validation {scores['val']:.4g}), by {facts['strategy']}"
        f" from {facts['budget']['candidates']} candidates"
    ]
    if found.baseline is not None:
        name, score = found.baseline
        lines.append(f"best hand-made: {score:.4g}, {name}")
    if model != "toy":
        lines.append(f"sample {model} --schedule {out}")
    return lines
