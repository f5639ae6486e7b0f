"""The engine: branches, stages, runs, gates, rows, attaching, and what a ledger says."""

import math
import warnings
from types import SimpleNamespace

import pytest
import tiny_pipes
import torch
from diffusers.hooks import HookRegistry, ModelHook
from tiny import BRANCHES, STEPS, inputs, network
from torch.testing import assert_close

from fewstep import CFG, Sampler
from fewstep.models.architectures import BY_CLASS, Architecture
from fewstep.models.architectures.base import BlockGroup, BlockStructure
from fewstep.models.caching import (
    CGTaylor,
    FirstBlock,
    FixedMask,
    MagCache,
    TaylorSeer,
    TeaCache,
    caching,
    disable_cache,
    enable_cache,
    find_attachment,
)
from fewstep.models.caching.calls import CallCounter, select_argument
from fewstep.models.errors import ModelError, SettingError

LITE = TaylorSeer(interval=3, level="last-block")


@pytest.fixture(scope="module")
def sampler():
    return Sampler.from_pretrained("fashion-dit")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield


def draw(sampler, cache=None, solver="ddim", nfe=8, n=3, **choices):
    return sampler(range(n), class_labels=3, solver=solver, nfe=nfe, cache=cache, **choices)


def walk(net, steps=STEPS, branches=("cond",), batch=2):
    return [net(**inputs("dit", s, b, batch))[0] for s in range(steps) for b in branches]


def warned(text):
    return pytest.warns(UserWarning, match=text)


def kinds(ledger, branch=None):
    return "".join(c.kind[0] for c in ledger.calls if branch in (None, c.branch))


# Where a call belongs


def places(calls):
    clock, found = CallCounter(), []
    for name, time in calls:
        if clock.is_new_run(name, time):
            clock = CallCounter()
            found.append("new")
        place = clock.count_heard(name, time)
        found.append((place.label, place.stage, place.index))
    return found


def test_named_branches_share_the_index_of_their_step():
    calls = [(b, t) for t in (9.0, 5.0, 1.0) for b in BRANCHES]
    assert places(calls) == [(b, 0, i) for i in range(3) for b in BRANCHES]


def test_a_branch_that_starts_late_is_at_the_step_of_the_others():
    assert places([("cond", 9.0), ("cond", 5.0), ("uncond", 5.0)])[-1] == ("uncond", 0, 1)


def test_without_names_the_same_time_again_is_a_further_branch():
    found = places([(None, 9.0), (None, 9.0), (None, 5.0), (None, 5.0)])
    assert found == [("call 0", 0, 0), ("call 1", 0, 0), ("call 0", 0, 1), ("call 1", 0, 1)]


def test_the_same_branch_again_at_the_same_time_is_a_stage():
    """Heun as diffusers runs it: 9, 5, 5, 1, 1."""
    found = places([("cond", t) for t in (9.0, 5.0, 5.0, 1.0, 1.0)])
    assert [stage for _, stage, _ in found] == [0, 0, 1, 0, 1]
    assert [index for _, _, index in found] == [0, 1, 0, 2, 1]


@pytest.mark.parametrize("times", [(9.0, 5.0, 1.0), (0.1, 0.5, 0.9)])
def test_time_that_goes_back_begins_a_run_whichever_way_it_goes(times):
    found = places([("cond", t) for t in times * 2])
    assert [each == "new" for each in found] == [False] * 3 + [True] + [False] * 3


def test_runs_of_one_step_do_not_pile_up():
    found = places([(None, 9.0)] * 40)
    assert found.count("new") == 4


# Branches and runs


def test_branches_have_histories_of_their_own():
    """Alone or between calls of the other, a branch gives the same."""
    net = network("dit")
    with caching(net, LITE) as both:
        mixed = walk(net, branches=BRANCHES)
    for k, branch in enumerate(BRANCHES):
        with caching(net, LITE):
            assert all(map(torch.equal, mixed[k::2], walk(net, branches=(branch,))))
    assert kinds(both, "call 0") == kinds(both, "call 1") == "ffssfssfss"


def test_contexts_of_pipelines_are_heard_and_a_reset_forgets():
    net = network("flux")
    with caching(net, LITE) as ledger:
        for s in range(4):
            for branch in BRANCHES:
                with net.cache_context(branch):
                    net(**inputs("flux", s, branch))
        held = ledger.bytes_held
        assert {call.branch for call in ledger.calls} == set(BRANCHES)
        assert find_attachment(net).engines[0].tracks
        net._reset_stateful_cache()
        assert not find_attachment(net).engines[0].tracks
        with net.cache_context("cond"):
            net(**inputs("flux", 4))
    assert ledger.calls[-1].kind == "full"
    assert ledger.calls[-1].index == 0
    assert held > 0


