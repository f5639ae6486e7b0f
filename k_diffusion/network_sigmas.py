"""The sigmas of a network of ComfyUI, by its `model_sampling`.

That object is read and never imported. It has `sigmas`, the sigmas at which the network was
trained, `timestep(sigma)`, the time that the network is told, and `sigma(timestep)`; its class has
a base `CONST` on a flow path.
"""

import math
import warnings
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ..models.errors import ScheduleError, SettingError
from ..models.schedule import EDM, Node, NoiseSchedule, RectifiedFlow, VPDiscrete
from ..samplers.grid import choose_default_grid, time_grid
from ..solvers.artefact import Artefact
from .host import read_path, tell_sigma
from .run import SAME, check_runnable

WHOLE = 1e-3  # relative: a sigma that moves by more on the way to a timestep and back is rounded


def place_sigmas(model_sampling: Any, grid: str | None, steps: int, denoise: float = 1.0) -> Tensor:
    """Returns the sigmas (steps + 1,) of a named grid on a network, float32.

    Networks that are told whole timesteps get sigmas of those alone; of two nodes at the same one,
    the second is left out.

    Args:
        model_sampling: ComfyUI's object of that name. The shift of a flow network is its own.
        grid: a name of `fewstep list grids` or `name:key=value,...`; None is the default.
        steps: of the run.
        denoise: in [0, 1]: the run is the end of one of int(steps / denoise) steps; 0 is no run.

    Raises:
        FewstepError: for a grid, a number of steps or a share that cannot be.
    """
    if not 0.0 <= denoise <= 1.0:
        raise SettingError(f"denoise={denoise:g} must lie in [0, 1]; 1 starts from noise alone")
    if denoise == 0.0:
        return torch.zeros(0)
    path, process = read_path(model_sampling), read_process(model_sampling)
    total = int(steps / denoise)
    spec = grid or choose_default_grid(process, total)
    nodes = time_grid(spec, process, total).nodes
    placed = [_place(model_sampling, node) if path == "ve" else node.sigma for node in nodes]
    sigmas = [sigma for sigma, _ in groupby(placed)]
    if denoise < 1.0:
        sigmas = sigmas[-(steps + 1) :]
    if (made := len(sigmas) - 1) != steps:
        warnings.warn(f"grid {spec!r} comes to {made} steps here, not {steps}", stacklevel=2)
    return torch.tensor(sigmas)


def read_process(model_sampling: Any) -> NoiseSchedule:
    """Returns the noise schedule of a network.

    A flow's shift k is read off the sigma k / (k + 1) that ComfyUI gives the time 1/2; a discrete
    network's abar = 1 / (1 + sigma^2) off its table; any other one is EDM in its range.
    """
    if read_path(model_sampling) == "flow":
        middle = float(model_sampling.sigma(model_sampling.timestep(torch.tensor([0.5]))))
        return RectifiedFlow(shift=middle / (1.0 - middle))
    table = model_sampling.sigmas.tolist()
    if _takes_whole_times(model_sampling):
        return VPDiscrete.from_alphas_cumprod([1.0 / (1.0 + sigma * sigma) for sigma in table])
    return EDM(sigma_min=table[0], sigma_max=table[-1])


def check_schedule(schedule: Artefact, model_sampling: Any) -> None:
    """Raises an error unless a schedule can run on a network.

    The network must be on the same path, and be told at each sigma what the schedule's was.

    Raises:
        ScheduleError: if it was made for another path.
        SettingError: if it combines the branches of the network itself, or brings a cache.
    """
    path, grid = read_path(model_sampling), schedule.grid()
    check_runnable(schedule, path)
    for node in grid.nodes if path == "ve" else ():
        if node.sigma == 0.0:
            continue
        label, sigma = grid.schedule.label(node), tell_sigma(node, path)
        low, high = _bound_sigma(model_sampling, label)
        if not low * (1.0 - SAME) <= sigma <= high * (1.0 + SAME):
            raise ScheduleError(
                f"this schedule was made for another path: it tells its network {label:g} at sigma"
                f" {sigma:.4g}, where this one has sigma {low:.4g}; take a schedule made for this"
                " network"
            )


def _place(sampling: Any, node: Node) -> float:
    """Returns the sigma of a node as the network is told of it; 0 stays."""
    sigma = tell_sigma(node, "ve")
    return _round(sampling, sigma) if sigma else 0.0


def _round(sampling: Any, sigma: float) -> float:
    """Returns the sigma that the network is told for another one."""
    return _find_sigma(sampling, sampling.timestep(torch.tensor([sigma])))


def _find_sigma(sampling: Any, timestep: Tensor) -> float:
    return float(sampling.sigma(timestep))


def _takes_whole_times(sampling: Any) -> bool:
    """Tells whether a network is told the nearest of its trained timesteps."""
    low, high = sampling.sigmas[:2].tolist()
    middle = math.sqrt(low * high)
    return not math.isclose(_round(sampling, middle), middle, rel_tol=WHOLE)


def _bound_sigma(sampling: Any, label: float) -> tuple[float, float]:
    """Returns the sigma of a label, or those of the whole timesteps on either side of it."""
    whole = _takes_whole_times(sampling)
    ends = (math.floor(label), math.ceil(label)) if whole else (label, label)
    low, high = (_find_sigma(sampling, torch.tensor([float(end)])) for end in ends)
    return low, high
