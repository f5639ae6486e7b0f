"""`SolverScheduler` and `Sampler` where a LoRA or a ControlNet is on the network."""

from dataclasses import replace

import diffusers
import pytest
import tiny
import torch
from tiny_pipes import PIPES, call, ours_like, pipeline, reference, vae
from torch import Tensor

from fewstep import CFG, Sampler, SolverScheduler
from fewstep.models.architectures.base import Size
from fewstep.models.architectures.common import pack
from fewstep.models.caching import DeepCache, TaylorSeer, caching
from fewstep.models.errors import ModelError
from fewstep.models.pipeline_network import encoded

STEPS = 4
ADAPTED = ["sd", "sd3", "flux", "wan"]
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]
PROMPTS = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds")


def network(pipe):
    return getattr(pipe, "transformer", None) or pipe.unet


def adapted(name: str):
    """A tiny pipeline with a random LoRA on its network."""
    peft = pytest.importorskip("peft")  # of the test extra
    pipe = pipeline(name)
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network(pipe).add_adapter(
            peft.LoraConfig(r=2, lora_alpha=8, init_lora_weights=False, target_modules=TARGETS)
        )
    network(pipe).eval().requires_grad_(False)
    return pipe


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference in units of the largest value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def state(module) -> tuple[list, dict]:
    """All modules with what they call, and all weights."""
    modules = [(name, id(each), vars(each).get("forward")) for name, each in module.named_modules()]
    return modules, {name: value.clone() for name, value in module.state_dict().items()}


@pytest.mark.parametrize("name", ADAPTED)
def test_a_lora_works_as_with_the_scheduler_of_diffusers(name):
    pipe, plain = adapted(name), pipeline(name)
    pipe.scheduler = reference(name)
    wanted = call(name, pipe, num_inference_steps=STEPS)
    pipe.scheduler = plain.scheduler = ours_like(pipe.scheduler)
    found = call(name, pipe, num_inference_steps=STEPS)
    without = call(name, plain, num_inference_steps=STEPS)
    assert apart(found, wanted) < 2e-4
    assert apart(found, without) > 0.02
    network(pipe).disable_adapters()
    assert apart(call(name, pipe, num_inference_steps=STEPS), without) < 2e-4


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_lora_works_with_our_own_loop(name):
    pipe, size = adapted(name), Size(*(16, 16) if name == "sd" else (64, 64))
    texts = {key: PIPES[name].call[key] for key in PROMPTS if key in PIPES[name].call}
    conditions, negative = encoded(pipe, size, **texts)
    network_ = Sampler.from_pipeline(pipe, size).network
    chosen = {"solver": "unipc-2", "grid": "uniform"}
    guidance = None if negative is None else CFG(3.0)  # as `tiny_pipes` asks the pipeline
    given = {"conditions": conditions, "negative": negative, "guidance": guidance}
    bare = Sampler(replace(network_, decode=None))
    found = bare([0], steps=STEPS, **given, **chosen).samples
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, **chosen)
    wanted = call(name, pipe, num_inference_steps=STEPS)
    found = found if name == "sd" else pack(found)
    assert apart(found, wanted) < 2e-4
    network(pipe).disable_adapters()
    assert apart(call(name, pipe, num_inference_steps=STEPS), wanted) > 0.01


@pytest.mark.parametrize("name", ["flux", "sd3"])
def test_a_cache_goes_over_a_lora_and_leaves_it_as_it_was(name):
    pipe = adapted(name)
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, solver="unipc-2")
    plain, before = call(name, pipe, num_inference_steps=STEPS), state(network(pipe))
    with caching(pipe, TaylorSeer(interval=1)):
        every = call(name, pipe, num_inference_steps=STEPS)
    with caching(pipe, TaylorSeer(interval=2)) as ledger:
        call(name, pipe, num_inference_steps=2 * STEPS)
    after = state(network(pipe))
    assert ledger.hits > 0
    assert torch.equal(every, plain)
    assert after[0] == before[0]
    assert all(torch.equal(after[1][key], value) for key, value in before[1].items())
    assert torch.equal(call(name, pipe, num_inference_steps=STEPS), plain)


