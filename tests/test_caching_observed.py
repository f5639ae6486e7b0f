"""Caches on networks that no family lists: their first call shows what they are made of."""

from dataclasses import replace

import pytest
import torch
from tiny import network
from torch import nn

from fewstep.models.architectures.stack import describe
from fewstep.models.caching import (
    CGTaylor,
    FirstBlock,
    TaylorSeer,
    TeaCache,
    caching,
    enable_cache,
    find_attachment,
)
from fewstep.models.caching.stack_engine import StackEngine
from fewstep.models.errors import ModelError, SettingError
from fewstep.models.ledger import CacheLedger

LITE = TaylorSeer(interval=3, level="last-block")


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.inference_mode():
        yield


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.mix, self.runs = nn.Linear(4, 4), 0

    def forward(self, hidden_states, shift):
        self.runs += 1
        return hidden_states + torch.tanh(self.mix(hidden_states)) + shift


class Unlisted(nn.Module):
    """Four blocks in a row; `leaks` lets the head see the first one's output."""

    def __init__(self, leaks=False):
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.head, self.leaks = nn.Linear(4, 4), leaks

    def forward(self, x, timestep):
        shift, first = torch.sin(timestep)[:, None, None], None
        for block in self.blocks:
            x = block(x, shift)
            first = x if first is None else first
        return self.head(x + first if self.leaks else x)


def unlisted(**settings):
    torch.manual_seed(0)
    return Unlisted(**settings).eval()


def walk(net, steps=7):
    x = torch.linspace(-1.0, 1.0, 24).reshape(2, 3, 4)
    return [net(x, torch.full((2,), 9.0 - 0.1 * i)) for i in range(steps)]


def runs(net):
    return [block.runs for block in net.blocks]


def test_the_first_call_shows_the_blocks_and_is_the_first_of_the_run():
    net = unlisted()
    wanted = walk(net)
    with caching(net, LITE) as ledger:
        _ = walk(net, 1)
        before = runs(net)
        found = walk(net)  # the time goes back: a new run
    assert "".join(call.kind[0] for call in ledger.calls) == "f" + "ffssfss"
    assert [a - b for a, b in zip(runs(net), before, strict=True)] == [3] * 4
    assert ledger.parts == 4
    assert ledger.calls[-1].skipped == tuple(f"blocks.{k}" for k in range(4))
    full = (0, 1, 4)
    assert all(torch.equal(found[i], wanted[i]) == (i in full) for i in range(7))
    assert find_attachment(net) is None
    assert all(map(torch.equal, walk(net), wanted))


def test_blocks_are_shown_once_for_calls_that_are_given_the_same():
    net = unlisted()
    with caching(net, LITE):
        walk(net, 1)
    shown = runs(net)
    with caching(net, LITE):
        walk(net, 1)
    assert runs(net) == [count + 1 for count in shown]
    with caching(net, LITE):
        net(x=torch.zeros(2, 3, 4), timestep=torch.ones(2))
    assert runs(net)[0] > shown[0] + 2


def test_a_gate_sees_the_leading_block():
    net = unlisted()
    with caching(net, CGTaylor(threshold=9.0, warmup=2, final=0)) as ledger:
        walk(net)
    assert [call.kind for call in ledger.calls] == ["full"] * 2 + ["skip"] * 5
    assert all(len(call.skipped) == 3 for call in ledger.calls[2:])


def test_what_cannot_be_skipped_is_refused_at_its_first_call_and_runs_again_afterwards():
    net = unlisted(leaks=True)
    wanted = walk(net, 1)
    with (
        pytest.raises(ModelError, match="is not all that its output depends on"),
        caching(net, LITE),
    ):
        walk(net, 1)
    assert all(map(torch.equal, walk(net, 1), wanted))
    assert not any("_diffusers_hook" in vars(each) for each in net.modules())


def test_policies_that_need_more_than_blocks_say_so():
    net = unlisted()
    with (
        pytest.raises(ModelError, match="no modulated input is known for Unlisted"),
        caching(net, TeaCache(coefficients=(1.0, 0.0), final=0)),
    ):
        walk(net, 1)
    with pytest.raises(SettingError, match="no coefficients of teacache"):
        enable_cache(net, TeaCache())
    with pytest.raises(ModelError, match=r"no block structure.*caching\(network, policy\) finds"):
        describe(net)


def test_no_block_runs_after_skipped_ones_where_blocks_read_each_other():
    net = network("dit")
    stack = describe(net)
    stack = replace(stack, structure=replace(stack.structure, chained=False))
    ledger = CacheLedger("first-block")
    with pytest.raises(SettingError, match="set tail=0 of first-block"):
        StackEngine(net, FirstBlock(tail=1), ledger, stack)
    StackEngine(net, FirstBlock(tail=0), ledger, stack)