def test_contexts_reach_hooks_that_were_put_on_after_a_context_was_used():
    net = network("flux")
    with net.cache_context("cond"):
        net(**inputs("flux", 0))
    with caching(net, LITE) as ledger, net.cache_context("uncond"):
        net(**inputs("flux", 0))
    assert ledger.calls[0].branch == "uncond"


def test_the_second_branch_follows_the_first_and_runs_no_leading_block():
    net = network("dit")
    policy = CGTaylor(threshold=9.0, warmup=2, final=0)
    with caching(net, policy) as ledger:
        walk(net, 4, BRANCHES)
    assert kinds(ledger) == "ffffssss"
    errors = [call.error is not None for call in ledger.calls]
    assert errors == [False] * 4 + [True, False, True, False]
    assert [len(call.skipped) for call in ledger.calls[-2:]] == [3, 4]
    with caching(net, CGTaylor(threshold=9.0, warmup=2, final=0, together=False)) as apart:
        walk(net, 4, BRANCHES)
    assert [call.error is not None for call in apart.calls] == [False] * 4 + [True] * 4


def test_a_follower_without_a_history_is_computed():
    net = network("dit")
    with caching(net, LITE) as ledger:
        walk(net, 2)
        net(**inputs("dit", 2))
        net(**inputs("dit", 2, "uncond"))
    assert kinds(ledger) == "ffsf"


def test_batches_of_branches_halve_when_guidance_stops(sampler):
    """The conditional rows go on as if the others had never been there."""
    guided = draw(sampler, LITE, nfe=10, guidance=CFG(2.0, (1.0, math.inf)))
    branches = [call.branch for call in guided.ledger.cache.calls]
    stop = branches.index("cond")
    assert 2 < stop < 8
    assert set(branches[:stop]) == {"uncond+cond"}
    assert kinds(guided.ledger.cache) == "ffssfssfss"


def test_branches_that_come_back_start_anew(sampler):
    guided = draw(sampler, LITE, nfe=10, guidance=CFG(2.0, (0.2, 1.0)))
    calls = guided.ledger.cache.calls
    first = next(k for k, call in enumerate(calls) if call.branch == "uncond+cond")
    assert first > 0
    assert calls[first].kind == "full"


def test_kept_rows_are_those_of_the_conditional_branch():
    net = network("dit")
    both = {k: v for k, v in inputs("dit", 0, batch=4).items() if k != "return_dict"}
    with caching(net, FixedMask(compute=(0,), order=0), calls=3) as ledger:
        attachment = find_attachment(net)
        attachment.announce(("uncond", "cond"))
        net(**both)
        held = attachment.engines[0].tracks[0, ""].stores["image"].stored[0].clone()
        attachment.announce(("cond",))
        net(**{k: v[2:] for k, v in both.items()})
        kept = attachment.engines[0].tracks[0, ""].stores["image"].stored[0]
    assert torch.equal(kept, held[2:])
    assert kinds(ledger) == "fs"


def test_stages_of_a_solver_have_histories_of_their_own(sampler):
    ledger = draw(sampler, LITE, solver="heun", nfe=15).ledger.cache
    stages = [call.stage for call in ledger.calls]
    assert stages == [0, 1] * 7 + [0]
    assert [c.kind[0] for c in ledger.calls if c.stage == 1] == list("ffssfss")


