"""Our guidance policies inside diffusers pipelines, with tiny random networks."""

import re
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import tiny_pipes
import torch
from diffusers import ClassifierFreeGuidance, DDIMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLDenoiseStep
from diffusers.modular_pipelines.wan.denoise import WanDenoiseStep
from guided import SCALED
from tiny_pipes import PIPES, POOLED, call, pipeline, text

from fewstep import SolverScheduler, caching
from fewstep.models.architectures import PIPELINES
from fewstep.models.architectures.base import ONE_CALL, TWO_CALLS
from fewstep.models.caching import enable_cache
from fewstep.models.errors import FewstepError, SettingError
from fewstep.samplers.diffusers.guided_pipeline import guided
from fewstep.samplers.diffusers.guider import PolicyGuider
from fewstep.samplers.diffusers.policy_run import NetworkCall
from fewstep.samplers.guidance import (
    CFG,
    FDG,
    AdaptiveGuidance,
    CFGPlusPlus,
    GuidanceForecast,
    Interval,
    Thresholded,
    Unguided,
    parse_guidance,
)
from fewstep.samplers.guidance.unbound import list_unbound

STEPS = 5
ALPHA = replace(PIPES["pixart"], cls="PixArtAlphaPipeline")
NAMES = ["pixart-alpha", *(name for name, pipe in PIPES.items() if pipe.cls in PIPELINES)]
NEGATIVE = {
    "negative_prompt_embeds": text(1, 5, 12, seed=1),
    f"negative_{POOLED}": text(1, 10, seed=3),
}
TRUE = {"true_cfg_scale": 3.0}
SWITCHED_ON = {
    "flux": TRUE | NEGATIVE,
    "flux-img2img": TRUE | NEGATIVE,
    "hunyuan": TRUE | NEGATIVE | {"negative_prompt_attention_mask": torch.ones(1, 5)},
    "qwen": TRUE,
    "lumina2": {"guidance_scale": 3.0, "cfg_normalization": False},
}
SOON = AdaptiveGuidance(3.0, threshold=-0.99, need=1, warmup=2)  # two guided steps


@pytest.fixture(autouse=True)
def alpha(monkeypatch):
    """One more tiny pipeline, here only."""
    monkeypatch.setitem(PIPES, "pixart-alpha", ALPHA)


def on(name: str) -> dict:
    return {"num_inference_steps": STEPS} | SWITCHED_ON.get(name, {"guidance_scale": 3.0})


def network(pipe):
    return getattr(pipe, "transformer", None) or pipe.unet


def counting(pipe) -> list[tuple]:
    """Notes (x, rows, output) of every call that reaches the network itself."""
    net, seen = network(pipe), []
    own = net.forward

    def forward(*args, **named):
        x = args[0] if args else named["hidden_states"]
        out = own(*args, **named)
        seen.append((x, len(x), out[0]))
        return out

    net.forward = forward
    return seen


def close(a, b, share=1e-5):
    return float((a - b).abs().max() / b.abs().max()) < share


def evaluations(name: str) -> int:
    """Of a run of STEPS: PNDM asks once more, and strength 0.5 skips steps."""
    return {"sd": 6, "sd-inpaint": 6, "sd-img2img": 3, "flux-img2img": 3}.get(name, STEPS)


@pytest.mark.parametrize("name", NAMES)
def test_a_pipeline_is_guided_as_by_itself_and_then_stops(name):
    """Off is its own guidance; without guidance it is its own conditional run; between, fewer."""
    pipe, evals = pipeline(name), evaluations(name)
    own = call(name, pipe, **on(name))
    with guided(pipe, AdaptiveGuidance(3.0, warmup=9)) as ledger:
        full = call(name, pipe, **on(name))
    assert close(full, own)
    assert (ledger.evaluations, ledger.rows, ledger.images) == (evals, 2 * evals, 1)
    seen = counting(pipe)
    with guided(pipe, SOON) as ledger:
        short = call(name, pipe, **on(name))
    again = name in ("sd", "sd-inpaint")  # PNDM asks twice in its second step
    assert ledger.rows == sum(rows for _, rows, _ in seen) == evals + 2 + again
    assert not close(short, own, 1e-4)
    with guided(pipe, Unguided()) as ledger:
        alone = call(name, pipe, **on(name))
    off = {"guidance_scale": 1.0, "num_inference_steps": STEPS}
    plain = {"num_inference_steps": STEPS} if "true_cfg_scale" in on(name) else off
    plain |= {"true_cfg_scale": 1.0} if name == "qwen" else {}
    assert close(alone, call(name, pipe, **plain))
    assert ledger.rows == evals


