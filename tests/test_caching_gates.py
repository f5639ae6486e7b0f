"""Gates by hand: a scripted network whose features are known, their errors, and what they cost."""

import warnings

import diffusers
import pytest
import torch
from tiny import BRANCHES, inputs, network

from fewstep import Sampler
from fewstep.models.architectures import BY_CLASS, Architecture
from fewstep.models.architectures.base import BlockGroup, BlockStructure
from fewstep.models.caching import (
    DiCache,
    EasyCache,
    SeaCache,
    SenCache,
    SpeCa,
    TeaCache,
    caching,
    enable_cache,
    find_attachment,
    seacache,
)
from fewstep.models.caching.run_facts import run_of
from fewstep.models.caching.seacache import compute_gain, filter_signal, find_grid
from fewstep.models.devices import Reading
from fewstep.models.errors import ModelError, SettingError


class Grows(torch.nn.Module):
    """Returns the call index, in every place."""

    def __init__(self, events):
        super().__init__()
        self.events = events

    def forward(self, hidden_states, time):
        self.events.append(int(time))
        return torch.full_like(hidden_states, float(time))


class Block(torch.nn.Module):
    """Adds the call index to the stream, by a sub-module."""

    def __init__(self, events):
        super().__init__()
        self.inner = Grows(events)

    def forward(self, hidden_states, time):
        return hidden_states + self.inner(hidden_states, time)


class Scripted(torch.nn.Module):
    """v = 2 (x + 3 i) at call i, by three blocks: each feature is known."""

    def __init__(self):
        super().__init__()
        self.events = []
        self.blocks = torch.nn.ModuleList([Block(self.events) for _ in range(3)])

    def forward(self, hidden_states, timestep):
        for block in self.blocks:
            hidden_states = block(hidden_states, time=timestep)
        return 2 * hidden_states


@pytest.fixture
def scripted(monkeypatch):
    blocks = BlockStructure((BlockGroup("blocks"),), modules=(r"blocks\.\d+\.inner",))
    monkeypatch.setitem(BY_CLASS, "Scripted", Architecture(classes=("Scripted",), blocks=blocks))
    return Scripted().eval()


@pytest.fixture(autouse=True)
def quiet():
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def run(net, values, policy, branches=None):
    """Calls the network with these constants, or tensors (B, *), one a call; returns the ledger."""
    with caching(net, policy, calls=len(values)) as ledger:
        for index, value in enumerate(values):
            x = value if isinstance(value, torch.Tensor) else torch.full((2, 4, 3), float(value))
            if branches is not None:
                find_attachment(net).announce(branches)
            net(x, timestep=float(index))
    return ledger


def kinds(ledger):
    return "".join(call.kind[0] for call in ledger.calls)


def errors(ledger):
    return [call.error for call in ledger.calls]


# Their errors


def test_easycache_multiplies_the_change_of_the_input_by_the_gain_of_the_last_two_full_calls(
    scripted,
):
    """v = 2, 10, 23 in full, at x = 1, 2, 2.5: k = 8, and then 13 / 0.5."""
    policy = EasyCache(threshold=0.35, warmup=2, final=0, max_consecutive=9)
    ledger = run(scripted, [1, 2, 2.3, 2.5, 2.51, 2.6], policy)
    assert kinds(ledger) == "ffsfss"
    full = [8 * 0.3 / 10, 8 * 0.2 / 10, 26 * 0.01 / 23, 26 * 0.09 / 23]
    assert errors(ledger) == [None, None, *map(pytest.approx, full)]
    assert full[0] < 0.35 < full[0] + full[1]


def test_easycache_waits_for_a_second_full_call_whatever_its_warmup(scripted):
    ledger = run(scripted, [1, 1.01, 1.02], EasyCache(threshold=99.0, warmup=1, final=0))
    assert kinds(ledger) == "ffs"


