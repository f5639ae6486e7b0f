"""The part of `SolverScheduler` that follows its config, plans a run and knows where it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.utils import logging
from torch import Tensor

from ...models.caching import Policy
from ...models.diffusers_config import shift_key_of
from ...models.errors import SettingError
from ...models.prediction import x0_from
from ...models.schedule import Node, NoiseSchedule
from ..distilled import warn_of_untrained
from ..plan import Plan
from .config import find_changes, read_choices, read_values, write_values
from .planning import Choices, Numbers, TimestepsRequest
from .run_range import RunRange, choose_steps
from .stepper import (
    PlannedCall,
    Stepper,
    count_calls_per_step,
    make_refusal,
)
from .timesteps import Labels, find_node
from .trained_process import TrainedProcess, TrainedTables

logger = logging.get_logger(__name__)


class PlannedScheduler(TrainedTables, ConfigMixin):  # type: ignore[misc]
    """A scheduler whose config can be changed, with the plan of a run and where the run is.

    process:   the noise schedule and prediction of the network, as the config says.
    choices:   what shall run.
    timesteps: one label of the network per evaluation, float32, on the device asked for; before the
               first set_timesteps one per training timestep.
    sigmas:    likewise sigma on flow, sigma / alpha elsewhere, and where the run ends; on the CPU.
    order:     what pipelines multiply a number of steps by to count evaluations.
    x0:        the last prediction (B, *), for callbacks; None before the first.
    nfe:       evaluations so far.
    """

    config_name = "scheduler_config.json"
    order = 1

    def __init__(self, base: Mapping[str, Any], choices: Choices) -> None:
        self._decide(TrainedProcess.of(base), choices)
        unset = {key: base[key] for key in base if key == "_use_default_values"}
        self.register_to_config(**self._read, _class_name=type(self).__name__, **unset)
        self._labels = Labels()
        trained = self.process.list_timesteps()
        self.timesteps = torch.tensor([trained.schedule.label(node) for node in trained.nodes[:-1]])
        self.sigmas = _make_sigmas(trained.schedule, trained.nodes)
        self.num_inference_steps: int | None = None
        self._plan: Plan | None = None
        self._range: RunRange
        self._before: PlannedScheduler | None = None
        self._calls: list[PlannedCall] = []
        self._stepper: Stepper | None
        self._begin: int | None
        self._handed: tuple[Tensor, int]
        self.x0: Tensor | None
        self._forget()

    @property
    def cache_policy(self) -> Policy | None:
        """The cache that its schedule brings, which `caching(pipe)` puts on the network."""
        schedule = self.choices.schedule
        return None if schedule is None else schedule.cache_policy

    def __len__(self) -> int:
        return int(self.process.config.get("num_train_timesteps", 1000))

    def set_shift(self, shift: float) -> None:
        """Shifts the times of a flow network by another factor, from the next set_timesteps on.

        Raises:
            SettingError: if the network is no flow, or is shifted by the size of its images.
        """
        self._change({shift_key_of(self.config): shift})

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Numbers | None = None,
        timesteps: Numbers | None = None,
        mu: float | None = None,
        nfe: int | None = None,
        shift: float | None = None,
    ) -> None:
        """Plans a run; everything about an earlier one is forgotten.

        What was changed in the config since, however it was written there, counts from here on.

        Args:
            num_inference_steps: steps, not evaluations.
            device: of `timesteps`.
            sigmas: where steps begin instead, falling: on flow times before the shift, elsewhere
                sigma / alpha. The last step ends at 0.
            timesteps: the same as labels of the network.
            mu: of networks whose times are shifted by the size of the image; of others it is not
                used, as in diffusers.
            nfe: a budget of evaluations instead.
            shift: of a flow network, from now on; see `set_shift`.

        Raises:
            FewstepError: for what cannot be planned.
        """
        self._follow_config()
        if shift is not None:
            self.set_shift(shift)
        request = TimestepsRequest.of(
            num_inference_steps, nfe, mu, sigmas=sigmas, timesteps=timesteps
        )
        plan = self.choices.plan(self.process, request)
        plan.check(self.process.prediction)
        if self.choices.recipe is None:
            warn_of_untrained(plan.settings, self.process.distilled, plan.grid)
        steps = choose_steps(plan, len(self), *self.choices.fractions)
        self._range = RunRange(plan, steps)
        self._calls = self._range.calls
        self._plan, nodes = plan, [call.node for call in self._calls]
        kind, data = self.process.prediction, self.process.sigma_data
        self._weights = [x0_from(kind, node, data) for node in nodes]
        self._labels = Labels([plan.grid.schedule.label(node) for node in nodes], device)
        self.timesteps = self._labels.tensor
        self.sigmas = _make_sigmas(plan.grid.schedule, [*nodes, plan.grid.nodes[steps.stop]])
        self.num_inference_steps = len(steps)
        self.order = 1 if request.listed else count_calls_per_step(self._calls)
        denoised = plan.grid.denoise and steps.stop == plan.grid.steps
        expected = self.order * (len(steps) - denoised)
        self._uneven = not request.listed and len(nodes) > max(expected, len(steps))
        self._forget()

    def continue_from(self, other: "PlannedScheduler | None") -> None:
        """Lets runs from now on begin where those of another scheduler have stopped.

        Both run one plan: the solver goes on with what it remembers, even within a step, so that a
        base and a refiner together are one run, to the bit where they are one network. None lets
        them begin anew again.
        """
        if not isinstance(other, PlannedScheduler | None) or other is self:
            raise SettingError(
                "continue_from takes another SolverScheduler, as in"
                " refiner.scheduler.continue_from(base.scheduler)"
            )
        self._before = other

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Starts at a later evaluation; multistep solvers start there anew.

        It should be the first of a step. Where a pipeline comes out within one, as those do that
        take evaluations for steps, what is left of it is done by DDIM.

        `strength` of an image-to-image pipeline comes out here: it skips round(N (1 - strength)) of
        N steps, so the noise added is that of the node there; with grid="uniform" it is at the
        time strength * t_max.
        """
        self._get_plan()
        asked = self._calls
        if begin_index not in range(len(asked)):
            late = isinstance(begin_index, int) and begin_index >= len(asked)
            none = "; nothing is left to run, so raise strength" * late
            raise SettingError(f"begin index {begin_index!r} is not in 0..{len(asked) - 1}{none}")
        self._forget()
        self._begin = self._index = begin_index
        if begin_index > 0:
            self._stepper = self._make_stepper(begin_index)

    @property
    def init_noise_sigma(self) -> float:
        """The factor by which pipelines multiply standard normal noise to begin."""
        schedule = self._get_schedule()
        first = self._calls[0].node if self._plan else schedule.at(schedule.t_max)
        return schedule.noise_scale(first) * self._compute_factor(first)

    @property
    def step_index(self) -> int | None:
        """The number of the current evaluation, from 0; None before the first."""
        return self._index if self._stepper and self._stepper.begun else None

    @property
    def begin_index(self) -> int | None:
        """The evaluation that a run starts with, as it was set or its first timestep said.

        None is 0, and not set.
        """
        return self._begin

    @property
    def nfe(self) -> int:
        return self._index - (self._begin or 0)

    @property
    def _explodes(self) -> bool:
        return self.choices.explodes(self.process)

    def _compute_factor(self, node: Node) -> float:
        """Returns the factor from a state here to what the pipeline holds."""
        return 1.0 / node.alpha if self._explodes else 1.0

    def _decide(self, process: TrainedProcess, choices: Choices) -> None:
        choices = choices.stand_in(process)
        choices.check(process)
        self.process, self.choices = process, choices
        self._read = {**process.config, **choices.config}
        if self.cache_policy is not None:
            logger.warning(
                "this schedule brings a cache: run the pipeline in `with caching(pipe):`"
            )

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

    def _forget(self) -> None:
        """Returns to before the first evaluation of a run."""
        self._stepper = self._begin = self.x0 = None
        self._index, self._handed = 0, (torch.empty(0), 0)

    def _get_plan(self) -> Plan:
        if self._plan is None:
            raise SettingError(
                "this scheduler has no plan yet; call set_timesteps(num_inference_steps) before"
            )
        return self._plan

    def _make_stepper(self, n: int) -> Stepper:
        """Returns what runs the rest from evaluation n on."""
        if self._before is not None:
            other = self._before
            other._get_plan()
            stepper = self._range.go_on(other._range, other._stepper, other._index, n)
            self._handed = other._handed
            return stepper
        settings = None if self.choices.schedule is not None else self.choices.settings
        if n > 0 and self._uneven and settings is not None:
            raise make_refusal(settings, self._calls[n])
        return self._range.begin(settings, n)

    def _find_evaluation(self, timestep: Any) -> int:
        """Returns the number of the current evaluation, or of the one that begins a run."""
        self._get_plan()
        if self._begin is None and not (self._stepper and self._stepper.begun):
            return self._labels.find_begin(timestep, [call.stage for call in self._calls])
        if self._index < len(self._calls):
            self._labels.check(timestep, self._index)
        return self._index

    def _get_stepper(self) -> Stepper:
        self._get_plan()
        if self._stepper is None:
            self._stepper = self._make_stepper(0)
        if self._stepper.over:
            raise SettingError(
                f"this run is over after its {len(self._calls)} evaluations; call set_timesteps"
                " before the next one"
            )
        return self._stepper

    def _find_node(self, label: float) -> Node:
        """Returns the node of a label: of an evaluation where one has it, as labels are rounded."""
        for n in self._labels.find(label):
            return self._calls[n].node
        return find_node(self._plan.grid.schedule if self._plan else self._get_schedule(), label)

    def _get_schedule(self) -> NoiseSchedule:
        """Returns the noise schedule; before a plan by what the config says now."""
        if self._plan is None:
            self._follow_config()
        return self.process.fixed


def _make_sigmas(schedule: NoiseSchedule, nodes: Sequence[Node]) -> Tensor:
    """Returns sigma of nodes on flow, and elsewhere sigma / alpha, on the CPU."""
    flow = schedule.family == "flow"
    return torch.tensor([node.sigma if flow else node.kappa for node in nodes])
