"""Steps that a reward chooses, against the exact tilted law."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from laws import MIXTURE, even_in_lam, f64, solver
from torch import Tensor

from fewstep import EDM, Sampler, Steered
from fewstep.models.errors import FewstepError, SettingError
from fewstep.models.schedule import Node
from fewstep.solvers import drive, list_queries
from fewstep.solvers.choice import Choice

TILT, T = f64(1.0, 0.0, 0.0, -1.0), 0.3  # r = x[0] - x[3]
SHAPE = (4, 1, 1)
TILTED = f64(0.158833, 0.548412, 0.292756)  # weights of the components under e^{r / T}


def reward(x: Tensor) -> Tensor:
    return x.flatten(1).double() @ TILT


def value(x: Tensor, node: Node) -> Tensor:
    """T log E[e^{r / T} | x_t], in closed form: r is normal in each component."""
    y, var = x.flatten(1)[:, None], MIXTURE.stds**2
    spread = node.alpha**2 * var + node.sigma**2
    off = y - node.alpha * MIXTURE.means
    log_p = -0.5 * (off**2 / spread + spread.log()).sum(-1) - 1.5 * spread.log()[:, 0]
    mean = (MIXTURE.means + node.alpha * var / spread * off) @ TILT
    rest = (var * node.sigma**2 / spread)[:, 0] * TILT.square().sum()
    log_p = (log_p + MIXTURE.weights.log()).log_softmax(-1)
    return T * (log_p + mean / T + rest / (2.0 * T**2)).logsumexp(-1)


def measure(settings, steps: int, n: int) -> tuple[Tensor, float, float]:
    """Shares of the components in n samples, and mean and variance of their reward."""
    grid, g = even_in_lam(EDM(), steps, 20.0, 0.02), torch.Generator().manual_seed(0)
    x = 20.0 * torch.randn(n, *SHAPE, generator=g, dtype=torch.float64)
    run = settings.on(grid)
    state = run.init()

    def answer(x, node):
        if isinstance(node, Choice):
            return node.pick(x, None)
        if node is None:
            return torch.randn(n, *SHAPE, generator=g, dtype=torch.float64)
        return MIXTURE.x0(x, node)

    for t, s in pairwise(grid.nodes):
        x, state = drive(run.step(x, state, t, s), answer)
    off = (x.flatten(1)[:, None] - MIXTURE.means) / MIXTURE.stds
    nearest = (-0.5 * off.square() - MIXTURE.stds.log()).sum(-1).argmax(1)
    shares = torch.bincount(nearest, minlength=3).double() / n
    return shares, float(reward(x).mean()), float(reward(x).var())


def test_the_tilted_law_is_what_it_is_said_to_be():
    """The component weights are pi_k e^{b m_k / T + s_k^2 |b|^2 / 2 T^2}."""
    log_w = MIXTURE.weights.log() + MIXTURE.means @ TILT / T + MIXTURE.stds[:, 0] ** 2 / T**2
    torch.testing.assert_close(log_w.softmax(0), TILTED, atol=1e-6, rtol=0)


def test_rewards_lead_to_the_tilted_law():
    """20 steps and 16 candidates: a mean reward of -.076 by the exact value and -.12 by that of the
    prediction, as the spread of 1500 samples lets be seen; -.43 without, and .113 in the limit.
    """
    plain = measure(solver("ddpm"), 20, 1500)
    assert plain[1] == pytest.approx(-0.43, abs=0.04)
    exact = measure(Steered(value=value, temperature=T, candidates=16), 20, 1500)
    assert exact[1] == pytest.approx(-0.076, abs=0.035)
    torch.testing.assert_close(exact[0], f64(0.227, 0.489, 0.285), atol=0.04, rtol=0)
    guess = measure(Steered(reward, temperature=T, candidates=16), 20, 1500)
    assert guess[1] == pytest.approx(-0.12, abs=0.035)
    torch.testing.assert_close(guess[0], f64(0.282, 0.402, 0.315), atol=0.04, rtol=0)


@pytest.mark.slow
def test_more_steps_and_candidates_come_nearer():
    """100 steps, 16 candidates, by the exact value: the mean reward is .037 and the weights within
    .03 of the tilted ones.
    """
    shares, mean, var = measure(Steered(value=value, temperature=T, candidates=16), 100, 2000)
    torch.testing.assert_close(shares, TILTED, atol=0.045, rtol=0)
    assert mean == pytest.approx(0.037, abs=0.03)
    assert var == pytest.approx(0.199, abs=0.04)


def test_the_largest_is_no_sample_of_that_law():
    """The least rewarded component is lost, the reward far beyond .113, its variance below half."""
    shares, mean, var = measure(Steered(reward, temperature=T, select="max"), 20, 500)
    assert shares[0] == 0.0
    assert mean > 0.6
    assert var < 0.1


@pytest.fixture
def sampler() -> Sampler:
    return Sampler(MIXTURE.network(EDM(), SHAPE))


def test_one_candidate_is_the_solver_itself(sampler):
    for name in ("ddpm", "sde-dpmpp-1:eta=0.5", "euler-ancestral", "renoise"):
        plain = sampler(range(3), solver=name, steps=5).samples
        one = Steered(reward, candidates=1, solver=name)
        assert torch.equal(sampler(range(3), solver=one, steps=5).samples, plain)


def test_an_image_depends_on_its_seed_alone(sampler):
    for select in ("softmax", "max"):
        steered = Steered(reward, temperature=T, candidates=3, select=select)
        together = sampler(range(5), solver=steered, steps=6).samples
        apart = sampler(range(5), solver=steered, steps=6, batch=2).samples
        assert torch.equal(apart, together)
        assert torch.equal(sampler([3], solver=steered, steps=6).samples[0], together[3])


def test_the_ledger_counts_every_candidate(sampler):
    steered = Steered(reward, temperature=T, candidates=4)
    assert sampler.plan(solver=steered, steps=6).nfe == 1 + 4 * 5
    ledger = sampler([0, 1], solver=steered, steps=6).ledger
    assert (ledger.nfe, ledger.rows) == (1 + 4 * 5, 2 * (1 + 4 * 5))
    assert sampler([0, 1], solver=steered, nfe=21).ledger.nfe == 21
    by_value = Steered(value=value, temperature=T, candidates=4)
    assert sampler([0, 1], solver=by_value, steps=6).ledger.nfe == 6
    grid = even_in_lam(EDM(), 3)
    assert list_queries(steered.on(grid), grid) == [grid.nodes[0]] + [
        node for node in grid.nodes[1:3] for _ in range(4)
    ]


def test_the_kept_prediction_is_shown_after_each_step(sampler):
    """A callback sees the x0 that led on, not that of the last candidate."""
    seen = []
    last = Steered(lambda x: 1.0 - x.flatten(1).sum(1), select="max", candidates=3)
    sampler([0, 1], solver=last, steps=4, callback=lambda *step: seen.append(step[1:4]))
    for node, x, x0 in seen[:-1]:
        torch.testing.assert_close(MIXTURE.x0(x, node), x0)


def test_rewards_are_shown_decoded_images():
    shapes = []

    def watch(x):
        shapes.append(tuple(x.shape))
        return x.flatten(1).mean(1)

    network = MIXTURE.network(EDM(), SHAPE)
    latent = replace(network, decode=lambda x: x.repeat(1, 1, 2, 2))
    Sampler(latent)([0, 1, 2], solver=Steered(watch, candidates=2), steps=3)
    assert set(shapes) == {(3, 4, 2, 2)}
    shapes.clear()
    Sampler(network)([0, 1, 2], solver=Steered(watch, candidates=2), steps=3)
    assert set(shapes) == {(3, 4, 1, 1)}


def test_guided_predictions_are_rated(sampler):
    network = MIXTURE.network(EDM(), SHAPE)
    classes = replace(network, num_classes=2, null_class=2, forward=lambda x, node, _: 0.5 * x)
    steered = Steered(reward, temperature=T, candidates=2)
    ledger = Sampler(classes)(
        [0, 1], class_labels=1, solver=steered, steps=3, guidance="cfg:scale=2"
    ).ledger
    assert (ledger.nfe, ledger.rows) == (5, 20)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (lambda x: x.mean(), r"one number for each image, a tensor \(2,\), not \(\)"),
        (lambda x: x, r"not \(2, 4, 1, 1\)"),
        (lambda x: [1.0, 2.0], "not list"),
        (lambda x: x.flatten(1)[:, 0] * torch.nan, "NaN or infinite for 2 of 2 images"),
        (lambda x: torch.tensor([0.0, -torch.inf]), "NaN or infinite for 1 of 2 images"),
    ],
)
def test_what_is_no_reward_is_refused(sampler, wrong, match):
    with pytest.raises(SettingError, match=match):
        sampler([0, 1], solver=Steered(wrong, candidates=2), steps=3)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({}, "a reward or a value"),
        ({"reward": reward, "value": value}, "either a reward or a value"),
        ({"reward": "bright"}, "is a function"),
        ({"reward": reward, "temperature": 0.0}, "above 0"),
        ({"reward": reward, "temperature": torch.inf}, "above 0"),
        ({"reward": reward, "candidates": 0}, "1 or more"),
        ({"reward": reward, "candidates": 2.5}, "whole number"),
        ({"reward": reward, "select": "best"}, "known: max, softmax"),
        ({"reward": reward, "solver": "dpmm"}, "no solver 'dpmm'"),
    ],
)
def test_wrong_settings_are_refused(settings, match):
    with pytest.raises(FewstepError, match=match):
        Steered(**settings)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("sde-dpmpp-2", "not of order 1"),
        ("sa-solver", "not of order 1"),
        ("unipc-2", "not of order 1"),
        ("dpm-adaptive-12", "not of order 1"),
        ("ddim", "adds no noise"),
        ("sde-dpmpp-1:eta=0", "adds no noise"),
    ],
)
def test_solvers_that_have_no_candidates_are_refused(sampler, name, match):
    with pytest.raises(SettingError, match=match):
        sampler([0], solver=Steered(reward, solver=name), steps=4)
