"""What a pipeline holds of the state: as its own scheduler has it, or over alpha."""

import math

import diffusers
import pytest
import torch
from tiny_pipes import PIPES, call, pipeline, reference, times_of

from fewstep import SolverScheduler
from fewstep.models.diffusers_config import EXPLODING
from fewstep.models.errors import FewstepError, ModelError, SettingError

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
EULER = {**diffusers.EulerDiscreteScheduler(**SD).config, "_class_name": "EulerDiscreteScheduler"}
VP = diffusers.DDIMScheduler(**SD, clip_sample=False).config
FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
SHAPE = (2, 4, 4)


def noise(seed: int = 0) -> torch.Tensor:
    return torch.randn(2, *SHAPE, generator=torch.Generator().manual_seed(seed))


def run(scheduler, x: torch.Tensor, edit=lambda x: x) -> list[torch.Tensor]:
    """All that a pipeline holds in a run, divided by what it begins with."""
    held = [x * scheduler.init_noise_sigma]
    for t in scheduler.timesteps:
        out = torch.tanh(scheduler.scale_model_input(held[-1], t) + t / 1000)
        held.append(edit(scheduler.step(out, t, held[-1], return_dict=False)[0]))
    return held


@pytest.mark.parametrize("name", sorted(EXPLODING))
def test_where_schedulers_hold_the_state_over_alpha_so_does_ours(name):
    rival = getattr(diffusers, name)(**SD) if name != "DPMSolverSDEScheduler" else None
    scheduler = SolverScheduler.from_config(EULER | {"_class_name": name}, solver="heun")
    scheduler.set_timesteps(4)
    first = scheduler.sigmas[0]
    assert scheduler.init_noise_sigma == pytest.approx(math.hypot(1.0, first))
    if rival is None:  # it wants torchsde
        return
    rival.set_timesteps(4)
    asked = rival.timesteps[:1]
    mixed = scheduler.add_noise(noise(), noise(1), asked)
    torch.testing.assert_close(mixed, rival.add_noise(noise(), noise(1), asked), rtol=1e-4, atol=0)
    scaled = scheduler.scale_model_input(noise(), asked[0])
    torch.testing.assert_close(scaled, rival.scale_model_input(noise(), asked[0]))


@pytest.mark.parametrize("solver", ["ddim", "unipc-3", "heun", "sde-dpmpp-2", "dpm-3s"])
def test_both_states_give_one_image(solver):
    ends = {}
    for state in ("vp", "ve"):
        scheduler = SolverScheduler.from_config(VP, solver=solver, state=state)
        scheduler.set_timesteps(6)
        torch.manual_seed(0)
        ends[state] = run(scheduler, noise())
        nodes = [question.node for question in scheduler._calls]
    for node, plain, over in zip(nodes, ends["vp"], ends["ve"], strict=False):
        torch.testing.assert_close(over * node.alpha, plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(ends["ve"][-1], ends["vp"][-1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_an_edit_counts_in_both_states(dtype):
    """Zeroing what the pipeline holds zeroes the state; bfloat16 keeps what was not edited."""
    ends = []
    for state in ("vp", "ve"):
        scheduler = SolverScheduler.from_config(VP, state=state)
        scheduler.set_timesteps(4)
        *_, end = run(scheduler, noise().to(dtype), lambda x: x * 0.0)
        assert not end.any()
        scheduler.set_timesteps(4)
        ends.append(run(scheduler, noise().to(dtype), lambda x: x.clone())[-1])
    if dtype is torch.float32:
        torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5)


def test_an_euler_run_of_diffusers_is_ours_state_by_state():
    rival = diffusers.EulerDiscreteScheduler(**SD, timestep_spacing="leading", steps_offset=1)
    rival.set_timesteps(6)
    scheduler = SolverScheduler.from_config(EULER, solver="ddim", grid=times_of(rival))
    scheduler.set_timesteps(6)
    for found, wanted in zip(run(scheduler, noise()), run(rival, noise()), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_the_latent_upscaler_gives_the_image_of_its_own_scheduler():
    """It scales its network's input and output by `scheduler.sigmas`, as of a state over alpha."""
    name = "latent-upscale"
    pipe = pipeline(name, scheduler=reference(name))
    wanted = call(name, pipe, num_inference_steps=4)
    own = {"solver": "ddim", "grid": times_of(pipe.scheduler)}
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, **own)
    found = call(name, pipe, num_inference_steps=4)
    assert (found - wanted).abs().max() < 2e-4 * wanted.abs().max()
    config = diffusers.EulerDiscreteScheduler(**PIPES[name].scheduler[1]).config  # of no class
    pipe.scheduler = SolverScheduler.from_config(config, **own)
    with pytest.raises(SettingError, match=r"scales sigma .*; pass state='ve' to from_config"):
        call(name, pipe, num_inference_steps=4)
    pipe.scheduler = SolverScheduler.from_config(config, **own, state="ve")
    assert torch.equal(call(name, pipe, num_inference_steps=4), found)


def test_the_state_is_kept_and_can_be_chosen():
    scheduler = SolverScheduler.from_config(EULER, state="vp")
    assert scheduler.init_noise_sigma == 1.0
    assert SolverScheduler.from_config(scheduler.config).init_noise_sigma == 1.0
    again = SolverScheduler.from_config(scheduler.config, state=None)
    assert again.init_noise_sigma == pytest.approx(14.6488, abs=1e-4)
    for config, state, message in (
        (FLOW, "ve", "variance-preserving networks, not for flow"),
        (VP, "exploding", "no state 'exploding'; known: ve, vp"),
    ):
        with pytest.raises(FewstepError, match=message):
            SolverScheduler.from_config(config, state=state)


def test_a_cosmos_pipeline_is_refused_by_name_whichever_comes_first():
    class Pipeline(diffusers.Cosmos2TextToImagePipeline):
        """Without the guard, which is a package of its own."""

        def __init__(self, scheduler) -> None:
            none = dict.fromkeys(("text_encoder", "tokenizer", "transformer", "vae"))
            super().__init__(**none, scheduler=scheduler, safety_checker=torch.nn.Identity())

    saved = diffusers.FlowMatchEulerDiscreteScheduler.from_config(
        {"_class_name": "FlowMatchEulerDiscreteScheduler", "use_karras_sigmas": True}
    )
    ours = SolverScheduler.from_config(saved.config)
    Pipeline(saved)
    with pytest.raises(ModelError, match=r"of a Cosmos pipeline.*keep its own scheduler"):
        SolverScheduler.from_config(saved.config)
    Pipeline(ours)
    with pytest.raises(ModelError, match=r"of a Cosmos pipeline.*keep its own scheduler"):
        ours.set_timesteps(sigmas=torch.linspace(0, 1, 4))
