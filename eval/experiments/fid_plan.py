"""The cells of a sweep: which protocols follow from it, and what cannot be measured."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

from ...models.arguments import parse_ranges
from ...models.caching import take_cache
from ...models.denoiser import Network
from ...models.errors import ScheduleError, SettingError
from ...models.hashing import hash_file
from ...models.registry import parse_spec
from ...models.weights import hash_weights
from ...samplers.conditions import check_branches, make_branches
from ...samplers.grid import choose_default_grid
from ...samplers.guidance import Setup
from ...samplers.guidance.forecast import write_forecast
from ...samplers.plan import make_plan, settle_choices
from ...samplers.plan_file import PlanFile
from ...samplers.run_record import Run
from ...samplers.run_settings import RunSettings
from ...samplers.schedule_choice import find_schedule
from ...solvers import Schedule
from ...solvers.artefact import SCALE
from ...solvers.presets import preset, preset_names
from ..bench.protocol import Drawn, Measure, Protocol
from .fid_sweep import ConvergedRun, Entry, Sweep, is_name
from .rivals import RivalSampler

Networks = Callable[[str], Network]


@dataclass(frozen=True)
class QualityCell:
    """One protocol to be measured.

    block: which repeat; nfe: evaluations per image; rows: expected network rows of all images.
    target: the protocol of the converged run that it is compared with, or is; None for none.
    part:   that of its entry.
    """

    protocol: Protocol
    block: int
    nfe: int
    rows: float
    target: Protocol | None = None
    part: int = 1

    @property
    def converged(self) -> bool:
        """True for a converged run itself."""
        return self.target is not None and self.target.hash == self.protocol.hash

    @property
    def turn(self) -> tuple[int, float]:
        """Its place among cells that are not converged: a repeat counts as so many times dearer."""
        return self.part, self.rows * (self.block + 1)


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
    for part, drawn in _settings(sweep, networks):
        network = networks(drawn.run.model)
        drawn = _complete(drawn, network)
        try:
            nfe = find_nfe(drawn, network)
        except (SettingError, ScheduleError) as error:
            refused[f"{drawn.run.model}: {error}"] = None
            continue
        target = None if sweep.converged is None else converge(drawn, sweep.converged, network)
        for block in range(sweep.blocks):
            for cell in _cells(drawn, nfe, block, measure, target):
                name = cell.protocol.hash
                first = min(part, cells[name].part) if name in cells else part
                cells[name] = replace(cell, part=first)
    if not cells:
        reason = next(iter(refused), "no solver is given; name one with --solver or --rival")
        raise SettingError(f"nothing can be measured: {reason}")
    return SweepPlan(_order_cells(cells.values()), tuple(refused))


def _order_cells(cells: Iterable[QualityCell]) -> list[QualityCell]:
    """Returns cells in their turns; converged ones stand before all that are compared with them."""
    first: dict[str, tuple[int, float]] = {}
    for cell in cells:
        if cell.target is not None and not cell.converged:
            target = cell.target.hash
            first[target] = min(first.get(target, cell.turn), cell.turn)
    return sorted(cells, key=lambda each: first.get(each.protocol.hash, each.turn))


def _cells(
    drawn: Drawn, nfe: int, block: int, measure: Measure, target: Drawn | None
) -> Iterator[QualityCell]:
    """Yields the cell of a block, after that of its converged run."""
    seeds = tuple(range(block * measure.n, (block + 1) * measure.n))
    protocol, aim = _protocol(drawn, seeds, measure), None
    if target is not None:
        aim = _protocol(target, seeds, measure)
        steps = target.run.nfe or 0
        yield QualityCell(aim, block, steps, _count_rows(target, steps, measure), aim)
    yield QualityCell(protocol, block, nfe, _count_rows(drawn, nfe, measure), aim)


def _protocol(drawn: Drawn, seeds: tuple[int, ...], measure: Measure) -> Protocol:
    run = drawn.run.model_copy(update={"seeds": seeds})
    return Protocol(images=drawn.model_copy(update={"run": run}), measure=measure)


def _count_rows(drawn: Drawn, nfe: int, measure: Measure) -> float:
    schedule = drawn.run.schedule
    if schedule is not None and schedule.guided:
        return float(schedule.rows * measure.n)
    branches = 1 if drawn.run.cfg_scale in (0.0, 1.0) and drawn.run.guidance_spec is None else 2
    return float(nfe * branches * measure.n)


def converge(drawn: Drawn, converged: ConvergedRun, network: Network) -> Drawn:
    """Returns what images converge to: the same network and guidance scale, in many steps."""
    kept = ("model", "seeds", "batch", "dtype", "device")
    same = {name: getattr(drawn.run, name) for name in kept}
    nfe = converged.count_evaluations(drawn.scale)
    run = Run(**same, solver=converged.solver, nfe=nfe, cfg_scale=drawn.scale)
    run = run.model_copy(update={"grid": choose_default_grid(network.schedule)})
    return drawn.model_copy(update={"run": run, "rival": None, "files": {}})


def _settings(sweep: Sweep, networks: Networks) -> Iterator[tuple[int, Drawn]]:
    """Yields the part of each entry and what is drawn, with one seed in place of all."""
    for entry, model in [(each, model) for each in sweep.entries for model in each.models]:
        network = networks(model)
        weights = hash_weights(model, whole=True)  # of code they are known once it is imported
        common: dict[str, Any] = {"model": model, "seeds": (0,), "batch": sweep.batch}
        common["dtype"] = sweep.dtype
        for path in entry.plans:
            run = Run(**common, **_read_plan(path, network))
            yield entry.part, Drawn(run=run, weights=weights, files=_files(run.solver))
        for chosen in _list_tuned(entry, model):
            yield entry.part, Drawn(run=Run(**common, **chosen), weights=weights)
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
            files = _files(run.solver)
            yield entry.part, Drawn(run=run, rival=rival, weights=weights, files=files)


def _list_tuned(entry: Entry, model: str) -> Iterator[dict[str, Any]]:
    """Yields the settings of the schedules of the package that an entry asks for."""
    budgets = parse_ranges(entry.nfe)
    for name in preset_names() if entry.tuned else ():
        schedule = preset(name)
        facts = schedule.provenance
        spent = schedule.rows / 2.0 if schedule.guided else schedule.nfe
        if facts.get("model") == model and facts[SCALE] in entry.cfg_scales and spent in budgets:
            scale = 1.0 if schedule.guided else facts[SCALE]
            yield {"schedule": _name_schedule(schedule, name), "cfg_scale": scale}


def _choices(entry: Entry) -> list[tuple[dict[str, Any], str | None]]:
    """Returns (choices of the run, rival) of an entry."""
    budgets = parse_ranges(entry.nfe)
    named = [solver for solver in entry.solvers if is_name(solver)]
    choices: list[tuple[dict[str, Any], str | None]] = []
    for solver, grid, nfe in product(named, entry.grids or (None,), budgets):
        choices.append(({"solver": solver, "grid": grid, "final": entry.final, "nfe": nfe}, None))
    for path in entry.solvers:
        if not is_name(path):
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
