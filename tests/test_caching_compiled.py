"""Caches beside torch.compile, and in two processes that hold shards of one call."""

import os
import subprocess
import sys

import pytest
import torch
from tiny import BRANCHES, inputs, network
from torch import distributed
from torch.testing import assert_close

from fewstep.models.caching import CGTaylor, FirstBlock, TaylorSeer, caching

STEPS = 7
POLICIES = {
    "gated": CGTaylor(threshold=9.0, warmup=2, max_consecutive=2),
    "last block": TaylorSeer(interval=3, level="last-block"),
    "modules": TaylorSeer(interval=3),
}
CASES = [(policy, how) for policy in POLICIES for how in ("whole", "blocks")] + [
    ("gated", "blocks after attaching"),
    ("gated", "full graphs"),  # not with modules: the cache is inside the blocks then
]


def run(net):
    return [net(**inputs("dit", s, b))[0] for s in range(STEPS) for b in BRANCHES]


def blocks(net, **options):
    for block in net.transformer_blocks:
        block.compile(**options)


@pytest.mark.slow
@pytest.mark.parametrize(("policy", "how"), CASES)
def test_compiled_is_eager_and_compiles_nothing_after_the_first_run(policy, how):
    graphs = []

    def backend(graph, example):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    net = network("dit")
    with torch.no_grad():
        with caching(net, POLICIES[policy], calls=STEPS) as eager:
            wanted = run(net)
        if how == "whole":
            net.compile(backend=backend)
        elif how != "blocks after attaching":
            blocks(net, backend=backend, fullgraph=how == "full graphs")
        with caching(net, POLICIES[policy], calls=STEPS) as ledger:
            if how == "blocks after attaching":
                blocks(net, backend=backend)
            found = run(net)
            compiled = len(graphs)
            again = run(net)
        assert ledger.relative_cost == pytest.approx(eager.relative_cost)
    assert_close(found, wanted)
    assert_close(again, wanted)
    assert eager.hits > 0
    assert 0 < compiled <= 9
    assert len(graphs) == compiled


def shard(rank, folder, grouped):
    """One of two processes; its half of the tokens changes in its own way."""
    store = distributed.FileStore(f"{folder}/store", 2)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    group = distributed.group.WORLD if grouped else None
    net = network("dit")
    policy = FirstBlock(threshold=0.65, reduce="mean", final=0, warmup=1)
    with torch.no_grad(), caching(net, policy, group=group) as ledger:
        for step in range(STEPS):
            given = inputs("dit", step)
            given["hidden_states"] = given["hidden_states"] * (1 + 2 * rank * (step % 3))
            net(**given)
    with open(os.path.join(folder, str(rank)), "w") as file:
        file.write("".join(call.kind[0] for call in ledger.calls))
    distributed.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("grouped", [False, True])
def test_shards_that_disagree_take_the_same_branch(tmp_path, grouped):
    words = [sys.executable, __file__, str(tmp_path), str(int(grouped))]
    shards = [subprocess.Popen([*words, str(rank)]) for rank in range(2)]
    try:
        assert [each.wait(180) for each in shards] == [0, 0]
    finally:
        for each in shards:  # they may wait for each other
            each.kill()
    first, second = ((tmp_path / str(rank)).read_text() for rank in range(2))
    assert (first == second) == grouped
    assert "s" in first


if __name__ == "__main__":
    shard(int(sys.argv[3]), sys.argv[1], sys.argv[2] == "1")
