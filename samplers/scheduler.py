"""Where pipelines saved by version 0.1 look for their scheduler, and for the base of its class."""

from diffusers.schedulers.scheduling_utils import SchedulerMixin

from .diffusers.scheduler import SolverScheduler

__all__ = ["SchedulerMixin", "SolverScheduler"]
