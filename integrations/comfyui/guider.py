"""A guidance policy of fewstep as a GUIDER."""

import logging
from typing import Any

import comfy.samplers

from fewstep.k_diffusion import GuidedRun
from fewstep.k_diffusion.host import read_path
from fewstep.models.denoiser import Branch
from fewstep.models.errors import SettingError
from fewstep.samplers.guidance import Guidance
from fewstep.samplers.schedule_choice import read_scale

from .solver_of import find_solver

CONDITIONS = {Branch.COND: "positive", Branch.UNCOND: "negative"}
BYPASSED = ("sampler_cfg_function", "sampler_pre_cfg_function", "sampler_post_cfg_function")


def make_guider(model: Any, positive: Any, negative: Any, policy: Guidance) -> "FewstepGuider":
    """Returns the guider of a policy.

    Raises:
        SettingError: if the policy asks for a negative condition, and there is none.
    """
    if not negative and not policy.off:
        raise SettingError(
            f"{policy.name} guidance asks for a negative condition, and none is connected; connect"
            " one, or take cfg with scale=1"
        )
    guider = FewstepGuider(model, policy)
    guider.set_conds(positive, negative or [])
    guider.set_cfg(read_scale(policy))  # which ComfyUI's log and other nodes read
    return guider


class FewstepGuider(comfy.samplers.CFGGuider):
    """Evaluates the branches that a policy asks for, and combines them as it says."""

    def __init__(self, model: Any, policy: Guidance) -> None:
        super().__init__(model)
        self.policy = policy
        self.run: Any = None

    def inner_sample(
        self,
        noise: Any,
        latent_image: Any,
        device: Any,
        sampler: Any,
        sigmas: Any,
        *rest: Any,
        **named: Any,
    ) -> Any:
        """Begins a run of the policy, and runs the sampler."""
        for name in self.model_options.keys() & BYPASSED:
            logging.warning(
                "fewstep: another node set %s, which FewstepGuidance does not call", name
            )
        path = read_path(self.inner_model.model_sampling)
        self.run = GuidedRun(self.policy, sigmas, len(noise), path, find_solver(sampler))
        return super().inner_sample(noise, latent_image, device, sampler, sigmas, *rest, **named)

    def predict_noise(
        self,
        x: Any,
        timestep: Any,
        model_options: Any = None,
        seed: Any = None,
    ) -> Any:
        """Returns the guided x0, as ComfyUI's method of that name does."""
        conds = [self.conds[CONDITIONS[branch]] for branch in self.run.ask(timestep)]
        outputs = comfy.samplers.calc_cond_batch(
            self.inner_model, conds, x, timestep, model_options or {}
        )
        return self.run.combine(outputs, x)
