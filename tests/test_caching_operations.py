"""Operations of a skipped call: those of embedding and head, and the forecast's few."""

import pytest
import torch
from tiny import inputs, network
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep.models.caching import FixedMask, caching
from fewstep.models.caching.predictors import take_predictor

STEPS, MASK = 6, (0, 1, 3)
HEARD = 3  # that read the time of a call which no sampler of ours has announced


class Operations(TorchDispatchMode):
    """Counts all operations while it is entered."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += 1
        return function(*args, **(kwargs or {}))


def count(work):
    with Operations() as seen, torch.inference_mode():
        work()
    return seen.count


def count_outside(net):
    """Those of a call without a cache that are in no block."""
    inside = []

    def watch(block):
        forward = block.forward

        def run(*args, **kwargs):
            outs = []
            inside.append(count(lambda: outs.append(forward(*args, **kwargs))))
            return outs[0]

        block.forward = run

    whole = count(lambda: net(**inputs("dit", step=0)))
    for block in net.transformer_blocks:
        watch(block)
    count(lambda: net(**inputs("dit", step=0)))
    for block in net.transformer_blocks:
        del block.forward
    return whole - sum(inside)


@pytest.mark.parametrize(("predictor", "most"), [("reuse", 2), ("taylor:order=1", 2), ("foca", 7)])
def test_a_skipped_call_adds_the_forecast_alone(predictor, most):
    net = network("dit")
    outside = count_outside(net)
    policy = FixedMask(MASK, predictor=take_predictor(predictor))
    with caching(net, policy, calls=STEPS):
        counts = [count(lambda i=i: net(**inputs("dit", step=i))) for i in range(STEPS)]
    skipped = [counts[i] - outside - HEARD for i in range(STEPS) if i not in MASK]
    assert all(0 < each <= most for each in skipped), skipped