def test_a_lora_from_a_file_is_loaded_and_fused(tmp_path):
    peft = pytest.importorskip("peft")
    made = adapted("sd")
    made.scheduler = SolverScheduler.from_config(made.scheduler.config)
    wanted = call("sd", made, num_inference_steps=STEPS)
    layers = peft.get_peft_model_state_dict(made.unet)
    type(made).save_lora_weights(tmp_path, unet_lora_layers=layers)
    pipe = pipeline("sd", scheduler=made.scheduler)
    plain = call("sd", pipe, num_inference_steps=STEPS)
    pipe.load_lora_weights(tmp_path)
    assert apart(call("sd", pipe, num_inference_steps=STEPS), plain) > 0.02
    pipe.set_adapters("default_0", 4.0)  # alpha / r, which the file does not say
    assert apart(call("sd", pipe, num_inference_steps=STEPS), wanted) < 2e-4
    pipe.fuse_lora()
    assert apart(call("sd", pipe, num_inference_steps=STEPS), wanted) < 2e-3
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert apart(call("sd", pipe, num_inference_steps=STEPS), plain) < 2e-4


# ControlNet


SHARED = ("in_channels", "block_out_channels", "norm_num_groups", "attention_head_dim")
SHARED = (*SHARED, "down_block_types", "cross_attention_dim")


def _sd_control() -> dict:
    net = tiny.network("unet-condition")
    own = {key: net.config[key] for key in SHARED}
    control = diffusers.ControlNetModel(**own, conditioning_embedding_out_channels=(4, 8))
    return {"unet": net, "controlnet": control, "requires_safety_checker": False, **vae()}


def _flux_control() -> dict:
    net = tiny.built(tiny.TINY["flux"], guidance_embeds=True)
    control = diffusers.FluxControlNetModel.from_transformer(
        net, num_layers=1, num_single_layers=1, load_weights_from_transformer=False, **tiny.HEADS
    )
    return {"transformer": net, "controlnet": control, **vae(1)}


CONTROLS = {
    "sd": ("StableDiffusionControlNetPipeline", _sd_control, {"image": torch.rand(1, 3, 16, 16)}),
    "flux": (
        "FluxControlNetPipeline",
        _flux_control,
        {"control_image": torch.rand(1, 3, 16, 16), "height": 16, "width": 16},
    ),
}


def controlled(name: str):
    cls, make, _ = CONTROLS[name]
    cls = getattr(diffusers, cls)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        parts = make()
        for value in parts["controlnet"].parameters():
            torch.nn.init.normal_(value, std=0.1)
        parts["controlnet"].eval().requires_grad_(False)
    given = dict.fromkeys(cls._get_signature_keys(cls)[0]) | parts
    pipe = cls(**{**given, "scheduler": reference(name)})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def drawn(name: str, pipe, **own) -> Tensor:
    return call(name, pipe, num_inference_steps=STEPS, **{**CONTROLS[name][2], **own})


@pytest.mark.parametrize("name", CONTROLS)
def test_a_controlnet_works_as_with_the_scheduler_of_diffusers(name):
    pipe = controlled(name)
    wanted = drawn(name, pipe)
    pipe.scheduler = ours_like(pipe.scheduler)
    assert apart(drawn(name, pipe), wanted) < 2e-4
    assert apart(drawn(name, pipe, controlnet_conditioning_scale=0.0), wanted) > 0.002


def test_a_cache_does_not_undo_the_control():
    pipe = controlled("sd")
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config)
    plain, before = drawn("sd", pipe), state(pipe.unet)
    skipped_none = pytest.warns(UserWarning, match="skipped none of 8 calls")
    with skipped_none, caching(pipe, DeepCache(interval=2)):
        held = drawn("sd", pipe)
        free = drawn("sd", pipe, controlnet_conditioning_scale=0.0)
    assert torch.equal(held, plain)  # every call of it is full
    assert apart(free, plain) > 0.002
    assert state(pipe.unet)[0] == before[0]


def test_our_own_loop_refuses_to_leave_the_control_out():
    with pytest.raises(ModelError, match=r"calls its controlnet too.*SolverScheduler"):
        Sampler.from_pipeline(controlled("sd"), Size(16, 16))