def test_sencache_weighs_the_change_since_the_last_full_call_by_its_slopes_there(scripted):
    """J_x rms(x - x_a) + J_t |t - t_a|, with the J of call a: 1, and 3 where that was full."""
    slopes = ((1.0, 10.0, 0.9), (2.0, 20.0, 0.8), (3.0, 30.0, 0.6), (4.0, 40.0, 0.5))
    slopes += ((5.0, 50.0, 0.45),)
    settings = {"threshold": 6.0, "early": 8.0, "final": 0}
    policy = SenCache(warmup=2, slopes=slopes, **settings)
    ledger = run(scripted, [1.0, 1.5, 2.0, 3.0, 1.9], policy)
    expected = [2 * 0.5 + 20 * 0.2, 2 * 1.5 + 20 * 0.3, 4 * 1.1 + 40 * 0.05]
    assert errors(ledger)[2:] == pytest.approx(expected)
    assert kinds(ledger) == "ffsff"
    for count, kind in ((1, "f"), (2, "s")):  # 6.5 at call 1, of 5 calls and of 10
        policy = SenCache(warmup=1, slopes=slopes * count, **settings)
        assert kinds(run(scripted, [1.0, *[6.5] * (5 * count - 1)], policy))[1] == kind


@pytest.mark.parametrize(("delta", "expected"), [(False, (1, 1 / 2)), (True, (0.0, 1 / 2))])
def test_dicache_measures_the_change_of_its_probe_and_with_delta_beyond_that_of_the_input(
    scripted, delta, expected
):
    """h = x + i: 1, 2 + 1, 4 + 2, 4 + 3 (lead=1); the input doubles, doubles, and stays."""
    policy = DiCache(threshold=9.0, warmup=2, final=0, delta=delta)
    ledger = run(scripted, [1, 2, 4, 5], policy)
    first, second = (6 - 3) / 3, (8 - 6) / 6
    changes = (first - 1.0, second - 0.25) if delta else (first, second)
    assert errors(ledger)[2:] == [pytest.approx(abs(each)) for each in changes]


def test_dicache_goes_on_from_its_probe_if_the_call_turns_out_full(scripted):
    policy = DiCache(threshold=1.2, warmup=2, final=0, lead=2)
    ledger = run(scripted, [1, 2, 4, 8], policy)
    assert kinds(ledger) == "ffsf"
    assert scripted.events == [0] * 3 + [1] * 3 + [2] * 2 + [3] * 3
    assert ledger.calls[2].skipped == ("blocks.2",)


def test_speca_is_judged_by_the_last_block_of_the_call_before(scripted):
    """From call 2 on each block's 2 is repeated: 10 + 4 enters the last, which adds 3, 4, .."""
    policy = SpeCa(threshold=0.1, decay=1.0, floor=0.0, final=0, predictor="reuse")
    ledger = run(scripted, [10] * 7, policy)
    assert kinds(ledger) == "fffssfs"
    measured = [1 / 17, 2 / 18]
    assert errors(ledger) == [None] * 4 + [*map(pytest.approx, measured), None]
    assert scripted.events == [0] * 3 + [1] * 3 + [2] * 3 + [3, 4] + [5] * 3 + [6]
    assert ledger.calls[3].skipped == ("blocks.0.inner", "blocks.1.inner")


def test_speca_lets_the_true_last_block_go_on(scripted):
    with caching(scripted, SpeCa(threshold=9.0, predictor="reuse", warmup=1, final=0), calls=4):
        scripted(torch.full((2, 4, 3), 10.0), timestep=0.0)
        out = scripted(torch.full((2, 4, 3), 10.0), timestep=1.0)
    assert torch.equal(out, torch.full((2, 4, 3), 22.0))


def test_speca_weighs_entries_by_their_size(scripted):
    """A mean of quotients would be 1 / 2 of this, for one entry of two is exact."""
    x = torch.full((1, 1, 2), 10.0)
    x[..., 1] = 1e6
    policy = SpeCa(threshold=9.0, warmup=1, final=0, predictor="reuse")
    ledger = run(scripted, [x, x, x], policy)
    assert errors(ledger)[2] == pytest.approx(2 / (1e6 + 10 + 2), rel=1e-3)


def test_the_threshold_of_speca_falls_to_its_floor():
    from fewstep.models.caching.base import CallPosition

    policy = SpeCa(threshold=0.1, decay=0.01, floor=0.002)
    assert policy.accepts([0.1 * 0.01**0.5], CallPosition(25, 2, 50))
    assert not policy.accepts([0.1 * 0.01**0.5 * 1.001], CallPosition(25, 2, 50))
    assert policy.accepts([0.002], CallPosition(49, 2, 50))
    assert not policy.accepts([float("nan")], CallPosition(49, 2, 50))