def test_every_known_pipeline_is_tried():
    assert {PIPES[name].cls for name in NAMES} == PIPELINES.keys()


def scale_off(pipe, step, label, held):
    """Diffusers' own way where it has one: from the third step on, the conditional half."""
    if step == 1:
        pipe._guidance_scale = 1.0
        if "Wan" not in type(pipe).__name__:
            held = {key: value[-1:] if key != "latents" else value for key, value in held.items()}
    return held


@pytest.mark.parametrize("name", ["sd-v", "sdxl", "sd3", "wan"])
def test_stopping_is_what_a_callback_would_have_done(name):
    pipe = pipeline(name)
    tensors = [key for key in pipe._callback_tensor_inputs if "negative" not in key]
    given = on(name) | {"callback_on_step_end_tensor_inputs": tensors}
    wanted = call(name, pipe, callback_on_step_end=scale_off, **given)
    with guided(pipe, SOON):
        assert close(call(name, pipe, **on(name)), wanted)
    with guided(pipe, Interval(CFG(3.0), 0.0, 0.4, in_="step")) as ledger:
        assert close(call(name, pipe, **on(name)), wanted)
    assert ledger.rows_per_step == (2, 2, 1, 1, 1)


def cosines(name: str, pipe, seen) -> list[float]:
    """Of the two x0 of each step, by diffusers' own constants."""
    scheduler, found = pipe.scheduler, []
    sign = -1.0 if name == "lumina2" else 1.0
    pairs = seen if len(seen) == STEPS else zip(seen[1::2], seen[::2], strict=True)
    for n, pair in enumerate(pairs):
        if len(seen) == STEPS:
            x, (u, c) = pair[0][:1], pair[2].chunk(2)
        else:
            x, u, c = pair[0][0], pair[0][2], pair[1][2]
        if name == "sd-v":
            kept = scheduler.alphas_cumprod[int(scheduler.timesteps[n])]
            u, c = (kept**0.5 * x - (1 - kept) ** 0.5 * each for each in (u, c))
        else:
            u, c = (x - scheduler.sigmas[n] * sign * each for each in (u, c))
        found.append(float(torch.cosine_similarity(u.flatten(), c.flatten(), dim=0)))
    return found


@pytest.mark.parametrize("name", ["sd-v", "sd3", "aura", "flux", "lumina2", "wan"])
def test_it_stops_where_the_two_predictions_of_x0_agree(name):
    pipe = pipeline(name)
    if name == "wan":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    seen = counting(pipe)
    call(name, pipe, **on(name))
    gammas = cosines(name, pipe, seen)
    for stop in (2, 3, 4):  # the step after the first that exceeds the threshold
        below, reached = max(gammas[1 : stop - 1], default=-1.0), gammas[stop - 1]
        if reached <= max(below, gammas[0]):
            continue
        threshold = (max(below, gammas[0]) + reached) / 2
        with guided(pipe, AdaptiveGuidance(3.0, threshold=threshold, need=1, warmup=1)) as ledger:
            call(name, pipe, **on(name))
        assert ledger.rows_per_step == tuple(2 if n < stop else 1 for n in range(STEPS)), gammas
        return
    pytest.fail(f"no step of {name} can be told from the ones before it: {gammas}")


@pytest.mark.parametrize("name", ["sd-v", "wan"])
def test_images_of_a_batch_stop_one_by_one(name):
    """Rows are chosen, not halves: an image in a batch is what it is alone."""
    pipe = pipeline(name)
    if name == "wan":
        pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=3.0)
    embeds = {
        key: torch.cat([text(1, 5, 12, seed=seed), text(1, 5, 12, seed=seed + 7)])
        for key, seed in (("prompt_embeds", 0), ("negative_prompt_embeds", 1))
    }
    each = [{key: value[n : n + 1] for key, value in embeds.items()} for n in (0, 1)]
    seen, first = counting(pipe), []
    for n in (0, 1):
        del seen[:]
        call(name, pipe, seed=n, **on(name) | each[n])
        first.append(cosines(name, pipe, seen)[0])
    threshold = sum(first) / 2
    policy = AdaptiveGuidance(3.0, threshold=threshold, need=1, warmup=1, batch="per-sample")
    alone, rows = [], []
    for n in (0, 1):
        with guided(pipe, policy) as ledger:
            alone.append(call(name, pipe, seed=n, **on(name) | each[n]))
        rows.append(ledger.rows)
    assert rows[0] != rows[1]
    assert min(rows) == STEPS + 1
    del seen[:]
    noises = [torch.Generator().manual_seed(n) for n in (0, 1)]
    with guided(pipe, policy) as ledger:
        both = call(name, pipe, **on(name) | embeds | {"generator": noises})
    assert close(both, torch.cat(alone))
    assert ledger.rows == sum(count for _, count, _ in seen) == sum(rows)


