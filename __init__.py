"""fewstep: samples diffusion and flow networks in few network evaluations."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_HOMES = {
    "APG": ".samplers.guidance",
    "AdaptiveGuidance": ".samplers.guidance",
    "AutoGuidance": ".samplers.guidance",
    "CFG": ".samplers.guidance",
    "CFGCache": ".samplers.guidance",
    "CFGMP": ".samplers.guidance",
    "CFGPlusPlus": ".samplers.guidance",
    "CFGZeroStar": ".samplers.guidance",
    "CGTaylor": ".models.caching",
    "CachedCalls": ".solvers.cached_calls",
    "Cosine": ".models.schedule",
    "DeepCache": ".models.caching",
    "Denoiser": ".models.denoiser",
    "DiCache": ".models.caching",
    "EDM": ".models.schedule",
    "FDG": ".samplers.guidance",
    "EasyCache": ".models.caching",
    "Editor": ".samplers.editing",
    "FasterCache": ".models.caching",
    "FeedbackGuidance": ".samplers.guidance",
    "FewstepError": ".models.errors",
    "FirstBlock": ".models.caching",
    "FixedMask": ".models.caching",
    "GaussianMixture": ".models.gaussian",
    "GuidanceForecast": ".samplers.guidance",
    "Interval": ".samplers.guidance",
    "Ledger": ".models.ledger",
    "LinearAG": ".samplers.guidance",
    "LinearMap": ".samplers.guidance",
    "LogProbStep": ".samplers.reinforcement",
    "MagCache": ".models.caching",
    "MagnitudeAware": ".samplers.guidance",
    "Measured": ".samplers.guidance",
    "Network": ".models.network",
    "Node": ".models.schedule",
    "PAB": ".models.caching",
    "PerturbedAttention": ".samplers.guidance",
    "PolicyGuider": ".samplers.diffusers.guider",
    "Prediction": ".models.prediction",
    "REG": ".samplers.guidance",
    "RectifiedCFGPlusPlus": ".samplers.guidance",
    "RectifiedFlow": ".models.schedule",
    "Sampler": ".samplers.sampler",
    "Schedule": ".solvers.schedule_data",
    "SeaCache": ".models.caching",
    "SenCache": ".models.caching",
    "Size": ".models.architectures.base",
    "SlidingModeCFG": ".samplers.guidance",
    "SmoothedEnergy": ".samplers.guidance",
    "SolverScheduler": ".samplers.diffusers.scheduler",
    "SpeCa": ".models.caching",
    "Speed": ".models.speed",
    "Steered": ".solvers.steered",
    "TCFG": ".samplers.guidance",
    "TaylorSeer": ".models.caching",
    "TeaCache": ".models.caching",
    "Thresholded": ".samplers.guidance",
    "TimeGrid": ".models.schedule",
    "Trigonometric": ".models.schedule",
    "VPDiscrete": ".models.schedule",
    "VPLinear": ".models.schedule",
    "caching": ".models.caching",
    "calibrate": ".eval.calibrate",
    "compare": ".eval.compare",
    "denoiser_field": ".samplers.velocity_field",
    "encoded": ".models.pipeline_network",
    "evaluate": ".eval.evaluate",
    "faster": ".models.speed",
    "from_module": ".models.adapters",
    "from_sit": ".models.sit",
    "guided": ".samplers.diffusers.guided_pipeline",
    "join_experts": ".models.experts",
    "invert": ".samplers.inversion",
    "load": ".models.load",
    "logprob_step": ".samplers.reinforcement",
    "reconstruct": ".samplers.inversion",
    "score_field": ".samplers.velocity_field",
    "search": ".eval.search.command",
    "solver": ".solvers.base",
    "time_grid": ".samplers.grid",
    "tune": ".eval.tune.command",
    "velocity_field": ".samplers.velocity_field",
}
_SERVED = {"SchedulerMixin": "diffusers"}  # by which diffusers knows what it may load from here
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Imports a public name where it is first used: importing fewstep costs no torch."""
    home = _HOMES.get(name) or _SERVED.get(name)
    if home is None:
        raise AttributeError(f"module 'fewstep' has no attribute {name!r}")
    return getattr(import_module(home, __name__), name)


def __dir__() -> list[str]:
    return __all__
