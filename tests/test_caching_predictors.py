"""Predictors against the laws that they are exact on, and against values of their formulas."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from fewstep.models.caching import (
    CGTaylor,
    FixedMask,
    TaylorSeer,
    cache,
    names,
    policy_class,
    predictors,
    take_cache,
)
from fewstep.models.caching.full_calls import check_run
from fewstep.models.caching.predictors import (
    Anchors,
    Fitted,
    FoCa,
    Hermite,
    IndexPredictor,
    Newton,
    Poles,
    Reuse,
    Spectrum,
    Taylor,
    predictor_class,
    predictor_names,
    take_predictor,
)
from fewstep.models.caching.predictors.dmd import find_pole_weights
from fewstep.models.errors import SettingError, UnknownNameError
from fewstep.models.registry import format_spec

NODES, CALL = (0, 1, 2, 5, 9), 12
UNEVEN = (0, 1, 4, 6, 11, 12, 17)
SERIES = {
    "line": lambda i: 3 - 2 * i,
    "parabola": lambda i: i**2,
    "decay": lambda i: 0.9**i,
    "cosine": lambda i: math.cos(math.pi * i / 25),
}
SPECTRUM = Spectrum(blend=1.0, anchored=False)  # as published
ROWS = [  # of each series at call 12, from its values at the nodes
    (Reuse(), (-15, 81, 0.387420489, 0.4257792916)),
    (Taylor(), (-21, 123, 0.2351183558, 0.1383510145)),
    (Taylor(2), (-21, 130.875, 0.2603213058, 0.0904027231)),
    (Taylor(3), (-21, 131.34375, 0.2603107933, 0.0895370935)),
    (Newton(2), (-21, 144, 0.3023262225, 0.0104889041)),
    (Newton(3), (-21, 144, 0.2758891809, 0.0452865235)),
    (Hermite(1), (-18, 102, 0.3112694224, 0.282065153)),
    (Taylor(1, damping=0.5), (-18, 102, 0.3112694224, 0.282065153)),
    (Hermite(2), (-18, 103.53125, 0.316169996, 0.2727418741)),
    (Hermite(1, math.sqrt(0.5)), (-21, 123, 0.2351183558, 0.1383510145)),
    (SPECTRUM, (-15.28399017, 87.66304002, 0.28480916, 0.24781911)),
    (replace(SPECTRUM, blend=0.5), (-18.14199509, 105.33152001, 0.25996376, 0.19308506)),
    (replace(SPECTRUM, anchored=True), (-18.42317548, 111.89468364, 0.32634316, 0.21522076)),
]


def f64(value):
    return torch.full((2, 3), float(value), dtype=torch.float64)


def fill(predictor, law, nodes, calls=50):
    memory = predictor.make_memory(calls)
    for node in nodes:
        memory.probe = f64(node)
        memory.update(f64(law(node)), node)
    return memory


def ask(memory, call):
    """The forecast of a call at which the leading blocks add what is linear in the index."""
    memory.probe = f64(call)
    return memory.forecast(call)


@pytest.mark.parametrize(("predictor", "expected"), ROWS, ids=lambda each: str(each)[:40])
def test_values_of_each_formula(predictor, expected):
    for law, value in zip(SERIES.values(), expected, strict=True):
        found = fill(predictor, law, NODES).forecast(CALL)
        tolerance = 6e-9 if isinstance(predictor, Spectrum) else 6e-11
        assert_close(found, f64(value), rtol=0, atol=tolerance * max(1.0, abs(value)))


def test_cubics_and_even_gaps():
    cube = fill(Newton(3), lambda i: i**3, NODES).forecast(CALL)
    assert_close(cube, f64(1728), rtol=1e-12, atol=0)
    assert_close(fill(Taylor(2), lambda i: i**3, NODES).forecast(CALL), f64(1308))
    for predictor, value in ((Taylor(2), 115), (Newton(2), 121), (Hermite(2), 96.5)):
        assert_close(fill(predictor, SERIES["parabola"], (0, 3, 6, 9)).forecast(11), f64(value))


VARIANTS = [  # beside the default settings of all
    *(Taylor(order, first=first) for order in (0, 2, 4) for first in (1, 3)),
    *(Newton(order) for order in (0, 1, 3, 4)),
    Taylor(2, damping=0.3),
    Hermite(1),
    Hermite(4),
    Hermite(1, math.sqrt(0.5)),
    Hermite(3, math.sqrt(0.5)),
]


LINES = tuple(  # rows of weights that are exact on lines alone
    (call, (17, 12, 11), (1.5 + (call - 17) / 5, -3.0 - (call - 17) / 5, 2.5))
    for call in range(18, 24)
)
NEEDED = {"fitted": {"rows": LINES}}


def make_all():
    """Every predictor that is registered, and further settings."""
    usual = [predictor_class(name)(**NEEDED.get(name, {})) for name in predictor_names()]
    return [*usual, *VARIANTS]


def make_general():
    """Those that any full calls suit."""
    return [each for each in make_all() if not isinstance(each, Fitted)]


def test_every_predictor_is_exact_to_its_degree_on_uneven_full_calls_and_on_nothing_more():
    for predictor in make_all():
        for degree in range(5):
            memory = fill(predictor, lambda i, d=degree: 1 + (i / 4 - 2) ** d, UNEVEN)
            for call in (18, 19):
                exact = f64(1 + (call / 4 - 2) ** degree)
                error = float((ask(memory, call) - exact).abs().max())
                assert (error < 1e-11) == (degree <= predictor.exact_degree), (predictor, degree)


def test_weights_are_what_the_memory_does():
    """Differences are stored and values are, but both are weighted sums of the values."""
    draw = torch.Generator().manual_seed(1)
    for predictor in [each for each in make_general() if isinstance(each, IndexPredictor)]:
        memory, values, times = predictor.make_memory(24), [], []
        for node in UNEVEN:
            values.insert(0, torch.randn(3, generator=draw, dtype=torch.float64))
            times.insert(0, node)
            memory.update(values[0], node)
            weights = predictor.weights(node + 2, tuple(times), 24)
            assert len(weights) == len(times)
            total = sum(w * value for w, value in zip(weights, values, strict=True))
            assert_close(memory.forecast(node + 2), total, rtol=0, atol=1e-12)
            base = torch.ones(3, dtype=torch.float64)
            assert_close(memory.forecast(node + 2, base), total + 1, rtol=0, atol=1e-12)


def test_memory_is_what_is_stated_and_holds_copies():
    for predictor in make_all():
        memory, x = predictor.make_memory(24), torch.ones(2, 3)
        memory.probe = torch.ones(2, 3)
        memory.update(x, 0)
        expected = memory.expected_bytes
        for node in UNEVEN[1:]:
            memory.update(x.mul_(1.5), node)
        assert memory.nbytes == expected == 24 * memory.depth, predictor
        before = memory.forecast(19)
        x.fill_(99.0)
        memory.forecast(19).fill_(99.0)
        assert torch.equal(memory.forecast(19), before), predictor


def test_a_change_of_shape_dtype_or_device_starts_over():
    for predictor in make_general():
        memory = fill(predictor, SERIES["parabola"], UNEVEN[:4], 24)
        for x in (torch.full((3, 2), 5.0), torch.full((3, 2), 5.0, dtype=torch.float64)):
            fresh = predictor.make_memory(24)
            for each in (memory, fresh):
                each.probe = x
                each.update(x, 7)
            assert memory.nbytes == fresh.nbytes
            assert torch.equal(memory.forecast(8), fresh.forecast(8)), predictor


def test_half_precision_is_summed_in_single():
    """Weights (1.0078125 and -0.0078125) of 256 and 0: half precision has steps of 2 there."""
    memory = Hermite(1, sigma=math.sqrt(0.5)).make_memory()
    memory.update(torch.zeros(4, dtype=torch.bfloat16), 0)
    memory.update(torch.full((4,), 256.0, dtype=torch.bfloat16), 128)
    assert_close(memory.forecast(129), torch.full((4,), 258.0))
    assert_close(memory.forecast(129, torch.ones(4, dtype=torch.bfloat16)), torch.full((4,), 259.0))


def test_rows_with_full_calls_of_their_own_are_forecast_as_if_alone():
    draw, times = torch.Generator().manual_seed(1), [[0, 1, 2, 5, 7], [0, 1, 4, 7], [0, 6]]
    for predictor in make_general():
        if not isinstance(predictor, IndexPredictor) or predictor.depth is None:
            with pytest.raises(SettingError, match="set reduce=max"):
                predictor.make_row_memory(24)
            continue
        if getattr(predictor, "first", 1) > 1:
            continue  # rows of theirs have a slope of 0 where one alone has none
        together = predictor.make_row_memory(24)
        alone = [predictor.make_memory(24) for _ in times]
        for index in range(8):
            x = torch.randn(3, 4, generator=draw, dtype=torch.float64)
            rows = [b for b in range(3) if index in times[b]]
            if rows:
                together.update(x[rows], index, None if index == 0 else rows)
            for b in rows:
                alone[b].update(x[b : b + 1], index)
        expected = torch.cat([each.forecast(9) for each in alone])
        assert_close(together.forecast(9), expected, rtol=1e-12, atol=1e-12)
        assert_close(together.forecast(9, expected), 2 * expected, rtol=1e-12, atol=1e-12)


def test_every_predictor_is_exported_and_in_the_documents():
    page = (Path(__file__).parents[1] / "docs" / "caching.md").read_text(encoding="utf-8")
    for name in predictor_names():
        assert f"| `{name}` |" in page
        assert predictor_class(name).__name__ in predictors.__all__


# Formulas that no line tests


def test_spectrum_on_its_own_full_calls():
    """A constant is shrunk by the published ridge; T_3 is found as the ridge vanishes."""
    nodes, call = (0, 1, 2, 3, 4, 6, 8, 11, 15, 20, 25), 28
    laws = {
        "cosine": lambda i: math.cos(math.pi * i / 50),
        "T_3": lambda i: 4 * (i / 25 - 1) ** 3 - 3 * (i / 25 - 1),
        "constant": lambda i: 1.0,
    }
    rows = [
        ("cosine", SPECTRUM, -0.06420618),
        ("cosine", replace(SPECTRUM, blend=0.5), -0.12480819),
        ("cosine", replace(SPECTRUM, ridge=1e-3), -0.1697887),
        ("cosine", replace(SPECTRUM, anchored=True), -0.1199),
        ("T_3", SPECTRUM, -0.19584306),
        ("T_3", replace(SPECTRUM, ridge=1e-12), -0.353088),
        ("constant", SPECTRUM, 0.90736217),
        ("constant", replace(SPECTRUM, anchored=True), 1.0),
    ]
    for law, predictor, value in rows:
        found = float(fill(predictor, laws[law], nodes).forecast(call)[0, 0])
        assert found == pytest.approx(value, abs=5e-5 if value == -0.1199 else 1e-7), predictor


def fill_vectors(predictor, law, nodes):
    """A batch of two images with the same values."""
    memory = predictor.make_memory(50)
    for node in nodes:
        memory.update(torch.tensor([law(node)] * 2, dtype=torch.float64), node)
    return memory


def test_poles_are_exact_on_sums_of_exponentials():
    def decays(i):
        return (0.9**i + 0.5**i, 0.9**i - 0.5**i, 2 * 0.9**i)

    def waves(i):
        return (0.95**i * math.cos(0.4 * i), 0.95**i * math.sin(0.4 * i), 1.0)

    cases = [
        (decays, 10, (-0.05424217, 0.44799592, 0.38753133)),
        (waves, 10, (0.21218089, -0.51966223, 1.30748134)),
        (waves, 11, (0.47196275, -0.99448777, 1.52252502)),
    ]
    for law, call, weights in cases:
        exact = torch.tensor([law(call)] * 2, dtype=torch.float64)
        memory = fill_vectors(Poles(), law, (0, 3, 6, 9))
        assert_close(memory.forecast(call), exact, rtol=0, atol=1e-8)
        assert_close(memory.forecast(call, exact), 2 * exact, rtol=0, atol=1e-8)
        values = np.array([law(i) for i in (9, 6, 3, 0)])
        found = find_pole_weights(values @ values.T, (call - 9) / 3)
        assert found[::-1] == pytest.approx((0.0, *weights), abs=2e-7)
    lines = fill_vectors(Poles(), lambda i: (3.0 - 2 * i, i / 7, 1.0), (0, 3, 6, 9, 12))
    exact = torch.tensor([(-23.0, 13 / 7, 1.0)] * 2, dtype=torch.float64)
    assert_close(lines.forecast(13), exact, rtol=0, atol=1e-7)


def test_poles_fall_back_to_a_line():
    """At uneven gaps, and for (-0.8)^i: its pole over three calls has no real third root."""
    uneven, even = (0, 1, 4, 6, 9), (0, 3, 6, 9)

    def law(i):
        return ((-0.8) ** i,)

    for nodes, call in ((uneven, 10), (even, 10)):
        line = fill_vectors(Taylor(), law, nodes)
        found = fill_vectors(Poles(), law, nodes).forecast(call)
        assert_close(found, line.forecast(call), rtol=1e-14, atol=0)
    whole = fill_vectors(Poles(), law, even).forecast(12)
    assert_close(whole, torch.full((2, 1), 0.8**12, dtype=torch.float64), rtol=0, atol=1e-9)


def test_poles_are_of_each_image():
    draw = torch.Generator().manual_seed(5)
    values = [torch.randn(3, 20, generator=draw, dtype=torch.float64) for _ in range(6)]
    memories = [Poles().make_memory() for _ in range(4)]
    for index, value in enumerate(values):
        memories[0].update(value, 2 * index)
        for b in range(3):
            memories[b + 1].update(value[b : b + 1], 2 * index)
    alone = torch.cat([each.forecast(11) for each in memories[1:]])
    assert_close(memories[0].forecast(11), alone, rtol=0, atol=1e-9)
    memories[0].keep([1], 3)
    assert_close(memories[0].forecast(11), alone[1:2], rtol=0, atol=1e-9)


def test_foca_has_two_slopes():
    memory, found = FoCa().make_memory(), []
    for index in range(10):
        if index in (0, 1, 4, 7):
            memory.update(f64(index**2), index)
        else:
            found.append(float(memory.forecast(index)[0, 0]))
            assert float(memory.forecast(index)[0, 0]) == found[-1]  # asked twice
    assert found == pytest.approx([2, 3, 25, 30, 64, 75])


def test_anchors_are_placed_by_the_leading_blocks():
    """A line, until g is held at its limit of 1.5; equal probes repeat the last value."""
    memory = fill(Anchors(), lambda i: 10 + 2 * i, (5, 9))
    found = [float(ask(memory, call)[0, 0]) for call in (10, 11, 12)]
    assert found == pytest.approx([30, 32, 32])
    assert_close(memory.forecast(12, f64(1)), f64(33))
    memory.probe = f64(7)  # nearer than the last full call: g is held at 1
    assert_close(memory.forecast(12), f64(28))
    memory.probe = torch.tensor([[10.0] * 3, [11.0] * 3], dtype=torch.float64)
    assert memory.forecast(10)[:, 0].tolist() == pytest.approx([30, 32])  # each image by itself
    still = Anchors().make_memory()
    still.probe = f64(1)
    for call in (5, 9):
        still.update(f64(call), call)
    assert_close(still.forecast(10), f64(9))


def test_fitted_rows_are_taken_as_they_are():
    predictor = Fitted(rows=((4, (2, 1), (1.51, -0.63)),))
    for law in (lambda i: 0.9**i, lambda i: 0.5**i):
        found = fill(predictor, law, (0, 1, 2)).forecast(4)
        assert_close(found, f64(law(4)), rtol=0, atol=1e-12)
    assert predictor.exact_degree == -1
    assert predictor.depth == 2
    spec = "fixed-mask:compute=[0,1,2],predictor=fitted:rows=[[4,[2,1],[1.51,-0.63]]]"
    assert take_cache(spec).keep.predictor == predictor
    assert format_spec(take_cache(spec)) == spec


ODD = ((2, (0,), (1.0,)),)
REFUSED = [  # a run of 8 calls
    (FixedMask((0, 1, 4, 6), predictor="dmd"), "no skipped call has them here"),
    (TaylorSeer(interval=2, predictor=Fitted(rows=LINES)), "no fitted weights for call 2"),
    (TaylorSeer(interval=2, predictor="fitted"), "fewstep calibrate --predictor fitted"),
    (CGTaylor(predictor=Fitted(rows=LINES)), "a gate decides here"),
    (FixedMask((0, 2, 3, 4, 5, 6, 7), predictor=Fitted(rows=ODD)), r"call 1 after .* \[0\]"),
    (FixedMask((0, 1, 3, 4, 5, 6, 7), predictor=Fitted(rows=ODD)), r"call 2 after .* \[1\]"),
]


@pytest.mark.parametrize(("policy", "text"), REFUSED)
def test_predictors_are_refused_for_runs_they_are_not_for(policy, text):
    with pytest.raises(SettingError, match=text):
        check_run(policy, 8)
    check_run(TaylorSeer(interval=2, predictor="dmd"), 10)


# As settings


def test_every_policy_takes_a_predictor_and_writes_it():
    for name in set(names()) - {"pab", "fastercache"}:  # these publish their own
        given = {"compute": (0, 1, 4)} if name == "fixed-mask" else {}
        policy = cache(name, predictor="[hermite:order=1,sigma=0.7]", **given)
        assert policy.keep.predictor == Hermite(1, 0.7)
        assert cache(format_spec(policy)) == policy
        assert cache(name, **given).keep.predictor == policy_class(name)(**given).keep.predictor
    spec = "deepcache:predictor=[hermite:order=1,sigma=0.7],interval=4"
    assert format_spec(cache(spec)) == "deepcache:interval=4,predictor=[hermite:order=1,sigma=0.7]"
    assert cache("deepcache:predictor=newton:order=3").keep.predictor == Newton(3)


def test_order_and_basis_mean_what_they_meant():
    assert TaylorSeer(order=2, first=3).keep.predictor == Taylor(2, first=3)
    assert TaylorSeer().keep.predictor == Taylor(1, first=2)
    assert FixedMask(compute=(0, 1)).keep.predictor == Newton(1)
    assert FixedMask(compute=(0, 1), order=0, basis="published").keep.predictor == Taylor(0)


BAD = [
    ("taylorseer:predictor=tailor", "did you mean 'taylor'"),
    ("taylorseer:predictor=taylor:order=5", "order must be 0"),
    ("taylorseer:predictor=taylor:damping=2", "damping lies in 0"),
    ("taylorseer:predictor=hermite:order=0", "order of hermite is 1 to 4"),
    ("taylorseer:predictor=hermite:sigma=0", "sigma lies above 0"),
    ("taylorseer:predictor=newton:sigma=1", "sigma"),
    ("taylorseer:predictor=newton,order=1", "drop order"),
    ("taylorseer:predictor=newton,basis=newton", "drop basis"),
    ("cg-taylor:predictor=newton,o2=1", "drop o2"),
    ("first-block:predictor=newton,order=0", "drop order"),
    ("taylorseer:predictor=3", "is no predictor"),
    ("taylorseer:predictor=spectrum:degree=9", "degree lies in 0 to 8"),
    ("taylorseer:predictor=spectrum:ridge=0", "ridge must be above 0"),
    ("taylorseer:predictor=spectrum:blend=0", "take taylor:order=1"),
    ("taylorseer:predictor=dmd:history=3", "history of dmd is 4"),
    ("taylorseer:predictor=foca:order=2", "foca has no settings"),
    ("dicache:predictor=anchors:limit=1", "limit must be above 1"),
    ("taylorseer:predictor=fitted:rows=[[3,[1,2],[1,1]]]", "newest first"),
    ("taylorseer:predictor=fitted:rows=[[3,[2,1],[9,-9]]]", "more than 16"),
]


@pytest.mark.parametrize(("spec", "text"), BAD)
def test_bad_predictors_are_refused_in_one_line(spec, text):
    with pytest.raises((SettingError, UnknownNameError)) as refused:
        cache(spec)
    assert text in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_predictor_is_a_value():
    assert take_predictor("taylor") == Taylor()
    assert len({Taylor(), take_predictor("taylor:order=1"), Taylor(2)}) == 2
