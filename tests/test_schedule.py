"""Noise schedules: the laws every family obeys, the two ends, and agreement with diffusers."""

import json
import math
from decimal import Decimal, localcontext
from itertools import pairwise

import pytest
import torch
from diffusers import DDPMScheduler
from hypothesis import given, settings
from hypothesis import strategies as st

from fewstep.models.errors import ScheduleError, SettingError, UnknownNameError
from fewstep.models.schedule import (
    EDM,
    FAMILIES,
    Cosine,
    RectifiedFlow,
    TimeGrid,
    Trigonometric,
    VPDiscrete,
    VPLinear,
    dynamic_shift,
    noise_schedule,
    process_of,
    share_path,
)
from fewstep.models.vp import BETAS

SCHEDULES = {
    "linear": VPDiscrete(),
    "scaled_linear": VPDiscrete("scaled_linear", 8.5e-4, 0.012),
    "squaredcos": VPDiscrete("squaredcos_cap_v2"),
    "sigmoid": VPDiscrete("sigmoid"),
    "zero_snr": VPDiscrete("scaled_linear", 8.5e-4, 0.012, zero_snr=True),
    "trained": VPDiscrete(trained_betas=(0.1, 0.3, 0.2, 0.7)),
    "vp-linear": VPLinear(time_scale=999),
    "cosine": Cosine(time_scale=1000),
    "trigonometric": Trigonometric(time_scale=1000),
    "edm": EDM(),
    "edm-sigma": EDM(time_label="sigma"),
    "edm-1000": EDM(time_label="c_noise", time_scale=1000),
    "flow": RectifiedFlow(time_scale=1000),
    "flow-3": RectifiedFlow(shift=3.0, time_scale=1000),
}
VP = {name: s for name, s in SCHEDULES.items() if s.family.startswith(("vp", "trig"))}
BOUNDED = {name: s for name, s in SCHEDULES.items() if s.family != "edm"}


def over(schedules):
    return pytest.mark.parametrize("schedule", schedules.values(), ids=schedules)


some = settings(max_examples=60, deadline=None)
any_schedule = st.sampled_from(list(SCHEDULES.values()))
share = st.floats(0.0, 1.0)


def between(schedule, u):
    """A time a network is evaluated at."""
    return schedule.t_min + u * (schedule.t_max - schedule.t_min)


def test_every_family_is_tested():
    assert {s.family for s in SCHEDULES.values()} == set(FAMILIES)


@over(SCHEDULES)
def test_lam_falls_strictly_and_alpha_never_rises(schedule):
    nodes = [schedule.at(schedule.t_max * i / 3000) for i in range(3001)]
    for cleaner, noisier in pairwise(nodes):
        assert cleaner.lam > noisier.lam
        assert cleaner.alpha >= noisier.alpha
        assert cleaner.sigma <= noisier.sigma


@pytest.mark.parametrize("name", ["linear", "sigmoid"])
def test_lam_falls_with_zero_snr_even_where_the_betas_already_end_near_zero(name):
    abar = VPDiscrete(name, zero_snr=True).alphas_cumprod
    assert all(a > b for a, b in pairwise(abar))


@some
@given(any_schedule, share)
def test_lam_is_the_log_ratio(schedule, u):
    node = schedule.at(between(schedule, u))
    if math.isfinite(node.lam):
        assert node.lam == pytest.approx(math.log(node.alpha / node.sigma), abs=1e-11)
        assert node.kappa == pytest.approx(node.sigma / node.alpha, rel=1e-11)


@some
@given(any_schedule, share)
def test_at_lam_inverts_at(schedule, u):
    node = schedule.at(between(schedule, u))
    back = schedule.at_lam(node.lam)
    assert back.t == pytest.approx(node.t, rel=1e-11)
    assert back == schedule.at(back.t)


@over(SCHEDULES)
def test_at_lam_holds_at_the_exact_ends(schedule):
    for t in (schedule.t_zero, schedule.t_min, schedule.t_max):
        assert schedule.at_lam(schedule.at(t).lam).t == pytest.approx(t, rel=1e-11)


