"""The part of `SolverScheduler` that plans a run and knows where in it the pipeline is."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...models.errors import SettingError
from ...models.prediction import x0_from
from ...models.schedule import Node, NoiseSchedule
from ..plan import Plan
from .configured_scheduler import ConfiguredScheduler
from .late_start import make_late_stepper, make_refusal
from .planning import Choices, Numbers, TimestepsRequest
from .stepper import PlannedCall, Stepper, count_calls_per_step, list_calls
from .timestep_labels import Labels
from .timesteps import find_node


class PlannedScheduler(ConfiguredScheduler):
    """A scheduler with the plan of a run, and the evaluation that the run is at.

    timesteps: one label of the network per evaluation, float32, on the device asked for; before the
               first set_timesteps one per training timestep.
    sigmas:    likewise sigma on flow, sigma / alpha elsewhere, and where the run ends; on the CPU.
    order:     what pipelines multiply a number of steps by to count evaluations.
    x0:        the last prediction (B, *), for callbacks; None before the first.
    nfe:       evaluations so far.
    """

    order = 1

    def __init__(self, base: Mapping[str, Any], choices: Choices) -> None:
        super().__init__(base, choices)
        self._labels = Labels()
        trained = self.process.list_timesteps()
        self.timesteps = torch.tensor([trained.schedule.label(node) for node in trained.nodes[:-1]])
        self.sigmas = _make_sigmas(trained.schedule, trained.nodes)
        self.num_inference_steps: int | None = None
        self._plan: Plan | None = None
        self._calls: list[PlannedCall] = []
        self._stepper: Stepper | None
        self._begin: int | None
        self._handed: tuple[Tensor, int]
        self.x0: Tensor | None
        self._forget()

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        sigmas: Numbers | None = None,
        timesteps: Numbers | None = None,
        mu: float | None = None,
        nfe: int | None = None,
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

        Raises:
            FewstepError: for what cannot be planned.
        """
        self._follow_config()
        wanted = TimestepsRequest.of(
            num_inference_steps, nfe, mu, sigmas=sigmas, timesteps=timesteps
        )
        plan = self.choices.plan(self.process, wanted)
        plan.warn(self.process.prediction)
        self._calls = list_calls(plan)
        self._plan, nodes = plan, [call.node for call in self._calls]
        kind, data = self.process.prediction, self.process.sigma_data
        self._weights = [x0_from(kind, node, data) for node in nodes]
        self._labels = Labels([plan.grid.schedule.label(node) for node in nodes], device)
        self.timesteps = self._labels.tensor
        self.sigmas = _make_sigmas(plan.grid.schedule, [*nodes, plan.grid.nodes[-1]])
        self.num_inference_steps = plan.grid.steps
        self.order = 1 if wanted.listed else count_calls_per_step(self._calls)
        expected = self.order * (plan.grid.steps - plan.grid.denoise)
        self._uneven = not wanted.listed and len(nodes) > max(expected, plan.grid.steps)
        self._forget()

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Starts at a later evaluation; multistep solvers start there anew.

        It should be the first of a step. Where a pipeline comes out within one, as those do that
        take evaluations for steps, what is left of it is done by DDIM.

        `strength` of an image-to-image pipeline comes out here: it skips round(N (1 - strength)) of
        N steps, so the noise added is that of the node there; with grid="uniform" it is at the
        time strength * t_max.
        """
        plan, asked = self._get_plan(), self._calls
        if begin_index not in range(len(asked)):
            late = isinstance(begin_index, int) and begin_index >= len(asked)
            none = "; nothing is left to run, so raise strength" * late
            raise SettingError(f"begin index {begin_index!r} is not in 0..{len(asked) - 1}{none}")
        self._forget()
        self._begin = self._index = begin_index
        if begin_index > 0:
            self._stepper = self._make_late_stepper(plan, asked[begin_index:])

    @property
    def init_noise_sigma(self) -> float:
        """The factor by which pipelines multiply standard normal noise to begin."""
        schedule = self._get_schedule()
        first = self._plan.grid.nodes[0] if self._plan else schedule.at(schedule.t_max)
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

    def _make_late_stepper(self, plan: Plan, rest: list[PlannedCall]) -> Stepper:
        if self.choices.table is not None:
            raise SettingError(
                "a schedule goes all the way from noise to data; use strength=1, or a named solver"
            )
        if self._uneven:
            raise make_refusal(self.choices.settings, rest[0])
        return make_late_stepper(plan, self.choices.settings, rest)

    def _find_evaluation(self, timestep: Any) -> int:
        """Returns the number of the current evaluation, or of the one that begins a run."""
        self._get_plan()
        if self._begin is None and not (self._stepper and self._stepper.begun):
            return self._labels.find_begin(timestep, [question.stage for question in self._calls])
        if self._index < len(self._calls):
            self._labels.check(timestep, self._index)
        return self._index

    def _get_stepper(self) -> Stepper:
        plan = self._get_plan()
        if self._stepper is None:
            self._stepper = Stepper(plan.solver, plan.grid.nodes)
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