LIKE_CFG = {"adaptive", "cfg", "cfg-cache", "guidance-forecast"}
OTHER_RULES = [
    *sorted({*SCALED} & {*list_unbound()} - LIKE_CFG),
    "smc:switch=soft",
    "fbg:prior=0.5",
]


def test_other_rules_and_two_runs_in_one_context():
    pipe = pipeline("sd3")
    plain = call("sd3", pipe, **on("sd3"))
    for rule in OTHER_RULES:
        with guided(pipe, parse_guidance(rule, 3.0)) as ledger:
            first, second = (call("sd3", pipe, **on("sd3")) for _ in range(2))
        assert torch.equal(first, second), rule
        assert not close(first, plain, 1e-3), rule
        rows = 2 * STEPS - (rule == "cfg-zero")  # whose first step does not move
        assert (ledger.images, ledger.nfe, ledger.rows_per_image) == (2, STEPS, rows), rule


def test_bands_of_a_pipeline_whose_state_is_a_list_of_tokens():
    with (
        pytest.raises(SettingError, match="list of tokens"),
        guided(pipe := pipeline("flux"), FDG(3.0)),
    ):
        call("flux", pipe, **on("flux"))


@pytest.mark.parametrize("name", ["sana", "flux", "ltx", "qwen", "wan"])
def test_half_precision(name):
    """Some pipelines go on in float32 from there, and the scheduler's check is to the bit."""
    pipe = pipeline(name)
    network(pipe).to(torch.bfloat16)
    given = {
        key: value.bfloat16() if isinstance(value, torch.Tensor) and "mask" not in key else value
        for key, value in (PIPES[name].call | on(name)).items()
    }
    own = call(name, pipe, **given)
    with guided(pipe, AdaptiveGuidance(3.0, warmup=9)):
        assert close(call(name, pipe, **given).float(), own.float(), 0.05)
    with guided(pipe, SOON) as ledger:
        call(name, pipe, **given)
    assert ledger.rows == STEPS + 2


def test_networks_that_read_or_answer_more_channels(monkeypatch):
    """Inpainting reads a mask too; a learned sigma is a second half of the answer."""
    wide = replace(PIPES["sd-inpaint"], config={"in_channels": 9, "out_channels": 4})
    monkeypatch.setitem(tiny_pipes.PIPES, "sd-inpaint", wide)
    shape = network(pipeline("pixart")).config
    assert shape.out_channels == 2 * shape.in_channels
    pipe = pipeline("sd-inpaint")
    own = call("sd-inpaint", pipe, **on("sd-inpaint"))
    with guided(pipe, AdaptiveGuidance(3.0, warmup=9)):
        assert close(call("sd-inpaint", pipe, **on("sd-inpaint")), own)


@pytest.mark.parametrize("solver", ["unipc-2", "heun", "dpmpp-2s"])
def test_with_our_own_scheduler(solver):
    pipe = pipeline("sd3")
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, solver=solver)
    own = call("sd3", pipe, **on("sd3"))
    with guided(pipe, AdaptiveGuidance(3.0, warmup=9)) as full:
        assert close(call("sd3", pipe, **on("sd3")), own)
    with guided(pipe, SOON) as ledger:
        call("sd3", pipe, **on("sd3"))
    assert ledger.evaluations == pipe.scheduler.nfe < ledger.rows < full.rows


def test_the_scale_that_counts_is_the_policys_and_that_is_said():
    pipe = pipeline("sd3")
    wanted = call("sd3", pipe, **on("sd3"))
    said = "the policy's scale 3, not .* guidance_scale=5"
    with pytest.warns(UserWarning, match=said), guided(pipe, CFG(3.0)):
        found = call("sd3", pipe, **on("sd3") | {"guidance_scale": 5.0})
    assert close(found, wanted)