def test_every_batch_is_a_run_of_its_own(sampler):
    whole = draw(sampler, LITE, n=4)
    parts = draw(sampler, LITE, n=4, batch=2)
    assert kinds(parts.ledger.cache) == kinds(whole.ledger.cache) * 2
    assert_close(parts.samples, whole.samples, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("changed", ["batch", "dtype", "size"])
def test_a_change_of_shape_or_dtype_starts_anew(changed):
    net = network("pixart") if changed == "size" else network("dit")
    name = "pixart" if changed == "size" else "dit"
    with caching(net, LITE) as ledger:
        for step in range(3):
            net(**inputs(name, step))
        other = inputs(name, 3, batch=3 if changed == "batch" else 2)
        if changed == "dtype":
            net.double()
            other["hidden_states"] = other["hidden_states"].double()
        if changed == "size":
            other["hidden_states"] = other["hidden_states"][..., :4]
        net(**other)
    assert kinds(ledger) == "ffsf"


def test_an_exception_in_mid_run_leaves_nothing_behind():
    net = network("dit")
    with caching(net, LITE):
        wanted = walk(net)
    with caching(net, LITE):
        walk(net, 3)
        with pytest.raises(RuntimeError):
            net(**{**inputs("dit", 3), "class_labels": torch.zeros(5, 5)})
        assert not find_attachment(net).engines[0].tracks
        assert all(map(torch.equal, walk(net), wanted))


# Gates


def test_a_gate_that_foresees_everything_skips_all_but_the_forced(sampler):
    ledger = draw(sampler, CGTaylor(threshold=9.0, warmup=2, final=2, max_consecutive=99)).ledger
    assert kinds(ledger.cache) == "ffssssff"
    ledger = draw(sampler, CGTaylor(threshold=9.0, warmup=2, final=1, max_consecutive=2)).ledger
    assert kinds(ledger.cache) == "ffssfssf"


class Drift(torch.nn.Module):
    """Adds its share of something linear in the call index to the stream."""

    def __init__(self, slope):
        super().__init__()
        self.slope, self.ran = torch.nn.Parameter(slope), 0

    def forward(self, hidden_states, time):
        self.ran += 1
        return hidden_states + self.slope * time


class Toy(torch.nn.Module):
    """A row of three blocks and a head."""

    def __init__(self):
        super().__init__()
        slopes = torch.arange(12.0).reshape(3, 1, 1, 4)
        self.blocks = torch.nn.ModuleList([Drift(1 + slope) for slope in slopes])

    def forward(self, hidden_states, timestep):
        for block in self.blocks:
            hidden_states = block(hidden_states, time=timestep)
        return 2 * hidden_states


@pytest.fixture
def toy(monkeypatch):
    blocks = BlockStructure((BlockGroup("blocks"),))
    monkeypatch.setitem(BY_CLASS, "Toy", Architecture(classes=("Toy",), blocks=blocks))
    return Toy().eval()


def steady(net, steps=10, batch=2):
    x = torch.ones(batch, 5, 4)
    return [net(x, timestep=float(step)) for step in range(steps)]


def test_features_linear_in_the_step_are_skipped_and_exact(toy):
    wanted = steady(toy)
    with caching(toy, CGTaylor(threshold=1e-5, warmup=2, max_consecutive=99), calls=10) as ledger:
        assert_close(steady(toy), wanted, rtol=1e-6, atol=1e-5)
    assert kinds(ledger) == "ffsssssssf"
    assert toy.blocks[2].ran == 10 + 3


def test_noise_is_never_skipped(toy):
    draw_ = torch.Generator().manual_seed(0)
    with caching(toy, CGTaylor(warmup=2), calls=10) as ledger:
        for step in range(10):
            toy(torch.randn(2, 5, 4, generator=draw_), timestep=float(step))
    assert ledger.hits == 0


@pytest.mark.parametrize("policy", [CGTaylor, FirstBlock, TeaCache])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_no_number_is_computed_and_warned_of(policy, bad):
    net = network("dit")
    extra = {"coefficients": (1, 0)} if policy is TeaCache else {}
    with (
        warned("measured nan"),
        caching(net, policy(threshold=1e9, warmup=1, final=0, **extra)) as ledger,
    ):
        for step in range(5):
            given = inputs("dit", step)
            given["hidden_states"] = given["hidden_states"] * bad
            net(**given)
    assert ledger.hits == 0


def test_an_error_of_exactly_zero_twice_is_warned_of(toy):
    with warned("measured 0"), caching(toy, FirstBlock(warmup=1, final=0)):
        for _ in range(5):
            find_attachment(toy).announce(("cond",))
            toy(torch.ones(2, 5, 4), timestep=1.0)


def test_a_block_that_works_in_place_does_not_blind_the_gate(toy, monkeypatch):
    """The gate compares with copies."""

    def in_place(self, hidden_states, time):
        self.ran += 1
        return hidden_states.add_(self.slope * time)

    monkeypatch.setattr(Drift, "forward", in_place)
    with caching(toy, FirstBlock(threshold=0.15, warmup=1, final=0)) as ledger:
        for step in range(1, 9):
            toy(torch.ones(2, 5, 4), timestep=float(step))
    assert [call.error for call in ledger.calls[1:4]] == pytest.approx([1.0, 0.5, 1 / 3])
    assert ledger.hits > 0


def uneven(net, steps=10):
    """Row 0 is easy to forecast, row 1 is not."""
    draw_ = torch.Generator().manual_seed(3)
    out = []
    for step in range(steps):
        x = torch.ones(2, 5, 4)
        x[1] += torch.randn(5, 4, generator=draw_)
        out.append(net(x, timestep=float(step)))
    return out


@pytest.mark.parametrize(("reduce", "wanted"), [("max", 0), ("mean", 7), ("per-sample", 7)])
def test_one_bad_sample_decides_for_all_or_for_itself(toy, reduce, wanted):
    plain = uneven(toy)
    threshold = 0.15 if reduce == "mean" else 0.02
    policy = CGTaylor(threshold=threshold, warmup=2, reduce=reduce, max_consecutive=99)
    with caching(toy, policy, calls=10) as ledger:
        found = uneven(toy)
    assert ledger.hits == pytest.approx(wanted, abs=2 if reduce == "mean" else 0)
    if reduce == "per-sample":
        assert {call.kind for call in ledger.calls[2:9]} == {"partial"}
        assert {call.computed for call in ledger.calls[2:9]} == {0.5}
        assert_close(torch.stack(found)[:, 1], torch.stack(plain)[:, 1], rtol=0, atol=0)
        assert_close(torch.stack(found), torch.stack(plain), rtol=1e-5, atol=1e-4)


def test_rows_that_are_alike_decide_as_each_would_alone(sampler):
    """Per-sample gating of a batch is what batches of one would do."""
    policy = CGTaylor(threshold=0.03, reduce="per-sample")
    together = draw(sampler, policy, n=3, nfe=12)
    alone = draw(sampler, policy, n=3, nfe=12, batch=1)
    rows = sum(c.computed * c.rows for c in together.ledger.cache.calls)
    assert rows == sum(c.computed * c.rows for c in alone.ledger.cache.calls)
    assert_close(together.samples, alone.samples, rtol=1e-3, atol=1e-4)


# Attaching


def test_networks_that_could_learn_are_refused():
    net = network("dit")
    with caching(net, LITE):
        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            pytest.raises(SettingError, match="gradients enabled"),
        ):
            net(**inputs("dit"))
        net.train()
        with pytest.raises(SettingError, match="training mode"):
            net(**inputs("dit"))
        net.eval()


