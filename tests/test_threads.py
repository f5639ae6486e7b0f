"""Threads: runs on one network give what they give alone, and plain ones go side by side."""

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
from torch import nn

from fewstep import CFG, RectifiedFlow, Sampler, TaylorSeer, caching, from_module
from fewstep.models.caching import FirstBlock
from fewstep.models.modules import hold
from fewstep.samplers.editing import Editor
from fewstep.samplers.guidance import PerturbedAttention

WAIT = 20.0  # seconds, for what takes milliseconds
RUNS = {
    "plain": {},
    "taylorseer": {"cache": TaylorSeer(interval=3, level="last-block")},
    "first-block": {"cache": FirstBlock(threshold=0.3, lead=1)},
    "pag": {"guidance": PerturbedAttention(2.0)},
}


@pytest.fixture(scope="module")
def sampler():
    return Sampler.from_pretrained("fashion-dit")


def in_threads(*works):
    """Runs functions at the same time, each in a thread of its own."""
    start = threading.Barrier(len(works))

    def run(work):
        start.wait(WAIT)
        return work()

    with ThreadPoolExecutor(len(works)) as pool:
        return [future.result(4 * WAIT) for future in [pool.submit(run, work) for work in works]]


# Samplers


def draw(sampler, name):
    return sampler(range(2), class_labels=3, solver="ddim", nfe=6, **RUNS[name]).samples


def count_differences(sampler, count):
    alone = {name: draw(sampler, name) for name in RUNS}
    assert len({tuple(samples.flatten().tolist()) for samples in alone.values()}) == len(RUNS)

    def repeat(name):
        return sum(not torch.equal(draw(sampler, name), alone[name]) for _ in range(count))

    return dict(zip(RUNS, in_threads(*(lambda n=n: repeat(n) for n in RUNS)), strict=True))


def test_four_threads_give_what_each_gives_alone(sampler):
    assert count_differences(sampler, 4) == dict.fromkeys(RUNS, 0)


@pytest.mark.slow
def test_four_threads_give_what_each_gives_alone_fifty_times(sampler):
    assert count_differences(sampler, 50) == dict.fromkeys(RUNS, 0)


def test_a_cache_that_stays_on_serves_threads_one_by_one(sampler):
    alone = draw(sampler, "taylorseer")
    with caching(sampler, RUNS["taylorseer"]["cache"]):
        found = in_threads(*[lambda: draw(sampler, "plain")] * 3)
    assert all(torch.equal(each, alone) for each in found)


def test_editors_keep_their_taps_from_other_runs(sampler):
    image = draw(sampler, "plain")[:1]
    edits = Editor(sampler, "rf-edit:steps=4,inject=2")

    def edit():
        return edits(image, source=3, target=5).samples

    alone, plain = edit(), draw(sampler, "plain")
    found = in_threads(edit, lambda: draw(sampler, "plain"), edit, lambda: draw(sampler, "plain"))
    assert all(torch.equal(each, alone) for each in found[::2])
    assert all(torch.equal(each, plain) for each in found[1::2])


class Meeting(nn.Module):
    """A network whose calls return once two threads are in it."""

    def __init__(self):
        super().__init__()
        self.barrier = threading.Barrier(2)

    def forward(self, x, time):
        self.barrier.wait(WAIT)
        return 0.5 * x


def test_plain_runs_go_side_by_side():
    network = from_module(
        Meeting(), schedule=RectifiedFlow(time_scale=1000), prediction="flow", shape=(1, 2, 2)
    )
    sampler = Sampler(network)
    found = in_threads(*[lambda: sampler([0], nfe=3, guidance=CFG(1.0)).samples] * 2)
    assert torch.equal(*found)


def test_a_run_may_start_others_from_its_callback(sampler):
    alone = {name: draw(sampler, name) for name in RUNS}

    def nest(outer, inner):
        found = []

        def callback(n, node, x, x0, ledger):
            if n == 2:
                found.append(draw(sampler, inner))

        choices = {"class_labels": 3, "solver": "ddim", "nfe": 6, "callback": callback}
        samples = sampler(range(2), **choices, **RUNS[outer]).samples
        return torch.equal(samples, alone[outer]) and torch.equal(found[0], alone[inner])

    pairs = [("plain", "taylorseer"), ("plain", "pag"), ("pag", "plain"), ("plain", "first-block")]
    assert in_threads(*(lambda pair=pair: nest(*pair) for pair in pairs)) == [True] * 4


# The lock itself


@contextmanager
def entered(module, log, name, alone=False):
    with hold(module, alone=alone):
        log.append(name)
        yield


def test_who_has_a_module_alone_keeps_others_out():
    module, log, inside = nn.Identity(), [], threading.Event()

    def other(alone):
        assert inside.wait(WAIT)
        with entered(module, log, "other", alone):
            pass

    def first():
        with entered(module, log, "first", alone=True):
            inside.set()
            threading.Event().wait(0.05)
            with entered(module, log, "again"), entered(module, log, "alone again", alone=True):
                pass

    in_threads(first, lambda: other(alone=False), lambda: other(alone=True))
    assert log == ["first", "again", "alone again", "other", "other"]


def test_two_threads_that_share_can_both_have_it_alone_in_turn():
    module, both, counts = nn.Identity(), threading.Barrier(2), []

    def upgrade():
        with hold(module):
            both.wait(WAIT)
            with hold(module, alone=True):
                counts.append(len(counts))
                threading.Event().wait(0.02)
                counts.append(len(counts))

    in_threads(upgrade, upgrade)
    assert counts == [0, 1, 2, 3]


def test_who_waits_to_be_alone_is_not_overtaken():
    module, log, turns = nn.Identity(), [], [threading.Event() for _ in range(3)]

    def early():
        with hold(module):
            turns[0].set()
            assert turns[2].wait(WAIT)
            threading.Event().wait(0.05)
            log.append("early")

    def changes():
        assert turns[0].wait(WAIT)
        turns[1].set()
        with entered(module, log, "changes", alone=True):
            pass

    def late():
        assert turns[1].wait(WAIT)
        threading.Event().wait(0.05)
        turns[2].set()
        with entered(module, log, "late"):
            pass

    in_threads(early, changes, late)
    assert log == ["early", "changes", "late"]


def test_two_modules_are_taken_in_one_order():
    a, b, counts = nn.Identity(), nn.Identity(), []

    def both(*modules):
        for _ in range(50):
            with hold(*modules, None, alone=True):
                counts.append(len(counts))

    in_threads(lambda: both(a, b), lambda: both(b, a))
    assert counts == list(range(100))
