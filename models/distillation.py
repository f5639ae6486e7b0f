"""The update and the times that a network was distilled to, as its scheduler's config has them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .errors import ModelError, UnknownNameError


@dataclass(frozen=True)
class Distillation:
    """The update and the times that a network was distilled to.

    solver: the update, `name:key=value,...`.
    grid:   the times of a number of steps, `name:key=value,...`.
    steps:  how many, where nothing else is asked for.
    """

    solver: str
    grid: str
    steps: int = 4

    @property
    def flow_map(self) -> bool:
        """True if the network is told where a step goes, and answers a mean velocity."""
        return self.solver == FLOW_MAP


FLOW_MAP = "flow-map"
BY_NAME = {  # of networks that say it with one word
    "lcm": Distillation("lcm", "lcm"),
    "tcd": Distillation("tcd", "lcm"),
    "renoise": Distillation("renoise", "uniform"),
    "consistency": Distillation("consistency", "consistency", steps=2),
    FLOW_MAP: Distillation(FLOW_MAP, "uniform"),
}


def read_distillation(name: str, config: Mapping[str, Any]) -> Distillation | None:
    """Returns what a network was distilled to, by its scheduler; None if it was not.

    name: the class of the scheduler. LCM and TCD have the same fields, so a config of them without
        a class is taken for LCM's.

    Raises:
        ModelError: for a distillation that cannot be sampled from.
    """
    if config.get("scale_factors"):
        raise ModelError(
            f"{name or 'this config'} enlarges the image between steps (scale_factors), which no"
            " solver here does; set it to None, or keep that scheduler"
        )
    if name in ("LCMScheduler", "TCDScheduler", "") and config.get("original_inference_steps"):
        solver = f"lcm:timestep_scaling={config.get('timestep_scaling', 10.0)}"
        grid = f"lcm:original={config['original_inference_steps']}"
        return Distillation("tcd" if name == "TCDScheduler" else solver, grid)
    if name == "FlowMatchLCMScheduler":
        return BY_NAME["renoise"]
    if name == "FlowMapEulerDiscreteScheduler":
        return BY_NAME[FLOW_MAP]
    if name == "SCMScheduler":
        return Distillation("renoise", "scm", steps=2)
    if name == "CMStochasticIterativeScheduler":
        trained, rho = config.get("num_train_timesteps", 40), config.get("rho", 7.0)
        return Distillation("consistency", f"consistency:trained={trained},rho={rho}", steps=2)
    return None


def take_distillation(given: Distillation | str | None) -> Distillation | None:
    """Returns a distillation that may be given by the name of its update.

    Raises:
        UnknownNameError: for a name of none.
    """
    if given is None or isinstance(given, Distillation):
        return given
    if given not in BY_NAME:
        raise UnknownNameError("update of distilled networks", given, BY_NAME)
    return BY_NAME[given]
