"""Two states in one run, video and audio: one call of the network answers both, each has a copy of
the scheduler."""

import copy
from types import SimpleNamespace

import diffusers
import pytest
import torch

from fewstep import SolverScheduler
from fewstep.models.errors import SettingError

CONFIG = diffusers.FlowMatchEulerDiscreteScheduler(
    use_dynamic_shifting=True, base_shift=0.95, max_shift=2.05, shift_terminal=0.1
).config
MU = 0.95 + (8 - 256) / (4096 - 256) * (2.05 - 0.95)  # of the eight tokens of the video
HEADS = {
    f"{kind}{name}": value
    for kind in ("", "audio_")
    for name, value in (
        ("num_attention_heads", 2),
        ("attention_head_dim", 12),
        ("cross_attention_dim", 24),
    )
}


def make_ltx2():
    """A tiny LTX-2, without its encoders and decoders."""
    torch.manual_seed(0)
    channels = {"in_channels": 4, "out_channels": 4}
    sound = {"audio_in_channels": 16, "audio_out_channels": 16}
    net = diffusers.LTX2VideoTransformer3DModel(
        **channels, **sound, **HEADS, num_layers=1, caption_channels=24
    ).eval()
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler.from_config(CONFIG)
    pipe = diffusers.LTX2Pipeline(scheduler, None, None, None, None, None, net, None)
    pipe.connectors = lambda embeds, mask, **_: (embeds, embeds, mask)
    for name, n in (("vae", 4), ("audio_vae", 16)):
        config = SimpleNamespace(scaling_factor=1.0, mel_bins=8, latent_channels=8)
        parts = {"latents_mean": torch.zeros(n), "latents_std": torch.ones(n), "config": config}
        setattr(pipe, name, SimpleNamespace(**parts))
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw(pipe, **given):
    """The latents of video and audio."""
    embeds = torch.linspace(-1, 1, 120).reshape(1, 5, 24)
    texts = {"prompt_embeds": embeds, "negative_prompt_embeds": -embeds}
    texts |= {f"{kind}prompt_attention_mask": torch.ones(1, 5) for kind in ("", "negative_")}
    usual = {"guidance_scale": 2.0, "stg_scale": 0.0, "modality_scale": 1.0}
    scales = {f"{kind}{name}": usual[name] for kind in ("", "audio_") for name in usual}
    size = {"height": 64, "width": 64, "num_frames": 9, "generator": torch.Generator()}
    return pipe(**texts, **scales, **size, **given, output_type="latent", return_dict=False)


def test_a_pipeline_of_video_and_audio_steps_both_by_copies_of_the_scheduler():
    pipe = make_ltx2()
    wanted = draw(pipe, num_inference_steps=4)
    pipe.scheduler = SolverScheduler.from_config(CONFIG, solver="euler")
    found = draw(pipe, num_inference_steps=4)
    for ours, theirs in zip(found, wanted, strict=True):
        assert (ours - theirs).abs().max() < 1e-5 * theirs.abs().max()


def test_the_copies_of_a_pipeline_remember_each_their_own_state(monkeypatch):
    """Each gives what a scheduler gives that is handed the same answers and no others."""
    handed, step = {}, SolverScheduler.step

    def record(self, output, timestep, sample, **given):
        result = step(self, output, timestep, sample, **given)
        handed.setdefault(id(self), []).append((output, timestep, sample, result[0]))
        return result

    monkeypatch.setattr(SolverScheduler, "step", record)
    pipe = make_ltx2()
    pipe.scheduler = SolverScheduler.from_config(CONFIG, solver="unipc-2")
    draw(pipe, num_inference_steps=4)
    monkeypatch.undo()
    assert [len(calls) for calls in handed.values()] == [4, 4]
    for calls in handed.values():
        alone = copy.deepcopy(pipe.scheduler)
        alone.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=MU)
        x = calls[0][2]
        for output, timestep, _, result in calls:
            x = alone.step(output, float(timestep), x).prev_sample
            assert torch.equal(x, result)


@pytest.mark.parametrize("solver", ["unipc-3", "heun", "dpmpp-sde", "dpmpp-2s"])
def test_a_second_state_that_is_a_copy_of_the_first_stays_equal(solver):
    """And one on a grid of its own goes its own way, beside it."""
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    video = SolverScheduler.from_config(config, solver=solver)
    video.set_timesteps(6)
    same = copy.deepcopy(video)
    own = SolverScheduler.from_config(config, solver=solver, grid="uniform:shift=2")
    own.set_timesteps(6)
    x = torch.linspace(-1, 1, 8).reshape(2, 4)
    states, steppers = [x, x, x[:, :3]], [video, same, own]
    alone = steps_of(copy.deepcopy(own), x[:, :3])
    for n in range(len(video.timesteps)):
        answers = [torch.sin(3 * state) for state in states]
        states = [
            each.step(out, each.timesteps[n], state, generator=torch.Generator()).prev_sample
            for each, out, state in zip(steppers, answers, states, strict=True)
        ]
    assert torch.equal(states[0], states[1])
    assert torch.equal(states[2], alone)
    assert not torch.equal(states[0][:, :3], states[2])


def steps_of(scheduler, x):
    for t in scheduler.timesteps:
        x = scheduler.step(torch.sin(3 * x), t, x, generator=torch.Generator()).prev_sample
    return x


def test_a_second_state_in_one_scheduler_is_refused_with_a_remedy():
    scheduler = SolverScheduler.from_config(CONFIG, solver="unipc-2")
    scheduler.set_timesteps(4, mu=1.0)
    x, t = torch.zeros(1, 2), scheduler.timesteps[0]
    scheduler.step(x, t, x)
    with pytest.raises(SettingError, match=r"a second state is stepped by copy\.deepcopy"):
        scheduler.step(x, t, x)