def test_a_repeated_timestep_is_no_step_of_its_own():
    """PNDM asks twice in its second step; two steps in a row have to agree."""
    pipe, policy = pipeline("sd"), replace(SOON, need=2, warmup=1)
    with guided(pipe, policy) as ledger:
        call("sd", pipe, **on("sd"))
    assert ledger.rows_per_step == (2, 2, 2, 1, 1, 1)


def test_wan_with_two_networks():
    """2.2: one for much noise, one for little; both are answered for."""
    second = network(pipeline("wan"))
    pipe = pipeline("wan", transformer_2=second, boundary_ratio=0.8)
    own = call("wan", pipe, **on("wan"))
    with guided(pipe, AdaptiveGuidance(3.0, warmup=9)) as ledger:
        assert close(call("wan", pipe, **on("wan")), own)
    assert ledger.rows == 2 * STEPS
    with guided(pipe, SOON) as ledger:
        call("wan", pipe, **on("wan"))
    assert ledger.rows == STEPS + 2
    assert "forward" not in vars(second)


def test_the_example_of_the_page():
    page = (Path(__file__).parents[1] / "docs" / "guidance.md").read_text()
    (block,) = [
        each for each in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "guided(" in each
    ]
    known = {"pipe": pipeline("sd3"), "prompt": PIPES["sd3"].call | {"num_inference_steps": STEPS}}
    exec(block.replace('"a cat"', "**prompt"), known)
    assert known["ledger"].rows > STEPS


def broken(*_):
    raise RuntimeError("in mid-run")


def test_everything_is_put_back_even_after_an_error():
    pipe = pipeline("flux")
    own = call("flux", pipe, **on("flux"))
    with pytest.raises(RuntimeError, match="in mid-run"), guided(pipe, SOON):
        call("flux", pipe, **on("flux"), callback_on_step_end=broken)
    assert "forward" not in vars(pipe.transformer)
    assert not {"step", "set_timesteps"} & vars(pipe.scheduler).keys()
    assert torch.equal(call("flux", pipe, **on("flux")), own)


@pytest.mark.parametrize(
    ("name", "policy", "said"),
    [
        ("ddpm", SOON, "DDPMPipeline makes its two predictions is not known.*WanPipeline"),
        ("dit", SOON, "DiTPipeline"),
        ("sd", CFGPlusPlus(), "cfg-pp guidance needs a solver"),
        ("sd", "rect-cfg-pp:scale=2", "rect-cfg-pp guidance needs a solver"),
        ("sd", "cfg-mp:scale=2", "cfg-mp guidance needs a solver"),
        ("sd", "reg:scale=2", "reg guidance differentiates the network, which a pipeline calls"),
        ("sd", "cfg:scale=2+seg", "seg guidance needs a solver or a second network"),
        ("sd", Interval(CFGPlusPlus(), 0.0, 1.0), "cfg-pp guidance needs a solver"),
        ("sd", replace(SOON, rewrite_history=True), "rewrite_history"),
        ("sd", 3.0, "3.0 is not a guidance policy"),
    ],
)
def test_what_cannot_be_is_refused_at_once(name, policy, said):
    with pytest.raises(SettingError, match=said), guided(pipeline(name), policy):
        pytest.fail("it began")


@pytest.mark.parametrize(
    ("name", "policy", "own", "said"),
    [
        ("sd-v", SOON, {"guidance_scale": 1.0}, "makes no unconditional prediction"),
        ("pixart", SOON, {"guidance_scale": 1.0}, "makes no unconditional prediction"),
        ("flux", SOON, {"true_cfg_scale": 1.0}, "makes no unconditional prediction"),
        ("lumina2", SOON, {"cfg_trunc_ratio": 0.3}, "makes no unconditional prediction"),
        ("sd-v", SOON, {"guidance_rescale": 0.5}, "guidance_rescale"),
        ("sd-v", CFG(0.0), {}, "scale of 0"),
        ("sd-v", Thresholded(CFG(3.0)), {}, "latents, which have no range"),
        (
            "sd3",
            SOON,
            {"skip_guidance_layers": [0], "skip_layer_guidance_stop": 1.0},
            "more often in one step",
        ),
    ],
)
def test_a_run_that_is_not_guided_so_ends_with_an_error(name, policy, own, said):
    pipe = pipeline(name)
    with pytest.raises(FewstepError, match=said), guided(pipe, policy):
        call(name, pipe, **on(name) | own)