def test_sea_gains():
    for sigma, mean, corner in (
        (0.9, 10.918046, 0.024178),
        (0.5, 1.167156, 0.746980),
        (0.1, 1.002121, 0.995964),
    ):
        axis = compute_gain(8, sigma / (1 - sigma), power=2.0)
        gain = axis[:, None] * axis
        assert gain[0, 0] == pytest.approx(mean, abs=1e-6)
        assert gain[4, 4] == pytest.approx(corner, abs=1e-6)
        assert gain.mean() == pytest.approx(1.0)
    for level in (0.0, float("inf")):
        assert compute_gain(8, level, 3.0).isfinite().all()


def test_the_filter_multiplies_each_wave_by_its_gain():
    row = torch.arange(8.0)
    board = (-1.0) ** (row[:, None] + row)
    mean, corner = 10.918046, 0.024178
    x = torch.stack([2 * board, torch.ones(8, 8)])[None]
    expected = torch.stack([2 * corner * board, mean * torch.ones(8, 8)])[None]
    torch.testing.assert_close(filter_signal(x, (2, 3), 9.0, 2.0), expected, rtol=1e-4, atol=1e-5)
    tokens = x.flatten(2).transpose(1, 2).reshape(1, 8, 8, 2)
    moved = filter_signal(tokens, (1, 2), 9.0, 2.0).permute(0, 3, 1, 2)
    torch.testing.assert_close(moved, expected, rtol=1e-4, atol=1e-5)


def test_seacache_filters_each_input_at_its_own_call(scripted):
    """A picture of one grey tone is changed by the gain of its mean alone, forced calls too."""
    policy = SeaCache(threshold=9.0, warmup=2, final=0, levels=(9.0, 1.0, 1 / 9, 1 / 9))
    tones = [torch.full((1, 2, 8, 8), tone) for tone in (1.0, 2.0, 3.0, 3.0)]
    ledger = run(scripted, tones, policy)
    expected = abs(3 * 1.002121 - 2 * 1.167156) / (2 * 1.167156)
    assert errors(ledger)[2:] == [pytest.approx(expected, abs=1e-5), pytest.approx(0.0, abs=1e-6)]


def test_seacache_reads_the_modulated_input_as_the_authors_do():
    """It filters what teacache compares: errors are equal where the filter lets all pass."""
    net, found = network("dit"), []
    flat = (0.0,) * 6
    for policy in (
        TeaCache(threshold=9.0, coefficients=(1, 0), warmup=3, final=0),
        SeaCache(threshold=9.0, final=0, reads="signal", levels=flat, reduce="mean"),
    ):
        with caching(net, policy, calls=6) as ledger:
            for step in range(6):
                net(**inputs("dit", step))
        found.append(errors(ledger)[3:])
    assert found[1] == pytest.approx(found[0], rel=1e-4)
    assert min(found[0]) > 0.0


def test_tokens_are_laid_out_as_the_network_is_told():
    ids = torch.cartesian_prod(torch.arange(1), torch.arange(4), torch.arange(6))
    assert find_grid({"img_ids": ids}, 24) == (4, 6)
    assert find_grid({"img_shapes": [[(1, 4, 6)]] * 2}, 24) == (1, 4, 6)
    assert find_grid({"num_frames": 2, "height": 3, "width": 4}, 24) == (2, 3, 4)
    assert find_grid({}, 25) == (5, 5)
    with pytest.raises(ModelError, match="24 tokens for a grid of 4 x 4"):
        find_grid({}, 24)


# Images, branches


NEW = [
    EasyCache(threshold=0.35, warmup=2, final=0, max_consecutive=9, reduce="per-sample"),
    DiCache(threshold=1.2, warmup=2, final=0, reduce="per-sample"),
    DiCache(threshold=0.3, warmup=2, final=0, delta=True, reduce="per-sample"),
    TeaCache(threshold=0.2, coefficients=(1, 0), final=0, reduce="per-sample"),
    SenCache(threshold=1.0, final=0, reduce="per-sample", slopes=((1.0, 0.1, 0.5),) * 8),
]


