"""Perturbed-attention guidance: the identity map, the sum, the network restored, refusals."""

import math
from dataclasses import replace

import pytest
import tiny
import torch
from guided import grid_of
from laws import solver

from fewstep import RectifiedFlow, Sampler, from_module
from fewstep.models.architectures import known_classes
from fewstep.models.caching import TaylorSeer
from fewstep.models.denoiser import Branch
from fewstep.models.errors import FewstepError, ModelError, SettingError
from fewstep.models.load import load
from fewstep.models.perturbed import blur_tokens, perturb_attention
from fewstep.models.schedule import TimeGrid
from fewstep.samplers.diffusers.policy_run import take_policy
from fewstep.samplers.guidance import (
    CFG,
    AdaptiveGuidance,
    AutoGuidance,
    GuidanceForecast,
    Interval,
    Moment,
    PerturbedAttention,
    Setup,
    SmoothedEnergy,
    Thresholded,
    Unguided,
    guidance,
    parse_guidance,
)
from fewstep.samplers.guidance.base import format_guidance
from fewstep.samplers.schedule_choice import choose_default_schedule

FAMILIES = {"dit": 1, "pixart": 1, "sana": 1, "unet": 0, "unet-condition": 0, "wan": 1}
NODE = RectifiedFlow().at(0.6)
PAG = PerturbedAttention


def bare(module, call):
    """A network whose conditions are the arguments of a call, and whose module is the tiny one."""

    def forward(x, node, conditions):
        return module(**call)[0]

    return replace(load("fashion-dit"), forward=forward, module=module)


def answer(network):
    with torch.inference_mode():
        return network.forward(torch.zeros(2, 1), NODE, {})


def attention_of(module, layer):
    """Its self-attention layers are found here by the name of their class alone."""
    found = [
        each
        for name, each in module.named_modules()
        if hasattr(each, "to_v") and not name.endswith("attn2")
    ]
    return found[layer]


def traces(module):
    """Everything that a hook or a wrapper would leave behind."""
    return {
        name: (len(each._forward_hooks), len(each._forward_pre_hooks), sorted(vars(each)))
        for name, each in module.named_modules()
    }


# The identity map


class Watch:
    """Sees what one attention layer is given and what it returns."""

    def __init__(self, attention):
        self.attention = attention
        self.handle = attention.register_forward_hook(self.see, with_kwargs=True)

    def see(self, module, args, kwargs, out):
        self.given = args[0] if args else kwargs["hidden_states"]
        self.returned = out


def by_hand(attention, x):
    """Attention whose map is the identity, written out: norm, V, I V, projection, residual."""
    tokens = x
    if x.ndim == 4:
        tokens = x.flatten(2)
        norm = getattr(attention, "group_norm", None)
        tokens = tokens if norm is None else norm(tokens)
        tokens = tokens.transpose(1, 2)
    value = attention.to_v(tokens)
    heads = value.unflatten(2, (attention.heads, -1)).transpose(1, 2)
    mixed = torch.eye(tokens.shape[1]).expand(*heads.shape[:2], -1, -1) @ heads
    out = attention.to_out[0](mixed.transpose(1, 2).flatten(2))
    out = out.transpose(1, 2).reshape(x.shape) if x.ndim == 4 else out
    out = out + x if getattr(attention, "residual_connection", False) else out
    return out / getattr(attention, "rescale_output_factor", 1.0)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_token_gets_its_own_value(name):
    module = tiny.network(name)
    network = bare(module, tiny.inputs(name))
    layer = FAMILIES[name]
    plain, watch = answer(network), Watch(attention_of(module, layer))
    found = answer(perturb_attention(network, [layer]))
    with torch.inference_mode():
        torch.testing.assert_close(watch.returned, by_hand(watch.attention, watch.given))
    assert (found - plain).abs().max() > 1e-3 * plain.abs().max()  # it is not the same network


