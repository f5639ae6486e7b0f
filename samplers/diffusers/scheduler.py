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

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.schedulers.scheduling_utils import SchedulerMixin, SchedulerOutput
from torch import Tensor

from ...models.errors import SettingError
from ...models.prediction import combine
from ..plan_file import unfold_for_scheduler
from ..reinforcement import LogProbStep, logprob_step
from ..state import rescale, to_state
from .config import read_choices
from .planned_scheduler import PlannedScheduler
from .planning import Choices, check_markov
from .stepper import (
    Generators,
    Stepper,
    check_answer,
    make_draw,
    read_version,
    refuse_nonfinite,
)

ETAS = ("eta", "gamma")  # settings of solvers that say the same
OTHER_STATE = (
    "this pipeline scales sigma as for a state x0 + sigma eps; pass state='ve' to from_config"
)


@dataclass
class Output(SchedulerOutput):  # type: ignore[misc]
    """prev_sample: the next state (B, *). pred_original_sample: the x0 (B, *) it came from."""

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


class SolverScheduler(SchedulerMixin, PlannedScheduler):  # type: ignore[misc]
    """A scheduler that runs any of our solvers with fixed steps; see `PlannedScheduler`."""

    __module__ = "fewstep"  # which a saved pipeline names, and its user imports

    def __init__(self, base: Mapping[str, Any], **choices: Any) -> None:
        """Takes what `from_config` takes; base is the config of another scheduler."""
        super().__init__(base, Choices.of(**choices))

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any] | None = None,
        return_unused_kwargs: bool = False,
        **given: Any,
    ) -> Any:
        """Returns the scheduler for a pipeline whose own one has this config.

        Args:
            config: `pipe.scheduler.config`; what it says of the network is kept.
            return_unused_kwargs: return (scheduler, {}) as diffusers does; nothing is unused.
            given: what shall run, and changes to the config; one without effect is refused.
                solver: `name` or `name:key=value,...`; unipc-2 if not given.
                grid: `name`, `name:key=value,...`, or falling times that end where the run shall.
                    By default uniform times on flow, as its pipelines use, and elsewhere the one
                    that the config's use_karras_sigmas and its like ask for, or `make_plan`'s.
                nfe: a budget of evaluations in place of a number of steps.
                    use_karras_sigmas=True and its like name one, too.
                schedule: a `Schedule`, a file of one, or the name of a preset.
                plan: of `fewstep tune`, or its file, in place of solver, grid, nfe, final, schedule
                    and recipe. Its cache and its guidance belong to the network and the pipeline:
                    they are refused by name, all but a guidance scale.
                recipe: a name of `fewstep list recipes`, in place of solver and grid, for a network
                    that was distilled so. A config of LCM, TCD and other distilled networks has
                    their update and times by itself.
                final: "zero", "sigma_min" or "denoise".
                denoising_start, denoising_end: the fractions of the run where it begins and ends,
                    between two steps, as a refiner and a base have it; see `continue_from`.
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
        base, what = read_choices(config, unfold_for_scheduler(given))
        made = cls(base, **what)
        return (made, {}) if return_unused_kwargs else made

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
        """Takes the network's answer to the current evaluation and returns the next state.

        Args:
            model_output: (B, *) of any float dtype; a second half of the channels, a learned
                sigma, is dropped.
            timestep: the entry of `timesteps` whose evaluation this is. A run begins at that of its
                first, unless a begin index was set. Numbers and copies of entries will do; None
                is the next. A copy on an accelerator is read at the beginning only.
            sample: (B, *) what the network was asked about. If it is not what the last step
                returned, it takes its place.
            eta: 0, or what the solver has as eta or gamma.
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
        if eta and eta not in (getattr(self.choices.settings, each, None) for each in ETAS):
            raise SettingError(
                f"eta={eta:g} has no meaning here; for DDIM with it take"
                f" solver='euler-ancestral:eta={eta:g}', and for TCD 'tcd:gamma={eta:g}'"
            )
        if use_clipped_model_output:
            raise SettingError("no prediction is clipped here; drop use_clipped_model_output")
        if (index := self._find_evaluation(timestep)) != self._index:
            self.set_begin_index(index)
        run, noise = self._get_stepper(), make_draw(generator)
        if per_token_timesteps is not None:
            self._labels.check_tokens(per_token_timesteps, self._index)
        if run.begun:
            self._take_over(run, sample)
        else:
            run.begin(rescale(to_state(sample), 1.0 / self._compute_factor(run.node)), noise)
        answer = check_answer(model_output, run.asked)
        answer = answer if per_token_timesteps is None else -answer
        x0 = combine(self._weights[self._index], run.asked, answer)
        if self.choices.check_finite:
            refuse_nonfinite(x0, self._labels.values[self._index])
        state = rescale(run.answer(x0, noise), self._compute_factor(run.node)).to(sample.dtype)
        self._index, self.x0 = self._index + 1, x0
        self._handed = state, read_version(state)
        return Output(prev_sample=state, pred_original_sample=x0) if return_dict else (state, x0)

    def logprob_step(
        self,
        model_output: Tensor,
        timestep: Any,
        sample: Tensor,
        kind: str,
        *,
        level: float | None = None,
        prev: Tensor | None = None,
        generator: Generators = None,
        window: Container[int] | None = None,
    ) -> LogProbStep:
        """Takes the step of a timestep with its log-probability; see `reinforcement.logprob_step`.

        It stands in the place of `step`, in any order of timesteps: the scheduler remembers
        nothing of it, and is not moved on.

        Args:
            window: the numbers of the steps that draw noise; the others are steps of the ODE with a
                log-probability of 0. None is all of them.

        Raises:
            SettingError: as `reinforcement.logprob_step`; for a solver that remembers earlier steps
                or asks more than once in each, or a pipeline that holds the state over alpha.
        """
        plan = self._get_plan()
        check_markov(plan, self._calls)
        if self._explodes:
            raise SettingError("a step here is of alpha x0 + sigma eps; pass state='vp'")
        n = self._labels.find_begin(timestep, [call.stage for call in self._calls])
        t, s = plan.grid.nodes[n : n + 2]
        taken = kind if window is None or n in window else "ode"
        return logprob_step(
            taken,
            sample,
            check_answer(model_output, to_state(sample)),
            t,
            s,
            prev=prev,
            generator=generator if taken == kind else None,
            level=level if taken == kind else None,
            prediction=self.process.prediction,
            sigma_data=self.process.sigma_data,
        )

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """Returns what the network reads of a state (B, *).

        That is c_in times it on EDM, alpha times it where the pipeline holds it over alpha, and
        elsewhere the state itself.

        Raises:
            SettingError: where sigma itself is to be scaled, as for such a state, but it is none.
        """
        if not (self._explodes or self.process.prediction.preconditioned):
            if sample.ndim == 0:
                raise SettingError(OTHER_STATE)
            return sample
        node = self._calls[min(self._find_evaluation(timestep), len(self._calls) - 1)].node
        c_in = self.process.prediction.input_scale(node, self.process.sigma_data)
        return sample * (c_in / self._compute_factor(node))

    def add_noise(
        self, original_samples: Tensor, noise: Tensor, timesteps: Tensor | float
    ) -> Tensor:
        """Returns alpha x0 + sigma noise of clean samples (B, *) at labels (B,), or one for all.

        It is what the pipeline holds, so it may be over alpha. The labels are read on the host, as
        the pipelines that ask for this do themselves.

        Raises:
            ScheduleError: for a label that no node has.
            SettingError: for another number of labels.
        """
        x0 = to_state(original_samples)
        nodes = [self._find_node(label) for label in torch.as_tensor(timesteps).flatten().tolist()]
        if len(nodes) not in (1, rows := max(len(x0), len(noise))):
            none = "; if nothing is left to run, raise strength" * (not nodes)
            raise SettingError(
                f"{len(nodes)} labels for {rows} samples; give one, or one for each{none}"
            )
        over = [self._compute_factor(node) for node in nodes]
        weights = x0.new_tensor(
            [[node.alpha * k, node.sigma * k] for node, k in zip(nodes, over, strict=True)]
        )
        alpha, sigma = weights.T.reshape(2, -1, *(1,) * (x0.ndim - 1))
        noisy: Tensor = alpha * x0 + sigma * to_state(noise)
        return noisy.to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor | float, noise: Tensor) -> Tensor:
        """Calls `add_noise`, as flow pipelines order its arguments."""
        return self.add_noise(sample, noise, timestep)

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
        if sample is handed and read_version(sample) == version:
            return
        inside = 1.0 / self._compute_factor(run.node)
        if sample is handed or handed.dtype == run.asked.dtype:
            run.replace(rescale(to_state(sample), inside))
        else:
            change = rescale(to_state(sample) - to_state(handed), inside)
            run.replace(run.asked + change)