UNSIGNED = replace(PIPELINES["Lumina2Pipeline"], sign=1.0)


@pytest.mark.parametrize(
    ("name", "layout", "said"),
    [
        ("dit", ONE_CALL, "the network of DiTPipeline answers with"),
        ("qwen", ONE_CALL, "QwenImagePipeline makes no unconditional prediction"),
        ("lumina2", UNSIGNED, "Lumina2Pipeline hands its scheduler something else"),
        ("flux", TWO_CALLS, "FluxPipeline tells its network a time"),
        ("sd3", TWO_CALLS, "StableDiffusion3Pipeline makes no unconditional prediction"),
    ],
)
def test_a_pipeline_of_another_structure_is_found_out(name, layout, said, monkeypatch):
    monkeypatch.setitem(PIPELINES, PIPES[name].cls, layout)
    pipe = pipeline(name)
    with pytest.raises(SettingError, match=said), guided(pipe, CFG(3.0)):
        call(name, pipe, **on(name))


def test_nothing_run_another_scheduler_or_another_context_is_an_error():
    pipe = pipeline("sd-v")
    with pytest.raises(SettingError, match="nothing was guided"), guided(pipe, SOON):
        pass
    with (
        pytest.raises(SettingError, match="guided already"),
        guided(pipe, SOON),
        guided(pipe, SOON),
    ):
        pytest.fail("it began")


def exchanged_scheduler(pipe):
    call("sd-v", pipe, **on("sd-v"))
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config)
    call("sd-v", pipe, **on("sd-v"))


def exchanged_network(pipe):
    """As model offloading does after every call."""
    del pipe.unet.forward
    call("sd-v", pipe, **on("sd-v"))


@pytest.mark.parametrize(
    ("change", "said"), [(exchanged_scheduler, "number 6"), (exchanged_network, "another network")]
)
def test_what_is_exchanged_within_the_context_is_found_out(change, said):
    pipe = pipeline("sd-v")
    with pytest.raises(SettingError, match=said), guided(pipe, SOON):
        change(pipe)


BLOCKS = {"wan": WanDenoiseStep, "sdxl": StableDiffusionXLDenoiseStep}
TEXTS = {
    "prompt_embeds": text(2, 5, 12),
    "negative_prompt_embeds": text(2, 5, 12, seed=1),
    "pooled_prompt_embeds": text(2, 10, seed=2),
    "negative_pooled_prompt_embeds": text(2, 10, seed=3),
    "add_time_ids": torch.ones(2, 6),
    "negative_add_time_ids": torch.ones(2, 6),
}
STATES = {
    "wan": {"latents": text(2, 4, 2, 8, 8, seed=9), "dtype": torch.float32} | TEXTS,
    "sdxl": {"latents": 14 * text(2, 2, 8, 8, seed=9), "denoiser_input_fields": TEXTS},
}


def modular(name: str, base, guider):
    pipe = BLOCKS[name]().init_pipeline()
    pipe.set_progress_bar_config(disable=True)
    slot = "unet" if name == "sdxl" else "transformer"
    parts = {slot: network(base), "scheduler": base.scheduler, "guider": guider}
    pipe.update_components(**parts)
    base.scheduler.set_timesteps(STEPS)
    plan = {"timesteps": base.scheduler.timesteps, "num_inference_steps": STEPS}
    return pipe(**plan, **STATES[name]).get("latents")


@pytest.mark.parametrize("name", BLOCKS)
def test_the_guider_of_modular_pipelines(name):
    base = pipeline(name)
    base.scheduler = FlowMatchEulerDiscreteScheduler() if name == "wan" else base.scheduler
    own = modular(name, base, ClassifierFreeGuidance(guidance_scale=3.0))
    guider = PolicyGuider(AdaptiveGuidance(3.0, warmup=9), base.scheduler)
    assert close(modular(name, base, guider), own)
    guider = guider.new(policy=SOON)
    seen = counting(base)
    short = modular(name, base, guider)
    assert guider.num_conditions == 2  # the text encoder of the next run asks
    modular(name, base, guider)
    assert guider.ledger.rows == sum(rows for _, rows, _ in seen) == 2 * 2 * (STEPS + 2)
    assert guider.ledger.rows_per_step == (2, 2, 1, 1, 1)
    assert guider.ledger.nfe == STEPS
    span = Interval(CFG(3.0), 0.0, 0.4, in_="step")
    assert close(modular(name, base, guider.new(policy=span)), short)
    own = modular(name, base, ClassifierFreeGuidance(guidance_scale=3.0, stop=0.4))
    assert close(short, own)


