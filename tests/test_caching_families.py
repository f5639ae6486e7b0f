"""Every policy on every family: off is no cache to the bit, on costs what the ledger says."""

import warnings
from collections import Counter
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

import pytest
import torch
from tiny import BRANCHES, STACKED, UNETS, inputs
from tiny import network as built
from torch.utils.flop_counter import FlopCounterMode

import fewstep
from fewstep.models.caching import (
    PAB,
    CGTaylor,
    DeepCache,
    DiCache,
    EasyCache,
    FasterCache,
    FirstBlock,
    FixedMask,
    MagCache,
    SeaCache,
    SenCache,
    SpeCa,
    TaylorSeer,
    TeaCache,
    caching,
    enable_cache,
    find_attachment,
    names,
    policy_class,
)
from fewstep.models.caching.predictors import Fitted, predictor_names
from fewstep.models.errors import ModelError, SettingError

STEPS = 6
ONES = (1.0,) * STEPS
LITE = {"level": "last-block"}
SLOPES = tuple((1.0, 0.5, 1.0 - step / 8) for step in range(STEPS))
LEVELS = tuple(3.0 - step / 2 for step in range(STEPS))
OFF = [
    TaylorSeer(interval=1),
    TaylorSeer(interval=1, **LITE),
    CGTaylor(threshold=0.0),
    FirstBlock(threshold=0.0),
    TeaCache(threshold=0.0),
    MagCache(threshold=0.0),
    SeaCache(threshold=0.0),
    EasyCache(threshold=0.0),
    SenCache(threshold=0.0),
    DiCache(threshold=0.0),
    SpeCa(threshold=0.0),
    PAB(spatial=1),
    FasterCache(spatial=None),
    FixedMask(compute=tuple(range(STEPS))),
]
NEVER = [  # on, but no call is skipped: everything is kept and compared all the same
    CGTaylor(threshold=1e-12, warmup=1),
    FirstBlock(threshold=1e-12, tail=1, warmup=1),
    TeaCache(threshold=1e-12, coefficients=(1, 0)),
    SeaCache(threshold=1e-12, levels=LEVELS),
    EasyCache(threshold=1e-12),
    SenCache(threshold=1e-12, slopes=SLOPES),
    DiCache(threshold=1e-12, delta=True),
]
ON = [
    TaylorSeer(interval=3),
    TaylorSeer(interval=3, order=2, **LITE),
    CGTaylor(threshold=9.0, warmup=2),
    CGTaylor(threshold=0.3, warmup=2, reduce="per-sample"),
    FirstBlock(threshold=9.0, warmup=2, tail=1),
    FirstBlock(threshold=0.4, warmup=2, order=1, reduce="per-sample"),
    TeaCache(threshold=0.5, coefficients=(1, 0)),
    MagCache(ratios=ONES),
    FixedMask(compute=(0, 1, 4)),
    SeaCache(threshold=1.0, warmup=1, levels=LEVELS),
    EasyCache(threshold=9.0, warmup=2),
    EasyCache(threshold=0.3, warmup=2, reduce="per-sample"),
    SenCache(threshold=9.0, slopes=SLOPES),
    SenCache(threshold=1.0, slopes=SLOPES, reduce="per-sample"),
    DiCache(threshold=9.0, warmup=2),
    DiCache(threshold=0.4, warmup=2, delta=True, reduce="per-sample"),
    SpeCa(threshold=9.0, warmup=2),
    PAB(cross=3, window=(0.0, 1.0)),
    FasterCache(cross=2),
]
UNET_ON = [
    DeepCache(interval=3),
    TaylorSeer(interval=3, **LITE),
    FixedMask(compute=(0, 1, 4)),
    EasyCache(threshold=9.0, warmup=2),
    SenCache(threshold=9.0, slopes=SLOPES),
    PAB(cross=3, window=(0.0, 1.0)),
]


def test_every_policy_is_run_here_exported_and_in_the_documents():
    page = (Path(__file__).parents[1] / "docs" / "caching.md").read_text(encoding="utf-8")
    assert {policy.info.name for policy in (*ON, *UNET_ON)} == set(names())
    for name in names():
        assert policy_class(name).__name__ in fewstep.__all__
        assert f"| `{name}` |" in page