@pytest.mark.parametrize("policy", NEW)
def test_an_image_is_decided_as_it_would_be_alone(scripted, policy, monkeypatch):
    """Row by row, also where errors add up: the rows computed are those of each image alone."""
    if isinstance(policy, TeaCache):
        scripted = network("dit")
        whole = [inputs("dit", s, batch=3)["hidden_states"] * 1.0 for s in range(8)]
        labels = inputs("dit", 0, batch=3)["class_labels"]

        def call(x, s, rows):
            time = inputs("dit", s, batch=len(rows))["timestep"]
            scripted(x[rows], timestep=time, class_labels=labels[rows])

    else:
        draw = torch.Generator().manual_seed(1)
        steps = torch.rand(8, 3, generator=draw).mul(torch.tensor([2.0, 0.3, 0.05])).cumsum(0) + 1
        whole = [row.reshape(3, 1, 1).expand(3, 4, 3).contiguous() for row in steps]

        def call(x, s, rows):
            scripted(x[rows], timestep=float(s))

    def decisions(rows):
        with caching(scripted, policy, calls=8) as ledger:
            for s, x in enumerate(whole):
                call(x, s, rows)
        return [call.computed * len(rows) for call in ledger.calls]

    alone = [decisions([row]) for row in range(3)]
    together = decisions([0, 1, 2])
    assert together == pytest.approx([sum(each) for each in zip(*alone, strict=True)])
    assert len({tuple(each) for each in alone}) > 1


@pytest.mark.parametrize("order", [BRANCHES, BRANCHES[::-1]])
def test_branches_of_one_batch_decide_by_the_worse_whichever_comes_first(scripted, order):
    calm, wild = torch.ones(8, 1), torch.tensor([1.0, 2, 3, 5, 8, 13, 21, 34])[:, None]
    rows = {"cond": calm + torch.arange(8.0)[:, None] * 0.1, "uncond": wild}
    values = [
        torch.cat([rows[each][s] for each in order]).reshape(2, 1, 1).expand(2, 4, 3).contiguous()
        for s in range(8)
    ]
    policy = EasyCache(threshold=0.5, warmup=2, final=0, reduce="per-sample")
    both = run(scripted, values, policy, branches=order)
    assert {call.computed for call in both.calls} <= {0.0, 1.0}
    worse = run(scripted, [v[[order.index("uncond")]] for v in values], policy, ("uncond",))
    assert "f" in kinds(worse)[2:]
    assert set(find_full(worse)) <= set(find_full(both))


def find_full(ledger):
    return [index for index, call in enumerate(ledger.calls) if call.kind == "full"]


@pytest.mark.parametrize("policy", [EasyCache(threshold=0.3, warmup=2, final=0), DiCache(final=0)])
def test_a_second_branch_follows_the_first_and_is_not_measured(policy):
    net = network("dit")
    for order in (BRANCHES, BRANCHES[::-1]):
        with caching(net, policy, calls=6) as ledger:
            for step in range(6):
                for branch in order:
                    net(**inputs("dit", step, branch))
        pairs = list(zip(ledger.calls[::2], ledger.calls[1::2], strict=True))
        assert all(first.kind == second.kind for first, second in pairs)
        assert all(second.error is None for _, second in pairs)
        assert any(first.error is not None for first, _ in pairs)


def test_the_gain_of_the_rows_that_stay_is_kept_where_a_branch_ends(scripted):
    policy = EasyCache(threshold=0.35, warmup=2, final=0)
    with caching(scripted, policy, calls=4) as ledger:
        attachment = find_attachment(scripted)
        for index, value in enumerate((1.0, 2.0, 2.3)):
            x = torch.tensor([value, 7.0 + value])[: 2 if index < 2 else 1].reshape(-1, 1, 1)
            attachment.announce(BRANCHES if index < 2 else ("cond",))
            scripted(x, timestep=float(index))
    assert errors(ledger)[2] == pytest.approx(8 * 0.3 / 10)


# What they cost