@over(BOUNDED)
def test_at_lam_does_not_leave_the_range_by_rounding(schedule):
    for t in (1.0, math.nextafter(1.0, 0.0), 5e-324, 1e-300):
        assert schedule.at_lam(schedule.at(t).lam).t == pytest.approx(t, abs=1e-11)


@some
@given(st.sampled_from(list(VP.values())), share)
def test_vp_keeps_the_variance(schedule, u):
    node = schedule.at(u)
    assert node.alpha**2 + node.sigma**2 == pytest.approx(1.0, abs=1e-15)
    assert schedule.noise_scale(node) == 1.0


@over(SCHEDULES)
@pytest.mark.parametrize("place", [0.0035, 0.1005, 0.5005, 0.9495])  # not at a kink
def test_slope_is_the_derivative(schedule, place):
    t = schedule.t_max * place if schedule.family == "edm" else place
    h = 1e-5 * t
    low, high = schedule.at(t - h), schedule.at(t + h)
    rates = (high.alpha - low.alpha) / (2 * h), (high.sigma - low.sigma) / (2 * h)
    assert schedule.slope(t) == pytest.approx(rates, rel=1e-6, abs=1e-9)


@over(SCHEDULES)
def test_clean_data_is_an_end(schedule):
    node = schedule.at(schedule.t_zero)
    assert (node.alpha, node.sigma, node.lam, node.kappa) == (1.0, 0.0, math.inf, 0.0)
    assert schedule.t_zero < schedule.t_min < schedule.t_max
    assert schedule.at(schedule.t_min).sigma > 0.0
    assert schedule.at_lam(math.inf) == node


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_pure_noise_is_an_end_of_flow(shift):
    flow = RectifiedFlow(shift)
    node = flow.at(1.0)
    assert (node.alpha, node.sigma, node.lam, node.kappa) == (0.0, 1.0, -math.inf, math.inf)
    assert flow.at_lam(-math.inf) == node
    assert flow.slope(0.0) == (-shift, shift)
    assert flow.slope(1.0) == pytest.approx((-1 / shift, 1 / shift))


def test_both_ends_of_the_trigonometric_path_are_exact():
    path = Trigonometric()
    noise = path.at(1.0)
    assert (noise.alpha, noise.sigma, noise.lam) == (0.0, 1.0, -math.inf)
    assert path.at_lam(-math.inf) == noise
    assert (path.slope(0.0), path.slope(1.0)) == ((0.0, math.pi / 2), (-math.pi / 2, 0.0))
    lams = [path.at(t).lam for t in (0.25, 0.5, 0.75)]
    assert lams == pytest.approx([0.8813735870195430, 0.0, -0.8813735870195430], abs=1e-15)


def test_edm_starts_from_noise_of_its_own_scale():
    node = EDM().at(80.0)
    assert (EDM().noise_scale(node), node.alpha, node.sigma) == (80.0, 1.0, 80.0)


@over(SCHEDULES)
def test_a_time_before_the_data_is_refused(schedule):
    for t in (-0.1, math.nan):
        with pytest.raises(ScheduleError, match="use times from 0 "):
            schedule.at(t)


@over(BOUNDED)
def test_a_time_beyond_the_noise_is_refused(schedule):
    with pytest.raises(ScheduleError, match=r"t=1\.01 lies outside"):
        schedule.at(1.01)


@some
@given(st.floats(0.05, 20.0), st.floats(1e-6, 1.0 - 1e-6))
def test_a_shift_translates_lam(shift, t):
    plain, shifted = RectifiedFlow().at(t), RectifiedFlow(shift).at(t)
    assert shifted.lam == pytest.approx(plain.lam - math.log(shift), abs=1e-9)
    assert shifted.alpha + shifted.sigma == pytest.approx(1.0, abs=1e-15)
    assert RectifiedFlow(shift, time_scale=1000).label(shifted) == pytest.approx(
        1000 * shifted.sigma
    )


@over(SCHEDULES)
def test_a_schedule_survives_json(schedule):
    process = json.loads(json.dumps(process_of(schedule)))
    assert process == process_of(schedule)
    again = noise_schedule(process["family"], **process["params"])
    assert again == schedule
    assert again.at(0.3) == schedule.at(0.3)


