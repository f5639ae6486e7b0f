"""The trigonometric path under every solver, and the forms of noise on both paths."""

import math
from itertools import pairwise

import pytest
import torch
from laws import DETERMINISTIC, GAUSSIAN, registered, run, runs, solver, start

from fewstep import RectifiedFlow, Sampler, TimeGrid, Trigonometric
from fewstep.models.errors import ScheduleError, SettingError
from fewstep.models.schedule import VPLinear
from fewstep.samplers.plan import make_plan
from fewstep.solvers import drive
from fewstep.solvers.noise_rate import FormRate, make_rate

FLOW, TRIGONOMETRIC = RectifiedFlow(), Trigonometric()
MEAN, VARIANCE = 0.7, 0.25  # of the data in the tests of moments
FORMS = ("sbdm", "sigma", "linear", "constant", "decreasing", "increasing-decreasing")


def test_every_deterministic_solver_takes_the_trigonometric_path_from_pure_noise():
    for name in DETERMINISTIC:
        settings = solver(name)
        if runs(settings, TRIGONOMETRIC.family):
            size = {} if settings.info.adaptive else {"steps": 40, "grid": "uniform"}
            grid = make_plan(TRIGONOMETRIC, settings, **size).grid
            x, ends = start(grid), grid.nodes[:: grid.steps]
            wrong = run(settings, grid, x, GAUSSIAN.x0) - GAUSSIAN.flow_map(x, *ends)
            assert float(wrong.abs().max()) < 0.08, name


# ---- forms of noise


def rise(form, schedule, end, norm=1.0):
    """H from t = .8 to an end."""
    grid = TimeGrid.of(schedule, [0.8, end])
    return make_rate(grid, form, norm).rise(*grid.nodes)


def test_the_noise_of_each_form_is_its_integral():
    straight = [rise(form, FLOW, 0.3) for form in FORMS]
    expected = [2.2335922, 0.9808293, 0.9808293, 2.0833333, 0.5124663, 1.7329922]
    assert straight == pytest.approx(expected, abs=5e-8)
    assert rise("sigma", FLOW, 0.3) == pytest.approx(math.log(0.8 / 0.3), rel=1e-13)
    assert rise("constant", FLOW, 0.3) == pytest.approx(1 / 0.3 - 1 / 0.8, rel=1e-13)
    assert rise("sigma", TRIGONOMETRIC, 0.3) == pytest.approx(0.7049482, abs=5e-8)
    whole = [rise(form, FLOW, 1e-9) for form in ("decreasing", "increasing-decreasing")]
    assert whole == pytest.approx([0.5625, 4.4214], abs=2e-4)
    shifted = RectifiedFlow(shift=3.0)  # the form is one of the path, whatever its times
    ends = [shifted.at(shifted.unshift(t)) for t in (0.8, 0.3)]
    assert FormRate("constant", 1.0, 1.0, shifted).rise(*ends) == pytest.approx(1 / 0.3 - 1 / 0.8)


@pytest.mark.parametrize("schedule", [FLOW, TRIGONOMETRIC], ids=lambda each: each.family)
def test_eta_is_the_derivative_of_h_in_lam(schedule):
    for form, t in ((form, t) for form in FORMS for t in (0.1, 0.6)):
        low, node, high = (schedule.at(t + off) for off in (1e-4, 0.0, -1e-4))
        rate = make_rate(TimeGrid.of(schedule, [0.8, 0.05]), form, 0.7)
        slope = rate.rise(low, high) / (high.lam - low.lam)
        assert rate.find_eta(node) == pytest.approx(slope, rel=1e-5), form


def find_moments(settings, grid):
    """The relative error of the variance at the end, and the error of the mean.

    With Gaussian data a run is linear in its start and in the noise of each step, so it is made
    once on unit vectors of these: row 0 carries the mean, row 1 the start, row 2 + n step n.
    """
    first, last = grid.nodes[0], grid.nodes[-1]
    x = torch.zeros(grid.steps + 2, 1, 1, 1, dtype=torch.float64)
    x[0], x[1] = first.alpha * MEAN, math.hypot(first.alpha * math.sqrt(VARIANCE), first.sigma)
    steps = settings.on(grid)
    state = steps.init()
    for n, (t, s) in enumerate(pairwise(grid.nodes)):

        def answer(y, node, n=n):
            out = torch.zeros_like(y)
            if node is None:
                out[2 + n] = 1.0
                return out
            gain = node.alpha * VARIANCE / (node.alpha**2 * VARIANCE + node.sigma**2)
            out[0] = MEAN * (1.0 - gain * node.alpha)
            return out + gain * y

        x, state = drive(steps.step(x, state, t, s), answer)
    variance = last.alpha**2 * VARIANCE + last.sigma**2
    return float((x[1:] ** 2).sum()) / variance - 1.0, float(x[0]) - last.alpha * MEAN


