"""Predictions: every conversion against the definitions, for any alpha and sigma."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.models.errors import ModelError, UnknownNameError
from fewstep.models.prediction import (
    Prediction,
    combine,
    convert,
    eps_from,
    velocity_from,
    x0_from,
)
from fewstep.models.schedule import EDM, Cosine, Node, RectifiedFlow, VPDiscrete, VPLinear

EPS, X0, V, FLOW, RAW = Prediction.EPS, Prediction.X0, Prediction.V, Prediction.FLOW, Prediction.EDM
TO_DATA = Prediction.FLOW_TO_DATA
SCHEDULES = [VPDiscrete(), VPLinear(), Cosine(), EDM(), RectifiedFlow(), RectifiedFlow(3.0)]

scale = st.floats(0.05, 20.0)
some = settings(max_examples=25, deadline=None)
KINDS = [kind for kind in Prediction if kind is not Prediction.CONSISTENCY]  # test_distilled.py
every_source = pytest.mark.parametrize("source", KINDS)
every_target = pytest.mark.parametrize("target", KINDS)


def close(found, expected, **tolerance):
    torch.testing.assert_close(found, expected, **{"rtol": 1e-9, "atol": 1e-9, **tolerance})


def node_of(alpha, sigma):
    if alpha == 0.0 or sigma == 0.0:
        return Node(0.5, alpha, sigma, -math.inf if alpha == 0.0 else math.inf)
    return Node(0.5, alpha, sigma, math.log(alpha / sigma))


def draw(alpha, sigma):
    """(x0, eps, x_t) with x_t = alpha x0 + sigma eps."""
    x0, eps = torch.randn(2, 3, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return x0, eps, alpha * x0 + sigma * eps


def truth(kind, x0, eps, node, sigma_data=0.5):
    """What a perfect network answers, by the definitions."""
    a, s = node.alpha, node.sigma
    weight = sigma_data * math.sqrt(s**2 + (a * sigma_data) ** 2)
    return {
        EPS: eps,
        X0: x0,
        V: a * eps - s * x0,
        FLOW: eps - x0,
        TO_DATA: x0 - eps,
        RAW: (s * x0 - a * sigma_data**2 * eps) / weight,
    }[kind]


@every_source
@every_target
@some
@given(scale, scale, st.floats(0.1, 2.0))
def test_conversions_follow_the_definitions(source, target, alpha, sigma, sigma_data):
    node = node_of(alpha, sigma)
    x0, eps, x_t = draw(alpha, sigma)
    out, before = truth(source, x0, eps, node, sigma_data), x_t.clone()
    found = convert(out, x_t, node, source, target, sigma_data)
    close(found, truth(target, x0, eps, node, sigma_data))
    close(convert(found, x_t, node, target, source, sigma_data), out, rtol=1e-7, atol=1e-7)
    close(combine(x0_from(source, node, sigma_data), x_t, out), x0)
    close(combine(eps_from(source, node, sigma_data), x_t, out), eps)
    assert torch.equal(x_t, before)
    assert torch.equal(out, truth(source, x0, eps, node, sigma_data))


@every_source
def test_a_conversion_to_itself_is_the_tensor_itself(source):
    out = torch.ones(2, 3)
    assert convert(out, torch.zeros(2, 3), node_of(0.6, 0.8), source, source) is out


@some
@given(scale, scale, st.floats(0.1, 2.0))
def test_edm_is_the_preconditioning_of_the_paper(alpha, sigma, sigma_data):
    """arXiv:2206.00364, table 1, in y = x_t / alpha and kappa = sigma / alpha."""
    x0, _, x_t = draw(alpha, sigma)
    y, kappa = x_t / alpha, sigma / alpha
    root = math.sqrt(kappa**2 + sigma_data**2)
    c_skip, c_out, c_in = sigma_data**2 / root**2, kappa * sigma_data / root, 1.0 / root
    raw = convert(x0, x_t, node_of(alpha, sigma), X0, RAW, sigma_data)
    close(c_skip * y + c_out * raw, x0)
    close(RAW.input_scale(node_of(alpha, sigma), sigma_data) * x_t, c_in * y)
    assert {kind.input_scale(node_of(alpha, sigma)) for kind in (EPS, X0, V, FLOW)} == {1.0}


@every_target
@pytest.mark.parametrize(
    ("source", "alpha", "sigma"),
    [(kind, 0.0, s) for kind in (X0, V, FLOW, RAW) for s in (1.0, 80.0)]
    + [(kind, a, 0.0) for kind in (EPS, V, FLOW, RAW) for a in (1.0, 0.5)],
)
def test_conversions_hold_at_both_ends(source, target, alpha, sigma):
    node = node_of(alpha, sigma)
    x0, eps, x_t = draw(alpha, sigma)
    found = convert(truth(source, x0, eps, node), x_t, node, source, target)
    close(found, truth(target, x0, eps, node), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(("source", "alpha", "sigma"), [(EPS, 0.0, 1.0), (X0, 1.0, 0.0)])
@every_target
def test_what_an_end_does_not_determine_is_refused(source, target, alpha, sigma):
    if target is source:
        return
    vanishing = "alpha" if alpha == 0.0 else "sigma"
    with pytest.raises(ModelError, match=rf"t=0\.5 does not determine .* because {vanishing} is 0"):
        convert(torch.ones(1, 2), torch.ones(1, 2), node_of(alpha, sigma), source, target)


@every_source
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: f"{s.family}-{s.t_max:g}")
@pytest.mark.parametrize("t", [0.01, 0.4, 0.9])
def test_velocity(source, schedule, t):
    node, (d_alpha, d_sigma) = schedule.at(t), schedule.slope(t)
    x0, eps, x_t = draw(node.alpha, node.sigma)
    weights = velocity_from(source, node, (d_alpha, d_sigma))
    velocity = combine(weights, x_t, truth(source, x0, eps, node))
    close(velocity, d_alpha * x0 + d_sigma * eps)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("t", [0.0, 1.0])
@pytest.mark.parametrize("source", [V, FLOW])
def test_velocity_of_flow_holds_at_both_ends(source, t, shift):
    schedule = RectifiedFlow(shift)
    node, slope = schedule.at(t), schedule.slope(t)
    x0, eps, x_t = draw(node.alpha, node.sigma)
    velocity = combine(velocity_from(source, node, slope), x_t, truth(source, x0, eps, node))
    close(velocity, slope[1] * (eps - x0), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("epsilon", EPS),
        ("sample", X0),
        ("v_prediction", V),
        ("flow_prediction", FLOW),
        *((kind.value, kind) for kind in Prediction),
        *((kind, kind) for kind in Prediction),
    ],
)
def test_named(name, kind):
    assert Prediction.named(name) is kind


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("epsilonn", "epsilon"),
        ("flwo", "flow"),
    ],
)
def test_an_unknown_name_is_met_with_a_suggestion(name, hint):
    with pytest.raises(UnknownNameError, match=f"prediction '{name}'; did you mean '{hint}'"):
        Prediction.named(name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("weights", [(0.0, 1.0), (0.0, 3.0), (0.5, -2.0)])
def test_combine_keeps_dtype_and_arguments(weights, dtype):
    x_t, out = torch.full((2, 3), 4.0, dtype=dtype), torch.full((2, 3), 8.0, dtype=dtype)
    found = combine(weights, x_t, out)
    assert torch.equal(found, torch.full_like(x_t, weights[0] * 4.0 + weights[1] * 8.0))
    assert found.dtype == dtype
    assert (x_t == 4.0).all()
    assert (out == 8.0).all()