SHOWN = ("dit", "sd3", "flux2")  # the others are slow tests
CASES = [pytest.param(n, marks=() if n in SHOWN else pytest.mark.slow) for n in STACKED]


def ids(policies):
    return [f"{policy.info.name}-{k}" for k, policy in enumerate(policies)]


@pytest.fixture(autouse=True)
def quiet():
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of caches that skip nothing
        yield


@cache
def network(name):
    return built(name)


@cache
def plain(name):
    """The outputs without a cache."""
    return run(network(name), name)


def run(net, name):
    return [net(**inputs(name, s, b))[0] for s in range(STEPS) for b in BRANCHES]


def same(a, b):
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def traces(net):
    """What a hook leaves behind on modules."""
    marks = {"forward", "_diffusers_hook", "_compiled_call_impl"}
    return [n for n, each in net.named_modules() if vars(each).keys() & marks]


@pytest.mark.parametrize("name", CASES)
def test_off_is_no_cache_to_the_bit_twice_in_a_row_and_leaves_no_trace(name):
    net = network(name)
    wanted = plain(name)
    for policy in [*OFF, *NEVER]:
        with caching(net, policy, calls=STEPS) as ledger:
            assert same(run(net, name), wanted), policy
            assert same(run(net, name), wanted), policy
        assert ledger.hits == 0
        assert traces(net) == []
    assert same(run(net, name), wanted)


@pytest.mark.parametrize("name", UNETS)
def test_off_is_no_cache_on_unets(name):
    net = network(name)
    wanted = plain(name)
    for policy in [DeepCache(interval=1), OFF[1], OFF[-1]]:
        with caching(net, policy, calls=STEPS):
            assert same(run(net, name), wanted), policy
            assert same(run(net, name), wanted), policy
    assert traces(net) == []


@pytest.fixture
def asked_alone(monkeypatch):
    """No further evaluation tells what a cache saves, as one does at the first call."""
    monkeypatch.setattr("fewstep.models.caching.hooks.warn_of_share", lambda *_: None)


def inner_products(module):
    """The matrix products inside a part; one that is such itself is answered with its hooks."""
    return [each for each in module.modules() if isinstance(each, torch.nn.Linear)][-1:]


def counted(modules):
    """Counts how often blocks run, by the last matrix product inside each."""
    found, handles = Counter(), []
    for name, module in modules.items():
        (last,) = inner_products(module)
        hook = partial(lambda name, *_: found.update([name]), name)
        handles.append(last.register_forward_hook(hook))
    return found, handles


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("policy", ON, ids=ids(ON))
def test_on_is_repeatable_and_leaves_no_trace(name, policy):
    net, wanted = network(name), plain(name)
    with caching(net, policy, calls=STEPS) as ledger:
        first, second = run(net, name), run(net, name)
    assert same(first, second)
    assert (ledger.hits > 0) != same(first, wanted)
    assert len(ledger.calls) == 4 * STEPS
    assert ledger.bytes_held == ledger.bytes_predicted > 0
    assert find_attachment(net) is None
    assert traces(net) == []
    assert same(run(net, name), wanted)


@pytest.mark.usefixtures("asked_alone")
@pytest.mark.parametrize("name", CASES)
def test_blocks_run_as_often_as_the_ledger_says(name):
    net = network(name)
    for policy in (ON[1], ON[2], ON[4], ON[7], ON[12], ON[14], ON[16], ON[17]):
        attachment = enable_cache(net, policy, calls=STEPS)
        parts = attachment.engines[0].list_parts()
        if any(inner_products(part) in ([], [part]) for part in parts.values()):
            attachment.detach()  # it cannot be counted so
            continue
        found, handles = counted(parts)
        run(net, name)
        for handle in handles:
            handle.remove()
        attachment.detach()
        assert sum(found.values()) == attachment.ledger.block_evaluations
        assert attachment.ledger.hits > 0