@pytest.mark.parametrize(
    ("policy", "reads", "ran_before"),
    [
        (SeaCache(threshold=9.0, warmup=2, levels=(1.0,) * 7), "..1111.", 0),
        (EasyCache(threshold=99.0, warmup=2), "..1111.", 0),
        (SenCache(threshold=99.0, warmup=2, slopes=((1.0, 1.0, 0.5),) * 7), "..1111.", 0),
        (DiCache(threshold=9.0, warmup=2, lead=2), "..1111.", 2),
        (SpeCa(threshold=9.0, warmup=2), "...111.", 0),
    ],
)
def test_the_host_waits_once_a_call_and_where_it_says(scripted, policy, reads, ran_before):
    waits = []
    numbers = Reading.numbers

    def counted(self):
        waits.append(len(scripted.events))
        return numbers(self)

    with pytest.MonkeyPatch.context() as patch, caching(scripted, policy, calls=7):
        patch.setattr(Reading, "numbers", counted)
        for index in range(7):
            before, started = len(waits), len(scripted.events)
            scripted(torch.full((2, 2, 8, 8), 1.0 + index), timestep=float(index))
            made = waits[before:]
            assert len(made) == {".": 0, "1": 1}[reads[index]]
            assert [each - started for each in made] == [ran_before] * len(made)


# Where the noise level comes from


def test_the_sampler_says_the_noise_level_and_a_loop_of_ones_own_is_told_how():
    result = Sampler.from_pretrained("fashion-dit")(range(2), nfe=12, cache="seacache:threshold=.9")
    assert result.ledger.cache.hits > 0
    net = network("dit")
    with (
        caching(net, SeaCache(), calls=6),
        pytest.raises(SettingError, match=r"give levels=\[\.\.\]"),
    ):
        net(**inputs("dit"))
    with (
        caching(net, SeaCache(levels=(1.0,) * 5), calls=6),
        pytest.raises(SettingError, match="5 nu"),
    ):
        net(**inputs("dit"))


def pipe_of(scheduler, steps=5):
    scheduler.set_timesteps(steps)
    return type("Pipe", (), {"scheduler": scheduler})()


def test_pipelines_know_the_noise_level_of_their_timesteps():
    flow = pipe_of(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0))
    sigmas = flow.scheduler.sigmas[:-1].tolist()
    levels = run_of(flow, None).levels(0, None)
    assert levels == pytest.approx([s / (1 - s) if s < 1 else float("inf") for s in sigmas])
    discrete = pipe_of(diffusers.EulerDiscreteScheduler(timestep_spacing="leading"))
    levels = run_of(discrete, None).levels(0, None)
    assert levels == pytest.approx(discrete.scheduler.sigmas[:-1].tolist(), rel=1e-3)
    assert run_of(object(), None).levels(0, None) == ()


@pytest.mark.parametrize("levels", [None, (1.0,) * 5])
def test_the_second_stage_of_a_step_has_the_noise_level_of_its_own_time(monkeypatch, levels):
    """Heun's second calls are at the ends of their steps, so the k-th is not at the k-th level."""
    pipe, seen = pipe_of(diffusers.HeunDiscreteScheduler()), []
    net, pipe.components = network("dit"), {}
    pipe.transformer = net

    def note(x, axes, level, power):
        seen.append(level)
        return filter_signal(x, axes, level, power)

    monkeypatch.setattr(seacache, "filter_signal", note)
    with caching(pipe, SeaCache(threshold=9.0, levels=levels)), torch.no_grad():
        (engine,) = find_attachment(pipe).engines
        for time in pipe.scheduler.timesteps:
            engine.context = "cond"
            net(**{**inputs("dit"), "timestep": time.expand(2)})
    sigmas = pipe.scheduler.sigmas[:-1].tolist()
    assert seen[2::2] == pytest.approx(sigmas[2::2], rel=5e-3)
    assert seen[:1] + seen[1::2] == pytest.approx(levels or sigmas[:1] + sigmas[1::2], rel=5e-3)


# What is refused


def test_images_that_cannot_be_run_alone_are_refused():
    with pytest.raises(SettingError, match="set reduce=max or reduce=mean of easycache"):
        enable_cache(network("unet"), EasyCache(reduce="per-sample"))
    with pytest.raises(SettingError, match="reduce of speca is max or mean"):
        SpeCa(reduce="per-sample")