@pytest.mark.parametrize("name", FAMILIES)
def test_the_network_is_left_exactly_as_it_was(name):
    module = tiny.network(name)
    network = bare(module, tiny.inputs(name))
    before, plain = traces(module), answer(network)
    view = perturb_attention(network)
    first = answer(view)
    assert traces(module) == before
    assert torch.equal(answer(network), plain)
    assert torch.equal(answer(view), first)


def test_it_is_restored_when_the_call_fails():
    module = tiny.network("dit")
    before, plain = traces(module), answer(bare(module, tiny.inputs("dit")))
    broken = bare(module, {**tiny.inputs("dit"), "timestep": None})
    with pytest.raises((RuntimeError, TypeError, AttributeError)):
        answer(perturb_attention(broken))
    unmixed = bare(module, tiny.inputs("dit"))
    module.transformer_blocks[1].attn1.to_out[0].register_forward_pre_hook(
        lambda m, args: (_ for _ in ()).throw(ValueError("in the middle")), prepend=True
    )
    with pytest.raises(ValueError, match="in the middle"):
        answer(perturb_attention(unmixed, [1]))
    module.transformer_blocks[1].attn1.to_out[0]._forward_pre_hooks.clear()
    assert traces(module) == before
    assert torch.equal(answer(unmixed), plain)


def test_fused_projections_are_split():
    module = tiny.network("unet-condition")
    network = bare(module, tiny.inputs("unet-condition"))
    whole = answer(perturb_attention(network, [1]))
    module.fuse_qkv_projections()
    torch.testing.assert_close(answer(perturb_attention(network, [1])), whole)


def test_which_layers_are_taken_by_default():
    same = lambda a, b: torch.equal(answer(a), answer(b))  # noqa: E731
    deep = bare(tiny.network("dit", num_layers=5), tiny.inputs("dit"))
    assert same(perturb_attention(deep), perturb_attention(deep, [2]))
    assert not same(perturb_attention(deep), perturb_attention(deep, [1]))
    unet = tiny.network("unet")
    names = [name for name, each in unet.named_modules() if hasattr(each, "to_v")]
    middle = [n for n, name in enumerate(names) if name.startswith("mid_block")]
    assert 0 < len(middle) < len(names)
    network = bare(unet, tiny.inputs("unet"))
    assert same(perturb_attention(network), perturb_attention(network, middle))
    assert not same(perturb_attention(network), perturb_attention(network, [0]))


# Blurred queries


def by_mean_query(attention, x):
    """Attention of the mean query, written out; every token sees the same map."""
    tokens = x
    if x.ndim == 4:
        norm = getattr(attention, "group_norm", None)
        tokens = (x.flatten(2) if norm is None else norm(x.flatten(2))).transpose(1, 2)
    query = attention.to_q(tokens).mean(1, keepdim=True)
    parts = (query, attention.to_k(tokens), attention.to_v(tokens))
    q, k, v = (each.unflatten(2, (attention.heads, -1)).transpose(1, 2) for each in parts)
    mixed = (q @ k.mT / q.shape[-1] ** 0.5).softmax(-1) @ v
    out = attention.to_out[0](mixed.transpose(1, 2).flatten(2)).expand_as(tokens)
    out = out.transpose(1, 2).reshape(x.shape) if x.ndim == 4 else out
    out = out + x if getattr(attention, "residual_connection", False) else out
    return out / getattr(attention, "rescale_output_factor", 1.0)


@pytest.mark.parametrize("name", ["dit", "pixart", "unet", "unet-condition"])
def test_an_infinite_blur_takes_the_mean_query(name):
    module, layer = tiny.network(name), FAMILIES[name]
    network = bare(module, tiny.inputs(name))
    watch = Watch(attention_of(module, layer))
    answer(perturb_attention(network, [layer], math.inf))
    with torch.inference_mode():
        torch.testing.assert_close(watch.returned, by_mean_query(watch.attention, watch.given))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_blur_changes_every_family_and_leaves_no_trace(name):
    module = tiny.network(name)
    network = bare(module, tiny.inputs(name))
    before, plain = traces(module), answer(network)
    found = answer(perturb_attention(network, [FAMILIES[name]], math.inf))
    assert traces(module) == before
    assert torch.equal(answer(network), plain)
    assert (found - plain).abs().max() > 1e-6 * plain.abs().max()
    if hasattr(module, "fuse_qkv_projections") and name == "unet-condition":
        module.fuse_qkv_projections()
        fused = answer(perturb_attention(network, [FAMILIES[name]], math.inf))
        torch.testing.assert_close(fused, found)


