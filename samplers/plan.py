"""What will be run: a solver bound to a grid, from names, settings, a budget or a schedule."""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..models.caching import Policy, cache
from ..models.errors import SettingError, UnknownNameError
from ..models.registry import is_needed, settings_of
from ..models.schedule import NoiseSchedule, TimeGrid
from ..solvers import Schedule, Solver, SolverSettings, executor, queries, solver
from ..solvers.presets import best_preset, preset, preset_names
from .budget import steps_for
from .grid import Final, default_grid, time_grid
from .guidance import CFG, Guidance, guidance, policy_class
from .guidance import names as guidance_names

DEFAULT_SOLVER = "unipc-2"
DEFAULT_NFE = 10


@dataclass(frozen=True)
class Plan:
    """A solver and the grid it steps over.

    solver: ready to run, its coefficients computed.
    grid:   the nodes.
    adaptive: the solver chooses its own steps between them.
    """

    solver: Solver[Any]
    grid: TimeGrid
    adaptive: bool = False

    @property
    def nfe(self) -> int:
        """Evaluations per image, counted by a dry run; meaningless for an adaptive solver."""
        return len(queries(self.solver, self.grid))


def make_plan(
    noise_schedule: NoiseSchedule,
    solver: str | SolverSettings | Schedule = DEFAULT_SOLVER,
    *,
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Sequence[float] | None = None,
    final: Final | str = Final.ZERO,
) -> Plan:
    """Decides solver, steps and nodes.

    Args:
        noise_schedule: the network's.
        solver: a name, `name:key=value,...`, a settings value, or a `Schedule`, which brings its
            own grid and takes none of the other arguments.
        nfe: budget of evaluations per image; 10 if steps is not given either.
        steps: number of steps, instead of a budget.
        grid: a name, `name:key=value,...`, or falling times of the noise schedule that end where
            the run shall end; the default suits the process.
        final: "zero", "sigma_min" or "denoise"; for named grids.

    Raises:
        FewstepError: for names that do not exist and combinations that cannot be.
    """
    if isinstance(solver, Schedule):
        if (nfe, steps, grid, Final.named(final)) != (None, None, None, Final.ZERO):
            raise SettingError("a schedule brings its own steps; drop nfe, steps, grid and final")
        solver.check_process(noise_schedule)
        return Plan(executor(solver), solver.grid())
    settings = named_solver(solver) if isinstance(solver, str) else solver
    chosen = _grid(noise_schedule, settings, nfe, steps, grid, Final.named(final))
    return Plan(settings.on(chosen), chosen, settings.info.adaptive)


def default_schedule(model: str, choices: Mapping[str, Any], guided: Guidance) -> Schedule | None:
    """The schedule of the package that stands in where nothing but an NFE is asked for.

    model: the network's name. None if there is no such schedule that is better than named solvers.
    """
    final = Final.named(choices.get("final", Final.ZERO))
    if choices.keys() - {"nfe", "final"} or final != Final.ZERO:
        return None
    scale = 1.0 if guided.off else None
    if isinstance(guided, CFG) and guided == CFG(guided.scale):  # guided throughout
        scale = guided.scale
    name = None if scale is None else best_preset(model, choices.get("nfe", DEFAULT_NFE), scale)
    return None if name is None else preset(name)


def named_schedule(name: str) -> Schedule:
    """The schedule of a file, or the one of this name that comes with the package."""
    return preset(name) if name in preset_names() else Schedule.load(name)


def named_solver(spec: str) -> SolverSettings:
    """The settings of `name` or `name:key=value,...`."""
    name, settings = parse_spec(spec)
    return solver(name, **settings)


def named_cache(spec: str) -> Policy:
    """The cache policy of `name` or `name:key=value,...`."""
    name, settings = parse_spec(spec)
    return cache(name, **settings)


