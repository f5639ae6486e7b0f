"""`SolverScheduler`: our solvers in the place of a diffusers pipeline's scheduler.

>>> pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, solver="unipc-3")
>>> pipe("a cat", num_inference_steps=8)

It drives the same generator steps as `loop.integrate`; the pipeline calls the network in between.
The state is alpha x0 + sigma eps on every schedule. That is what variance-preserving and flow
pipelines hold, so there `scale_model_input` is the identity and `init_noise_sigma` 1; for EDM
networks, alpha = 1, they are c_in and the first sigma. Where the config is of a scheduler like
EulerDiscrete, the pipeline is handed the state over alpha, x0 + (sigma / alpha) eps, as that
scheduler has it; then they are alpha and 1 / alpha. It is float32 at least, and cast at the
border only. Evaluations are counted; the timesteps that a pipeline hands over say where it begins,
and are held against the count where that costs no wait for a device.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from ...models.errors import SettingError
from ...models.prediction import Prediction, combine, x0_from
from ...models.schedule import Node, NoiseSchedule
from ...solvers import Schedule
from ..plan import Plan
from .config_changes import read_choices
from .configured_scheduler import ConfiguredScheduler
from .late_start import make_late_stepper, make_refusal
from .pipeline_tensors import (
    Generators,
    answer_like,
    drawing,
    refuse_nonfinite,
    rescale,
    state_of,
    version_of,
)
from .planning import Choices, Numbers, Wanted
from .stepper import Question, Stepper, calls_per_step, questions
from .timestep_labels import Labels
from .timesteps import node_at

OTHER_STATE = (
    "this pipeline scales sigma as for a state x0 + sigma eps; pass state='ve' to from_config"
)


@dataclass
class Output(SchedulerOutput):  # type: ignore[misc]
    """prev_sample: the next state (B, *). pred_original_sample: the x0 (B, *) it came from."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class SolverScheduler(SchedulerMixin, ConfiguredScheduler):  # type: ignore[misc]
    """A scheduler that runs any of our solvers with fixed steps.

    timesteps: one label of the network per evaluation, float32, on the device asked for; before the
               first set_timesteps one per training timestep.
    sigmas:    likewise sigma on flow, sigma / alpha elsewhere, and where the run ends; on the CPU.
    order:     what pipelines multiply a number of steps by to count evaluations.
    x0:        the last prediction (B, *), for callbacks; None before the first.
    nfe:       evaluations so far.
    """

    __module__ = "fewstep"  # which a saved pipeline names, and its user imports
    order = 1

    def __init__(
        self,
        base: Mapping[str, Any],
        *,
        solver: str | None = None,
        grid: str | Sequence[float] | None = None,
        nfe: int | None = None,
        schedule: Schedule | str | Path | None = None,
        final: str = "zero",
        state: str | None = None,
        check_finite: bool = False,
    ) -> None:
        """See `from_config`, which takes the same; base is the config of another scheduler."""
        choices = Choices.of(
            solver=solver,
            grid=grid,
            nfe=nfe,
            schedule=schedule,
            final=final,
            state=state,
            check_finite=check_finite,
        )
        super().__init__(base, choices)
        self._labels = Labels()
        trained = self.process.trained()
        self.timesteps = torch.tensor([trained.schedule.label(node) for node in trained.nodes[:-1]])
        self.sigmas = _sigmas(trained.schedule, trained.nodes)
        self.num_inference_steps: int | None = None
        self._plan: Plan | None = None
        self._questions: list[Question] = []
        self._stepper: Stepper | None
        self._begin: int | None
        self._handed: tuple[Tensor, int]
        self.x0: Tensor | None
        self._forget()

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any] | None = None, return_unused_kwargs: bool = False, **own: Any
    ) -> Any:
        """The scheduler for a pipeline whose own one has this config.

        Args:
            config: `pipe.scheduler.config`; what it says of the network is kept.
            return_unused_kwargs: return (scheduler, {}) as diffusers does; nothing is unused.
            own: what shall run, and changes to the config; one without effect is refused.
                solver: `name` or `name:key=value,...`; unipc-2 if not given.
                grid: `name`, `name:key=value,...`, or falling times that end where the run shall.
                    By default uniform times on flow, as its pipelines use, and elsewhere the one
                    that the config's use_karras_sigmas and its like ask for, or `make_plan`'s.
                nfe: a budget of evaluations in place of a number of steps.
                    use_karras_sigmas=True and its like name one, too.
                schedule: a `Schedule`, a file of one, or the name of a preset.
                final: "zero", "sigma_min" or "denoise".
                state: "ve" where the pipeline is to hold x0 + (sigma / alpha) eps, as it does with
                    EulerDiscreteScheduler and its like, "vp" where it is not. By default as the
                    class in the config has it; a config that was never saved does not name one.
                check_finite: raise at the first NaN or infinity that the network returns, for
                    which a device is waited for at every evaluation. Otherwise they pass, as in
                    diffusers; `Sampler` always raises.

        Raises:
            ModelError: if the config does not say how the network was trained.
            FewstepError: for a name, setting or combination that cannot be.
        """
        if not isinstance(config, Mapping):
            raise SettingError(
                "from_config takes a config, such as pipe.scheduler.config; for a folder use"
                " SolverScheduler.from_pretrained(folder)"
            )
        base, what = read_choices(config, own)
        made = cls(base, **what)
        return (made, {}) if return_unused_kwargs else made

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
        wanted = Wanted.of(num_inference_steps, nfe, mu, sigmas=sigmas, timesteps=timesteps)
        plan = self.choices.plan(self.process, wanted)
        plan.warn(self.process.prediction)
        self._questions = questions(plan)
        self._plan, nodes = plan, [question.node for question in self._questions]
        kind, data = self.process.prediction, self.process.sigma_data
        self._weights = [x0_from(kind, node, data) for node in nodes]
        self._labels = Labels([plan.grid.schedule.label(node) for node in nodes], device)
        self.timesteps = self._labels.tensor
        self.sigmas = _sigmas(plan.grid.schedule, [*nodes, plan.grid.nodes[-1]])
        self.num_inference_steps = plan.grid.steps
        self.order = 1 if wanted.listed else calls_per_step(self._questions)
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
        plan, asked = self._planned(), self._questions
        if begin_index not in range(len(asked)):
            late = isinstance(begin_index, int) and begin_index >= len(asked)
            none = "; nothing is left to run, so raise strength" * late
            raise SettingError(f"begin index {begin_index!r} is not in 0..{len(asked) - 1}{none}")
        self._forget()
        self._begin = self._index = begin_index
        if begin_index > 0:
            self._stepper = self._later(plan, asked[begin_index:])

    def step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        eta: float = 0.0,
        generator: Generators = None,
        return_dict: bool = True,
        use_clipped_model_output: bool | None = None,
        per_token_timesteps: Tensor | None = None,
    ) -> Output | tuple[Tensor, Tensor]:
        """The network's answer to the current evaluation in, the state for the next one out.

        Args:
            model_output: (B, *) of any float dtype; a second half of the channels, a learned
                sigma, is dropped.
            timestep: the entry of `timesteps` whose evaluation this is. A run begins at that of its
                first, unless a begin index was set. Numbers and copies of entries will do; None
                is the next. A copy on an accelerator is read at the beginning only.
            sample: (B, *) what the network was asked about. If it is not what the last step
                returned, it takes its place.
            eta: 0; there is a solver for every noise.
            generator: what stochastic solvers draw from; of a list, one per row.
            return_dict: False for a tuple (prev_sample, x0).
            use_clipped_model_output: what DDIMPipeline passes; not True, as nothing is clipped.
            per_token_timesteps: the label of each token (B, T), which must be that of the step.
                With it model_output is the negative of the network's, as in FlowMatchEuler.

        Raises:
            NonFiniteError: with check_finite, for NaN or infinity from the network.
            SettingError: before set_timesteps, after the last evaluation, for the timestep of
                another one, one that no run can begin at, or for another eta.
        """
        if eta:
            raise SettingError(f"eta={eta:g} has no meaning here; take solver='ddpm', or sa-solver")
        if use_clipped_model_output:
            raise SettingError("no prediction is clipped here; drop use_clipped_model_output")
        if (index := self._find_evaluation(timestep)) != self._index:
            self.set_begin_index(index)
        run, noise = self._running(), drawing(generator)
        if per_token_timesteps is not None:
            self._labels.check_tokens(per_token_timesteps, self._index)
        if run.begun:
            self._take_over(run, sample)
        else:
            run.begin(rescale(state_of(sample), 1.0 / self._outside(run.node)), noise)
        answer = answer_like(model_output, run.asked)
        answer = answer if per_token_timesteps is None else -answer
        x0 = combine(self._weights[self._index], run.asked, answer)
        if self.choices.check_finite:
            refuse_nonfinite(x0, self._labels.values[self._index])
        state = rescale(run.answer(x0, noise), self._outside(run.node)).to(sample.dtype)
        self._index, self.x0 = self._index + 1, x0
        self._handed = state, version_of(state)
        return Output(prev_sample=state, pred_original_sample=x0) if return_dict else (state, x0)

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """What the network reads of a state (B, *): c_in times it on EDM, alpha times it where the
        pipeline holds it over alpha, elsewhere itself.

        Raises:
            SettingError: where sigma itself is to be scaled, as for such a state, but it is none.
        """
        if not (self._explodes or self.process.prediction is Prediction.EDM):
            if sample.ndim == 0:
                raise SettingError(OTHER_STATE)
            return sample
        node = self._questions[min(self._find_evaluation(timestep), len(self._questions) - 1)].node
        c_in = self.process.prediction.input_scale(node, self.process.sigma_data)
        return sample * (c_in / self._outside(node))

    def add_noise(
        self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | float
    ) -> Tensor:
        """alpha x0 + sigma noise for clean samples (B, *) at labels (B,), or one for all.

        It is what the pipeline holds, so it may be over alpha. The labels are read on the host, as
        the pipelines that ask for this do themselves.

        Raises:
            ScheduleError: for a label that no node has.
            SettingError: for another number of labels.
        """
        x0 = state_of(original_samples)
        nodes = [self._labelled(label) for label in torch.as_tensor(timesteps).flatten().tolist()]
        if len(nodes) not in (1, rows := max(len(x0), len(noise))):
            none = "; if nothing is left to run, raise strength" * (not nodes)
            raise SettingError(
                f"{len(nodes)} labels for {rows} samples; give one, or one for each{none}"
            )
        over = [self._outside(node) for node in nodes]
        weights = x0.new_tensor(
            [[node.alpha * k, node.sigma * k] for node, k in zip(nodes, over, strict=True)]
        )
        alpha, sigma = weights.T.reshape(2, -1, *(1,) * (x0.ndim - 1))
        noisy: Tensor = alpha * x0 + sigma * state_of(noise)
        return noisy.to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor | float, noise: Tensor) -> Tensor:
        """`add_noise` as flow pipelines call it."""
        return self.add_noise(sample, noise, timestep)

    @property
    def init_noise_sigma(self) -> float:
        """What pipelines multiply standard normal noise by to begin."""
        schedule = self._unplanned()
        first = self._plan.grid.nodes[0] if self._plan else schedule.at(schedule.t_max)
        return schedule.noise_scale(first) * self._outside(first)

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
        """Ready for the first evaluation of a run."""
        self._stepper = self._begin = self.x0 = None
        self._index, self._handed = 0, (torch.empty(0), 0)

    def _planned(self) -> Plan:
        if self._plan is None:
            raise SettingError(
                "this scheduler has no plan yet; call set_timesteps(num_inference_steps) before"
            )
        return self._plan

    def _later(self, plan: Plan, rest: list[Question]) -> Stepper:
        if self.choices.table is not None:
            raise SettingError(
                "a schedule goes all the way from noise to data; use strength=1, or a named solver"
            )
        if self._uneven:
            raise make_refusal(self.choices.settings, rest[0])
        return make_late_stepper(plan, self.choices.settings, rest)

    def _find_evaluation(self, timestep: Any) -> int:
        """The number of the current evaluation, or of the one that a run begins with by this."""
        self._planned()
        if self._begin is None and not (self._stepper and self._stepper.begun):
            return self._labels.find_begin(
                timestep, [question.stage for question in self._questions]
            )
        if self._index < len(self._questions):
            self._labels.check(timestep, self._index)
        return self._index

    def _running(self) -> Stepper:
        plan = self._planned()
        if self._stepper is None:
            self._stepper = Stepper(plan.solver, plan.grid.nodes)
        if self._stepper.over:
            raise SettingError(
                f"this run is over after its {len(self._questions)} evaluations; call set_timesteps"
                " before the next one"
            )
        return self._stepper

    def _take_over(self, run: Stepper, sample: Tensor) -> None:
        """Lets what the pipeline did to the state since the last step count.

        A state in low precision was rounded for the pipeline; only what was changed is added.
        """
        handed, version = self._handed
        if sample.shape != run.asked.shape:
            raise SettingError(
                f"the sample has shape {tuple(sample.shape)}, but this run is of"
                f" {tuple(run.asked.shape)}; call set_timesteps before another one"
            )
        if sample is handed and version_of(sample) == version:
            return
        inside = 1.0 / self._outside(run.node)
        if sample is handed or handed.dtype == run.asked.dtype:
            run.replace(rescale(state_of(sample), inside))
        else:
            change = rescale(state_of(sample) - state_of(handed), inside)
            run.replace(run.asked + change)

    def _labelled(self, label: float) -> Node:
        """The node of a label: an evaluation's where there is one, for labels are rounded."""
        for n in self._labels.find(label):
            return self._questions[n].node
        return node_at(self._plan.grid.schedule if self._plan else self._unplanned(), label)

    def _unplanned(self) -> NoiseSchedule:
        """Returns the noise schedule; before a plan by what the config says now."""
        if self._plan is None:
            self._follow_config()
        return self.process.fixed


def _sigmas(schedule: NoiseSchedule, nodes: Sequence[Node]) -> Tensor:
    """Returns sigma of nodes on flow, and elsewhere sigma / alpha, on the CPU."""
    flow = schedule.family == "flow"
    return torch.tensor([node.sigma if flow else node.kappa for node in nodes])
