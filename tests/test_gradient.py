"""Guidance that differentiates the network: what it is given, what is counted, what is refused."""

from dataclasses import dataclass, replace

import pytest
import torch
from laws import GAUSSIAN, MIXTURE, PROCESSES, even_in_lam, solver, unit_noise

from fewstep import Sampler
from fewstep.models.caching import TaylorSeer
from fewstep.models.denoiser import Denoiser
from fewstep.models.errors import SettingError
from fewstep.models.load import load
from fewstep.models.schedule import TimeGrid
from fewstep.models.speed import Speed
from fewstep.samplers.guidance import CFG, Guidance, Guide, Interval, Unguided, parse_guidance
from fewstep.samplers.guidance.base import BOTH, COND
from fewstep.samplers.guidance.unbound import take_unbound
from fewstep.samplers.loop import integrate

FLOW = PROCESSES["flow"]


@dataclass(frozen=True)
class Pull(Guidance, Guide):
    """x0 plus the gradient of its own sum, times a weight: a guide that needs nothing else."""

    name = "pull"
    weight: float = 1.0
    branches: tuple = COND

    @property
    def gradient(self):
        return True

    def stateless(self):
        return self

    def ask(self, moment):
        return self.branches

    def combine(self, outputs, x, moment):
        (slope,) = torch.autograd.grad(outputs[-1].sum(), x)
        return outputs[-1] + self.weight * slope


def run(policy, law=GAUSSIAN, settings="dpmpp-2m", steps=6, **facts):
    grid = even_in_lam(FLOW, steps)
    denoiser = Denoiser(replace(law.network(FLOW, (2, 1, 2)), **facts))
    return integrate(denoiser, solver(settings).on(grid), grid, unit_noise(), policy), denoiser


def test_the_gradient_is_that_of_the_network_and_is_counted():
    with torch.no_grad():
        end, denoiser = run(Pull(weight=0.0))
        assert torch.equal(end, run(Unguided())[0])
        assert not end.requires_grad
        node, x, variance = FLOW.at(0.6), unit_noise(), GAUSSIAN.stds**2
        slope = node.alpha * variance / (node.alpha**2 * variance + node.sigma**2)
        grid = TimeGrid.of(FLOW, [0.6, 0.0])
        law = GAUSSIAN.network(FLOW, (2, 1, 2))
        moved = integrate(Denoiser(law), solver("ddim").on(grid), grid, x, Pull())
        exact = GAUSSIAN.x0(x, node) + slope.reshape(1, 2, 1, 2)
        torch.testing.assert_close(moved, exact, rtol=1e-12, atol=1e-12)
    assert (denoiser.ledger.rows, denoiser.ledger.backwards) == (12, 12)
    assert run(Unguided())[1].ledger.backwards == 0


def test_a_gradient_goes_back_through_both_branches():
    sampler = Sampler.from_pretrained("fashion-dit")
    sampler([0], class_labels=1, steps=2, solver="ddim")  # leaves nothing behind that has no graph
    result = sampler([3, 4], class_labels=1, steps=2, solver="ddim", guidance=Pull(1e-9, BOTH))
    assert (result.ledger.rows, result.ledger.backwards) == (8, 8)
    assert result.ledger.as_dict()["backwards_per_image"] == 4.0
    assert "4 backward" in str(result.ledger)
    plain = sampler([3, 4], class_labels=1, steps=2, solver="ddim")
    torch.testing.assert_close(result.samples, plain.samples, rtol=0, atol=1e-4)


def test_memory_that_is_rewritten_holds_no_graph():
    policy = Interval(Pull(1e-3), 0.0, 1.0, "sigma", rewrite_history=True)
    with torch.no_grad():
        end, _ = run(policy, MIXTURE)
    assert not end.requires_grad
    assert bool(end.isfinite().all())


def test_what_gives_no_gradient_is_refused():
    with torch.inference_mode(), pytest.raises(SettingError, match="no_grad"):
        run(Pull())
    sampler = Sampler.from_pretrained("fashion-dit")
    with pytest.raises(SettingError, match="drop the cache"):
        sampler([0], guidance=Pull(), cache=TaylorSeer(interval=3), nfe=6)
    compiled = Sampler(load("fashion-dit", speed=Speed(compile=True)))
    with pytest.raises(SettingError, match="--compile"):
        compiled([0], guidance=Interval(Pull(), 0.0, 1.0), nfe=6)
    with pytest.raises(SettingError, match="without gradients"):
        take_unbound(Pull(), "pipeline", "sample without it")
    assert take_unbound(parse_guidance("cfg:scale=2"), "pipeline", "") == CFG(2.0)
