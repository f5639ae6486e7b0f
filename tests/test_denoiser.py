"""The network behind its one face: views, counting, checks, the dtype border, and exact laws."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from fewstep.models.adapters import from_module
from fewstep.models.denoiser import Branch, Denoiser, Network
from fewstep.models.errors import ModelError, NonFiniteError, UnknownNameError
from fewstep.models.gaussian import GaussianMixture
from fewstep.models.prediction import Prediction, combine, x0_from
from fewstep.models.schedule import EDM, Cosine, RectifiedFlow, VPDiscrete, VPLinear

SCHEDULES = [
    VPDiscrete(),
    VPLinear(time_scale=999),
    Cosine(time_scale=1000),
    EDM(),
    EDM(sigma_data=1.3),
    RectifiedFlow(3.0, time_scale=1000),
]
COND, UNCOND = Branch.COND, Branch.UNCOND
SHAPE = (2, 1, 2)

MADE = sorted(set(Prediction) - {Prediction.CONSISTENCY})  # nothing is converted to that
every_prediction = pytest.mark.parametrize("prediction", MADE)
every_schedule = pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.family)


def close(found, expected, **tolerance):
    torch.testing.assert_close(found, expected, **{"rtol": 1e-10, "atol": 1e-10, **tolerance})


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def noise(*shape, dtype=torch.float64):
    return torch.randn(*shape, dtype=dtype, generator=rng())


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


def mixture():
    means = tensor([-0.8, 0.3, 0.5, -0.2], [0.6, -0.7, 0.1, 0.9], [0.2, 0.8, -0.9, 0.4])
    stds = tensor([0.15, 0.4, 0.6, 1.0], [0.3, 0.3, 0.3, 0.3], [0.2, 0.5, 0.1, 0.9])
    return GaussianMixture(means, stds, tensor(0.5, 0.3, 0.2))


def gaussian():
    return GaussianMixture.single(tensor(0.7, -0.4, 0.2, 1.1), tensor(0.2, 0.5, 1.0, 0.7))


def log_density(law, x_t, node):
    """log p(x_t) of the noised mixture, (B,)."""
    var = node.alpha**2 * law.stds**2 + node.sigma**2
    off = x_t.flatten(1)[:, None] - node.alpha * law.means
    each = -0.5 * (off**2 / var + (2 * math.pi * var).log()).sum(-1) + law.weights.log()
    return each.logsumexp(-1)


# The four views


@every_prediction
@every_schedule
@pytest.mark.parametrize("t", [0.02, 0.5, 0.95])
def test_all_views_agree_through_every_prediction(prediction, schedule, t):
    law, node = mixture(), schedule.at(t)
    denoiser = Denoiser(law.network(schedule, SHAPE, prediction))
    x_t = noise(3, *SHAPE)
    x0, (d_alpha, d_sigma) = law.x0(x_t, node), schedule.slope(t)
    eps = (x_t - node.alpha * x0) / node.sigma
    close(denoiser.x0(x_t, node), (x0,))
    close(denoiser.eps(x_t, node), (eps,))
    close(denoiser.velocity(x_t, node), (d_alpha * x0 + d_sigma * eps,))
    close(denoiser.score(x_t, node), (-eps / node.sigma,), rtol=1e-8)
    assert torch.equal(x_t, noise(3, *SHAPE))


@every_schedule
def test_the_score_is_the_gradient_of_the_log_density(schedule):
    law, node, x_t = mixture(), schedule.at(0.4), noise(3, *SHAPE).requires_grad_()
    (gradient,) = torch.autograd.grad(log_density(law, x_t, node).sum(), x_t)
    close(Denoiser(law.network(schedule, SHAPE)).score(x_t, node), (gradient,))


# Counting and branches


def labelled(x, time, class_labels):
    return x * class_labels[:, None, None, None] + time[:, None, None, None]


def two_branches():
    network = from_module(labelled, schedule=VPLinear(time_scale=999), prediction="v", shape=SHAPE)
    labels = {COND: tensor(1.0, 2.0, 3.0), UNCOND: tensor(5.0, 5.0, 5.0)}
    return Denoiser(network, {branch: {"class_labels": v} for branch, v in labels.items()})


@pytest.mark.parametrize("view", [Denoiser.x0, Denoiser.eps, Denoiser.velocity, Denoiser.score])
def test_two_branches_as_one_batch_equal_two_calls(view):
    x_t, node = noise(3, *SHAPE), VPLinear(time_scale=999).at(0.5)
    together = view(two_branches(), x_t, node, (COND, UNCOND))
    apart = [view(two_branches(), x_t, node, (branch,))[0] for branch in (COND, UNCOND)]
    assert all(map(torch.equal, together, apart))
    assert torch.equal(view(two_branches(), x_t, node)[0], apart[0])
    swapped = view(two_branches(), x_t, node, (UNCOND, COND))
    assert all(map(torch.equal, swapped, apart[::-1]))
    assert not torch.equal(*apart)


def test_a_call_is_counted_once_and_its_rows_per_branch():
    denoiser, node = two_branches(), VPLinear(time_scale=999).at(0.5)
    denoiser.x0(noise(3, *SHAPE), node)
    denoiser.eps(noise(3, *SHAPE), node, (COND, UNCOND))
    ledger = denoiser.ledger
    ledger.images = 3
    assert (ledger.calls, ledger.evaluations, ledger.rows) == (2, 6, 9)
    assert (ledger.nfe, ledger.rows_per_image) == (2.0, 3.0)
    assert ledger.as_dict()["nfe"] == 2.0
    assert "NFE 2 | 3 network rows" in str(ledger)


def test_an_unused_ledger_divides_by_nothing():
    ledger = two_branches().ledger
    assert ledger.nfe == ledger.rows_per_image == ledger.as_dict()["images_per_second"] == 0.0


# Checks


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_one_number_that_is_not_finite_stops_the_run(bad):
    def network(x, time):
        out = torch.zeros_like(x)
        out[1, 0, 0, 1] = bad
        return out

    wrapped = from_module(
        network, schedule=VPLinear(time_scale=999), prediction="eps", shape=SHAPE, name="mine"
    )
    with pytest.raises(NonFiniteError, match=r"'mine' returned NaN .* at t=0\.5 .*time 499\.5"):
        Denoiser(wrapped).x0(noise(3, *SHAPE), VPLinear(time_scale=999).at(0.5))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_the_check_waits_until_it_is_asked_for():
    def network(x, time):
        return torch.full_like(x, math.nan)

    wrapped = from_module(network, schedule=VPLinear(time_scale=999), prediction="eps", shape=SHAPE)
    denoiser = Denoiser(wrapped)
    denoiser.x0(noise(3, *SHAPE).cuda(), VPLinear(time_scale=999).at(0.5))
    with pytest.raises(NonFiniteError, match=r"t=0\.5"):
        denoiser.check()
    denoiser.check()  # asked and answered


def test_large_finite_outputs_are_no_infinity():
    network = replace(
        gaussian().network(RectifiedFlow(), SHAPE), forward=lambda x, *_: x * 0 + 3e38
    )
    Denoiser(network).x0(torch.zeros(4, *SHAPE), RectifiedFlow().at(0.5))


def test_branches_must_have_the_same_conditions():
    network = gaussian().network(RectifiedFlow(), SHAPE)
    conditions = {Branch.COND: {"text": torch.zeros(1)}, Branch.UNCOND: {}}
    with pytest.raises(ModelError, match="same conditions"):
        Denoiser(network, conditions).x0(
            torch.zeros(1, *SHAPE), RectifiedFlow().at(0.5), (Branch.COND, Branch.UNCOND)
        )


def test_an_answer_that_is_no_tensor():
    network = from_module(
        lambda x, time: (x,), schedule=RectifiedFlow(time_scale=1), prediction="x0", shape=SHAPE
    )
    with pytest.raises(ModelError, match="a tuple; wrap it"):
        Denoiser(network).x0(torch.zeros(1, *SHAPE), RectifiedFlow().at(0.5))


@pytest.mark.parametrize("prediction", [Prediction.V, Prediction.FLOW, Prediction.EPS])
def test_the_score_of_clean_data_is_refused(prediction):
    denoiser = Denoiser(gaussian().network(RectifiedFlow(), SHAPE, prediction))
    with pytest.raises(ModelError):
        denoiser.score(noise(1, *SHAPE), RectifiedFlow().at(0.0))


# The dtype border and the adapter of plain modules


class Recorder(nn.Module):
    """Records what it is called with; needs class_labels."""

    def __init__(self, factor=1):
        super().__init__()
        self.conv = nn.Conv2d(2, 2 * factor, 1)
        self.seen = []

    def forward(self, x, time, class_labels, text=None):
        self.seen.append((x, time, class_labels, text))
        return self.conv(x) + class_labels[:, None, None, None].to(x.dtype)


@pytest.mark.parametrize("state", [torch.float32, torch.float64])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16, torch.float16])
@torch.no_grad()
def test_only_the_network_works_in_its_own_dtype(state, weights):
    module = Recorder().to(weights)
    network = from_module(module, schedule=VPDiscrete(), prediction="eps", shape=SHAPE)
    node, x_t = VPDiscrete().at(0.25), noise(3, *SHAPE, dtype=state)
    conditions = {"class_labels": torch.tensor([0, 1, 2]), "text": torch.ones(3, 4)}
    (x0,) = Denoiser(network, {COND: conditions}).x0(x_t, node)
    x, time, labels, text = module.seen[0]
    assert (x.dtype, time.dtype, labels.dtype, text.dtype) == (
        weights, torch.float32, torch.int64, weights,
    )  # fmt: skip
    assert torch.equal(time, torch.full((3,), 249.0))
    (eps,) = Denoiser(network, {COND: conditions}).eps(x_t, node)
    assert x0.dtype == eps.dtype == state
    out = module(x_t.to(weights), time, conditions["class_labels"]).to(state)
    assert torch.equal(x0, combine(x0_from(Prediction.EPS, node), x_t, out))


def test_facts_of_a_module():
    module = Recorder().train()
    network = from_module(
        module,
        schedule=EDM(time_label="sigma"),
        prediction="epsilon",
        shape=[2, 1, 2],
        num_classes=3,
        null_class=3,
    )
    assert not module.training
    assert (network.name, network.needs) == ("Recorder", ("class_labels",))
    assert (network.shape, network.prediction, network.num_classes) == (SHAPE, Prediction.EPS, 3)
    assert (network.device, network.sigma_data) == (torch.device("cpu"), 0.5)


@pytest.mark.parametrize(
    ("function", "needs"),
    [
        (lambda x, t: x, ()),
        (lambda x, t, class_labels: x, ("class_labels",)),
        (lambda x, t, class_labels=None, *, text: x, ("text",)),
        (lambda x, time=0.0, **conditions: x, ()),
    ],
)
def test_a_plain_function_says_what_it_needs(function, needs):
    network = from_module(function, schedule=VPLinear(time_scale=999), prediction="x0", shape=SHAPE)
    assert network.needs == needs


def test_an_unknown_prediction_is_refused():
    with pytest.raises(UnknownNameError, match="no prediction 'noise'"):
        from_module(
            lambda x, t: x, schedule=VPLinear(time_scale=999), prediction="noise", shape=SHAPE
        )


def test_a_learned_sigma_is_split_off():
    x_t, node = noise(3, *SHAPE), VPLinear(time_scale=999).at(0.5)

    def answer(x, time):
        return torch.cat([x + 1.0, torch.full_like(x, 99.0)], dim=1)

    network = from_module(answer, schedule=VPLinear(time_scale=999), prediction="eps", shape=SHAPE)
    close(Denoiser(network).eps(x_t, node), (x_t + 1.0,))


@pytest.mark.parametrize(
    "shape", [(3, 3, 1, 2), (3, 2, 1, 4), (2, 2, 1, 2), (3, 1, 1, 2), (3,), (), (3, 2, 1)]
)
def test_an_answer_of_another_shape_is_refused(shape):
    network = from_module(
        lambda x, t: torch.zeros(shape),
        schedule=VPLinear(time_scale=999),
        prediction="eps",
        shape=SHAPE,
    )
    with pytest.raises(ModelError, match=r"answered \(.* to a state of shape \(3, 2, 1, 2\)"):
        Denoiser(network).x0(noise(3, *SHAPE), VPLinear(time_scale=999).at(0.5))


@every_schedule
def test_the_network_is_told_the_label_and_reads_the_scaled_state(schedule):
    seen, node, x_t = [], schedule.at(0.3), noise(3, *SHAPE)

    def answer(x, time):
        seen.append((x, time))
        return x

    network = from_module(answer, schedule=schedule, prediction="edm", shape=SHAPE)
    Denoiser(network).x0(x_t, node)
    x, time = seen[0]
    close(time, torch.full((3,), schedule.label(node), dtype=x_t.dtype), rtol=0, atol=0)
    data = getattr(schedule, "sigma_data", 0.5)
    close(x, x_t / math.hypot(node.sigma, node.alpha * data))


# The exact laws


@every_schedule
@pytest.mark.parametrize("t", [0.05, 0.6])
def test_x0_of_one_gaussian(schedule, t):
    law, node, x_t = gaussian(), schedule.at(t), noise(5, 4)
    mean, var = law.means[0], law.stds[0] ** 2
    gain = node.alpha * var / (node.alpha**2 * var + node.sigma**2)
    close(law.x0(x_t, node), mean + gain * (x_t - node.alpha * mean))


@every_schedule
@pytest.mark.parametrize("t", [0.1, 0.6])
def test_x0_of_a_mixture_is_the_posterior_mean_by_quadrature(schedule, t):
    law = GaussianMixture(tensor([-1.0], [0.5]), tensor([0.3], [0.6]), tensor(0.7, 0.3))
    node, x_t = schedule.at(t), torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    data = torch.linspace(-8, 8, 40001, dtype=torch.float64)
    prior = (law.weights / law.stds[:, 0] * torch.exp(
        -0.5 * ((data[:, None] - law.means[:, 0]) / law.stds[:, 0]) ** 2
    )).sum(-1)  # fmt: skip
    joint = prior * torch.exp(-0.5 * ((x_t - node.alpha * data) / node.sigma) ** 2)
    expected = (joint * data).sum(-1, keepdim=True) / joint.sum(-1, keepdim=True)
    close(law.x0(x_t, node), expected)


def test_x0_holds_at_both_ends():
    law, x = mixture(), noise(3, *SHAPE)
    close(law.x0(x, RectifiedFlow().at(0.0)), x)
    mean = (law.weights[:, None] * law.means).sum(0)
    close(law.x0(x, RectifiedFlow().at(1.0)), mean.reshape(SHAPE).expand_as(x))


def test_x0_keeps_the_dtype_of_the_state():
    x_t = noise(3, *SHAPE, dtype=torch.float32)
    assert mixture().x0(x_t, VPLinear(time_scale=999).at(0.5)).dtype == torch.float32


@pytest.mark.parametrize(
    "schedule",
    [VPLinear(time_scale=999), Cosine(time_scale=1000), EDM(), RectifiedFlow(3.0, time_scale=1000)],
    ids=str,
)
def test_flow_map_is_the_flow_of_the_velocity(schedule):
    """Against 1000 Runge-Kutta steps of the denoiser's own velocity, evenly spaced in log t."""
    law, x = gaussian(), noise(5, 4)
    velocity = Denoiser(law.network(schedule, (4,), Prediction.V)).velocity
    times = torch.linspace(math.log(0.9), math.log(0.05), 1001, dtype=torch.float64).exp().tolist()
    nodes = [schedule.at(t) for t in times]
    moved = x
    for t, s in itertools.pairwise(nodes):
        h, mid = s.t - t.t, schedule.at((s.t + t.t) / 2)
        (k1,) = velocity(moved, t)
        (k2,) = velocity(moved + h / 2 * k1, mid)
        (k3,) = velocity(moved + h / 2 * k2, mid)
        (k4,) = velocity(moved + h * k3, s)
        moved = moved + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    close(law.flow_map(x, nodes[0], nodes[-1]), moved, rtol=1e-9, atol=1e-9)


