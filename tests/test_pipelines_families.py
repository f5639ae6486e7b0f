"""`Sampler` on the networks of text-to-image pipelines: what the pipeline itself makes of them."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from tiny_pipes import PIPES, call, pipeline, text, vae, wan_vae

from fewstep import CFG, Sampler, SolverScheduler
from fewstep.models.architectures import known_classes
from fewstep.models.architectures.base import Size
from fewstep.models.architectures.common import module_of, pack, unpack
from fewstep.models.errors import FewstepError, ModelError, SettingError
from fewstep.models.pipeline_network import encoded, network_of

# pipeline: (size, the tensors it is asked with, guidance scale of two branches)
TEXTS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds")
TEXTS = (*TEXTS, "negative_pooled_prompt_embeds")
MASKED = (*TEXTS[:2], "prompt_attention_mask", "negative_prompt_attention_mask")
ROWS = {
    "sd": (Size(16, 16), TEXTS[:2], 3.0),
    "sd-v": (Size(16, 16), TEXTS[:2], 3.0),
    "sdxl": (Size(16, 16), TEXTS, 3.0),
    "sd3": (Size(64, 64), TEXTS, 7.0),
    "flux": (Size(64, 64), ("prompt_embeds", "pooled_prompt_embeds"), None),
    "pixart": (Size(64, 64), MASKED, 4.5),
    "sana": (Size(192, 192), MASKED, 4.5),
    "qwen": (Size(64, 64), ("prompt_embeds", "prompt_embeds_mask"), None),
    "wan": (Size(64, 64, frames=5), TEXTS[:2], 5.0),
    "lumina2": (Size(64, 64), MASKED, 4.0),
    "aura": (Size(64, 64), MASKED, 3.5),
    "ltx": (Size(128, 128, frames=9), MASKED, 3.0),
    "cogvideox": (Size(64, 64, frames=5), TEXTS[:2], 6.0),
    "hunyuan": (Size(64, 64, frames=5), (*TEXTS[:3:2], "prompt_attention_mask"), None),
}


def texts_of(name: str) -> dict:
    return {key: PIPES[name].call[key] for key in ROWS[name][1]}


def packed_like(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Flux, Qwen and LTX hand out their latents packed."""
    if found.ndim <= wanted.ndim:
        return found
    return pack(found) if found.ndim == 4 else found.flatten(2).transpose(1, 2)


@pytest.mark.parametrize("solver", ["unipc-3", "heun"])
@pytest.mark.parametrize("name", ROWS)
def test_the_sampler_gives_what_the_pipeline_gives(name, solver):
    """One seed, one grid, one solver; rounding alone differs, as rows are batched otherwise."""
    size, _, scale = ROWS[name]
    pipe = pipeline(name)
    own = {"guidance_scale": scale} if scale else {"true_cfg_scale": 1.0}
    own |= {"cfg_normalization": False} if name == "lumina2" else {}
    conditions, negative = encoded(pipe, size, **texts_of(name))
    assert (negative is not None) == (scale is not None)
    sampler = Sampler.from_pipeline(pipe, size)
    flow = sampler.network.schedule.family == "flow"
    chosen = {"solver": solver, "grid": "uniform" if flow else "quadratic"}
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, **chosen)
    wanted = call(name, pipe, num_inference_steps=4, **own)
    guidance = None if scale is None else CFG(scale)
    plan = {"guidance": guidance, "steps": 4, **chosen}
    given = {"conditions": conditions, "negative": negative}
    undecoded = Sampler(latent(sampler.network))
    found = packed_like(undecoded([0], **given, **plan).samples, wanted)
    assert (found - wanted).abs().max() < 2e-4 * wanted.abs().max()
    if solver == "unipc-3":  # shifted alike: by the same number of tokens
        *nodes, _ = undecoded.plan(steps=4, **chosen).grid.nodes
        labels = [sampler.network.schedule.label(node) for node in nodes]
        torch.testing.assert_close(torch.tensor(labels), pipe.scheduler.timesteps)


def test_every_adapter_is_tried():
    tried = {type(module_of(pipeline(name))).__name__ for name in ROWS}
    assert tried == set(known_classes(lambda card: card.prompted))


@pytest.mark.slow
def test_a_compiled_network_is_adapted_like_itself():
    pipe, (size, *_) = pipeline("sd3"), ROWS["sd3"]
    conditions, _ = encoded(pipe, size, **texts_of("sd3"))
    own = {"conditions": conditions, "solver": "euler", "steps": 2}
    wanted = Sampler.from_pipeline(pipe, size)([0], **own).samples
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")
    assert torch.equal(Sampler.from_pipeline(pipe, size)([0], **own).samples, wanted)


def latent(network):
    return replace(network, decode=None)


