"""Recipes of distilled networks by name: the update, the exact times and the guidance of each.

A number of steps that was not trained is refused, unless it is forced; then the rule that places
the trained times places these.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..models.arguments import as_integer
from ..models.errors import SettingError, UnknownNameError, join_choices
from ..models.prediction import Prediction
from ..models.registry import parse_spec
from ..models.schedule import NoiseSchedule, RectifiedFlow
from .recipe import Recipe
from .recipe_rows import ROWS

NEAR = 5e-4  # of times as people type them
RECIPES = {row.name: row for row in ROWS}


@dataclass(frozen=True)
class RecipeRun:
    """A recipe for a number of steps."""

    recipe: Recipe
    steps: int

    @property
    def name(self) -> str:
        return f"{self.recipe.name}-{self.steps}"

    @classmethod
    def find(cls, spec: str, steps: int | None = None) -> "RecipeRun":
        """Returns the recipe of a text.

        spec:  a name of `list_recipes`; or that without its number, with the number as steps; with
               `:force=true` for a number that was not trained, as in sdxl-lightning:force=true.
        steps: how many are asked for beside.

        Raises:
            UnknownNameError: for a name of no recipe.
            SettingError: for a number of steps that the recipe does not have.
        """
        recipe, number, force = read_recipe(spec)
        if number is not None and steps not in (None, number):
            raise SettingError(
                f"{recipe.name}-{number} is {number} steps, not {steps}; ask for {number}, or"
                f" {_name_trained(recipe)}"
            )
        n = number if steps is None else as_integer(steps, "steps")
        if n is None:
            n = _choose_steps(recipe)
        if recipe.steps and n not in recipe.steps and not force:
            raise SettingError(
                f"{recipe.name} was not trained for {n} steps; {_name_trained(recipe)}, or write"
                f" {recipe.name}:force=true"
            )
        return cls(recipe, n)

    def place(self, schedule: NoiseSchedule, prediction: Prediction) -> list[float]:
        """Returns the times of the run.

        Raises:
            SettingError: for a network that cannot be that of the recipe.
        """
        self.recipe.check(schedule, prediction)
        return self.recipe.place(schedule, self.steps)


def list_recipes() -> list[str]:
    """Returns the names of all recipes, with their numbers of steps."""
    return [f"{row.name}-{n}" if n else row.name for row in ROWS for n in row.steps or (0,)]


def read_recipe(spec: str) -> tuple[Recipe, int | None, bool]:
    """Returns the recipe of a text, its number of steps if it has one, and whether it is forced."""
    name, settings = parse_spec(spec)
    force = settings.pop("force", False)
    if not isinstance(force, bool):
        raise SettingError(f"force={force!r} of recipe {name} must be true or false")
    if settings:
        raise SettingError(f"a recipe takes force=true and no {min(settings)!r}")
    if name in RECIPES:
        return RECIPES[name], None, force
    family, _, number = str(name).rpartition("-")
    if family not in RECIPES or not number.isdecimal():
        raise UnknownNameError("recipe", name, {*list_recipes(), *RECIPES})
    return RECIPES[family], int(number), force


def find_listed(taus: Sequence[float]) -> str | None:
    """Returns the recipe on flow whose times these are; None if there is none."""
    for row in ROWS:
        if row.family == "flow" and len(taus) in row.steps:
            times = row.place(RectifiedFlow(), len(taus))
            if all(abs(a - b) < NEAR for a, b in zip(taus, times, strict=False)):
                return f"{row.name}-{len(taus)}"
    return None


def _choose_steps(recipe: Recipe) -> int:
    if len(recipe.steps) > 1:
        raise SettingError(f"{recipe.name} is several recipes; {_name_trained(recipe)}")
    return recipe.steps[0] if recipe.steps else 4


def _name_trained(recipe: Recipe) -> str:
    names = [f"{recipe.name}-{n}" for n in recipe.steps] or [f"{recipe.name} with any steps"]
    return f"take {join_choices(names)}"
