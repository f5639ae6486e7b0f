"""The training timesteps that diffusers' schedulers take, asked of ours."""

import inspect
import warnings

import diffusers
import pytest
import torch

from fewstep import SolverScheduler
from fewstep.models.diffusers_config import REFUSED
from fewstep.models.errors import FewstepError
from fewstep.models.schedule import VPDiscrete
from fewstep.samplers.grid import choose_default_grid, time_grid

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
NO_CHOICE = {"LCMScheduler", "TCDScheduler"}  # they have the field and do not read it
SPACED = [
    name
    for name in dir(diffusers.schedulers)
    if name.endswith("Scheduler")
    and "Inverse" not in name
    and inspect.isclass(cls := getattr(diffusers.schedulers, name))
    and "timestep_spacing" in inspect.signature(cls.__init__).parameters
    and name not in REFUSED.keys() | NO_CHOICE
]
PLMS = {"skip_prk_steps": True}
COUNTS = (1, 2, 4, 7, 30, 48, 61)


def theirs(scheduler, steps: int) -> list[float]:
    """Where the steps of a scheduler begin: some tell the network a label twice."""
    scheduler.set_timesteps(steps)
    midpoints = type(scheduler).__name__.startswith("KDPM2")
    labels = scheduler.timesteps[::2] if midpoints else scheduler.timesteps
    return list(dict.fromkeys(labels.float().tolist()))[:steps]  # for rounding, 61 trailing are 62


def ours(scheduler, steps: int) -> list[float]:
    scheduler.set_timesteps(steps)
    return scheduler.timesteps.tolist()


@pytest.mark.parametrize("name", SPACED)
def test_a_timestep_spacing_that_is_asked_for_is_that_of_the_class(name):
    """At every number of steps; also of a config that does not say its class."""
    cls = getattr(diffusers, name)
    plain = cls(**SD, steps_offset=1, **PLMS if name == "PNDMScheduler" else {})
    for spacing in ("leading", "linspace", "trailing"):
        rival = cls.from_config(plain.config, timestep_spacing=spacing)
        saved = {**plain.config, "_class_name": name}
        for config, counts in ((plain.config, (4,)), (saved, COUNTS)):
            made = SolverScheduler.from_config(config, timestep_spacing=spacing, solver="ddim")
            for steps in counts:
                with warnings.catch_warnings(action="ignore"):
                    found, wanted = ours(made, steps), theirs(rival, steps)
                rounding = 1e-6 if spacing == "linspace" else 0.0  # of float32, where not whole
                assert found == pytest.approx(wanted, rel=rounding, abs=0.0), (spacing, steps)
        back = cls.from_config(made.config)
        assert back.config.timestep_spacing == spacing


def test_the_spacings_were_found():
    assert len(SPACED) > 15


def test_of_the_spacings_in_configs_trailing_is_taken():
    """The others stand in every config of diffusers, whatever its network was trained for."""
    made = {
        spacing: SolverScheduler.from_config(
            diffusers.DDIMScheduler(**SD, timestep_spacing=spacing).config
        )
        for spacing in ("leading", "linspace", "trailing")
    }
    assert ours(made["trailing"], 4) == [999, 749, 499, 249]
    assert ours(made["leading"], 4) == ours(made["linspace"], 4)
    assert ours(made["leading"], 4) != [750, 500, 250, 0]


def test_a_spacing_can_be_put_into_the_config_later():
    config = diffusers.DDIMScheduler(**SD, timestep_spacing="trailing").config
    scheduler = SolverScheduler.from_config(config)
    scheduler.config.timestep_spacing = "leading"
    assert ours(scheduler, 4) == [750, 500, 250, 0]
    scheduler.register_to_config(steps_offset=1)
    assert ours(scheduler, 4) == [751, 501, 251, 1]


def test_every_fact_of_a_network_is_taken_by_every_config():
    """Whether or not the scheduler that the config is of knows it."""
    facts = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
    rival = diffusers.DDIMScheduler(**SD, **facts, timestep_spacing="trailing", clip_sample=False)
    made = SolverScheduler.from_config(
        diffusers.PNDMScheduler(**SD).config, **facts, timestep_spacing="trailing", solver="ddim"
    )
    made.set_timesteps(5)
    rival.set_timesteps(5)
    assert made.timesteps.tolist() == rival.timesteps.tolist() == [999, 799, 599, 399, 199]
    noise, *outs = torch.randn(6, 1, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    x, y = noise, noise
    for t, out in zip(rival.timesteps, outs, strict=True):
        x, y = (each.step(out, t, z).prev_sample for each, z in ((made, x), (rival, y)))
    wanted = rival.step(outs[-1], 199, y).pred_original_sample
    assert y.shape == wanted.shape
    abar = torch.tensor(made.process.fixed.alphas_cumprod)
    torch.testing.assert_close(abar.float(), rival.alphas_cumprod, rtol=1e-4, atol=1e-7)
    divided = SolverScheduler.from_config(diffusers.DDPMScheduler(**SD).config, snr_shift_scale=3.0)
    cog = diffusers.CogVideoXDDIMScheduler(**SD, snr_shift_scale=3.0)
    abar = torch.tensor(divided.process.fixed.alphas_cumprod)
    torch.testing.assert_close(abar.float(), cog.alphas_cumprod.float(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("name", sorted(NO_CHOICE))
def test_a_consistency_model_is_asked_at_the_labels_it_was_distilled_at(name):
    for own in ({}, {"original_inference_steps": 100}):
        rival = getattr(diffusers, name)(**SD, **own)
        for config in (rival.config, {**rival.config, "_class_name": name}):
            made = SolverScheduler.from_config(config, solver="ddim")
            for steps in (1, 2, 3, 4, 7, 8, 33, 50):
                assert ours(made, steps) == theirs(rival, steps)
    assert ours(made, 4) == [999, 749, 499, 249]
    with pytest.raises(FewstepError, match="101 steps are more than the 100 timesteps trained"):
        made.set_timesteps(101)
    lora = diffusers.DDIMScheduler.from_config({**rival.config, "_class_name": name})
    other = {**lora.config, "_class_name": "DDIMScheduler"}
    grid = time_grid(choose_default_grid(VPDiscrete(), 3), VPDiscrete(), 3)
    second = VPDiscrete().label(grid.nodes[1])
    assert ours(SolverScheduler.from_config(other), 3)[1] == pytest.approx(second, abs=0.01)


LISTS = [
    (diffusers.FlowMatchEulerDiscreteScheduler(), [1000.0, 500.0, 0.0], [1000.0, 500.0]),
    (diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), [1000, 750, 0], [1000.0, 750.0]),
    (diffusers.DDIMScheduler(**SD), [999, 499, 0], [999.0, 499.0, 0.0]),  # where sigma is .029
]


@pytest.mark.parametrize(("scheduler", "asked", "labels"), LISTS)
def test_a_zero_at_the_end_of_timesteps_is_the_end_where_it_is_of_clean_data(
    scheduler, asked, labels
):
    made = SolverScheduler.from_config(scheduler.config)
    made.set_timesteps(timesteps=asked)
    assert made.timesteps.tolist() == labels
    assert made.sigmas[-1] == 0.0
    assert made.num_inference_steps == len(labels)