def test_images_are_decoded_as_the_pipeline_decodes_them():
    pipe = pipeline("sd")
    size = ROWS["sd"][0]
    conditions, _ = encoded(pipe, size, prompt_embeds=PIPES["sd"].call["prompt_embeds"])
    sampler = Sampler.from_pipeline(pipe, size)
    image = sampler([0], conditions=conditions, solver="ddim", steps=4, grid="uniform").samples
    chosen = {"solver": "ddim", "grid": "uniform"}
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, **chosen)
    asked = {"guidance_scale": 1.0, "output_type": "np", "num_inference_steps": 4}
    wanted = torch.from_numpy(call("sd", pipe, **asked)).permute(0, 3, 1, 2)
    torch.testing.assert_close((image / 2 + 0.5).clamp(0, 1), wanted, rtol=0, atol=1e-3)


def test_prompts_are_encoded_by_the_pipeline():
    pipe = pipeline("sd")

    def encode_prompt(
        prompt, device, num_images_per_prompt, do_classifier_free_guidance, negative_prompt=None
    ):
        rows = [prompt, negative_prompt or ""]
        return tuple(torch.full((1, 5, 12), float(len(row))) for row in rows)

    pipe.encode_prompt = encode_prompt
    conditions, negative = encoded(pipe, Size(16, 16), prompt="a cat", negative_prompt="a dog!")
    assert conditions["encoder_hidden_states"][0, 0, 0] == 5.0
    assert negative["encoder_hidden_states"][0, 0, 0] == 6.0
    with pytest.raises(ModelError, match="takes no promt"):
        encoded(pipe, Size(16, 16), promt="a cat")


def test_packing_is_undone():
    x = torch.randn(2, 3, 6, 4)
    assert pack(x).shape == (2, 6, 12)
    assert torch.equal(unpack(pack(x), x.shape), x)
    assert torch.equal(pack(x), diffusers.FluxPipeline._pack_latents(x, 2, 3, 6, 4))