def make_times(schedule, steps, first=0.999, last=0.002, even="lam"):
    """A grid even in lam or in t."""
    if even == "t":
        return TimeGrid.of(schedule, [first + (last - first) * i / steps for i in range(steps + 1)])
    low, high = schedule.at(first).lam, schedule.at(last).lam
    lams = [low + (high - low) * i / steps for i in range(steps + 1)]
    return TimeGrid.of(schedule, [schedule.at_lam(lam).t for lam in lams])


def find_errors(form, grid):
    """Errors of the variance by the exponential steps of order 1 and 2, and by Euler-Maruyama."""
    late = {"lower_order_final": "never"}
    names = {"sde-dpmpp-1": {}, "sde-dpmpp-2": late, "si-euler": {}}
    return [find_moments(solver(name, form=form, **more), grid)[0] for name, more in names.items()]


@pytest.mark.parametrize(
    ("form", "errors"),
    [
        ("sbdm", (-0.443, 0.095, 0.171)),
        ("sigma", (-0.402, 0.152, 0.027)),
        ("decreasing", (-0.308, 0.018, -0.054)),
        ("increasing-decreasing", (-0.472, 0.023, 0.174)),
    ],
)
def test_variances_of_twenty_steps_in_lam(form, errors):
    assert find_errors(form, make_times(FLOW, 20)) == pytest.approx(errors, abs=6e-4)


def test_variances_of_even_times():
    grid = make_times(FLOW, 20, even="t")
    assert find_errors("sigma", grid) == pytest.approx((-0.223, 0.488, -0.034), abs=6e-4)
    found = find_errors("increasing-decreasing", grid)
    assert found == pytest.approx((-0.275, 0.251, 0.009), abs=6e-4)
    grids = [make_times(FLOW, n, last=0.04, even="t") for n in (10, 20, 40, 80)]
    first, second, _ = zip(*(find_errors("sbdm", each) for each in grids), strict=True)
    assert first == pytest.approx((-0.388, -0.237, -0.134, -0.072), abs=6e-4)
    assert second == pytest.approx((0.340, 0.127, 0.033, 0.0077), abs=6e-4)


def test_every_form_has_the_same_law_in_many_steps():
    for schedule in (FLOW, TRIGONOMETRIC):
        grid = make_times(schedule, 400, last=0.02)
        for form in FORMS:
            variance, mean = find_moments(solver("sde-dpmpp-2", form=form), grid)
            assert max(abs(variance), 5.0 * abs(mean)) < 0.01, (schedule.family, form)
            grid_t = make_times(schedule, 400, last=0.02, even="t")
            variance, mean = find_moments(solver("si-euler", form=form), grid_t)
            assert max(abs(variance), 2.0 * abs(mean)) < 0.02, (schedule.family, form)


def test_without_noise_the_forms_are_the_ode():
    for form in FORMS:
        grid = make_times(TRIGONOMETRIC, 8)
        x = start(grid)
        plain = run(registered("dpmpp-2m"), grid, x, GAUSSIAN.x0)
        for quiet in ({"eta": 0.0}, {"norm": 0.0}):
            if form == "decreasing" and "norm" in quiet:  # which has noise of its own, 1/4
                continue
            found = run(registered("sde-dpmpp-2", form=form, **quiet), grid, x, GAUSSIAN.x0)
            torch.testing.assert_close(found, plain, rtol=1e-9, atol=1e-9)


def test_a_run_from_pure_noise_uses_all_nodes():
    """From alpha = 0, H of these forms is finite, and the first steps of order 2 use that node."""
    for form, steps in (("sigma", 60), ("increasing-decreasing", 60)):
        errors = []
        for n in (steps, 2 * steps):
            grid = TimeGrid.of(FLOW, [1.0 - 0.95 * i / n for i in range(n + 1)])
            errors.append(find_moments(solver("sde-dpmpp-2", form=form), grid)[0])
        assert abs(errors[0]) < 0.05
        assert errors[0] / errors[1] == pytest.approx(4.0, rel=0.25), form


def test_bad_input_of_forms():
    flow = Sampler(GAUSSIAN.network(FLOW, (2, 1, 2)))
    with pytest.raises(ScheduleError, match="form=constant adds noise without end where"):
        flow.plan(solver="sde-dpmpp-2:form=constant", steps=8, grid="uniform")
    flow.plan(solver="sde-dpmpp-2:form=constant", steps=8, grid="uniform", final="denoise")
    with pytest.raises(ScheduleError, match="form=decreasing adds noise without end"):
        flow.plan(solver="sde-dpmpp-1:form=decreasing,norm=2", steps=8, grid="uniform")
    with pytest.raises(SettingError, match="norm"):
        flow.plan(solver="sde-dpmpp-1:form=sigma,norm=-1", steps=8)
    with pytest.raises(SettingError, match="form"):
        flow.plan(solver="sde-dpmpp-1:form=sigmma", steps=8)
    with pytest.raises(ScheduleError, match="flow and trigonometric schedules, not of vp-linear"):
        registered("sde-dpmpp-1", form="sigma").on(make_times(VPLinear(), 8))
    with pytest.raises(ScheduleError, match="form=sbdm has infinite noise at t=1"):
        flow.plan(solver="si-euler:form=sbdm", steps=8, grid="uniform")
