"""The settings that a plan is chosen from: searched, named, shipped, cached, and guided in part."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ...models.errors import FewstepError
from ...models.network import Network
from ...models.schedule import NoiseSchedule
from ...samplers.plan import make_plan, settle_choices
from ...samplers.run_settings import RunSettings
from ...solvers import Schedule
from ...solvers.artefact import SCALE
from ...solvers.linear import Encoder
from ...solvers.presets import preset, preset_names
from ..search.identity import read_rivals
from ..search.log import Log, Trial
from ..search.search import Search, SearchResult
from ..search.strategies import HAND_MADE
from .cached_points import list_masked
from .judge import PointChoice
from .sizes import PlanSizes

NAMED = 4  # best of the search's named settings that are judged
RIVALS = 2  # best of diffusers' schedulers
STEPS_OF_ROWS = (0.6, 0.75)  # of the rows: steps of runs that hold the difference at some of them
PLAIN = ("ddim", "dpmpp-2m")


@dataclass(frozen=True)
class SearchedSize:
    """A search that has run, and its result."""

    search: Search
    result: SearchResult


def list_points(sizes: PlanSizes, searched: Sequence[SearchedSize]) -> list[PointChoice]:
    """Returns all settings for some sizes, the most promising first, none of them twice.

    searched: searches of these sizes.
    """
    problem = searched[0].search.problem
    schedule, scale = problem.network.schedule, problem.cfg_scale
    points = [made for each in searched for made in _list_searched(each, scale)]
    points += list_plain(schedule, sizes.nfe, scale)
    points += list_presets(problem.network, sizes, scale)
    if sizes.rows is not None:
        points += _list_guided(schedule, sizes.rows, scale)
    for size in sizes.masked:
        points += list_masked(searched[0].search, size)
    return list({repr(each.identity): each for each in points}.values())


def list_plain(schedule: NoiseSchedule, nfe: int, scale: float) -> Iterator[PointChoice]:
    """Yields the default, and the first solvers that come to mind, on default grids."""
    choices: list[dict[str, Any]] = [{"solver": name, "nfe": nfe} for name in PLAIN]
    for typed in [{"nfe": nfe}, *choices] if nfe else []:
        settled = settle_choices(schedule, typed)
        name = f"{settled['solver']} on {settled['grid']}, {nfe} evaluations"
        yield PointChoice(name, "named", RunSettings(**settled, cfg_scale=scale))


def list_presets(network: Network, sizes: PlanSizes, scale: float) -> Iterator[PointChoice]:
    """Yields the shipped schedules of this process and scale that are for any network or this.

    The largest come first: where time is short, they are judged before smaller ones.
    """
    for name in sorted(preset_names(), key=lambda each: -preset(each).nfe):
        shipped = preset(name)
        facts = {"model": network.name, SCALE: scale, **shipped.provenance}
        try:
            shipped.check_process(network.schedule)
        except FewstepError:
            continue
        if (facts["model"], facts[SCALE]) != (network.name, scale):
            continue
        own = shipped.guided
        amount, most = (shipped.rows, sizes.rows or 0) if own else (shipped.nfe, sizes.nfe)
        if amount <= most:
            settings = RunSettings(schedule=shipped, cfg_scale=1.0 if own else scale)
            yield PointChoice(name, "preset", settings)


def _list_searched(each: SearchedSize, scale: float) -> Iterator[PointChoice]:
    """Yields the result of a search, its best named settings, and diffusers' best schedulers."""
    search, best = each.search, each.result.schedule
    if best.provenance["strategy"] not in HAND_MADE:
        yield _make_searched(best, f"searched table, {search.size}", scale)
    log = Log(search.folder)
    try:
        trials = log.best(search.size)
    finally:
        log.close()
    tables = (t.schedule for t in trials if t.linear and t.strategy not in HAND_MADE)
    linear = next((table for table in tables if isinstance(table, Schedule)), None)
    if linear is not None and (best.functions or best.correction):
        yield _make_searched(linear, f"searched linear table, {search.size}", scale)
    named = [trial for trial in trials if trial.strategy in HAND_MADE]
    for trial in named[:NAMED]:
        yield _read_trial(trial, search, scale)
    rivals = read_rivals(search.folder).get(search.size.mark)
    for spec in rivals.specs[:RIVALS] if rivals else ():
        label = f"diffusers {spec}, {search.whole_evaluations} evaluations"
        yield PointChoice(label, "rival", rival=(spec, search))


def _make_searched(table: Schedule, name: str, scale: float) -> PointChoice:
    if table.guided:
        return PointChoice(name, "guidance", RunSettings(schedule=table))
    return PointChoice(name, "searched", RunSettings(schedule=table, cfg_scale=scale))


def _read_trial(trial: Trial, search: Search, scale: float) -> PointChoice:
    """Returns a named trial as it is typed, or as its table where the words make another."""
    schedule, label = trial.schedule, str(trial.schedule.provenance.get("label", "?"))
    table = schedule if isinstance(schedule, Schedule) else Schedule.of_steps(schedule)
    name = f"{label}, {search.size}"
    if table.guided:
        return PointChoice(name, "guidance", RunSettings(schedule=table))
    solver, _, grid = label.partition(" on ")
    try:
        plan = make_plan(search.space.process, solver, nfe=table.nfe, grid=grid)
        assert isinstance(plan.settings, Encoder)
        same = plan.settings.encode(plan.grid).schedule_id == table.schedule_id
    except FewstepError:
        same = False
    if not same:
        return PointChoice(name, "named", RunSettings(schedule=table, cfg_scale=scale))
    typed = RunSettings(solver=solver, grid=grid, nfe=table.nfe, cfg_scale=scale)
    return PointChoice(f"{label}, {table.nfe} evaluations", "named", typed)


def _list_guided(schedule: NoiseSchedule, rows: int, scale: float) -> Iterator[PointChoice]:
    """Yields runs that ask both branches first, or evenly, and hold the difference elsewhere."""
    for steps in sorted({round(share * rows) for share in STEPS_OF_ROWS}):
        both = rows - steps
        if not 1 <= both < steps:
            continue
        even = {i * steps // both for i in range(both)}
        settled = settle_choices(schedule, {"nfe": steps})
        for word, chosen in (("first", set(range(both))), ("even", even)):
            mask = "".join("1" if n in chosen else "0" for n in range(steps))
            spec = f"guidance-forecast:scale={scale:g},mask={mask}"
            name = f"{settled['solver']} on {settled['grid']}, both branches at {both} {word} of"
            settings = RunSettings(**settled, guidance_spec=spec)
            yield PointChoice(f"{name} {steps} steps", "guidance", settings)
