"""A sweep as data: which settings are measured, and the cells that follow from it.

A cell is one protocol: one network, solver, budget, guidance and block of seeds. Block b draws the
seeds b n .. (b + 1) n - 1. Cells run cheap first, where a repeat with further seeds counts as so
many times dearer: a run that is interrupted has all settings at small budgets before any repeat.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from ...models.arguments import parse_ranges
from ...models.caching import take_cache
from ...models.denoiser import Network
from ...models.errors import ScheduleError, SettingError, shorten
from ...models.hashing import hash_file
from ...models.reading import StrictModel, first_problem, parse_as, read_text
from ...models.registry import parse_spec
from ...models.user_code import refuse_code
from ...models.weights import hash_weights
from ...samplers.conditions import check_branches, make_branches
from ...samplers.grid import choose_default_grid
from ...samplers.guidance import Setup, parse_guidance
from ...samplers.guidance.base import list_second_networks
from ...samplers.guidance.forecast import write_forecast
from ...samplers.plan import make_plan, settle_choices
from ...samplers.plan_file import PlanFile
from ...samplers.run_record import Run
from ...samplers.run_settings import RunSettings
from ...samplers.schedule_choice import find_schedule
from ...solvers import Schedule, take_solver
from ...solvers.presets import preset_names
from ..bench.protocol import Drawn, Measure, Protocol
from .rival_schedulers import rival_of
from .rivals import RivalSampler

M = TypeVar("M", bound=StrictModel)
Networks = Callable[[str], Network]


class Entry(StrictModel):
    """Settings whose every combination is measured.

    models:  as `sample` takes them.
    solvers: names, `name:key=value,...`, or schedules, which bring their own NFE, by file (*.json)
             or name.
    plans:   files of `fewstep tune`, each the whole run.
    rivals:  diffusers' schedulers, as `experiments.rivals` names them.
    grids:   of the named solvers; none is the default one of the network.
    nfe:     budgets, such as "4-6,8,10".
    guidances, caches: `name:key=value,...` as `sample` takes them, of our own solvers; none is
             classifier-free guidance, and no cache.
    """

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    solvers: tuple[str, ...] = ()
    plans: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    grids: tuple[str, ...] = ()
    final: str = "zero"
    nfe: str = "4-6,8,10"
    cfg_scales: tuple[float, ...] = (1.0,)
    cfg_interval: tuple[float, float] | None = None
    guidances: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _check_ignored(self) -> Self:
        if self.cfg_interval is not None and set(self.cfg_scales) == {1.0}:
            raise ValueError("cfg_interval needs a guidance scale other than 1")
        if self.grids and not any(map(_is_name, self.solvers)):
            raise ValueError("grids are for named solvers; rivals and schedules bring their own")
        if self.rivals and (self.guidances or self.caches):
            raise ValueError("guidances and caches are not for rivals; give those another entry")
        if self.plans and (self.cfg_scales != (1.0,) or self.guidances or self.caches):
            raise ValueError("plans bring guidance and cache; give those another entry")
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        """Checks all names before a network, a reference or an extractor is touched."""
        for solver in filter(_is_name, self.solvers):
            take_solver(solver)
        for rival in self.rivals:
            rival_of(rival)
        for scale, guidance in product(self.cfg_scales, self.guidances):
            with suppress(SettingError):  # a remark of the plan, which goes on without it
                parse_guidance(guidance, None if scale == 1.0 else scale)
        for cache in self.caches:
            with suppress(SettingError):
                take_cache(cache)
        return self

    def list_networks(self) -> Iterator[str]:
        """Yields the names of all networks that are asked, those of guidances too."""
        yield from self.models
        for scale, guidance in product(self.cfg_scales, self.guidances):
            with suppress(SettingError):
                policy = parse_guidance(guidance, None if scale == 1.0 else scale)
                yield from list_second_networks(policy)


class Sweep(StrictModel):
    """All choices of `fewstep bench fid-nfe`, version 1.

    metric:    `fd-small`, `fid`, or another of `fewstep list metrics`, with `-dinov2` or `-clip`.
    reference: images or statistics; None is the set that comes with fd-small or fd-emoji.
    floor:     real images that are measured as drawn ones are; None is the test set of a reference
               known by name, if there is one.
    n:         images of a cell; blocks: cells with further seeds.
    """

    format: Literal["fewstep-sweep"] = "fewstep-sweep"
    version: Literal[1] = 1
    metric: str = "fd-small"
    reference: str | None = None
    floor: str | None = None
    n: Annotated[int, Field(ge=2)] = 2000
    blocks: Annotated[int, Field(ge=1)] = 1
    batch: Annotated[int, Field(ge=1)] = 32
    dtype: str = "fp32"
    entries: Annotated[tuple[Entry, ...], Field(min_length=1)]

    @classmethod
    def load(cls, path: Path) -> "Sweep":
        """Reads and checks a JSON file; raises SettingError with the first thing that is wrong."""
        try:
            sweep = parse_as(cls, read_text(path))
        except SettingError as error:
            raise SettingError(f"{shorten(path)} is no valid sweep: {error}") from error
        names = (name for entry in sweep.entries for name in entry.list_networks())
        refuse_code(names, f"the sweep {shorten(path)}", "give --model and the other options")
        return sweep


def check_choices(kind: type[M], **choices: Any) -> M:
    """Returns an entry or a sweep; raises SettingError with the first that is wrong."""
    try:
        return kind(**choices)
    except ValidationError as error:
        raise SettingError(first_problem(error)) from error


@dataclass(frozen=True)
class QualityCell:
    """One protocol to be measured.

    block: which repeat; nfe: evaluations per image; rows: expected network rows of all images.
    """

    protocol: Protocol
    block: int
    nfe: int
    rows: float

    @property
    def turn(self) -> float:
        """Its place in the order: a repeat counts as so many times dearer."""
        return self.rows * (self.block + 1)


@dataclass(frozen=True)
class SweepPlan:
    """The cells in the order in which they run, and what cannot be measured with the reason."""

    cells: Sequence[QualityCell]
    refused: Sequence[str]


def plan_cells(sweep: Sweep, measure: Measure, networks: Networks) -> SweepPlan:
    """Returns every cell of a sweep, each once.

    Raises:
        FewstepError: for names and settings that do not exist.
        SettingError: if no cell at all can be measured.
    """
    cells: dict[str, QualityCell] = {}
    refused: dict[str, None] = {}
    for drawn in _settings(sweep, networks):
        network = networks(drawn.run.model)
        drawn = _complete(drawn, network)
        try:
            nfe = find_nfe(drawn, network)
        except (SettingError, ScheduleError) as error:
            refused[f"{drawn.run.model}: {error}"] = None
            continue
        for block in range(sweep.blocks):
            cell = _cell(drawn, nfe, block, measure)
            cells.setdefault(cell.protocol.hash, cell)
    if not cells:
        reason = next(iter(refused), "no solver is given; name one with --solver or --rival")
        raise SettingError(f"nothing can be measured: {reason}")
    return SweepPlan(sorted(cells.values(), key=lambda cell: cell.turn), tuple(refused))


def _cell(drawn: Drawn, nfe: int, block: int, measure: Measure) -> QualityCell:
    seeds = tuple(range(block * measure.n, (block + 1) * measure.n))
    run = drawn.run.model_copy(update={"seeds": seeds})
    protocol = Protocol(images=drawn.model_copy(update={"run": run}), measure=measure)
    branches = 1 if run.cfg_scale in (0.0, 1.0) and run.guidance_spec is None else 2
    return QualityCell(protocol, block, nfe, float(nfe * branches * measure.n))


def _settings(sweep: Sweep, networks: Networks) -> Iterator[Drawn]:
    """Yields what is drawn, with one seed in place of all."""
    for entry, model in [(each, model) for each in sweep.entries for model in each.models]:
        network = networks(model)
        weights = hash_weights(model, whole=True)  # of code they are known once it is imported
        common: dict[str, Any] = {"model": model, "seeds": (0,), "batch": sweep.batch}
        common["dtype"] = sweep.dtype
        for path in entry.plans:
            run = Run(**common, **_read_plan(path, network))
            yield Drawn(run=run, weights=weights, files=_files(run.solver))
        policies = product(entry.cfg_scales, entry.guidances or (None,), entry.caches or (None,))
        for (scale, spec, cache), (changes, rival) in product(policies, _choices(entry)):
            run = Run(
                guidance_spec=None if spec is None else write_forecast(spec),
                cache=cache,
                cfg_scale=scale,
                cfg_interval=None if scale == 1.0 else entry.cfg_interval,
                **common,
                **changes,
            )
            yield Drawn(run=run, rival=rival, weights=weights, files=_files(run.solver))


def _choices(entry: Entry) -> list[tuple[dict[str, Any], str | None]]:
    """Returns (choices of the run, rival) of an entry."""
    budgets = parse_ranges(entry.nfe)
    named = [solver for solver in entry.solvers if _is_name(solver)]
    choices: list[tuple[dict[str, Any], str | None]] = []
    for solver, grid, nfe in product(named, entry.grids or (None,), budgets):
        choices.append(({"solver": solver, "grid": grid, "final": entry.final, "nfe": nfe}, None))
    for path in entry.solvers:
        if not _is_name(path):
            schedule = _name_schedule(find_schedule(path), Path(path).stem)
            choices.append(({"schedule": schedule}, None))
    choices += [({"nfe": nfe}, rival) for rival, nfe in product(entry.rivals, budgets)]
    return choices


def _read_plan(path: str, network: Network) -> dict[str, Any]:
    """Returns the settings of a plan by name; raises SettingError for that of another network."""
    plan = PlanFile.load(path)
    plan.check_network(network, "this plan was made", "fewstep tune")
    given = {name: getattr(plan.point.settings, name) for name in RunSettings.model_fields}
    if given["schedule"] is not None:
        given["schedule"] = _name_schedule(given["schedule"], Path(path).stem)
    return given


def _name_schedule(schedule: Schedule, name: str) -> Schedule:
    """Returns a schedule with the name that tables show."""
    return schedule.model_copy(update={"provenance": {**schedule.provenance, "name": name}})


def _files(solver: str | None) -> dict[str, str]:
    """Returns the sha256 of the files among a solver's settings."""
    values = () if solver is None else parse_spec(solver)[1].values()
    paths = (Path(value) for value in values if isinstance(value, str))
    return {str(path): hash_file(path) for path in paths if path.is_file()}


