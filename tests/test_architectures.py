"""Architectures: what a card says about each network is what the network does when it runs."""

import re
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import STACKED, TINY, UNETS, Draw, built
from torch import nn
from zoo import ZOO

from fewstep.models.architectures import ARCHITECTURES, architecture_of, known_classes
from fewstep.models.architectures.base import BlockGroup
from fewstep.models.architectures.discover import observe
from fewstep.models.architectures.replay import replace_blocks
from fewstep.models.architectures.stack import State, block_structure, describe, make_blank
from fewstep.models.caching.magcache import find_ratios
from fewstep.models.caching.teacache import find_polynomial
from fewstep.models.caching.unet import describe_unet, make_hollow
from fewstep.models.errors import ModelError, SettingError

MODULES = {  # of each kind of block, written down by hand
    "dit": ({"attn1", "ff"},),
    "pixart": ({"attn1", "attn2", "ff"},),
    "sd3": ({"attn", "attn2", "ff", "ff_context"},),
    "flux": ({"attn", "ff", "ff_context"}, {"proj_out"}),
    "flux2": ({"attn", "ff", "ff_context"}, {"attn"}),
    "sana": ({"attn1", "attn2", "ff"},),
    "qwen": ({"attn", "img_mlp", "txt_mlp"},),
    "lumina2": ({"attn", "feed_forward"},),
    "wan": ({"attn1", "attn2", "ffn"},),
    "ltx": ({"attn1", "attn2", "ff"},),
    "cogvideox": ({"attn1", "ff"},),
    "hunyuan": ({"attn", "ff", "ff_context"}, {"proj_out"}),
}
VARIANTS = {  # settings of the same class that change its blocks
    "sd3": {"dual_attention_layers": ()},
    "flux": {"guidance_embeds": True},
    "hunyuan": {"image_condition_type": "token_replace"},
    "wan": {"cross_attn_norm": False},
    "qwen": {"zero_cond_t": True},
    "cogvideox": {"patch_size_t": 2, "patch_bias": False, "use_rotary_positional_embeddings": True},
}
COUSINS = {  # other classes with the same blocks
    "BriaTransformer2DModel": "flux",
    "LongCatImageTransformer2DModel": "flux",
    "SanaVideoTransformer3DModel": "sana",
    "ChronoEditTransformer3DModel": "wan",
    "SkyReelsV2Transformer3DModel": "wan",
    "ConsisIDTransformer3DModel": "cogvideox",
    "HunyuanImageTransformer2DModel": "hunyuan",
}
NETWORKS = [(name, {}) for name in (*STACKED, *COUSINS)] + list(VARIANTS.items())
IDS = [name + ("-variant" if config else "") for name, config in NETWORKS]
every_network = pytest.mark.parametrize(("name", "config"), NETWORKS, ids=IDS)
ALL = TINY | ZOO
ROOT = Path(__file__).parents[1]
FOLDERS = ("models", "solvers", "samplers", "eval", "commands")
PACKAGE = [path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")]


def network(name, **config):
    return built(ALL[name], **config)


def inputs(name, step=0):
    return {**ALL[name].call(Draw(step, "cond", 2)), "return_dict": False}


def run(net, name, step=0):
    with torch.no_grad():
        return net(**{**inputs(name, step), **extra(name, net)})[0]


def extra(name, net):
    if name == "flux" and net.config.guidance_embeds:
        return {"guidance": torch.full((2,), 3.5)}
    if name == "qwen" and net.config.zero_cond_t:
        return {"img_shapes": [[(1, 2, 4), (1, 2, 4)]] * 2}
    return {}


@contextmanager
def recorded(modules):
    """Yields a list of (name, args, kwargs, output), in the order in which the modules return."""
    calls, handles = [], []
    for name, module in modules.items():

        def hear(_, args, kwargs, out, name=name):
            calls.append((name, args, kwargs, out))

        handles.append(module.register_forward_hook(hear, with_kwargs=True))
    try:
        yield calls
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def answering(answers):
    """Modules replaced by functions of their arguments: {module: function}."""
    for module, answer in answers.items():
        vars(module)["forward"] = answer
    try:
        yield
    finally:
        for module in answers:
            del vars(module)["forward"]


def wanted_of(name):
    return MODULES[COUSINS.get(name, name)]


def blocks_of(stack):
    return {block.name: block.module for block in stack.blocks}


def observed(name, config):
    """The network, its stack, the recorded calls of its blocks and its output; made once."""
    return _observed(name, tuple(config.items()))


@cache
def _observed(name, config):
    net = network(name, **dict(config))
    stack = describe(net)
    with recorded(blocks_of(stack)) as calls:
        out = run(net, name)
    return net, stack, calls, out


def states(stack, calls):
    rows = stack.text_rows(calls[0][1], calls[0][2])
    return [b.read_output(c[3], rows) for b, c in zip(stack.blocks, calls, strict=True)], rows


@every_network
def test_blocks_run_once_in_the_stated_order(name, config):
    _, stack, calls, _ = observed(name, config)
    assert [call[0] for call in calls] == [block.name for block in stack.blocks]
    assert len(stack.blocks) >= 3


@every_network
def test_a_block_returns_what_the_next_one_takes(name, config):
    """The same tensors; or, where the streams are joined, their rows in the stated order."""
    _, stack, calls, _ = observed(name, config)
    after, rows = states(stack, calls)
    for k, block in enumerate(stack.blocks[1:], start=1):
        _, args, kwargs, _ = calls[k]
        before, given = stack.blocks[k - 1], block.find_streams(args, kwargs)
        if bool(before.group.joint) == bool(block.group.joint):
            returned = calls[k - 1][3]
            returned = returned if isinstance(returned, tuple) else (returned,)
            named = dict(zip(before.group.returns, returned, strict=True))
            assert all(each is named[s] for s, each in zip(block.group.returns, given, strict=True))
        else:
            entering = block.read_input(args, kwargs, rows)
            assert torch.equal(entering.image, after[k - 1].image)
            assert torch.equal(entering.text, after[k - 1].text)


@every_network
def test_layout_undoes_leaving(name, config):
    _, stack, calls, _ = observed(name, config)
    after, _ = states(stack, calls)
    for block, state, call in zip(stack.blocks, after, calls, strict=True):
        laid, returned = block.lay_out(state), call[3]
        assert type(laid) is type(returned)
        pairs = zip(laid, returned, strict=True) if isinstance(laid, tuple) else [(laid, returned)]
        assert all(a is b or torch.equal(a, b) for a, b in pairs)


@every_network
def test_image_keeps_its_shape_through_the_stack(name, config):
    """So a residual between any two blocks can be taken, across a join as well."""
    _, stack, calls, _ = observed(name, config)
    after, rows = states(stack, calls)
    first = stack.blocks[0].read_input(*calls[0][1:3], rows)
    assert {state.image.shape for state in after} == {first.image.shape}


@every_network
def test_head_needs_nothing_but_the_last_image_state(name, config):
    """Passing through all blocks but the first, with the true last state, is the full network."""
    net, stack, calls, out = observed(name, config)
    after, rows = states(stack, calls)
    with (
        replace_blocks(stack, lambda x: State(after[-1].image, x.text), rows),
        recorded(blocks_of(stack)) as skipped,
    ):
        assert torch.equal(run(net, name), out)
    assert len(skipped) == len(stack.blocks)
    with replace_blocks(stack, lambda x: State(after[-1].image * 1.5 + 0.1, x.text), rows):
        assert not torch.equal(run(net, name), out)
    assert torch.equal(run(net, name), out)


@every_network
def test_blocks_after_a_skip_need_nothing_but_the_state(name, config):
    net, stack, calls, out = observed(name, config)
    after, rows = states(stack, calls)
    assert stack.structure.chained
    middle = len(stack.blocks) // 2
    for tail in {1, middle}:
        with replace_blocks(stack, lambda _, tail=tail: after[-1 - tail], rows, tail):
            assert torch.equal(run(net, name), out)


@every_network
def test_residual_form_is_the_full_network_too(name, config):
    """h1 + (h_n - h1), as FirstBlock and TeaCache use it: equal up to rounding."""
    net, stack, calls, out = observed(name, config)
    after, rows = states(stack, calls)
    residual = after[-1].image - after[0].image

    def forecast(entering):
        return State(entering.image + residual, entering.text)

    with replace_blocks(stack, forecast, rows):
        torch.testing.assert_close(run(net, name), out, rtol=1e-4, atol=1e-5)


@every_network
def test_signal_is_the_modulated_input_of_block_0(name, config):
    """What the first attention of the first block is given; for Wan, the time embedding."""
    net = network(name, **config)
    stack = describe(net)
    first = stack.blocks[0]
    attention = next(m for n, m in first.module.named_modules() if n in ("attn", "attn1"))
    parts = {"block": first.module, "attention": attention}
    if stack.signal_module is not None:
        parts["signal"] = stack.signal_module
    with recorded(parts) as calls:
        run(net, name)
    heard = {call[0]: call for call in calls}
    _, args, kwargs, _ = heard["block"]
    if isinstance(stack.structure.signal, str):  # Wan: the time embedding, before any block
        assert [call[0] for call in calls] == ["signal", "attention", "block"]
        assert heard["signal"][3].shape == (2, 24)
        with pytest.raises(ModelError, match="no modulated input"):
            stack.signal(args, kwargs)
        return
    if (
        COUSINS.get(name, name) == "cogvideox"
    ):  # the time embedding again, which every block is given
        assert stack.signal(args, kwargs) is kwargs["temb"]
        return
    _, given, named, _ = heard["attention"]
    signal = stack.signal(args, kwargs)
    assert torch.equal(signal, named["hidden_states"] if "hidden_states" in named else given[0])


@pytest.mark.parametrize("name", [*STACKED, *COUSINS])
def test_patterns_match_the_intended_modules_of_every_block(name):
    net = network(name)
    stack = describe(net)
    expected = set()
    for group, wanted in zip(stack.structure.groups, wanted_of(name), strict=True):
        for k, block in enumerate(net.get_submodule(group.path)):
            children = {child for child, module in block.named_children() if module is not None}
            expected |= {f"{group.path}.{k}.{child}" for child in wanted & children}
    assert set(stack.modules) == expected
    assert len(expected) >= 1.5 * len(stack.blocks)
    assert not set(stack.modules) & set(stack.idle)


@every_network
def test_cached_modules_run_once_and_stand_for_the_rest(name, config):
    """With their true outputs put in, and idle modules blank, the network is what it was."""
    net = network(name, **config)
    stack = describe(net)
    with recorded(stack.modules) as calls:
        out = run(net, name)
    assert sorted(call[0] for call in calls) == sorted(stack.modules)
    kept = {call[0]: call[3] for call in calls}
    answers = {m: lambda *_, n=n, **__: kept[n] for n, m in stack.modules.items()}
    answers |= {m: lambda *args, **kwargs: make_blank(args, kwargs) for m in stack.idle.values()}
    with answering(answers):
        assert torch.equal(run(net, name), out)
        assert not torch.equal(run(net, name, step=3), run(network(name, **config), name, step=3))


@pytest.mark.parametrize("name", ["flux", "hunyuan"])
def test_idle_modules_cost_nothing(name):
    stack = describe(network(name))
    assert len(stack.idle) == 4
    image, text = torch.ones(2, 16, 8), torch.ones(2, 5, 8)
    assert make_blank((image,), {}).shape == (2, 16, 0)
    both = make_blank((), {"hidden_states": image, "encoder_hidden_states": text})
    assert [each.shape for each in both] == [(2, 16, 0), (2, 5, 0)]


@pytest.mark.parametrize("name", STACKED)
def test_observing_finds_what_the_data_says(name):
    net = network(name)
    known, found = describe(net), observe(net, **inputs(name))
    assert found.structure.groups == known.structure.groups
    assert [block.name for block in found.blocks] == [block.name for block in known.blocks]
    assert not any("forward" in vars(block.module) for block in known.blocks)
    assert not any(module._forward_hooks for module in net.modules())
    if not known.idle:
        assert set(found.modules) == set(known.modules)


def test_cards_stand_for_different_classes():
    names = [name for card in ARCHITECTURES for name in (*card.classes, *card.same_blocks)]
    assert len(names) == len(set(names))
    with_blocks = known_classes(lambda card: card.blocks)
    assert sorted(ALL[name].cls for name in (*STACKED, *COUSINS)) == with_blocks
    for cousin, name in COUSINS.items():
        assert block_structure(network(cousin)) is block_structure(network(name))
        assert architecture_of(network(cousin)).attention is None


def test_the_classes_of_a_card_are_named_in_its_file_alone():
    """A benchmark that builds such networks may name them too."""
    benches = ("gpu_networks.py", "speed_races.py")
    texts = {path: path.read_text() for path in PACKAGE if path.name not in benches}
    for card in ARCHITECTURES:
        for name in (*card.classes, *card.same_blocks, *card.pipelines):
            files = [path for path, text in texts.items() if re.search(rf"\b{name}\b", text)]
            assert [path.parent.name for path in files] == ["architectures"], (name, files)


def test_subclasses_and_compiled_networks_are_recognised():
    net = network("dit")
    net.__class__ = type("MyTransformer", (type(net),), {})
    compiled = nn.Module()  # as torch.compile returns it
    compiled._orig_mod = net
    assert (
        describe(net).structure is describe(compiled).structure is block_structure(network("dit"))
    )
    assert describe(compiled).root is net


@pytest.mark.parametrize("name", UNETS)
def test_a_unet_has_no_stack_and_the_error_says_what_to_use(name):
    with pytest.raises(ModelError, match=r"UNet.*deepcache or fixed-mask"):
        describe(network(name))


def test_an_unknown_class_is_refused_with_the_known_ones_and_the_way_out():
    with pytest.raises(ModelError, match=r"Sequential; known: .*FluxTrans.*observe\(network"):
        describe(nn.Sequential(nn.Linear(2, 2)))


def test_missing_lists_and_zero_matches_are_errors():
    net, blocks = network("dit"), block_structure(network("dit"))
    gone = replace(blocks, groups=(BlockGroup("blocks"),))
    with pytest.raises(ModelError, match=r"no list of blocks 'blocks'; .*transformer_blocks"):
        describe(net, gone)
    with pytest.raises(ModelError, match=r"no sub-module that matches nothing\\.here.*last-block"):
        _ = describe(net, replace(blocks, modules=(r"nothing\.here",))).modules
    with pytest.raises(ModelError, match="none are known"):
        _ = describe(net, replace(blocks, modules=())).modules
    net.transformer_blocks = nn.ModuleList()
    with pytest.raises(ModelError, match="no block in transformer_blocks"):
        describe(net)


class Blocks(nn.Module):
    """A toy transformer whose wiring is chosen: how it runs three blocks."""

    def __init__(self, wiring):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))
        self.head = nn.Linear(4, 4)
        self.wiring = wiring

    def forward(self, x):
        return self.head(self.wiring(self.blocks, x))