def test_unknown_names_are_met_with_a_suggestion():
    with pytest.raises(UnknownNameError, match="family 'flw'; did you mean 'flow'"):
        noise_schedule("flw")
    with pytest.raises(UnknownNameError, match="'flow' 'shfit'; did you mean 'shift'"):
        noise_schedule("flow", shfit=3.0)
    with pytest.raises(UnknownNameError, match="'lineer'; did you mean 'linear'"):
        VPDiscrete("lineer")
    with pytest.raises(UnknownNameError, match="'c_nose'; did you mean 'c_noise'"):
        EDM(time_label="c_nose")
    with pytest.raises(SettingError, match="time_scale=0 must be positive"):
        EDM(time_scale=0)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        (RectifiedFlow(), RectifiedFlow(3.0, terminal=0.1, time_scale=1.0), True),
        (EDM(), EDM(0.01, 10.0), True),
        (EDM(), EDM(sigma_data=1.0, time_label="sigma"), True),
        (VPLinear(), VPLinear(t_min=1e-4, time_scale=1.0), True),
        (Cosine(), Cosine(t_max=0.99), True),
        (Cosine(), Cosine(s=0.01), False),
        (VPLinear(), VPLinear(beta_1=10.0), False),
        (VPDiscrete(), VPDiscrete("scaled_linear"), False),
        (VPDiscrete(), VPDiscrete(zero_snr=True), False),
        (Trigonometric(), Trigonometric(1e-4, time_scale=1.0), True),
        (VPLinear(), Cosine(), False),
        (EDM(), RectifiedFlow(), False),
    ],
)
def test_same_path(one, other, same):
    assert share_path(one, other) is share_path(other, one) is same


@pytest.mark.parametrize("zero_snr", [False, True])
@pytest.mark.parametrize("name", BETAS)
def test_alphas_cumprod_agree_with_diffusers(name, zero_snr):
    ours = VPDiscrete(name, 8.5e-4, 0.012, zero_snr=zero_snr)
    theirs = DDPMScheduler(1000, 8.5e-4, 0.012, name, rescale_betas_zero_snr=zero_snr)
    found = torch.tensor(ours.alphas_cumprod)
    torch.testing.assert_close(found, theirs.alphas_cumprod, rtol=1e-4, atol=1e-7)


def test_zero_snr_ends_at_two_to_the_minus_24():
    schedule = SCHEDULES["zero_snr"]
    assert schedule.alphas_cumprod[-1] == pytest.approx(2.0**-24, rel=1e-12)
    assert schedule.alphas_cumprod[0] == pytest.approx(1.0 - 8.5e-4, rel=1e-12)


@over({name: s for name, s in VP.items() if s.family == "vp"})
def test_the_nodes_of_a_discrete_schedule(schedule):
    total = schedule.num_train_timesteps
    for n, abar in enumerate(schedule.alphas_cumprod):
        node = schedule.at((n + 1) / total)
        assert schedule.label(node) == pytest.approx(n, abs=1e-9)
        assert node.alpha**2 == pytest.approx(abar, rel=1e-9)
    assert schedule.label(schedule.at(0.0)) == schedule.label(schedule.at(0.5 / total)) == 0.0
    half = schedule.at((n + 0.5) / total).alpha  # ln(alpha) is linear between two nodes
    assert half**2 == pytest.approx(schedule.at(n / total).alpha * node.alpha, rel=1e-9)


@over({name: s for name, s in VP.items() if s.family == "vp"})
def test_from_alphas_cumprod_round_trip(schedule):
    again = VPDiscrete.from_alphas_cumprod(schedule.alphas_cumprod)
    assert again.num_train_timesteps == schedule.num_train_timesteps
    assert again.alphas_cumprod == pytest.approx(schedule.alphas_cumprod, rel=1e-11)


def test_trained_betas_replace_the_formula():
    betas = BETAS["linear"](1e-4, 0.02, 1000)
    trained = VPDiscrete("sigmoid", 0.3, 0.4, 7, trained_betas=betas)
    assert trained.alphas_cumprod == VPDiscrete().alphas_cumprod
    assert trained.num_train_timesteps == 1000


