"""Recipes, and what a network was distilled to, decide what runs where nothing else is asked."""

import warnings
from collections.abc import Mapping
from typing import Any

from ..models.distillation import FLOW_MAP, Distillation
from ..models.errors import SettingError
from ..models.network import Network
from ..models.registry import parse_spec
from ..models.schedule import TimeGrid, VPDiscrete
from ..solvers import SolverSettings, take_solver
from ..solvers.artefact import Artefact
from ..solvers.distilled import LCM
from .guidance import CFG, Guidance
from .recipes import RecipeRun

FAR = 0.5  # of a label from a trained one


def resolve_choices(network: Network, choices: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the choices of a run, completed by its recipe or what the network was distilled to.

    A recipe decides solver and times. A distillation stands in for the solver, the grid and the
    number of steps where they are not chosen.

    Raises:
        FewstepError: for a recipe that does not exist, or is of another network, and choices beside
            it that it makes itself.
    """
    given = {key: value for key, value in choices.items() if value is not None}
    if (spec := given.pop("recipe", None)) is not None:
        return _follow_recipe(network, spec, given)
    distilled, chosen = network.distillation, given.get("solver")
    if distilled is None or isinstance(chosen, Artefact):
        return given
    resolved = {"solver": distilled.solver, **given}
    if take_solver(resolved["solver"]).info.adaptive or not isinstance(given.get("grid", ""), str):
        return resolved
    size = {} if given.keys() & {"nfe", "steps"} else {"steps": distilled.steps}
    return {"grid": distilled.grid, **size, **resolved}


def _follow_recipe(network: Network, spec: str, given: dict[str, Any]) -> dict[str, Any]:
    """Returns what a recipe decides; a picture that was drawn with it names the same beside it."""
    times = given.get("grid")
    listed = None if times is None or isinstance(times, str) else len(times) - 1
    run = RecipeRun.find(spec, given.get("steps", given.get("nfe", listed)))
    if run.recipe.inside:
        raise SettingError(
            f"recipe {run.name} is for pipelines, as {run.recipe.inside}; give it to"
            " SolverScheduler.from_config(config, recipe=...)"
        )
    grid = tuple(run.place(network.schedule, network.prediction))
    decided = {"solver": run.recipe.solver, "grid": grid, "final": "zero"}
    for key in sorted(decided.keys() & given.keys()):
        if not (given[key] == decided[key] or (key == "grid" and tuple(given[key]) == grid)):
            raise SettingError(f"a recipe decides the {key}; drop it, or the recipe")
    run.recipe.warn()
    return {"solver": run.recipe.solver, "grid": grid}


def guide_recipe(spec: str | None, guidance: Guidance) -> Guidance:
    """Returns the guidance of a run with a recipe, which is none.

    Raises:
        SettingError: for one that evaluates a second branch: it is in the weights already.
    """
    if spec is None or guidance.off:
        return guidance
    if isinstance(guidance, CFG) and guidance.scale == 0.0:
        warnings.warn("guidance scale 0 is taken as off, which is 1 here", stacklevel=3)
        return CFG(1.0)
    name = parse_spec(spec)[0]
    raise SettingError(
        f"guidance is in the weights of {name}; take scale 1, or leave the recipe out"
    )


def check_distilled(
    settings: SolverSettings | None, distilled: Distillation | None, name: str, meant: bool = False
) -> None:
    """Raises SettingError if a solver cannot run on a network, and warns if it should not.

    settings: None for a schedule.
    name:     of the network, for messages.
    meant:    that the network was distilled so is said elsewhere.
    """
    info = None if settings is None else settings.info
    runs = "a schedule" if info is None else info.name
    if distilled is not None and distilled.flow_map and runs != FLOW_MAP:
        raise SettingError(
            f"{name} is a flow map, whose answers are mean velocities between two times, and"
            f" {runs} takes them for velocities at one time; take solver={FLOW_MAP!r}"
        )
    if runs == FLOW_MAP and not (distilled is not None and distilled.flow_map):
        raise SettingError(
            f"{FLOW_MAP} tells its network two times, and {name} takes one; take euler, or say"
            f" distilled={FLOW_MAP!r} where the network is made"
        )
    if meant or info is None:
        return
    if distilled is None and info.distilled:
        warnings.warn(
            f"{runs} is for networks that were distilled to it, and nothing says so of {name}: the"
            " x0 of others is a mean, so expect blur; if it was, name its recipe",
            stacklevel=3,
        )
    if distilled is not None and info.order > 1:
        warnings.warn(
            f"{name} was distilled to {distilled.solver}, and {runs} expects the answers of an"
            " undistilled network; leave the solver out",
            stacklevel=3,
        )


def warn_of_untrained(
    settings: SolverSettings | None, distilled: Distillation | None, grid: TimeGrid
) -> None:
    """Warns of timesteps that an LCM was not distilled at, and names the nearest."""
    if not (isinstance(settings, LCM) and isinstance(grid.schedule, VPDiscrete)):
        return
    spec = distilled.grid if distilled is not None else "lcm"
    original = int(parse_spec(spec)[1].get("original", 50))
    gap = max(1, grid.schedule.num_train_timesteps // original)
    labels = [grid.schedule.label(node) for node in grid.nodes[:-1]]
    near = [max(1, round((label + 1.0) / gap)) * gap - 1 for label in labels]
    if any(abs(label - trained) > FAR for label, trained in zip(labels, near, strict=True)):
        shown = " ".join(f"{label:g}" for label in labels)
        warnings.warn(
            f"an LCM was not distilled at the timesteps {shown}; the nearest trained ones are"
            f" {' '.join(map(str, near))}",
            stacklevel=3,
        )