def test_flow_map_composes_inverts_and_keeps_the_shape():
    law, x = gaussian(), noise(3, *SHAPE)
    t, s, r = (RectifiedFlow().at(v) for v in (1.0, 0.4, 0.0))
    close(law.flow_map(law.flow_map(x, t, s), s, r), law.flow_map(x, t, r))
    close(law.flow_map(law.flow_map(x, t, r), r, t), x)
    close(law.flow_map(x, s, s), x)


def test_a_mixture_has_no_flow_map():
    node = VPLinear(time_scale=999).at(0.5)
    with pytest.raises(ModelError, match=r"use GaussianMixture\.single"):
        mixture().flow_map(noise(3, *SHAPE), node, node)


@pytest.mark.parametrize("law", [mixture(), gaussian()], ids=["mixture", "single"])
def test_draws_have_the_moments_of_the_law(law):
    n = 40_000
    drawn = law.draw(n, SHAPE, rng()).flatten(1)
    mean = (law.weights[:, None] * law.means).sum(0)
    var = (law.weights[:, None] * (law.stds**2 + law.means**2)).sum(0) - mean**2
    close(drawn.mean(0), mean, rtol=0, atol=5 * var.max().sqrt().item() / math.sqrt(n))
    close(drawn.var(0), var, rtol=5 * math.sqrt(3 / n), atol=0)
    assert torch.equal(law.draw(3, SHAPE, rng(7)), law.draw(3, SHAPE, rng(7)))
    assert law.draw(3, SHAPE, rng()).shape == (3, *SHAPE)


def test_isotropic_stds_broadcast():
    law = mixture()
    wide = GaussianMixture(law.means, law.stds[:, :1].expand(3, 4), law.weights)
    narrow = GaussianMixture(law.means, law.stds[:, :1], law.weights)
    x_t, node = noise(3, *SHAPE), VPLinear(time_scale=999).at(0.3)
    close(narrow.x0(x_t, node), wide.x0(x_t, node))
    close(narrow.draw(5, SHAPE, rng()), wide.draw(5, SHAPE, rng()))


def test_a_network_without_sigma_data_takes_the_usual_one():
    network = mixture().network(VPLinear(time_scale=999), SHAPE)
    assert isinstance(network, Network)
    assert network.sigma_data == 0.5
    assert mixture().network(EDM(sigma_data=1.3), SHAPE).sigma_data == 1.3