def test_a_cache_of_another_library_is_not_covered():
    net = network("dit")
    for flag, owner in (("is_cache_enabled", "diffusers"), ("_is_cached", "cache-dit")):
        setattr(net, flag, True)
        with pytest.raises(SettingError, match=f"has a cache of {owner} already"):
            enable_cache(net, LITE)
        delattr(net, flag)


def test_attaching_twice_and_detaching_what_is_not_there_are_refused():
    net = network("dit")
    enable_cache(net, LITE)
    with pytest.raises(SettingError, match="has a cache already"):
        enable_cache(net, LITE)
    disable_cache(net)
    with pytest.raises(SettingError, match="no cache to take off"):
        disable_cache(net)


def test_positions_of_all_images_are_shared_and_those_of_each_are_picked():
    call = SimpleNamespace(batch=2, rows=(1,))
    shapes = {(2, 4): (2, 4), (2, 4, 3): (1, 4, 3)}
    for shape, expected in shapes.items():
        assert select_argument("image_rotary_emb", torch.zeros(shape), call).shape == expected


def test_a_full_call_starts_the_sum_of_changes_over():
    """Every change is rescaled to 1."""
    net = network("dit")
    with caching(net, TeaCache(threshold=2.5, coefficients=(1.0,), final=0)) as ledger:
        walk(net, 7)
    assert kinds(ledger) == "fssfssf"


def test_policies_that_must_know_the_length_of_a_run_say_so():
    net = network("dit")
    with caching(net, CGTaylor()), pytest.raises(SettingError, match="calls=STEPS"):
        net(**inputs("dit"))


def test_a_pipeline_tells_the_length_of_its_runs():
    net = network("dit")
    scheduler = SimpleNamespace(timesteps=torch.arange(10).flip(0), num_inference_steps=10)
    pipe = SimpleNamespace(transformer=net, scheduler=scheduler, components={})
    with caching(pipe, CGTaylor(threshold=9.0, max_consecutive=99)) as ledger:
        walk(net)
    assert kinds(ledger) == "fffssssssf"
    scheduler.begin_index = 4  # image to image: the first four are left out
    with caching(pipe, CGTaylor(threshold=9.0, max_consecutive=99)) as ledger:
        walk(net, 6)
    assert kinds(ledger) == "fffssf"


