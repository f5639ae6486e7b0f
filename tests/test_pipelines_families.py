"""`Sampler` on the networks of text-to-image pipelines: what the pipeline itself makes of them."""

from dataclasses import replace

import diffusers
import numpy as np
import pytest
import torch
from tiny_pipes import PIPES, call, pipeline

from fewstep import CFG, Sampler, SolverScheduler
from fewstep.models.errors import ModelError
from fewstep.models.families import Size, encoded, family_of
from fewstep.models.families.base import pack, unpack

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
}


def texts_of(name: str) -> dict:
    return {key: PIPES[name].call[key] for key in ROWS[name][1]}


def packed_like(found: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Flux and Qwen hand out their latents packed."""
    return pack(found) if found.ndim > wanted.ndim else found


@pytest.mark.parametrize("solver", ["unipc-3", "heun"])
@pytest.mark.parametrize("name", ROWS)
def test_the_sampler_gives_what_the_pipeline_gives(name, solver):
    """One seed, one grid, one solver; rounding alone differs, as rows are batched otherwise."""
    size, _, scale = ROWS[name]
    pipe = pipeline(name)
    own = {"guidance_scale": scale} if scale else {"true_cfg_scale": 1.0}
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


def test_a_network_without_adapter_says_what_to_do():
    pipe = pipeline("lumina2")
    assert family_of(pipe) is None
    with pytest.raises(ModelError, match=r"no adapter for Lumina2\w+, .*SolverScheduler"):
        Sampler.from_pipeline(pipe, Size(64, 64))


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
