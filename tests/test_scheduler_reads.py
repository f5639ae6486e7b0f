"""What is read of a scheduler beside its steps, and answers that are not finite."""

import math

import diffusers
import pytest
import torch

from fewstep import SolverScheduler
from fewstep.models.errors import FewstepError, NonFiniteError, SettingError

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DISCRETE = [
    diffusers.DDIMScheduler(**SD),
    diffusers.DDIMScheduler(**SD, rescale_betas_zero_snr=True, prediction_type="v_prediction"),
    diffusers.EulerDiscreteScheduler(num_train_timesteps=300),
    diffusers.DPMSolverMultistepScheduler(beta_schedule="squaredcos_cap_v2"),
    diffusers.DDPMScheduler(trained_betas=[0.1, 0.2, 0.05, 0.6], num_train_timesteps=4),
]
BEFORE = [
    *DISCRETE,
    diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0),
    diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    diffusers.EDMEulerScheduler(),
]


def ours(scheduler, **own) -> SolverScheduler:
    return SolverScheduler.from_config(scheduler.config, **own)


@pytest.mark.parametrize("rival", BEFORE, ids=lambda each: type(each).__name__)
def test_before_a_run_the_training_timesteps_are_listed(rival):
    scheduler = ours(rival)
    wanted = rival.timesteps.float()[: len(scheduler)]  # EDM of diffusers has one more
    tolerance = 5e-3 if "EDM" in type(rival).__name__ else 1e-6
    torch.testing.assert_close(scheduler.timesteps, wanted, rtol=tolerance, atol=tolerance)
    assert len(scheduler.sigmas) == len(scheduler.timesteps) + 1
    assert scheduler.sigmas[-1] == 0.0
    if "Flow" in type(rival).__name__:
        torch.testing.assert_close(scheduler.sigmas[:-1], rival.sigmas)
    with pytest.raises(SettingError, match="call set_timesteps"):
        scheduler.step(torch.zeros(1, 1, 2, 2), scheduler.timesteps[0], torch.zeros(1, 1, 2, 2))


@pytest.mark.parametrize("rival", DISCRETE, ids=lambda each: each.config.beta_schedule)
def test_betas_and_their_products_are_those_of_diffusers(rival):
    scheduler = ours(rival)
    for name in ("alphas_cumprod", "alphas", "betas"):
        found = getattr(scheduler, name)
        assert found.dtype == torch.float32
        if name == "alphas_cumprod" or not rival.config.get("rescale_betas_zero_snr"):
            wanted = getattr(rival, name)
            torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-7)
    products = torch.cumprod(1.0 - scheduler.betas, dim=0)
    torch.testing.assert_close(products, scheduler.alphas_cumprod, rtol=1e-3, atol=1e-7)


def test_what_has_no_betas_says_so():
    """By the error that `hasattr` knows; but StableCascade would go on without them."""
    for rival in (diffusers.FlowMatchEulerDiscreteScheduler(), diffusers.EDMEulerScheduler()):
        assert not any(hasattr(ours(rival), name) for name in ("alphas_cumprod", "alphas", "betas"))
    cascade = ours(diffusers.DDPMWuerstchenScheduler())
    with pytest.raises(SettingError, match="keep DDPMWuerstchenScheduler"):
        hasattr(cascade, "betas")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_answers_that_are_not_finite_pass_unless_they_are_to_be_checked(value):
    rival = diffusers.DDIMScheduler(**SD, clip_sample=False)
    x, out = torch.ones(2, 1, 2, 2), torch.zeros(2, 1, 2, 2)
    out[1, 0, 0, 1] = value
    plain, checked = ours(rival), ours(rival, check_finite=True)
    again = SolverScheduler.from_config(checked.config)
    for scheduler in (plain, checked, again):
        scheduler.set_timesteps(timesteps=[900, 400])
    assert not plain.step(out, 900, x).prev_sample.isfinite().all()
    for scheduler in (checked, again):
        assert scheduler.step(out.nan_to_num(0.0, 0.0), 900, x).prev_sample.isfinite().all()
        with pytest.raises(NonFiniteError, match="returned NaN or infinity at timestep 400; try"):
            scheduler.step(out, 400, x)
    with pytest.raises(FewstepError, match="check_finite='yes' must be True or False"):
        ours(rival, check_finite="yes")