@pytest.mark.parametrize("name", UNETS)
@pytest.mark.parametrize("policy", UNET_ON, ids=ids(UNET_ON))
def test_unets_skip_their_deep_part(name, policy):
    net = network(name)
    wanted = plain(name)
    with caching(net, policy, calls=STEPS) as ledger:
        first, second = run(net, name), run(net, name)
    assert same(first, second)
    assert ledger.hits > 0
    assert ledger.bytes_held == ledger.bytes_predicted > 0
    difference = (torch.stack(first) - torch.stack(wanted)).norm() / torch.stack(wanted).norm()
    assert 0 < difference < 0.3
    assert same(run(net, name), wanted)


@pytest.mark.usefixtures("asked_alone")
@pytest.mark.parametrize("name", [*CASES, *UNETS])
@pytest.mark.parametrize("level", ["module", "last-block"])
def test_shares_are_the_flops_that_were_run(name, level):
    """The ledger subtracts what was skipped; here every call is counted for itself."""
    net, counts = network(name), []
    level = "last-block" if name in UNETS else level
    with caching(net, TaylorSeer(interval=3, level=level)) as ledger:
        for step in range(4):
            with FlopCounterMode(display=False) as counter:
                net(**inputs(name, step))
            counts.append(counter.get_total_flops())
    shares = [ledger.share(call) for call in ledger.calls]
    assert ledger.hits == 2
    assert shares == pytest.approx([count / counts[0] for count in counts])


@pytest.mark.parametrize("name", UNETS)
def test_policies_of_equal_blocks_refuse_a_unet_and_name_what_works(name):
    for policy in (CGTaylor(), FirstBlock(), MagCache(ratios=ONES), TaylorSeer()):
        with pytest.raises(ModelError, match="deepcache"):
            enable_cache(network(name), policy)


def test_deepcache_refuses_a_transformer():
    with pytest.raises(ModelError, match="none; use taylorseer"):
        enable_cache(network("dit"), DeepCache())


FITTED = tuple((call, (3, 2), ((call - 3) * 0.9 + 1, (3 - call) * 0.9)) for call in (4, 5))
GIVEN = {"fitted": Fitted(rows=FITTED), "dmd": "dmd:history=4"}
LEADING = partial(FirstBlock, threshold=9.0, warmup=4, final=0)
MASK = partial(FixedMask, compute=(0, 1, 2, 3))


def list_cases():
    """A kind of network and a policy with each predictor, where there is one."""
    for name in predictor_names():
        given = GIVEN.get(name, name)
        if name != "anchors":
            yield from ((net, MASK(predictor=given)) for net in ("sd3", UNETS[0]))
            yield "sd3", MASK(predictor=given, level="module")
        if name != "fitted":
            yield "sd3", LEADING(predictor=given, tail=1)


@cache
def draw(net, policy):
    with caching(network(net), policy, calls=STEPS) as ledger:
        return torch.stack(run(network(net), net)), ledger


def test_every_predictor_runs_under_every_kind_of_engine():
    """They store as many bytes as they state, and all of them are near to a line."""
    for net, policy in list_cases():
        found, ledger = draw(net, policy)
        assert ledger.hits == 2 * len(BRANCHES)
        assert ledger.bytes_held == ledger.bytes_predicted > 0
        line = draw(net, replace(policy, predictor="taylor"))[0]
        assert (found - line).norm() < 0.2 * line.norm(), (net, policy)


def test_anchors_see_what_the_first_block_adds_to_each_image():
    net, added = network("dit"), []
    policy = CGTaylor(threshold=9.0, warmup=4, final=0, predictor="anchors")
    attachment = enable_cache(net, policy, calls=STEPS)
    block = attachment.engines[0].blocks[0].module
    hook = block.register_forward_hook(lambda module, args, out: added.append(out - args[0]))
    run(net, "dit")
    hook.remove()
    memories = [track.stores["image"] for track in attachment.engines[0].tracks.values()]
    attachment.detach()
    last = added[-len(BRANCHES) :]  # at a skipped call, the second of a branch that follows
    assert all(each.abs().min() > 0.0 for each in last)
    assert all(torch.equal(each.probe, r) for each, r in zip(memories, last, strict=True))


def test_anchors_need_leading_blocks():
    with pytest.raises(SettingError, match="take first-block:predictor=anchors"):
        enable_cache(network("dit"), TaylorSeer(predictor="anchors"))