def test_a_finite_blur_is_a_gaussian_of_the_picture():
    impulse = torch.zeros(1, 11, 11, 2)
    impulse[0, 5, 5, 1] = 1.0
    found = blur_tokens(impulse.flatten(1, 2), 1.2).unflatten(1, (11, 11))
    places = torch.arange(-5.0, 6.0)
    weights = torch.exp(-0.5 * (places / 1.2) ** 2) * (places.abs() <= 4.0)
    weights = weights / weights.sum()
    torch.testing.assert_close(found[0, ..., 1], weights[:, None] * weights)
    assert found[..., 0].abs().max() == 0.0
    flat = torch.full((2, 16, 3), 2.0)
    torch.testing.assert_close(blur_tokens(flat, 5.0), flat)  # wider than the picture
    with pytest.raises(ModelError, match=r"8 tokens are not a square .*infinite blur"):
        blur_tokens(torch.zeros(1, 8, 3), 1.0)


# The sum


class Fixed:
    """A guide's outputs: weak, uncond and cond of one moment."""

    weak, uncond, cond, x = torch.randn(4, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def setup_of(network, **facts):
    grid = grid_of(4, schedule=network.schedule)
    return Setup(network, solver("ddim").on(grid), grid, 3, **facts)


@pytest.mark.parametrize(
    ("inner", "own"),
    [
        (Unguided(), Fixed.cond),
        (CFG(2.0), Fixed.uncond + 2.0 * (Fixed.cond - Fixed.uncond)),
        (CFG(0.0), Fixed.uncond),
        (GuidanceForecast(2.0), Fixed.uncond + 2.0 * (Fixed.cond - Fixed.uncond)),
    ],
    ids=lambda each: type(each).__name__,
)
def test_the_published_sum(inner, own):
    setup = setup_of(load("fashion-dit"))
    guide = PAG(3.0, inner=inner).begin(setup)
    asks = [ask.branch for ask in guide.ask(Moment(setup.grid.nodes[0]))]
    assert asks[0] is Branch.WEAK
    assert asks[-1] is Branch.COND
    given = {Branch.WEAK: Fixed.weak, Branch.UNCOND: Fixed.uncond, Branch.COND: Fixed.cond}
    outputs = [given[branch] for branch in asks]
    found = guide.combine(outputs, Fixed.x, Moment(setup.grid.nodes[0]))
    torch.testing.assert_close(found, own + 3.0 * (Fixed.cond - Fixed.weak))


@pytest.fixture(scope="module")
def dit():
    return Sampler.from_pretrained("fashion-dit")


CALL = {"class_labels": 3, "solver": "unipc-2", "nfe": 4}


@pytest.mark.parametrize("inner", [Unguided(), CFG(2.0), Interval(CFG(2.0), 0.0, 0.5, "step")])
def test_off_is_the_guidance_inside_to_the_bit_and_costs_nothing(dit, inner):
    off = dit(range(2), guidance=PAG(0.0, inner=inner), **CALL)
    plain = dit(range(2), guidance=inner, **CALL)
    assert torch.equal(off.samples, plain.samples)
    assert off.ledger.rows == plain.ledger.rows
    assert off.ledger.calls == plain.ledger.calls


def test_off_takes_the_schedule_that_no_guidance_takes(monkeypatch):
    def best(*asked):
        return "usf-lsun-nfe6" if asked == ("fashion-dit", 5, 1.0) else None

    monkeypatch.setattr("fewstep.samplers.schedule_choice.best_preset", best)
    found = [
        choose_default_schedule("fashion-dit", {"nfe": 5}, each)
        for each in (Unguided(), PAG(0.0), AdaptiveGuidance(1.0), PAG(1.0))
    ]
    assert found[0] is not None
    assert found[0] == found[1] == found[2]
    assert found[3] is None


def test_rows_are_counted_and_the_network_is_itself_again(dit):
    before, plain = traces(dit.network.module), dit(range(3), **CALL).samples
    alone = dit(range(3), guidance=PAG(1.0), batch=2, **CALL)
    assert (alone.ledger.rows_per_image, alone.ledger.calls) == (8, 2 * 8)
    both = dit(range(3), guidance=PAG(1.0, inner=CFG(2.0)), **CALL)
    assert both.ledger.rows_per_step == (3, 3, 3, 3)
    part = dit(range(3), guidance=Interval(PAG(1.0), 0.5, 1.0, "step"), **CALL)
    assert part.ledger.rows_per_step == (1, 1, 2, 2)
    assert traces(dit.network.module) == before
    assert torch.equal(dit(range(3), **CALL).samples, plain)
    assert not torch.equal(alone.samples, plain)
    alone = dit([2], guidance=PAG(1.0), **CALL)
    torch.testing.assert_close(
        both.samples[2:], dit([2], guidance=PAG(1.0, inner=CFG(2.0)), **CALL).samples
    )


@pytest.mark.parametrize("policy", [PAG(2.0), SmoothedEnergy(2.0), SmoothedEnergy(2.0, blur=1.5)])
def test_one_step_by_hand(dit, policy):
    """DDIM from pure noise to t = 0 is x0 itself."""
    network = dit.network
    grid = TimeGrid.of(network.schedule, [1.0, 0.0])
    found = dit(range(2), class_labels=3, solver="ddim", grid=[1.0, 0.0], guidance=policy)
    from fewstep.models.denoiser import Denoiser
    from fewstep.samplers.noise import Noise

    x = Noise(range(2), network.shape).draw()
    labels = {Branch.COND: {"class_labels": torch.tensor([3, 3])}}
    with torch.inference_mode():
        ((c,), (p,)) = (
            Denoiser(each, labels).x0(x, grid.nodes[0])
            for each in (network, perturb_attention(network, [3], getattr(policy, "blur", None)))
        )
    torch.testing.assert_close(found.samples, c + 2.0 * (c - p))


def test_a_network_without_classes_is_guided():
    module = tiny.network("unet", num_class_embeds=None)
    network = from_module(
        module,
        schedule=RectifiedFlow(time_scale=1000),
        prediction="flow",
        shape=(2, 8, 8),
        name="alone",
    )
    found = Sampler(network)([0, 1], nfe=3, guidance=PAG(2.0))
    assert found.ledger.rows_per_image == 6
    assert torch.isfinite(found.samples).all()
    with pytest.raises(SettingError, match="no unconditional branch"):
        Sampler(network)([0], nfe=3, guidance=PAG(2.0, inner=CFG(2.0)))


# What is refused


def refused(text, dit, policy, **call):
    with pytest.raises(FewstepError, match=text):
        dit(range(2), guidance=policy, **{**CALL, **call})


def test_runs_that_cannot_be_guided_so(dit):
    refused("drop the cache", dit, PAG(), cache=TaylorSeer(interval=2))
    refused("one weaker network", dit, PAG(inner=PAG()))
    refused("one weaker network", dit, PAG(inner=AutoGuidance(2.0, dit.network)))
    history = Interval(CFG(2.0), 0.0, 0.5, "step", rewrite_history=True)
    refused("drop rewrite_history", dit, PAG(inner=history))
    refused(r"0 \(transformer_blocks.0.attn1\), .*5 \(", dit, PAG(layers=(1, 6)))
    for layers in ((), (2, 2), (-1,)):
        refused("different numbers", dit, PAG(layers=layers))
    with pytest.raises(SettingError, match="a pipeline"):
        take_policy(Interval(PAG(), 0.0, 0.5, "step"))
    dit(range(2), guidance=PAG(0.0, inner=CFG(2.0)), cache=TaylorSeer(interval=2), **CALL)


def test_networks_whose_attention_cannot_be_reached(dit):
    function = replace(dit.network, module=None)
    refused("plain function", Sampler(function), PAG())
    with pytest.raises(ModelError, match="plain function"):
        PAG().check(setup_of(function))
    with pytest.raises(ModelError, match="plain function"):  # nor is a perturbed one perturbed
        perturb_attention(perturb_attention(dit.network))
    compiled = replace(dit.network, module=torch.compile(tiny.network("dit")))
    refused("before torch.compile", Sampler(compiled), PAG())
    regional = tiny.network("dit")
    regional.transformer_blocks[0].compile()
    with pytest.raises(ModelError, match="before torch"):
        perturb_attention(bare(regional, {}))
    for name in ("sd3", "flux", "cogvideox"):
        with pytest.raises(ModelError, match=f"{tiny.TINY[name].cls} cannot .* known are DiT"):
            perturb_attention(bare(tiny.network(name), {}))
    blind = replace(dit.network, module=torch.nn.Linear(2, 2))
    refused("attention of Linear cannot be perturbed", Sampler(blind), PAG())
    text = tiny.network("unet-condition", only_cross_attention=True)
    with pytest.raises(SettingError, match=r"has 0 \(mid_block[^,]*$"):  # the others see text
        perturb_attention(bare(text, {}), [1])
    plain = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
    with pytest.raises(ModelError, match="no self-attention"):
        perturb_attention(bare(tiny.network("unet", add_attention=False, **plain), {}))
    assert {tiny.TINY[name].cls for name in FAMILIES} == set(
        known_classes(lambda card: card.attention and card.attention.perturbable)
    )


def test_a_layer_that_is_not_called_or_mixes_otherwise_is_an_error():
    module = tiny.network("dit")
    idle = replace(bare(module, {}), forward=lambda x, node, conditions: x)
    with pytest.raises(ModelError, match=r"without its layer transformer_blocks.1.attn1"):
        answer(perturb_attention(idle, [1]))
    module.transformer_blocks[1].attn1.to_v.register_forward_hook(lambda m, args, out: out[:, :2])
    with pytest.raises(ModelError, match="mix of its own"):
        answer(perturb_attention(bare(module, tiny.inputs("dit")), [1]))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"scale": -1.0}, "scale=-1.0: .*greater than or equal to 0"),
        ({"scale": float("inf")}, "finite"),
        ({"scale": "much"}, "scale='much'"),
        ({"layers": 3}, r"layers=\[2,3\]"),
        ({"layers": "mid"}, r"layers=\[2,3\]"),
        ({"layers": [1.5]}, "layers"),
        ({"inner": 2.0}, "inner"),
        ({"layer": [1]}, "did you mean 'layers'"),
    ],
)
def test_bad_settings(settings, text):
    for name in ("pag", "seg"):
        with pytest.raises(FewstepError, match=text):
            guidance(name, **settings)