def _is_name(solver: str) -> bool:
    return not solver.endswith(".json") and solver not in preset_names()


def _complete(drawn: Drawn, network: Network) -> Drawn:
    """Returns it with the grid and the rule of the labels, which are left to the network."""
    run, classes = drawn.run, network.num_classes
    labels = f"seed modulo {classes}" if classes else "none"
    written: dict[str, Any] = {"device": network.device.type}
    if run.solver is not None and run.grid is None:
        settled = settle_choices(network.schedule, run.choices())
        written["grid"] = settled.get("grid", choose_default_grid(network.schedule))
    run = run.model_copy(update=written)
    return drawn.model_copy(update={"run": run, "labels": labels})


def find_nfe(drawn: Drawn, network: Network) -> int:
    """Returns evaluations per image; raises FewstepError if it cannot be run."""
    guidance = drawn.run.guidance()
    if drawn.run.cache is not None:
        take_cache(drawn.run.cache)
    if drawn.rival is not None:
        rival = RivalSampler(network, drawn.rival, drawn.run.nfe or 0)
        nfe, grid = len(rival.nodes), rival.grid
    else:
        plan = make_plan(network.schedule, **drawn.run.choices())
        nfe, grid = plan.nfe, plan.grid
        guidance.check(Setup(network, plan.solver, grid, 1, plan.adaptive))
    label = 0 if network.num_classes else None
    check_branches(network, make_branches(network, 1, label, None, None), guidance, grid)
    return nfe