def named_guidance(spec: str, scale: float | None = None) -> Guidance:
    """The guidance of `name:key=value,...`, narrowed by what follows a plus.

    `cfg:scale=3+interval:low=0.3,high=5` is `Interval(CFG(3.0), 0.3, 5.0)`.

    scale: taken where the first policy is given none, and otherwise the same; a wrapper that comes
        first wraps `CFG` of this scale, or without one what it wraps by default.

    Raises:
        FewstepError: for names, settings and combinations that cannot be.
    """
    outer = "|".join(_wrappers())
    first, *wrappers = re.split(rf"\+(?=[a-z-]+:|(?:{outer})(?:\+|$))", spec)
    name = parse_spec(first)[0]
    if name in _wrappers() and scale is not None:
        first, wrappers, scale = f"cfg:scale={scale!r}", [first, *wrappers], None
    elif name in _wrappers(needy=True):
        raise SettingError(f"{spec!r} wraps another guidance; write cfg:scale=2+{spec}")
    name, settings = parse_spec(first)
    if scale is not None and settings.setdefault("scale", scale) != scale:
        raise SettingError(
            f"the guidance {first} and the guidance scale {scale:g} do not agree; drop one of them"
        )
    found = guidance(name, **settings)
    for each in wrappers:
        name, settings = parse_spec(each)
        if name not in _wrappers():
            raise UnknownNameError("guidance that goes around another", name, _wrappers())
        found = guidance(name, inner=found, **settings)
    return found


def _wrappers(*, needy: bool = False) -> list[str]:
    """The names of guidance that has another one inside; of those that must be given it."""
    every = [(name, each) for name in guidance_names() for each in settings_of(policy_class(name))]
    inner = [(name, each) for name, each in every if each.name == "inner"]
    return [name for name, each in inner if not needy or is_needed(each)]


def parse_spec(spec: str) -> tuple[str, dict[str, Any]]:
    """`karras:rho=5` -> ("karras", {"rho": 5}); values are JSON where they can be, else words.

    A comma inside brackets belongs to a value: `fixed-mask:compute=[0,1,4],order=1`.
    """
    name, _, rest = spec.partition(":")
    settings = {}
    for part in filter(None, re.split(r",(?![^\[]*\])", rest)):
        key, equals, value = part.partition("=")
        if not equals:
            raise SettingError(f"{part!r} in {spec!r} is no setting; write {name}:key=value,...")
        settings[key.strip()] = _value(value.strip())
    return name, settings


def _span(
    noise_schedule: NoiseSchedule, settings: SolverSettings, given: tuple[Any, ...], final: Final
) -> TimeGrid:
    """The two ends of an adaptive run: from t_max to t_min, and to zero from there."""
    if given != (None, None, None):
        name = settings.info.name
        raise SettingError(
            f"{name} chooses its own steps; drop nfe, steps and grid, set tolerances"
        )
    ends = 1 if final is Final.SIGMA_MIN else 2
    end = Final.SIGMA_MIN if final is Final.SIGMA_MIN else Final.ZERO
    return time_grid("logsnr", noise_schedule, ends, end)


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _grid(
    noise_schedule: NoiseSchedule,
    settings: SolverSettings,
    nfe: int | None,
    steps: int | None,
    grid: str | Sequence[float] | None,
    final: Final,
) -> TimeGrid:
    if nfe is not None and steps is not None:
        raise SettingError("give nfe, a budget of evaluations, or steps, not both")
    if grid is not None and not isinstance(grid, str):
        if (nfe, steps, final) != (None, None, Final.ZERO):
            raise SettingError("explicit times are the grid; drop nfe, steps and final")
        return TimeGrid.of(noise_schedule, grid)
    if settings.info.adaptive:
        return _span(noise_schedule, settings, (nfe, steps, grid), final)
    name, options = parse_spec(grid or default_grid(noise_schedule))

    def of(n: int) -> TimeGrid:
        return time_grid(name, noise_schedule, n, final, **options)

    if steps is not None:
        return of(steps)
    return steps_for(DEFAULT_NFE if nfe is None else nfe, settings, of)
