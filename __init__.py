"""fewstep: samples diffusion and flow networks in few network evaluations."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "CFG": ".samplers.guidance",
    "EDM": ".models.schedule",
    "Cosine": ".models.schedule",
    "Denoiser": ".models.denoiser",
    "FewstepError": ".models.errors",
    "GaussianMixture": ".models.gaussian",
    "Ledger": ".models.ledger",
    "Network": ".models.denoiser",
    "Node": ".models.schedule",
    "Prediction": ".models.prediction",
    "RectifiedFlow": ".models.schedule",
    "Sampler": ".samplers.sampler",
    "Schedule": ".solvers.schedule_data",
    "SolverScheduler": ".samplers.scheduler",
    "Thresholded": ".samplers.guidance",
    "TimeGrid": ".models.schedule",
    "VPDiscrete": ".models.schedule",
    "VPLinear": ".models.schedule",
    "from_module": ".models.adapters",
    "load": ".models.load",
    "solver": ".solvers.base",
    "time_grid": ".samplers.grid",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Imports a public name where it is first used: importing fewstep costs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name], __name__), name)
