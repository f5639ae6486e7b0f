"""The process that a network was trained on, as the config of its scheduler says."""

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, SupportsFloat

import torch
from torch import Tensor

from ...models.diffusers_config import (
    EXPLODING,
    REFUSED,
    SHIFTS,
    class_name_of,
    from_scheduler_config,
)
from ...models.distillation import Distillation, read_distillation
from ...models.errors import ModelError, SettingError
from ...models.prediction import Prediction
from ...models.schedule import NoiseSchedule, RectifiedFlow, TimeGrid, VPDiscrete
from ..grid import time_grid

NUMBERS = {
    *("beta_start", "beta_end", "num_train_timesteps", "snr_shift_scale", "shift", "flow_shift"),
    *("shift_terminal", "sigma_min", "sigma_max", "sigma_data", "beta_min", "beta_max"),
}

GRID_FLAGS = {
    "use_karras_sigmas": "karras",
    "use_exponential_sigmas": "exponential",
    "use_beta_sigmas": "beta",
    "use_lu_lambdas": "logsnr",
}


@dataclass(frozen=True)
class TrainedProcess:
    """The noise schedule and prediction of a network, by the config of its scheduler.

    config:     of that scheduler, with its class under "base_class".
    fixed:      the noise schedule; of networks that shift by the image's size, with shift 1.
    prediction: what the network returns.
    """

    config: Mapping[str, Any]
    fixed: NoiseSchedule
    prediction: Prediction

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "TrainedProcess":
        """Raises ModelError, naming the field, if the config does not say enough."""
        _check_numbers(config)
        public = {key: value for key, value in config.items() if not key.startswith("_")}
        public["base_class"] = class_name_of(config) or guess_class(public)
        if public["base_class"] == "SCMScheduler":
            raise ModelError(
                "the pipeline of SCMScheduler turns states and answers into those of another"
                " process around it; keep its own scheduler, or take Sampler.from_pipeline"
            )
        shift = 1.0 if public.get("use_dynamic_shifting") else None
        schedule, prediction = _read_config(public, shift)
        return cls(public, schedule, prediction)

    @property
    def dynamic(self) -> bool:
        """True if a flow network's times are shifted by the size of the image."""
        return self.fixed.family == "flow" and bool(self.config.get("use_dynamic_shifting"))

    @property
    def explodes(self) -> bool:
        """True if a variance-preserving network's own scheduler holds x0 + (sigma / alpha) eps."""
        return self.fixed.family == "vp" and self.config["base_class"] in EXPLODING

    @property
    def as_flow_map(self) -> Distillation | None:
        """The distillation of a flow map, if the config may be of one; it need not name a class."""
        name = "FlowMapEulerDiscreteScheduler"
        fits = name in find_classes(self.config.keys() - {"base_class"})
        return read_distillation(name, self.config) if fits else None

    @property
    def distilled(self) -> Distillation | None:
        """The distillation of the network, if the config names one."""
        return read_distillation(self.config["base_class"], self.config)

    @property
    def facts(self) -> tuple[object, ...]:
        """All that a run depends on, with the times of a dynamic network shifted by mu = 1."""
        return self.make_schedule(1.0), self.prediction, self.dynamic, self.distilled

    @property
    def sigma_data(self) -> float:
        return getattr(self.fixed, "sigma_data", 0.5)

    @property
    def alphas_cumprod(self) -> tuple[float, ...]:
        """abar of every training timestep, as diffusers has it.

        Raises:
            SettingError: of Wuerstchen, whose pipelines take a scheduler without it for their own.
            AttributeError: of other schedules that are not discrete, which have none.
        """
        if isinstance(self.fixed, VPDiscrete):
            return self.fixed.alphas_cumprod
        if self.config["base_class"] == "DDPMWuerstchenScheduler":
            raise SettingError(
                "StableCascade and Wuerstchen tell their networks times that only their own"
                " scheduler has; keep DDPMWuerstchenScheduler"
            )
        raise AttributeError(f"a {self.fixed.family} schedule has no betas")

    def list_timesteps(self) -> TimeGrid:
        """Returns every training timestep, as schedulers of diffusers list them before a run."""
        n = int(self.config.get("num_train_timesteps", 1000))
        if self.fixed.family == "edm":
            return time_grid("karras", self.fixed, n)
        times = [self.fixed.t_max * (n - i) / n for i in range(n)]
        return TimeGrid.of(self.fixed, [*times, self.fixed.t_zero])

    def make_schedule(self, mu: float | None) -> NoiseSchedule:
        """Returns the noise schedule of a run, shifted by exp(mu), or by mu if that is linear."""
        if not self.dynamic:
            return self.fixed
        if mu is None:
            raise SettingError(
                "this network shifts its times by the size of the image (use_dynamic_shifting);"
                " pass mu= to set_timesteps, as the pipeline does"
            )
        if not (isinstance(mu, SupportsFloat) and abs(float(mu)) < 100.0):
            raise SettingError(
                f"mu={mu!r} is no shift; give a number, as pipelines do: 0.5 to 1.15"
            )
        linear = self.config.get("time_shift_type") == "linear"
        return _read_config(self.config, float(mu) if linear else math.exp(mu))[0]