@pytest.mark.parametrize(
    ("name", "t", "label"),
    [
        ("vp-linear", 0.5, 499.5),
        ("cosine", 0.5, 500.0),
        ("trigonometric", 0.25, 250.0),
        ("edm", 2.0, math.log(2.0) / 4),
        ("edm-sigma", 2.0, 2.0),
        ("edm-1000", 2.0, 250.0 * math.log(2.0)),
        ("flow", 0.5, 500.0),
        ("flow-3", 0.5, 750.0),
    ],
)
def test_label(name, t, label):
    schedule = SCHEDULES[name]
    assert schedule.label(schedule.at(t)) == pytest.approx(label)


@pytest.mark.parametrize(("tokens", "mu"), [(256, 0.5), (4096, 1.15), (2176, 0.825)])
def test_dynamic_shift_is_the_formula_of_flux(tokens, mu):
    assert dynamic_shift(tokens) == pytest.approx(math.exp(mu))
    other = dynamic_shift(tokens, base_shift=0.0, max_shift=1.0, base_tokens=0, max_tokens=4096)
    assert other == pytest.approx(math.exp(tokens / 4096))


def exact_log_alpha(schedule, t):
    """ln(alpha) to 60 digits; for a discrete schedule only on its first segment."""
    t = Decimal(t)
    if isinstance(schedule, VPDiscrete):
        return (1 - Decimal(schedule.beta_start)).ln() / 2 * t * schedule.num_train_timesteps
    low, high = Decimal(schedule.beta_0), Decimal(schedule.beta_1)
    return -t * t * (high - low) / 4 - t * low / 2


@pytest.mark.parametrize("t", [1e-12, 1e-8, 1e-4, 1e-3])
@pytest.mark.parametrize("schedule", [VPLinear(), VPDiscrete()], ids=["vp-linear", "vp"])
def test_sigma_and_lam_keep_their_digits_at_small_times(schedule, t):
    with localcontext(prec=60):
        log_alpha = exact_log_alpha(schedule, t)
        sigma = (1 - (2 * log_alpha).exp()).sqrt()
        lam = log_alpha - sigma.ln()
    assert schedule.at(t).sigma == pytest.approx(float(sigma), rel=1e-14)
    assert schedule.at(t).lam == pytest.approx(float(lam), rel=1e-14)


@pytest.mark.parametrize(
    "make",
    [
        lambda: VPDiscrete(trained_betas=(0.5, 1.0)),
        lambda: VPDiscrete(trained_betas=(0.0, 0.5)),
        lambda: VPDiscrete(trained_betas=(0.5,)),
        lambda: VPDiscrete.from_alphas_cumprod([0.5, 0.6]),
        lambda: RectifiedFlow(0.0),
        lambda: RectifiedFlow(math.nan),
        lambda: VPDiscrete(num_train_timesteps=1),
    ],
)
def test_impossible_settings_are_refused(make):
    with pytest.raises(SettingError):
        make()


def test_the_label_of_clean_data_takes_no_logarithm_of_zero():
    assert EDM().label(EDM().at(0.0)) == -math.inf


@pytest.mark.parametrize("times", [[0.2, 0.5], [0.5, 0.5, 0.0], [0.5, 0.2, 0.3], [0.5], []])
def test_a_grid_must_fall(times):
    with pytest.raises(ScheduleError, match=r"grid (must fall|needs)"):
        TimeGrid.of(RectifiedFlow(), times)


def test_the_error_of_a_grid_names_the_place():
    with pytest.raises(ScheduleError, match=r"node 1 has t=0\.2, node 2 has t=0\.3"):
        TimeGrid.of(RectifiedFlow(), [0.5, 0.2, 0.3])


def test_a_grid_may_touch_both_ends():
    grid = TimeGrid.of(RectifiedFlow(), [1.0, 0.5, 0.0], denoise=True)
    assert [node.t for node in grid] == [1.0, 0.5, 0.0]
    assert (grid.steps, grid.denoise) == (2, True)
