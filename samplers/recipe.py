"""A recipe of a distilled network, and the rules that place its times.

Times are final: what the shift of a flow network is does not matter to them.
"""

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from ..models.errors import SettingError, join_choices
from ..models.prediction import Prediction
from ..models.schedule import NoiseSchedule, RectifiedFlow, VPDiscrete
from .grid import time_grid

Place = Callable[[NoiseSchedule, int], list[float]]
Lists = Mapping[int, Sequence[float]]


def place_by_grid(grid: str, schedule: NoiseSchedule, steps: int) -> list[float]:
    """Returns the times of a named grid."""
    return [node.t for node in time_grid(grid, schedule, steps)]


def place_labels(lists: Lists, schedule: NoiseSchedule, n: int) -> list[float]:
    """Returns the times of listed timesteps, by their number."""
    assert isinstance(schedule, VPDiscrete)
    total = schedule.num_train_timesteps
    return [*((label + 1) / total for label in _look_up(lists, n)), schedule.t_zero]


def place_taus(lists: Lists, schedule: NoiseSchedule, n: int) -> list[float]:
    """Returns the times of listed taus, by their number."""
    return _end_taus(schedule, _look_up(lists, n))


def _look_up(lists: Lists, n: int) -> Sequence[float]:
    if n not in lists:
        raise SettingError(
            f"its times are listed for {join_choices(lists)} steps alone; take those"
        )
    return lists[n]


def place_shifted(shift: float, schedule: NoiseSchedule, n: int) -> list[float]:
    """Returns even times, shifted so and not as the network's own are."""
    even = (1.0 - i / n for i in range(n))
    return _end_taus(schedule, [shift * u / (1.0 + (shift - 1.0) * u) for u in even])


def place_even_lam(low: float, high: float, schedule: NoiseSchedule, n: int) -> list[float]:
    """Returns taus evenly in lam from low to high; the first is 1, and the last is left out."""
    lams = [low + (high - low) * i / n for i in range(1, n)]
    return _end_taus(schedule, [1.0, *(1.0 / (1.0 + math.exp(lam)) for lam in lams)])


def _end_taus(schedule: NoiseSchedule, taus: Sequence[float]) -> list[float]:
    assert isinstance(schedule, RectifiedFlow)
    return [*map(schedule.unshift, taus), schedule.t_zero]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a distilled network is sampled.

    name:      without the number of steps.
    steps:     the numbers of steps that it was trained for; empty for any.
    solver:    the update, `name:key=value,...`.
    place:     the times of a number of steps on a noise schedule, the end among them.
    times:     the rule of the times in words.
    family:    of the noise schedule; on "vp" it is the one of Stable Diffusion.
    predicts:  what the network may predict.
    guidance:  in words. Guidance by a second branch is refused, as it is in the weights.
    source:    where all of this stands, and what kind of place that is.
    uncertain: what of it nobody confirmed, if anything.
    inside:    why it is for pipelines alone, if it is.
    """

    name: str
    steps: tuple[int, ...]
    solver: str
    place: Place = field(repr=False)
    times: str
    family: str = "flow"
    predicts: tuple[Prediction, ...] = (Prediction.FLOW, Prediction.FLOW_TO_DATA)
    guidance: str = "off"
    source: str
    uncertain: str = ""
    inside: str = ""

    def warn(self) -> None:
        """Warns of what is uncertain."""
        if self.uncertain:
            warnings.warn(
                f"of recipe {self.name} it is not confirmed: {self.uncertain}", stacklevel=4
            )

    def check(self, schedule: NoiseSchedule, prediction: Prediction) -> None:
        """Raises SettingError for a network that cannot be the one of this recipe."""
        if schedule.family != self.family:
            raise SettingError(
                f"recipe {self.name!r} is of a network on {self.family}, and this one is on"
                f" {schedule.family}; see `fewstep list recipes`"
            )
        if prediction not in self.predicts:
            raise SettingError(
                f"recipe {self.name!r} is of a network that predicts"
                f" {' or '.join(self.predicts[:1])}, and this one predicts {prediction}"
            )
        if isinstance(schedule, VPDiscrete) and not _has_stable_betas(schedule):
            raise SettingError(
                f"recipe {self.name!r} is of a network trained with the betas of Stable Diffusion,"
                " and this one was trained with others"
            )


def _has_stable_betas(schedule: VPDiscrete) -> bool:
    known = VPDiscrete("scaled_linear", 0.00085, 0.012)
    return abs(schedule.at(1.0).lam - known.at(1.0).lam) < 0.01