class TrainedTables(ABC):
    """The tables by training timestep that pipelines read of a scheduler."""

    process: TrainedProcess

    @abstractmethod
    def _follow_config(self) -> None:
        """Takes over what was changed in the config since it was last read."""

    @property
    def alphas_cumprod(self) -> Tensor:
        """abar of every training timestep, float32 (N,), of discrete schedules only."""
        return torch.tensor(self._read_abars())

    @property
    def alphas(self) -> Tensor:
        """1 - beta of every training timestep, float32 (N,)."""
        abars = (1.0, *self._read_abars())
        return torch.tensor([after / before for before, after in pairwise(abars)])

    @property
    def betas(self) -> Tensor:
        """beta of every training timestep, float32 (N,)."""
        abars = (1.0, *self._read_abars())
        return torch.tensor([1.0 - after / before for before, after in pairwise(abars)])

    def _read_abars(self) -> tuple[float, ...]:
        self._follow_config()
        return self.process.alphas_cumprod


def _read_config(
    config: Mapping[str, Any], shift: float | None
) -> tuple[NoiseSchedule, Prediction]:
    fixed = {} if shift is None else {**dict.fromkeys(SHIFTS, shift), "use_dynamic_shifting": False}
    try:
        return from_scheduler_config({**config, "_class_name": config["base_class"], **fixed})
    except ModelError as error:
        reason = str(error).split("; pass ")[0]  # what to pass there cannot be passed here
        raise ModelError(
            f"{reason}; so no solver of ours can run in its pipeline, keep its own scheduler"
        ) from error


def _check_numbers(config: Mapping[str, Any]) -> None:
    for key in sorted(NUMBERS & config.keys()):
        if not (config[key] is None or isinstance(config[key], int | float)):
            raise ModelError(f"{key} of the scheduler config must be a number, not {config[key]!r}")


def guess_class(config: Mapping[str, Any]) -> str:
    """Returns the class that has the fields of a config, which names none if it was never saved."""
    if "beta_schedule" in config:
        return ""
    fitting = find_classes({key for key in config if not key.startswith("_")})
    if not fitting:
        raise ModelError(
            "this scheduler config does not say how its network was trained: it has neither"
            ' "_class_name" nor "beta_schedule", and its fields are those of no scheduler'
        )
    return min(fitting, key=lambda name: (name in REFUSED or name.startswith("FlowMap"), name))


def find_classes(fields: Set[str]) -> list[str]:
    """Returns the schedulers of diffusers that have exactly these fields, sorted."""
    import diffusers.schedulers as known

    names = sorted(name for name in dir(known) if name.endswith("Scheduler"))
    return [name for name in names if _read_fields(getattr(known, name)) == fields]


def _read_fields(scheduler: Any) -> set[str]:
    return inspect.signature(scheduler.__init__).parameters.keys() - {"self"}


def choose_grid(schedule: NoiseSchedule, process: TrainedProcess) -> str | None:
    """Returns the grid that a config chooses; None is the default of a plan.

    It is what its flags say, of distilled networks what they were distilled at, `trailing` where
    the config says so, and uniform on flow, as pipelines do. The other spacings stand in every
    config by default, whatever the network was trained for; they are to be asked for.
    """
    config = process.config
    for flag, grid in GRID_FLAGS.items():
        if config.get(flag):
            return grid
    if process.distilled is not None:
        return process.distilled.grid
    if config.get("timestep_spacing") == "trailing" and isinstance(schedule, VPDiscrete):
        return "trailing"
    return "uniform" if isinstance(schedule, RectifiedFlow) else None
