"""PAB and FasterCache: which attention runs, beside diffusers' hooks, and what is extrapolated."""

import warnings

import pytest
import torch
from diffusers.hooks import PyramidAttentionBroadcastConfig, apply_pyramid_attention_broadcast
from tiny import BRANCHES, STEPS, inputs, network
from torch.testing import assert_close

from fewstep.models.caching import PAB, FasterCache, caching, enable_cache, take_cache
from fewstep.models.caching.base import CallPosition
from fewstep.models.caching.module_engine import find_attention
from fewstep.models.errors import ModelError, SettingError


@pytest.fixture(autouse=True)
def quiet():
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def run(net, name, steps=STEPS, branch="cond"):
    return [net(**inputs(name, step, branch))[0] for step in range(steps)]


def list_skipped(policy, kind, calls):
    """The calls at which attention of a kind is skipped."""
    return [i for i in range(1, calls) if policy.skips(kind, CallPosition(i, 1, calls))]


# Which calls


def test_what_enters_an_attention_that_adds_it_to_its_output_stays_true():
    """Attention that gives nothing can be left out of a UNet without a trace."""
    net = network("unet")
    attention = [module for _, module in find_attention(net).values()]
    assert attention
    assert all(module.residual_connection for module in attention)
    for module in attention:
        torch.nn.init.zeros_(module.to_out[0].weight)
        torch.nn.init.zeros_(module.to_out[0].bias)
    plain = run(net, "unet")
    with caching(net, PAB(window=(0.0, 1.0)), calls=STEPS) as ledger:
        cached = run(net, "unet")
    assert ledger.hits
    assert_close(cached, plain, rtol=1e-4, atol=1e-5)


def test_the_count_is_of_all_calls_as_published_so_the_phase_depends_on_where_the_window_begins():
    """At timesteps 900, 800, .., 100, 50, with range 2 in (100, 800), diffusers skips 3, 5, 7."""
    assert list_skipped(PAB(window=(0.2, 0.8)), "spatial", 10) == [3, 5, 7]
    assert list_skipped(PAB(window=(0.3, 0.8)), "spatial", 10) == [3, 5, 7]
    assert list_skipped(PAB(cross=4, window=(0.0, 1.0)), "cross", 10) == [1, 2, 3, 5, 6, 7, 9]


def record(net):
    """A list that each attention joins as it runs, seen by its projection."""
    ran = []
    for name, (_, module) in find_attention(net).items():
        module.to_v.register_forward_hook(lambda *_, name=name: ran.append(name))
    return ran


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("dit", {"spatial": 2}),
        ("pixart", {"spatial": 2, "cross": 5}),
        ("pixart", {"cross": 3}),
        ("sd3", {"spatial": 3}),
        ("wan", {"spatial": 2, "cross": 4}),
        ("cogvideox", {"spatial": 2}),
    ],
)
def test_the_same_attention_is_skipped_as_by_the_hooks_of_diffusers(name, settings):
    """Timesteps 1000 down to 100: (100, 800) is calls 3 to 8 of 10, [.3, .9) of the run."""
    theirs, time = network(name), [0.0]
    config = {f"{kind}_attention_block_skip_range": every for kind, every in settings.items()}
    apply_pyramid_attention_broadcast(
        theirs, PyramidAttentionBroadcastConfig(**config, current_timestep_callback=lambda: time[0])
    )
    expected, their_runs = [], record(theirs)
    for step in range(STEPS):
        time[0] = 1000 - 100 * step
        expected.append(theirs(**inputs(name, step))[0])
    ours, policy = network(name), PAB(**{"spatial": None, **settings}, window=(0.3, 0.9))
    with caching(ours, policy, calls=STEPS):  # what it can save is counted, once for the network
        run(ours, name, 1)
    our_runs = record(ours)
    with caching(ours, policy, calls=STEPS) as ledger:
        found = run(ours, name)
    assert our_runs == their_runs
    assert all(map(torch.equal, found, expected))
    kinds = [kind for kind, _ in find_attention(ours).values() if kind in policy.kinds]
    skipped = sum(len(list_skipped(policy, kind, STEPS)) for kind in kinds)
    assert sum(len(call.skipped) for call in ledger.calls) == skipped > 0


def test_kinds_of_attention():
    kinds = {name: {kind for kind, _ in find_attention(network(name)).values()} for name in NETS}
    assert kinds == NETS


NETS = {
    "dit": {"spatial"},
    "sd3": {"spatial"},
    "flux": {"spatial"},
    "pixart": {"spatial", "cross"},
    "ltx": {"spatial", "cross"},
    "wan": {"spatial", "cross"},
    "unet": {"spatial"},
    "unet-condition": {"spatial", "cross"},
}


def test_branches_do_not_overwrite_each_other():
    """As they do in diffusers' hooks, which know of no context."""
    net, alone = network("pixart"), {}
    policy = PAB(cross=4, window=(0.0, 1.0))
    for branch in BRANCHES:
        with caching(net, policy, calls=STEPS):
            alone[branch] = run(net, "pixart", branch=branch)
    with caching(net, policy, calls=STEPS):
        both = [net(**inputs("pixart", step, b))[0] for step in range(STEPS) for b in BRANCHES]
    assert all(map(torch.equal, both[::2], alone["cond"]))
    assert all(map(torch.equal, both[1::2], alone["uncond"]))