def test_a_pipeline_that_begins_late_without_a_word_to_its_scheduler_has_its_last_call_full():
    pipe = tiny_pipes.pipeline("wan-v2v")
    with caching(pipe, CGTaylor(threshold=9.0, max_consecutive=99)) as ledger:
        tiny_pipes.call("wan-v2v", pipe, num_inference_steps=12, strength=0.5)
    assert pipe.scheduler.begin_index is None
    branches = {each.branch for each in ledger.calls}
    assert [kinds(ledger, each) for each in branches] == ["fffssf"] * 2


def test_what_holds_no_network_is_refused():
    with pytest.raises(ModelError, match="holds no network"):
        enable_cache(SimpleNamespace(module=None), LITE)
    with pytest.raises(ModelError, match="holds no network"):
        enable_cache(SimpleNamespace(), LITE)
    with pytest.raises(SettingError, match="has 4 blocks"):
        enable_cache(network("dit"), CGTaylor(lead=4))


class OwnUNet(torch.nn.Module):
    """Of a class that nobody here knows."""

    def __init__(self):
        super().__init__()
        self.up_blocks = torch.nn.ModuleList([torch.nn.Linear(2, 2)])


@pytest.mark.parametrize("module", [torch.nn.Linear(2, 2), OwnUNet()])
def test_no_cache_advises_another_where_none_can_run(module):
    specs = ("taylorseer", "cg-taylor", "first-block", "deepcache", "taylorseer:level=last-block")
    for spec in (*specs, "fixed-mask:compute=[0]"):
        with pytest.raises(ModelError, match="has nothing that a cache can skip") as refusal:
            enable_cache(module, spec)
        assert not any(name in str(refusal.value) for name in ("seer", "deepcache", "mask"))


def test_each_kind_of_network_is_told_the_caches_that_run_on_it():
    with pytest.raises(ModelError, match="use taylorseer or cg-taylor"):
        enable_cache(network("dit"), "deepcache")
    with pytest.raises(
        ModelError, match="takes deepcache, easycache, fixed-mask and taylorseer:level=last-"
    ):
        enable_cache(network("unet"), "cg-taylor")


class Doubling(ModelHook):
    def new_forward(self, module, *args, **kwargs):
        return 2 * self.fn_ref.original_forward(*args, **kwargs)


@pytest.mark.parametrize("later", [False, True])
def test_hooks_of_others_stay_whichever_came_first(later):
    net = network("dit")
    block = net.transformer_blocks[1]
    registry = HookRegistry.check_if_exists_or_initialize(block)
    if not later:
        registry.register_hook(Doubling(), "doubling")
    attachment = enable_cache(net, LITE)
    if later:
        registry.register_hook(Doubling(), "doubling")
    with_both = net(**inputs("dit"))[0]
    attachment.detach()
    assert torch.equal(net(**inputs("dit"))[0], with_both)
    registry.remove_hook("doubling")
    assert torch.equal(net(**inputs("dit"))[0], network("dit")(**inputs("dit"))[0])


def test_a_cache_on_the_network_serves_the_sampler_too(sampler):
    named = draw(sampler, LITE)
    with caching(sampler, LITE):
        found = [draw(sampler) for _ in range(2)]
    assert all(torch.equal(each.samples, named.samples) for each in found)
    assert [kinds(each.ledger.cache) for each in found] == [kinds(named.ledger.cache)] * 2
    assert draw(sampler).ledger.cache is None


def test_adaptive_solvers_are_refused(sampler):
    with pytest.raises(SettingError, match="adaptive solver"):
        sampler([0], solver="dpm-adaptive-12", cache=LITE)
    with pytest.raises(SettingError, match="leaves none to skip"):
        draw(sampler, CGTaylor(warmup=8))
    with pytest.raises(SettingError, match="the run has 8"):
        draw(sampler, FixedMask(compute=(0, 9)))


# Ledgers


def test_the_ledger_adds_up(sampler):
    result = draw(sampler, LITE, nfe=8, n=2)
    cache = result.ledger.cache
    assert kinds(cache) == "ffssfssf"
    assert cache.block_evaluations == 4 * 6
    assert cache.hit_rate == 0.5
    assert 4 < cache.effective_calls < 4.2
    assert result.ledger.effective_nfe == pytest.approx(cache.effective_calls)
    assert result.ledger.nfe == 8
    assert cache.bytes_held == cache.bytes_predicted == 2 * 2 * 64 * 128 * 4
    figures = result.ledger.as_dict()["cache"]
    assert (figures["full"], figures["skipped"], figures["partial"]) == (4, 4, 0)
    assert "4 of 8 calls skipped" in str(result.ledger)
    assert len(cache.table()) == 9