def plain(blocks, x):
    for block in blocks:
        x = block(x)
    return x


def long_skip(blocks, x):
    """As in U-ViT: an early output meets a late one."""
    first = blocks[0](x)
    second = blocks[1](first)
    return blocks[3](blocks[2](second)) + second


def looped(blocks, x):
    return plain(blocks, plain(blocks, x))


def outside_residual(blocks, x):
    for block in blocks:
        x = x + block(x)
    return x


def backwards(blocks, x):
    return plain(reversed(list(blocks)), x)


class Pair(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.image, self.text = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden_states, encoder_hidden_states):
        return self.image(hidden_states), self.text(encoder_hidden_states)


class Mixer(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.mix = nn.Linear(width, width)

    def forward(self, hidden_states):
        return self.mix(hidden_states) + hidden_states.mean(dim=1, keepdim=True)


class Joined(nn.Module):
    """Two streams, then one in which the text comes first or last."""

    def __init__(self, joint):
        super().__init__()
        self.pairs = nn.ModuleList(Pair(4) for _ in range(2))
        self.mixers = nn.ModuleList(Mixer(4) for _ in range(3))
        self.joint = joint

    def forward(self, image, text):
        rows = image.shape[1]
        for pair in self.pairs:
            image, text = pair(image, encoder_hidden_states=text)
        first = self.joint == "first"
        x = torch.cat([text, image] if first else [image, text], dim=1)
        for mixer in self.mixers:
            x = mixer(x)
        return x[:, -rows:] if first else x[:, :rows]


@pytest.mark.parametrize("joint", ["first", "last"])
def test_observe_tells_which_rows_of_a_joint_stream_are_the_image(joint):
    net = Joined(joint).eval()
    stack = observe(net, torch.randn(2, 6, 4), torch.randn(2, 3, 4))
    assert [group.joint for group in stack.structure.groups] == ["", joint]
    assert stack.structure.chained
    image, text = torch.randn(2, 6, 4), torch.randn(2, 3, 4)
    last, state = stack.blocks[-1], State(image, text)
    laid = last.lay_out(state)
    assert torch.equal(laid[:, :3], text if joint == "first" else image[:, :3])
    assert all(map(torch.equal, last.read_output(laid, text_rows=3), state))
    assert stack.text_rows((image, text), {}) == 3


class InPlace(Mixer):
    """Changes its input, as ComfyUI's blocks of Flux do."""

    def forward(self, x):
        x += self.mix(x)
        return x


class Named(Pair):
    """Streams whose names do not tell the text from the image."""

    def forward(self, c, x):
        return self.text(c), self.image(x)


class TextFirst(nn.Module):
    """Two streams of such names, then one that is changed in place, the text first."""

    def __init__(self):
        super().__init__()
        self.pairs = nn.ModuleList(Named(4) for _ in range(2))
        self.mixers = nn.ModuleList(InPlace(4) for _ in range(3))

    def forward(self, c, x):
        rows = x.shape[1]
        for pair in self.pairs:
            c, x = pair(c, x)
        both = torch.cat([c, x], dim=1)
        for mixer in self.mixers:
            both = mixer(both)
        return both[:, -rows:]


def test_observe_sees_blocks_that_change_their_input_and_streams_without_telling_names():
    stack = observe(TextFirst().eval(), torch.randn(2, 3, 4), torch.randn(2, 6, 4))
    pairs, mixers = stack.structure.groups
    assert (pairs.image, pairs.text, mixers.joint) == ("x", "c", "first")
    assert not stack.structure.chained  # what leaves a block in the middle is written over


def test_observe_finds_plain_blocks():
    stack = observe(Blocks(plain).eval(), torch.randn(2, 4))
    assert [block.name for block in stack.blocks] == [f"blocks.{k}" for k in range(4)]
    assert stack.structure.groups == (BlockGroup("blocks", ("input",), image="input"),)
    with pytest.raises(ModelError, match="none are known"):
        _ = stack.modules


@pytest.mark.parametrize(
    ("wiring", "said"),
    [
        (long_skip, "is not all that its output depends on"),
        (looped, "no list of blocks hands its state"),
        (outside_residual, "no list of blocks hands its state"),
        (backwards, "no list of blocks hands its state"),
        (lambda blocks, x: x, "no list of blocks hands its state"),
    ],
    ids=["long-skip", "looped", "residual-outside", "backwards", "no-blocks"],
)
def test_observe_refuses_blocks_that_cannot_be_skipped(wiring, said):
    net = Blocks(wiring).eval()
    with pytest.raises(ModelError, match=said):
        observe(net, torch.randn(2, 4))
    assert not any(module._forward_hooks or "forward" in vars(module) for module in net.modules())


GUESSED = {  # class: names of the cached modules; blocks may run after skipped ones
    "AuraFlowTransformer2DModel": "attn ff ff_context",
    "MochiTransformer3DModel": "attn1 ff ff_context",
    "AllegroTransformer3DModel": "attn1 attn2 ff",
    "ChromaTransformer2DModel": "attn ff ff_context proj_mlp",
    "OvisImageTransformer2DModel": "attn ff ff_context proj_mlp",
    "CogView3PlusTransformer2DModel": "attn1 ff",
    "CogView4Transformer2DModel": "attn1",  # its ff runs twice in a block
    "GlmImageTransformer2DModel": "attn1",
    "EasyAnimateTransformer3DModel": "attn1 ff",
    "HunyuanDiT2DModel": "attn1 attn2 ff",
    "HunyuanVideo15Transformer3DModel": "attn ff ff_context",
    "Kandinsky5Transformer3DModel": "cross_attention feed_forward self_attention",
    "LuminaNextDiT2DModel": "attn1 attn2 feed_forward",
    "PRXTransformer2DModel": "attention",
    "StableAudioDiTModel": "attn1 attn2 ff",
    "ZImageTransformer2DModel": "attention feed_forward",
    "PriorTransformer": "attn1 ff",
}
REFUSED = {
    "BriaFiboTransformer2DModel": "no list of blocks hands",  # each block gets other text
    "HiDreamImageTransformer2DModel": "no list of blocks hands",  # the same
    "LatteTransformer3DModel": "no list of blocks hands",  # spatial and temporal in turns
    "WanVACETransformer3DModel": "no list of blocks hands",  # hints are added in between
    "LTX2VideoTransformer3DModel": "is not all that its output",  # sound leaves beside the image
    "ErnieImageTransformer2DModel": "its blocks take 21 rows for 2 samples",  # tokens first
}


@pytest.mark.parametrize("name", GUESSED)
def test_unlisted_transformers_are_found_and_verified(name):
    net = network(name)
    with pytest.raises(ModelError, match="no block structure is known"):
        describe(net)
    with torch.no_grad():
        call = ALL[name].call(Draw(0, "cond", 2))
        before = net(**call)[0]
        stack = observe(net, **call)
        after = net(**call)[0]
    assert all(map(torch.equal, before, after))
    assert {key.split(".", 2)[2] for key in stack.modules} == set(GUESSED[name].split())
    lists = [net.get_submodule(group.path) for group in stack.structure.groups]
    assert [block.module for block in stack.blocks] == [block for held in lists for block in held]
    assert stack.structure.chained == (name != "HunyuanDiT2DModel")  # long skips between its blocks


@pytest.mark.parametrize("name", REFUSED)
def test_unlisted_transformers_that_cannot_be_skipped_are_refused(name):
    net = network(name)
    with pytest.raises(ModelError, match=REFUSED[name]):
        observe(net, **ALL[name].call(Draw(0, "cond", 2)))


def test_all_of_the_zoo_is_accounted_for():
    assert set(ZOO) == {*GUESSED, *REFUSED, *COUSINS}


def test_observe_refuses_training_mode():
    with pytest.raises(ModelError, match=r"training mode; call \.eval\(\)"):
        observe(Blocks(plain).train(), torch.randn(2, 4))


def split_run(net, name, branch, feature, step=0):
    """A cached call of a UNet: hollow deep modules, the feature put in; and who has run."""
    split = describe_unet(net).split(branch)
    ran = []

    def enter(_, args):
        return (split.join(feature, args[0]), *args[1:])

    answers = {m: lambda *args, **kwargs: make_hollow(args, kwargs) for m in split.deep.values()}
    handle = split.entry.register_forward_pre_hook(enter)
    leaves = [(n, m) for n, m in net.named_modules() if type(m).__name__ == "ResnetBlock2D"]
    hears = [m.conv1.register_forward_hook(lambda *_, n=n: ran.append(n)) for n, m in leaves]
    try:
        with answering(answers), torch.no_grad():
            return net(**inputs(name, step))[0], ran
    finally:
        for each in (handle, *hears):
            each.remove()


def full_run(net, name, branch, step=0):
    split = describe_unet(net).split(branch)
    kept = []

    def keep(_, args):
        kept.append(split.feature(args[0]))

    handle = split.entry.register_forward_pre_hook(keep)
    with torch.no_grad():
        out = net(**inputs(name, step))[0]
    handle.remove()
    (feature,) = kept
    return out, feature


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("branch", range(9))
def test_a_fresh_feature_makes_a_split_unet_the_full_one(name, branch):
    net = network(name)
    stack = describe_unet(net)
    assert stack.branches == 9
    out, feature = full_run(net, name, branch)
    again, ran = split_run(net, name, branch, feature)
    assert torch.equal(again, out)
    stale, _ = split_run(net, name, branch, feature, step=5)
    assert not torch.equal(stale, full_run(net, name, branch, step=5)[0])
    resnets = sum(type(m).__name__ == "ResnetBlock2D" for m in net.modules())
    assert len(ran) < resnets
    down = [n for n in ran if n.startswith("down")]
    up = [n for n in ran if n.startswith("up")]
    assert len(up) == branch + 1
    assert len(down) == branch - branch // 3  # each third unit is a downsampler


@pytest.mark.parametrize("branch", range(9))
def test_branches_are_numbered_as_published(branch):
    """DeepCache's rule: block id = branch // 3, layer id = branch % 3, counted from outside."""
    block_id, layer_id = divmod(branch, 3)
    stack = describe_unet(network("unet"))
    deep = stack.split(branch).deep
    for k in range(3):
        for j in range(2):
            skipped = k > block_id or (k == block_id and j >= layer_id)
            assert (f"down_blocks.{k}.resnets.{j}" in deep) == skipped
        for j in range(3):  # up blocks and their layers are counted from the last to run
            skipped = k > block_id or (k == block_id and j > layer_id)
            assert (f"up_blocks.{2 - k}.resnets.{2 - j}" in deep) == skipped
    assert "mid_block" in deep


def test_a_unet_at_odd_sizes_and_without_middle_is_split_too():
    net = network("unet-condition", mid_block_type=None)
    sample = torch.randn(2, 2, 10, 14)  # not a multiple of 4: upsamplers are told the size
    call = {**inputs("unet-condition"), "sample": sample}
    with torch.no_grad():
        out = net(**call)[0]
        assert describe_unet(net).branches == 8
        for branch in range(8):
            split = describe_unet(net).split(branch)
            kept = []
            handle = split.entry.register_forward_pre_hook(
                lambda _, args, split=split, kept=kept: kept.append(split.feature(args[0]))
            )
            net(**call)
            handle.remove()
            answers = {m: lambda *a, **k: make_hollow(a, k) for m in split.deep.values()}
            handle = split.entry.register_forward_pre_hook(
                lambda _, args, split=split, kept=kept: (split.join(kept[0], args[0]), *args[1:])
            )
            with answering(answers):
                assert torch.equal(net(**call)[0], out)
            handle.remove()


def test_bad_branches_and_other_unets_are_refused():
    stack = describe_unet(network("unet"))
    for branch in (-1, 9):
        with pytest.raises(SettingError, match=rf"no branch {branch}; known: 0 .* to 8"):
            stack.split(branch)
    with pytest.raises(ModelError, match="DiTTransformer2DModel is not a UNet"):
        describe_unet(network("dit"))
    skipping = network(
        "unet",
        block_out_channels=(32, 32, 32),
        down_block_types=("DownBlock2D", "AttnSkipDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "AttnSkipUpBlock2D", "UpBlock2D"),
    )
    with pytest.raises(ModelError, match="cannot split a UNet with AttnSkip"):
        describe_unet(skipping)


def test_a_call_with_a_controlnet_must_be_full():
    stack = describe_unet(network("unet-condition"))
    assert not stack.needs_all(inputs("unet-condition"))
    assert stack.needs_all({"mid_block_additional_residual": torch.ones(1)})


CALIBRATIONS = [each for card in ARCHITECTURES for each in card.calibrations]
CHECKPOINTS = {  # settings of the published checkpoints
    "flux.1": ("flux", {"num_layers": 19, "num_single_layers": 38, "in_channels": 64}),
    "hunyuan-video": ("hunyuan", {"num_layers": 20, "num_single_layers": 40, "in_channels": 16}),
    "ltx-video": ("ltx", {"num_layers": 28}),
    "wan2.1-t2v-1.3b": ("wan", {"num_layers": 30, "in_channels": 16}),
    "wan2.1-t2v-14b": ("wan", {"num_layers": 40, "in_channels": 16}),
    "cogvideox-2b": ("cogvideox", {"num_layers": 30}),
    "cogvideox-5b": ("cogvideox", {"num_layers": 42, "use_rotary_positional_embeddings": True}),
    "cogvideox1.5-5b": ("cogvideox", {"num_layers": 42, "patch_size_t": 2, "in_channels": 16}),
    "cogvideox1.5-5b-i2v": ("cogvideox", {"num_layers": 42, "patch_size_t": 2, "in_channels": 32}),
}


def pretending(name, **config):
    """A tiny network whose settings say that it is another checkpoint."""
    net = network(name)
    net.register_to_config(**config)
    return net


AT_A_TENTH = {  # each polynomial at d = .1, frozen
    "flux.1": 0.20684738,
    "hunyuan-video": 0.12919582,
    "ltx-video": 0.10141477,
    "wan2.1-t2v-1.3b": 0.24992289,
    "wan2.1-t2v-14b": -0.63595065,
    "wan2.1-i2v-14b-480p": 0.053626948,
    "wan2.1-i2v-14b-720p": 0.12299809,
    "cogvideox-2b": 0.13528198,
    "cogvideox-5b": 0.090506424,
    "cogvideox1.5-5b": 0.17546513,
    "cogvideox1.5-5b-i2v": 0.17769748,
}


@pytest.mark.parametrize("checkpoint", CHECKPOINTS)
def test_a_published_checkpoint_is_recognised(checkpoint):
    name, config = CHECKPOINTS[checkpoint]
    (published,) = [each for each in CALIBRATIONS if each.checkpoint == checkpoint]
    assert find_polynomial(pretending(name, **config)) == published.polynomial
    assert len(published.polynomial) == 5


def test_polynomials_have_the_values_that_the_specification_reports():
    """FLUX.1 is never below .18; Wan 14B is negative where nothing changes."""
    flux, *_ = [np.poly1d(each.polynomial) for each in CALIBRATIONS if each.checkpoint == "flux.1"]
    assert flux(np.linspace(0, 0.3, 301)).min() == pytest.approx(0.18034, abs=1e-5)
    values = {each.checkpoint: np.poly1d(each.polynomial)(0.0) for each in CALIBRATIONS}
    assert values["wan2.1-t2v-14b"] == -13.02252404
    assert {name for name, value in values.items() if value < 0} > {"wan2.1-t2v-14b"}
    tenths = {each.checkpoint: np.poly1d(each.polynomial)(0.1) for each in CALIBRATIONS}
    assert tenths == pytest.approx(AT_A_TENTH, rel=1e-6)


def test_other_checkpoints_have_no_coefficients():
    assert find_polynomial(network("dit")) is None
    assert find_polynomial(pretending("wan", num_layers=30, in_channels=48)) is None
    both = r"any of 2 checkpoints.*wan2\.1-i2v-14b-480p \[-302.*wan2\.1-i2v-14b-720p \[-114"
    with pytest.raises(SettingError, match=both):
        find_polynomial(pretending("wan", num_layers=40, in_channels=36))


def test_ratios_of_magcache_are_diffusers_own():
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

    name, config = CHECKPOINTS["flux.1"]
    assert find_ratios(pretending(name, **config)) == tuple(FLUX_MAG_RATIOS.tolist())
    with pytest.raises(SettingError, match=r"no ratios for this FluxTransformer2DModel.*calibrate"):
        find_ratios(network("flux"))
