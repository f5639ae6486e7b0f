"""The part of `SolverScheduler` that follows its config: the process, and the choices of a run."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from torch import Tensor

from ...models.diffusers_config import shift_key_of
from ...models.schedule import Node
from .config_changes import read_choices
from .live_config import find_changes, read_values, write_values
from .planning import Choices
from .trained_process import TrainedProcess


class ConfiguredScheduler(ConfigMixin):  # type: ignore[misc]
    """A scheduler whose config can be changed after it was built.

    process: the noise schedule and prediction of the network.
    choices: what shall run.
    """

    config_name = "scheduler_config.json"

    def __init__(self, base: Mapping[str, Any], choices: Choices) -> None:
        self._decide(TrainedProcess.of(base), choices)
        unset = {key: base[key] for key in base if key == "_use_default_values"}
        self.register_to_config(**self._read, _class_name=type(self).__name__, **unset)

    def __len__(self) -> int:
        return int(self.process.config.get("num_train_timesteps", 1000))

    def set_shift(self, shift: float) -> None:
        """Shifts the times of a flow network by another factor, from the next set_timesteps on.

        Raises:
            SettingError: if the network is no flow, or is shifted by the size of its images.
        """
        self._change({shift_key_of(self.config): shift})

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

    @property
    def _explodes(self) -> bool:
        return self.choices.explodes(self.process)

    def _compute_factor(self, node: Node) -> float:
        """Returns the factor from a state here to what the pipeline holds."""
        return 1.0 / node.alpha if self._explodes else 1.0

    def _decide(self, process: TrainedProcess, choices: Choices) -> None:
        choices.check(process)
        self.process, self.choices = process, choices
        self._read = {**process.config, **choices.config}

    def _follow_config(self) -> None:
        """Takes over what was changed in the config since it was last read.

        Raises:
            FewstepError: for a change that cannot be, or would change nothing.
        """
        if changes := find_changes(read_values(self.config, self._read), self._read):
            self._change(changes)

    def _change(self, changes: Mapping[str, Any]) -> None:
        base, what = read_choices(self._read, changes)
        self._decide(TrainedProcess.of(base), Choices.of(**what))
        unset = [key for key in self.config.get("_use_default_values", ()) if key not in changes]
        write_values(self.config, {**self._read, "_use_default_values": unset})