REFUSED = {
    "flux2": (Size(64, 64), r"no adapter for Flux2\w+, only for .*SolverScheduler"),
    "flux-fill": (Size(64, 64), "reads 24 channels and answers 4: .*SolverScheduler"),
    "ddpm": (Size(64, 64), r"not asked with a prompt; use Sampler.from_pipeline\(pipe\)"),
    "sd": (Size(64, 64, frames=9), "draws pictures, not 9 frames"),
    "sdxl": (Size(64, 64, guidance=7.5), r"not told a guidance scale; .* guidance=CFG\(7.5\)"),
    "sd3": (Size(1, 64), "64x1 is less than one patch"),
    "sana": ((64, 64), r"size=\(64, 64\) must be a Size"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_an_adapter_cannot_do_is_refused(name):
    size, message = REFUSED[name]
    with pytest.raises(FewstepError, match=message):
        Sampler.from_pipeline(pipeline(name), size)


NEAREST = {
    "sd": (Size(63, 64), "height=62 or 64"),
    "flux": (Size(60, 64), "height=48 or 64"),
    "qwen": (Size(64, 65), "width=64 or 80"),
    "sana": (Size(64, 60), "width=32 or 64"),
    "wan": (Size(64, 64, frames=6), "frames=5 or 9"),
    "ltx": (Size(64, 64, frames=2), "frames=1 or 9"),
    **{name: (Size(60, 64), "height=48 or 64") for name in ("sd3", "pixart", "lumina2", "hunyuan")},
}


@pytest.mark.parametrize("name", NEAREST)
def test_a_size_that_would_be_rounded_is_refused_and_the_nearest_are_drawn(name):
    (size, message), pipe = NEAREST[name], pipeline(name)
    with pytest.raises(SettingError, match=f"take {message}$"):
        Sampler.from_pipeline(pipe, size)
    side, *near = message.replace("=", " ").replace(" or ", " ").split()
    shapes = [
        Sampler.from_pipeline(pipe, replace(size, **{side: int(each)})).network.shape
        for each in near
    ]
    axis = {"height": -2, "width": -1, "frames": -3}[side]
    low, high = (shape[axis] - (side == "frames") for shape in shapes)
    assert low * (int(near[1]) - (side == "frames")) == high * (int(near[0]) - (side == "frames"))
    assert shapes[0][axis] < shapes[1][axis]


def test_a_network_without_adapter_is_refused_without_a_size_too():
    with pytest.raises(ModelError, match=r"no adapter for Flux2\w+, only for .*SolverScheduler"):
        Sampler.from_pipeline(pipeline("flux2"))


@pytest.mark.parametrize("part", ["controlnet", "adapter"])
def test_a_second_network_is_not_left_out(part):
    pipe = pipeline("wan")
    setattr(pipe, part, pipe.transformer)
    with pytest.raises(ModelError, match=f"WanPipeline calls its {part} too.*SolverScheduler"):
        Sampler.from_pipeline(pipe, Size(64, 64))


def test_rotary_networks_of_cogvideox_are_refused():
    pipe = pipeline("cogvideox")
    pipe.transformer.register_to_config(use_rotary_positional_embeddings=True)
    with pytest.raises(ModelError, match=r"rotary embeddings.*SolverScheduler"):
        Sampler.from_pipeline(pipe, Size(64, 64))


@pytest.mark.parametrize("value", [0, -8, 64.0, "64", True])
def test_sizes_are_whole_numbers(value):
    with pytest.raises(SettingError, match=r"height=.* must be a positive whole number"):
        Size(value, 64)


def test_the_scale_that_a_network_is_told_counts():
    pipe = pipeline("flux")
    told = [encoded(pipe, Size(64, 64, guidance=g), **texts_of("flux"))[0] for g in (None, 3.5, 7)]
    assert [float(each["guidance"]) for each in told] == [3.5, 3.5, 7.0]


ASKED_WRONGLY = {
    "nothing": ({}, "give prompt= or prompt_embeds="),
    "no encoder": ({"prompt": "a cat"}, "no text encoder to read a prompt with"),
    "no encoder for the other": (
        {"prompt_embeds": torch.zeros(1, 5, 12), "negative_prompt": "a dog"},
        "no text encoder to read a prompt with",
    ),
}


@pytest.mark.parametrize("case", ASKED_WRONGLY)
def test_prompts_that_cannot_be_encoded_say_why(case):
    texts, message = ASKED_WRONGLY[case]
    with pytest.raises(ModelError, match=message):
        encoded(pipeline("sd"), Size(16, 16), **texts)


NEGATIVE = {"negative_prompt_embeds": text(1, 5, 12, seed=1)}
NEGATIVE |= {"negative_pooled_prompt_embeds": text(1, 10, seed=3)}
ONE_AT_A_TIME = {  # what else the pipeline is asked with to be guided by two branches
    "flux": NEGATIVE,
    "qwen": {},
    "hunyuan": NEGATIVE | {"negative_prompt_attention_mask": torch.ones(1, 5)},
}


@pytest.mark.parametrize("name", ONE_AT_A_TIME)
def test_pipelines_that_encode_one_prompt_at_a_time_are_guided(name):
    """True guidance beside or instead of the scale that the network is told."""
    pipe, size = pipeline(name), ROWS[name][0]
    texts = {key: value for key, value in PIPES[name].call.items() if "prompt" in key}
    texts |= ONE_AT_A_TIME[name]
    conditions, negative = encoded(pipe, size, **texts)
    assert not torch.equal(negative["encoder_hidden_states"], conditions["encoder_hidden_states"])
    sampler = Sampler.from_pipeline(pipe, size)
    chosen = {"solver": "unipc-2", "grid": "uniform"}
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, **chosen)
    wanted = call(name, pipe, num_inference_steps=3, true_cfg_scale=3.0, **texts)
    given = {"conditions": conditions, "negative": negative, "guidance": CFG(3.0)}
    undecoded = Sampler(latent(sampler.network))
    found = packed_like(undecoded([0], **given, steps=3, **chosen).samples, wanted)
    if name == "qwen":  # whose pipeline gives the guided prediction the norm of the conditional
        assert found.isfinite().all()
    else:
        assert (found - wanted).abs().max() < 2e-4 * wanted.abs().max()


def test_no_negative_prompt_is_none():
    texts = {"prompt_embeds": torch.zeros(1, 5, 12), "negative_prompt_embeds": None}
    assert encoded(pipeline("sd"), Size(16, 16), **texts)[1] is None


def test_conditions_are_known_and_complete():
    pipe, size = pipeline("sdxl"), Size(16, 16)
    conditions, _ = encoded(pipe, size, **texts_of("sdxl"))
    sampler, plan = Sampler.from_pipeline(pipe, size), {"solver": "ddim", "steps": 2}
    with pytest.raises(FewstepError, match="no condition 'time_id'; did you mean 'time_ids'"):
        sampler([0], conditions={**conditions, "time_id": torch.ones(1, 6)}, **plan)
    conditions.pop("time_ids")
    with pytest.raises(ModelError, match="needs time_ids"):
        sampler([0], conditions=conditions, **plan)


def test_pain_24_our_driver_for_pipelines_that_replace_schedulers():
    """DDIMPipeline makes a DDIMScheduler of whatever it is given; the network is the same."""
    pipe = pipeline("ddpm")
    held = diffusers.DDIMPipeline(pipe.unet, pipe.scheduler)
    held.set_progress_bar_config(disable=True)
    held.scheduler = SolverScheduler.from_config(held.scheduler.config, solver="unipc-3")
    sampler = Sampler.from_pipeline(held)
    image = sampler([3], solver="unipc-3", steps=5).samples
    own = {"generator": torch.Generator().manual_seed(3), "output_type": "np"}
    wanted = held(num_inference_steps=5, **own, return_dict=False)[0]
    found = (image / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).numpy()
    assert np.abs(found - wanted).max() < 1e-5


def test_a_flow_pipeline_with_our_scheduler_in_it_is_read_as_before():
    pipe = pipeline("sd3")
    plain = Sampler.from_pipeline(pipe, Size(64, 64)).network
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config)
    held = Sampler.from_pipeline(pipe, Size(64, 64)).network
    assert (held.schedule, held.prediction) == (plain.schedule, plain.prediction)


def test_videos_stay_latents_though_the_pipeline_has_a_vae():
    made = network_of(pipeline("wan", **wan_vae()), ROWS["wan"][0])
    assert (made.decode, made.encode) == (None, None)
    made = network_of(pipeline("sd", **vae()), ROWS["sd"][0])
    assert callable(made.decode)
    assert callable(made.encode)