def test_bad_blurs():
    for blur in (0.0, -1.0, math.nan, "much"):
        with pytest.raises(SettingError, match="seg: blur="):
            SmoothedEnergy(blur=blur)


def test_it_is_typed_alone_and_inside_and_around():
    assert parse_guidance("pag") == PAG()
    assert parse_guidance("pag:scale=2,layers=[2,3]") == PAG(2.0, layers=(2, 3))
    assert parse_guidance("cfg:scale=2+pag:scale=1") == PAG(1.0, inner=CFG(2.0))
    assert parse_guidance("seg:blur=2.5") == SmoothedEnergy(blur=2.5)
    smooth = SmoothedEnergy(1.0, inner=CFG(2.0))
    assert parse_guidance(format_guidance(smooth)) == smooth
    assert parse_guidance("pag:scale=1", 2.0) == PAG(1.0, inner=CFG(2.0))
    narrow = parse_guidance("pag:scale=1+interval:low=0,high=0.5,in=step")
    assert narrow == Interval(PAG(1.0), 0.0, 0.5, "step")
    assert parse_guidance("threshold:quantile=0.9") == Thresholded(quantile=0.9)
    with pytest.raises(SettingError, match="wraps another guidance"):
        parse_guidance("interval:low=0,high=1+pag:scale=1")
