"""What is changed in a config after its scheduler was built, and configs between classes."""

import diffusers
import pytest
import torch
from diffusers.configuration_utils import FrozenDict

from fewstep import SolverScheduler
from fewstep.models.errors import FewstepError, SettingError

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOWING = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
WAN = diffusers.UniPCMultistepScheduler(**FLOWING).config
FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
DYNAMIC = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
PNDM = diffusers.PNDMScheduler(**SD, skip_prk_steps=True).config
RAMP = [1.0, 0.75, 0.5, 0.25]


def ours(config, **own) -> SolverScheduler:
    return SolverScheduler.from_config(config, **own)


def sigmas_of(scheduler) -> torch.Tensor:
    scheduler.set_timesteps(sigmas=RAMP)
    return scheduler.sigmas


def shifted(shift: float) -> torch.Tensor:
    """The sigmas of diffusers' own flow scheduler."""
    return sigmas_of(diffusers.FlowMatchEulerDiscreteScheduler(shift=shift))


def replace(scheduler, key: str, value: object) -> None:
    """As pipelines mend old configs."""
    scheduler._internal_dict = FrozenDict({**scheduler.config, key: value})


SPELLINGS = {
    "attribute": lambda made, key, value: setattr(made.config, key, value),
    "item": lambda made, key, value: made.config.__setitem__(key, value),
    "register": lambda made, key, value: made.register_to_config(**{key: value}),
    "replaced": replace,
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_change_of_the_config_counts_from_the_next_plan_on(spelling):
    """Twice, back to where it was, and whichever of its two names the shift is given."""
    for config, key in ((WAN, "flow_shift"), (FLOW, "shift"), (FLOW, "flow_shift")):
        scheduler = ours(config)
        torch.testing.assert_close(sigmas_of(scheduler), shifted(3.0))
        held = scheduler.config
        for value in (6.9, 5.0, 3.0):
            SPELLINGS[spelling](scheduler, key, value)
            torch.testing.assert_close(sigmas_of(scheduler), shifted(value))
            assert scheduler.config[key] == getattr(scheduler.config, key) == value
            again = ours(scheduler.config)
            assert again.process.fixed == scheduler.process.fixed
        assert spelling in ("register", "replaced") or scheduler.config is held


def test_set_shift_is_that_of_diffusers():
    scheduler, rival = ours(FLOW), diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    for made in (scheduler, rival):
        made.set_shift(8.0)
    torch.testing.assert_close(sigmas_of(scheduler), sigmas_of(rival))
    assert scheduler.config.shift == 8.0
    wan = ours(WAN)
    wan.set_shift(8.0)
    torch.testing.assert_close(sigmas_of(wan), shifted(8.0))
    assert wan.config.flow_shift == 8.0
    for config, message in ((DYNAMIC, "add use_dynamic_shifting=False"), (PNDM, "changes nothing")):
        other = ours(config)
        before = dict(other.config)
        with pytest.raises(SettingError, match=message):
            other.set_shift(8.0)
        assert other.config == before


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_prediction_type_can_be_changed_as_training_scripts_do(spelling):
    """The x0 is then what diffusers' own scheduler makes of the same output."""
    rival = diffusers.DDIMScheduler(**SD, prediction_type="v_prediction", clip_sample=False)
    scheduler = ours(PNDM)
    SPELLINGS[spelling](scheduler, "prediction_type", "v_prediction")
    scheduler.set_timesteps(timesteps=[600, 300])
    rival.set_timesteps(1000)
    x, out = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    found = scheduler.step(out, 600, x).pred_original_sample
    torch.testing.assert_close(found, rival.step(out, 600, x).pred_original_sample)


def test_a_change_counts_before_the_first_plan_for_what_needs_none():
    """Training scripts add noise without a run."""
    scheduler, rival = ours(PNDM), diffusers.DDPMScheduler(**SD | {"beta_end": 0.02})
    scheduler.register_to_config(beta_end=0.02)
    x, eps = torch.randn(2, 1, 2, 3, generator=torch.Generator().manual_seed(0))
    label = torch.tensor([600])
    wanted = rival.add_noise(x, eps, label)
    torch.testing.assert_close(scheduler.add_noise(x, eps, label), wanted)
    edm = ours(diffusers.EDMEulerScheduler().config)
    edm.config.sigma_max = 40.0
    assert edm.init_noise_sigma == pytest.approx(40.0)
    other = ours(PNDM)
    other.config.beta_end = 0.02
    torch.testing.assert_close(other.betas, rival.betas, rtol=1e-4, atol=1e-7)


def test_what_runs_can_be_changed_in_the_config_too():
    scheduler = ours(PNDM, schedule="ays-sd15-nfe10")
    scheduler.register_to_config(solver="heun", grid="karras")
    scheduler.set_timesteps(4)
    wanted = ours(PNDM, solver="heun", grid="karras")
    wanted.set_timesteps(4)
    assert torch.equal(scheduler.timesteps, wanted.timesteps)
    assert scheduler.config.schedule is None
    scheduler.config.use_beta_sigmas = True
    scheduler.config.grid = None
    scheduler.set_timesteps(4)
    assert scheduler.config.grid == "beta"


REFUSED = {
    "no effect": ("solver_order", 3, "solver_order=3 changes nothing here; choose with solver="),
    "unknown": ("flow_shft", 3.0, "no scheduler setting 'flow_shft'; did you mean 'flow_shift'"),
    "kind": ("beta_end", "big", "beta_end of the scheduler config must be a number"),
    "value": ("prediction_type", "w", "no prediction 'w'"),
    "solver": ("solver", "unipc3", "did you mean 'unipc-3'"),
}


@pytest.mark.parametrize("spelling", ["attribute", "register"])
@pytest.mark.parametrize("case", REFUSED)
def test_a_change_that_cannot_be_is_refused_until_it_is_taken_back(case, spelling):
    key, value, message = REFUSED[case]
    scheduler = ours(PNDM)
    before = scheduler.config.get(key)
    SPELLINGS[spelling](scheduler, key, value)
    for _ in range(2):
        with pytest.raises(FewstepError, match=message):
            scheduler.set_timesteps(4)
    if key in PNDM:
        SPELLINGS[spelling](scheduler, key, before)
        scheduler.set_timesteps(4)
        assert len(scheduler.timesteps) == 4


def test_what_pipelines_put_into_old_configs_is_no_request():
    scheduler = ours(diffusers.DDIMScheduler(**SD).config)
    for key, value in (("steps_offset", 1), ("clip_sample", False)):
        replace(scheduler, key, value)
    scheduler.set_timesteps(4)
    assert scheduler.config.steps_offset == 1


def test_a_config_with_two_values_of_one_fact_is_refused():
    """`config.x = value` leaves the item as it was, and nothing says which of them is meant."""
    rival = diffusers.UniPCMultistepScheduler(**FLOWING)
    rival.config.flow_shift = 6.9
    with pytest.raises(SettingError, match=r"from_config\(config, flow_shift=6.9\)$"):
        ours(rival.config)
    torch.testing.assert_close(sigmas_of(ours(rival.config, flow_shift=6.9)), shifted(6.9))
    with pytest.raises(SettingError, match="are one number"):
        ours(FLOW, shift=3.0, flow_shift=5.0)


def test_of_two_shifts_the_one_of_the_class_counts():
    """A config that went through another class has both; one of them is a leftover."""
    there = diffusers.UniPCMultistepScheduler.from_config(
        ours(FLOW).config, use_flow_sigmas=True, flow_shift=5.0, prediction_type="flow_prediction"
    )
    assert there.config.shift == 3.0
    torch.testing.assert_close(sigmas_of(ours(there.config)), shifted(5.0))
    back = diffusers.FlowMatchEulerDiscreteScheduler.from_config(ours(WAN).config, shift=7.0)
    torch.testing.assert_close(sigmas_of(ours(back.config)), shifted(7.0))
    dynamic = ours(WAN, use_dynamic_shifting=True)
    dynamic.set_timesteps(4, mu=1.0)
    assert dynamic.sigmas[2] == pytest.approx(torch.e / (1 + torch.e))


@pytest.mark.parametrize("saved", [False, True])
def test_a_default_that_nobody_set_is_not_pinned(saved, tmp_path):
    """PNDM's timestep_spacing is "leading" and UniPC's "linspace"; beta_end was set."""
    unipc = diffusers.UniPCMultistepScheduler
    scheduler = ours(PNDM, prediction_type="v_prediction")
    scheduler.register_to_config(beta_start=1e-3)
    scheduler.set_timesteps(4)
    direct = diffusers.PNDMScheduler(
        **SD | {"beta_start": 1e-3}, skip_prk_steps=True, prediction_type="v_prediction"
    )
    if saved:  # where diffusers pins every default, so the same is right
        scheduler.save_pretrained(tmp_path / "ours")
        direct.save_pretrained(tmp_path / "theirs")
        scheduler = SolverScheduler.from_pretrained(tmp_path / "ours")
        direct = diffusers.PNDMScheduler.from_pretrained(tmp_path / "theirs")
    wanted, found = unipc.from_config(direct.config).config, unipc.from_config(scheduler.config)
    fields = unipc._get_init_keys(unipc) - {"self"}
    assert {key: found.config[key] for key in fields} == {key: wanted[key] for key in fields}
    assert found.config.timestep_spacing == ("leading" if saved else "linspace")
    assert found.config.beta_start == 1e-3
    assert ours(found.config).process.fixed == scheduler.process.fixed