def test_a_call_that_skips_nothing_of_this_network_is_full():
    net = network("dit")
    with caching(net, PAB(spatial=3, cross=2, window=(0, 1)), calls=STEPS) as ledger:
        run(net, "dit")
    assert "".join(call.kind[0] for call in ledger.calls) == "fssfssfssf"


# What is extrapolated


class Attends(torch.nn.Module):
    """Returns the square of the call index, as an attention would."""

    def __init__(self):
        super().__init__()
        self.to_v = torch.nn.Identity()

    def forward(self, x, value):
        return torch.full_like(x, float(value))


class Video(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = Attends()

    def forward(self, x, value):
        return self.attn(x, value)


@pytest.mark.parametrize(
    ("weight", "expected"),
    [
        (0.0, [0, 1, 2, 2, 4, 4, 6, 6]),
        (0.5, [0, 1, 2, 2.5, 4, 4.5, 6, 6.5]),
        (1.0, [0, 1, 2, 3, 4, 5, 6, 7]),
        (None, [0, 1, 2, 2 + 1 / 6, 4, 4 + 1 / 2, 6, 6 + 5 / 6]),
    ],
)
def test_fastercache_extrapolates_from_true_outputs_at_their_distance(weight, expected):
    """The published entries are forecasts too: of 0, 1, 2, -, 4, -, 6, - they make 4.75, 6.625."""
    net = Video().eval()
    policy = FasterCache(window=(0.25, 1.0), weight=weight)
    with caching(net, policy, calls=8) as ledger:
        found = [float(net(torch.zeros(1), i)) for i in range(8)]
    assert found == pytest.approx(expected)
    assert ledger.bytes_held == 2 * 4


def test_a_first_call_inside_the_window_is_computed():
    """In diffusers it is a TypeError."""
    net = Video().eval()
    with caching(net, FasterCache(window=(0.0, 1.0)), calls=6):
        assert float(net(torch.zeros(1), 3)) == 3.0


def test_a_line_for_pab_is_fastercache_with_its_weight():
    net = network("pixart")
    with caching(net, FasterCache(cross=3, weight=0.5), calls=STEPS):
        first = run(net, "pixart")
    line = PAB(cross=3, window=(0.32, 1.0), predictor="taylor:order=1,damping=0.5")
    with caching(net, line, calls=STEPS):
        second = run(net, "pixart")
    assert_close(first, second, rtol=1e-5, atol=1e-6)


# What is refused


@pytest.mark.parametrize("window", [(0.5, 0.5), (0.9, 0.2), (-0.1, 0.5), (0.2, 1.1)])
def test_a_window_that_is_none_is_refused(window):
    with pytest.raises(SettingError, match="two rising fractions of the run, 0 to 1"):
        PAB(window=window)


def test_a_typed_window_may_leave_zeros_out():
    assert take_cache("pab:window=[.3,.9]") == PAB(window=(0.3, 0.9))


def test_settings_that_cannot_be_are_refused():
    with pytest.raises(SettingError, match="two rising fractions"):
        PAB(window=(float("nan"), 1.0))
    with pytest.raises(SettingError, match="spatial must be at least 1"):
        PAB(spatial=0)
    for weight in (-0.1, 1.5, float("nan")):
        with pytest.raises(SettingError, match="weight lies in 0"):
            FasterCache(weight=weight)
    with pytest.raises(SettingError, match="widen it, or take more steps"):
        PAB(window=(0.0, 0.1)).check(10)
    net = network("dit")
    with pytest.raises(SettingError, match="calls=STEPS"), caching(net, PAB()):
        run(net, "dit", 1)


def test_networks_without_that_attention_are_refused_with_what_works_on_them():
    with pytest.raises(ModelError, match=r"has spatial attention, .* skip cross .*; set spatial=2"):
        enable_cache(network("dit"), PAB(spatial=None, cross=2))
    with pytest.raises(ModelError, match=r"no attention, .*; run it without a cache"):
        enable_cache(torch.nn.Linear(2, 2), "pab")
    plain = {"down_block_types": ("DownBlock2D",) * 3, "up_block_types": ("UpBlock2D",) * 3}
    with pytest.raises(ModelError, match=r"no attention, .*; take deepcache"):
        enable_cache(network("unet", **plain, add_attention=False), "fastercache")


def test_a_network_whose_blocks_cannot_be_skipped_is_told_of_its_attention():
    """A list of modules that is no stack, with attention beside."""

    class Odd(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = torch.nn.ModuleList([torch.nn.Linear(4, 4) for _ in range(3)])
            self.attn = Attends()

        def forward(self, x, timestep):
            return sum(layer(x) for layer in self.layers) + self.attn(x, 1.0)

    net = Odd().eval()
    for spec in ("taylorseer", "cg-taylor:final=0"):
        with pytest.raises(ModelError, match="take pab, which reuses"), caching(net, spec):
            net(torch.ones(2, 4), timestep=1.0)
    with caching(net, "pab:window=[0,1]", calls=4) as ledger:
        for step in range(4):
            net(torch.ones(2, 4), timestep=float(4 - step))
    assert ledger.hits == 2