def test_a_guider_that_cannot_guide_says_so():
    base = pipeline("sdxl")
    with pytest.raises(SettingError, match="rewrite_history"):
        PolicyGuider(replace(SOON, rewrite_history=True), base.scheduler)
    other = DDIMScheduler.from_config(base.scheduler.config)
    other.set_timesteps(STEPS + 2)
    with pytest.raises(SettingError, match="where its guider's scheduler is not"):
        modular("sdxl", base, PolicyGuider(SOON, other))
    with pytest.raises(SettingError, match="whole batches"):
        PolicyGuider(replace(SOON, batch="per-sample"), base.scheduler)
    with pytest.raises(SettingError, match="SD3Transformer2DModel is not known"):
        PolicyGuider(SOON, base.scheduler).prepare_models(pipeline("sd3").transformer)
    with pytest.raises(SettingError, match="config of ClassifierFreeGuidance, which names no pol"):
        PolicyGuider.from_config({"_class_name": "ClassifierFreeGuidance"})
    with pytest.raises(SettingError, match=r"pipe\.guider\.scheduler = pipe\.scheduler"):
        modular("sdxl", base, PolicyGuider(SOON))


def test_a_guider_is_saved_and_loaded(tmp_path):
    base = pipeline("sdxl")
    policy = Interval(replace(SOON, warmup=1), 0.0, 0.9, in_="step")
    made = PolicyGuider(policy, base.scheduler)
    made.save_pretrained(tmp_path)
    loaded = PolicyGuider.from_pretrained(tmp_path, scheduler=base.scheduler)
    assert loaded.policy == policy
    assert torch.equal(modular("sdxl", base, loaded), modular("sdxl", base, made))
    assert PolicyGuider.from_config(made.config).scheduler is None
    for rule in OTHER_RULES:
        policy = parse_guidance(rule, 3.0)
        assert PolicyGuider.from_config(PolicyGuider(policy).config).policy == policy


# Caches beneath


def kinds(ledger):
    return [call.kind for call in ledger.calls]


def test_a_cache_beneath_guidance_hears_which_rows_are_left_out():
    pipe, lite = pipeline("pixart"), "taylorseer:interval=3,level=last-block"
    own = {"num_inference_steps": 12, "guidance_scale": 3.0}
    with caching(pipe, lite) as plain:
        wanted = call("pixart", pipe, **own)
    with caching(pipe, lite) as cached, guided(pipe, "cfg:scale=3"):
        found = call("pixart", pipe, **own)
    assert close(found, wanted)
    assert kinds(cached) == kinds(plain)
    assert cached.hits == 7
    with caching(pipe, lite) as cached, guided(pipe, GuidanceForecast(3.0, warmup=1)) as ledger:
        call("pixart", pipe, **own)
    assert kinds(cached)[1::2] == ["full", "skip", "skip"] * 2
    assert ledger.rows == 18
    assert [each.branch for each in cached.calls] == ["uncond+cond", "cond"] * 6


def test_a_cache_above_guidance_is_refused_and_leaves_no_trace():
    pipe = pipeline("pixart")
    before = set(vars(network(pipe)))
    with pytest.raises(SettingError, match="put the cache on first"), guided(pipe, CFG(3.0)):
        enable_cache(pipe, "taylorseer:interval=3")
    assert set(vars(network(pipe))) == before


def test_guidance_that_never_stops_is_warned_of():
    pipe, never = pipeline("pixart"), AdaptiveGuidance(3.0, warmup=9)
    idle = pytest.warns(UserWarning, match="adaptive guidance left out none of 5")
    with idle, guided(pipe, never):
        call("pixart", pipe, **on("pixart"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*left out none")
        with guided(pipe, SOON):
            call("pixart", pipe, **on("pixart"))


def test_ids_of_places_are_those_of_all_rows():
    seen = {}

    def forward(**named):
        seen.update(named)
        return (named["hidden_states"],)

    named = {"hidden_states": torch.zeros(4, 4, 2), "img_ids": torch.zeros(4, 3)}
    call = NetworkCall("a pipeline", forward, (), named | {"timestep": torch.zeros(4)})
    assert len(call.evaluate(torch.tensor([1, 2]))) == 2
    assert (len(seen["img_ids"]), len(seen["timestep"])) == (4, 2)