def test_a_ledger_is_printed_at_the_cost_of_one_call_and_later_of_none(sampler):
    ledgers = [draw(sampler, LITE, n=n).ledger for n in (3, 3, 5)]
    calls = []
    handle = sampler.network.module.register_forward_hook(lambda *_: calls.append(1))
    counts = []
    for ledger in [*ledgers, *ledgers]:
        calls.clear()
        assert "effective NFE" in str(ledger)
        counts.append(len(calls))
    handle.remove()
    assert counts[1:] == [0, 1, 0, 0, 0]  # the first may be known from another test
    assert counts[0] <= 1


def test_bytes_of_module_level_are_those_of_the_formula(sampler):
    """(m + 1) tensors (B, L, d) of two modules in each of six blocks."""
    cache = draw(sampler, TaylorSeer(interval=3, order=2), nfe=10, n=2).ledger.cache
    assert cache.bytes_held == 3 * 12 * 2 * 64 * 128 * 4


def test_zero_hits_for_batches_that_change_are_warned_of_as_such():
    net = network("dit")
    with warned("its batch changed between them 9 times"), caching(net, LITE, calls=STEPS):
        for step in range(STEPS):
            net(**inputs("dit", step, batch=1 + step % 2))


def test_zero_hits_are_warned_of():
    net = network("dit")
    with warned("skipped none of 10 calls"), caching(net, CGTaylor(threshold=1e-12), calls=STEPS):
        walk(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with caching(net, CGTaylor(threshold=0.0), calls=STEPS):
            walk(net)


@pytest.mark.parametrize(
    ("name", "spec", "share"),
    [
        ("unet", "deepcache:branch=4", 0.30),
        ("dit", "pab:window=[0,1]", 0.29),
        ("dit", "cg-taylor:lead=3,threshold=9", 0.24),
    ],
)
def test_a_cache_that_can_save_little_says_so_at_its_first_call_and_once(name, spec, share):
    net = network(name)
    with warnings.catch_warnings(), caching(net, spec, calls=STEPS) as ledger:
        warnings.simplefilter("error")
        with warned(rf"saves at most {100 * share:.0f}% of a call of "):
            net(**inputs(name))
        for step in range(1, STEPS):
            net(**inputs(name, step))
    assert min(map(ledger.share, ledger.calls)) == pytest.approx(1 - share, abs=0.005)


@pytest.mark.parametrize(("name", "spec", "runs"), [("dit", LITE, 1), ("unet", "deepcache", 2)])
def test_what_a_skip_saves_is_counted_by_running_only_where_it_is_in_doubt(name, spec, runs):
    net, ran = network(name), []
    last = [each for each in net.modules() if isinstance(each, torch.nn.Linear)][-1]
    last.register_forward_pre_hook(lambda *_: ran.append("inside"))
    net.register_forward_pre_hook(lambda *_: ran.append("outside"))
    with warnings.catch_warnings(), caching(net, spec, calls=STEPS):
        warnings.simplefilter("error")
        net(**inputs(name))
        assert (ran.count("outside"), ran.count("inside")) == (1, runs)
        for step in range(1, 4):
            net(**inputs(name, step))


@pytest.mark.parametrize(
    "policy",
    [
        FirstBlock(threshold=1e-4, warmup=1, final=0),
        FirstBlock(threshold=1e-4, warmup=1, final=0, tail=1, order=1, reduce="per-sample"),
        MagCache(ratios=(1.0,) * 6),
    ],
)
def test_a_residual_that_stays_is_added_to_where_the_call_starts(toy, policy):
    """Every block adds the same whatever comes in, so a skip is exact."""
    draw_, found, wanted = torch.Generator().manual_seed(0), [], []
    with caching(toy, policy, calls=6) as ledger:
        for _ in range(6):
            x = torch.randn(2, 5, 4, generator=draw_)
            find_attachment(toy).announce(("cond",))
            found.append(toy(x, timestep=1.0))
            wanted.append(2 * (x + sum(block.slope for block in toy.blocks)))
    assert_close(found, wanted)
    assert ledger.hits >= 3
