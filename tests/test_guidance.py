"""Guidance policies: their rules, what they cost, off to the bit, and bad settings."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from guided import SHAPE, denoiser, ends, grid_of, network
from laws import PROCESSES, solver, unit_noise

import fewstep
from fewstep import RectifiedFlow, Sampler, from_module
from fewstep.models.caching import TaylorSeer
from fewstep.models.denoiser import Ask, Branch
from fewstep.models.errors import FewstepError, ModelError, SettingError
from fewstep.models.prediction import Prediction
from fewstep.models.registry import parse_spec
from fewstep.models.schedule import TimeGrid
from fewstep.samplers.guidance import (
    APG,
    CFG,
    FDG,
    AdaptiveGuidance,
    AutoGuidance,
    CFGCache,
    CFGPlusPlus,
    CFGZeroStar,
    FeedbackGuidance,
    Guidance,
    GuidanceForecast,
    Interval,
    MagnitudeAware,
    Moment,
    Setup,
    SlidingModeCFG,
    Thresholded,
    Unguided,
    guidance,
    names,
    parse_guidance,
    policy_class,
)
from fewstep.samplers.guidance.base import BOTH, format_guidance
from fewstep.samplers.guidance.cfg_cache import split_bands
from fewstep.samplers.guidance.forecast import OLDER, PastDifferences, Pattern, write_forecast
from fewstep.samplers.guidance.space import (
    choose_prediction,
    compute_factor,
    compute_similarity,
    convert_from_x0,
    convert_to_x0,
)
from fewstep.samplers.guidance.unbound import list_unbound

DDIM = solver("ddim")
WRAPPERS = {"interval", "pag", "seg", "threshold"}  # go around another
TWO_M = solver("dpmpp-2m")
DRAW = torch.Generator().manual_seed(0)
U, C, X = (torch.randn(3, 2, 4, 4, generator=DRAW, dtype=torch.float64) for _ in range(3))
FLOW = PROCESSES["flow"]
NODE = FLOW.at(0.6)


def setup_of(grid=None, settings=DDIM, images=3, **facts):
    grid = grid or grid_of(8)
    return Setup(network(grid.schedule), settings.on(grid), grid, images, **facts)


def blended(policy, u=U, c=C, x=X, moment=None, grid=None):
    """What the guide of a policy makes of two outputs."""
    grid = grid or TimeGrid.of(FLOW, [0.6, 0.4, 0.1])
    moment = moment or Moment(grid.nodes[0])
    guide = policy.begin(setup_of(grid))
    assert [ask.branch for ask in guide.ask(moment)] == [Branch.UNCOND, Branch.COND]
    return guide.combine([u, c], x, moment)


def plain(scale, u=U, c=C):
    return torch.lerp(u, c, scale)


def rows(policy, n=8, settings=TWO_M):
    """Rows of each forward pass of a run of n steps on 2 images."""
    seen = []
    ends(settings, n, policy, who=denoiser(2, seen=seen))
    return seen


# The identities


@pytest.mark.parametrize(
    "policy",
    [
        APG(3.0, eta=1.0, norm=math.inf, momentum=0.0),
        APG(3.0, eta=1.0, norm=math.inf, momentum=0.0, form="uncond"),
        MagnitudeAware(3.0, alpha=0.0),
        CFG(3.0, rescale=0.0),
        Interval(CFG(3.0), 0.0, math.inf),
        Interval(APG(3.0, eta=1.0, norm=math.inf, momentum=0.0), 0.0, 1.0, "step"),
        AdaptiveGuidance(3.0, threshold=1.0),
        GuidanceForecast(3.0, every=1),
        CFGCache(3.0, every=1),
        FDG(3.0, gains=()),
        FDG(3.0, gains=(1.0, 1.0)),
        SlidingModeCFG(3.0, k=0.0),
        SlidingModeCFG(3.0, k=0.0, switch="soft"),
        FeedbackGuidance(9.0, prior=1.0 / 3.0, offset=0.0, temperature=0.0),
        Thresholded(CFG(3.0), quantile=1.0, floor=1e9),
    ],
    ids=lambda p: type(p).__name__,
)
def test_settings_that_are_cfg(policy):
    found = blended(policy)
    divided = 1e-9 if isinstance(policy, Thresholded) else 1.0
    torch.testing.assert_close(found, plain(3.0) * divided, rtol=1e-12, atol=1e-12)


OFF = [
    CFG(3.0),
    Interval(CFG(3.0), 0.0, math.inf),
    CFG(3.0, rescale=0.0),
    AdaptiveGuidance(3.0, threshold=1.0),
    AdaptiveGuidance(3.0, threshold=1.0, batch="per-sample", space="eps", warmup=1, need=1),
    GuidanceForecast(3.0, every=1),
    CFGCache(3.0, every=1),
    GuidanceForecast(3.0, mask="1" * 8),
]


@pytest.mark.parametrize("policy", OFF[1:], ids=lambda p: type(p).__name__)
def test_off_is_cfg_to_the_bit_twice(policy):
    true = ends(TWO_M, 8, OFF[0])
    for _ in range(2):
        assert torch.equal(ends(TWO_M, 8, policy), true)


@pytest.mark.parametrize("name", sorted({*names()} - WRAPPERS - {"cfg-pp"}))
def test_scale_one_costs_one_branch_and_is_no_guidance_to_the_bit(name):
    needs = {"auto": {"network": network()}}
    if name == "linear-ag":
        return  # its scale is that of its file; a fit of scale 1 is refused
    policy = guidance(name, scale=1.0, **needs.get(name, {}))
    assert policy.off
    assert rows(policy) == [2] * 8
    assert torch.equal(ends(TWO_M, 8, policy), ends(TWO_M, 8, Unguided()))


def test_rescaling_brings_the_deviation_back():
    full, half = blended(CFG(4.0, rescale=1.0)), blended(CFG(4.0, rescale=0.5))
    wanted = C.flatten(1).std(1)
    torch.testing.assert_close(full.flatten(1).std(1), wanted)
    torch.testing.assert_close(half, 0.5 * full + 0.5 * plain(4.0))
    flat = torch.zeros_like(U)
    assert torch.equal(blended(CFG(4.0, rescale=0.7), flat, flat), flat)


def test_apg_keeps_what_it_should():
    found = blended(APG(3.0, eta=0.0, norm=math.inf, momentum=0.0)) - C
    assert abs(float((found * C).flatten(1).sum(1).abs().max())) < 1e-10
    clipped = blended(APG(3.0, eta=1.0, norm=0.5, momentum=0.0)) - C
    torch.testing.assert_close(clipped.flatten(1).norm(dim=1), torch.full((3,), 1.0).double())
    guide = APG(2.0, eta=1.0, norm=math.inf, momentum=-0.5).begin(setup_of())
    first = guide.combine([U, C], X, Moment(NODE))
    second = guide.combine([U, C], X, Moment(NODE))
    torch.testing.assert_close(first, C + (C - U))
    torch.testing.assert_close(second, C + 0.5 * (C - U))


@pytest.mark.parametrize("process", ["vp", "edm", "flow"])
def test_cfg_plus_plus_renoises_with_the_unconditional_eps(process):
    schedule = PROCESSES[process]
    grid = grid_of(6, schedule=schedule)
    t, s = grid.nodes[2:4]
    guided = blended(CFGPlusPlus(0.7), moment=Moment(t, 2), grid=grid)
    own = (X - t.alpha * U) / t.sigma
    wanted = s.alpha * (U + 0.7 * (C - U)) + s.sigma * own
    eps = (X - t.alpha * guided) / t.sigma
    torch.testing.assert_close(s.alpha * guided + s.sigma * eps, wanted, rtol=1e-12, atol=1e-12)


def test_cfg_plus_plus_runs_on_ddim_alone():
    CFGPlusPlus().check(setup_of(settings=DDIM))
    for name in ("dpmpp-2m", "heun", "unipc-2"):
        with pytest.raises(SettingError, match="ddim or euler"):
            CFGPlusPlus().check(setup_of(settings=solver(name)))


def test_cfg_zero_star():
    flow = choose_prediction("v", FLOW)
    u, c = (convert_from_x0(each, X, NODE, flow) for each in (U, C))
    best = (u * c).flatten(1).sum(1) / (u * u).flatten(1).sum(1)
    best = best.reshape(-1, 1, 1, 1)
    found = convert_from_x0(blended(CFGZeroStar(3.0, zero_steps=0)), X, NODE, flow)
    torch.testing.assert_close(found, best * u + 3.0 * (c - best * u), rtol=1e-6, atol=1e-6)
    rest = c - best * u
    assert float((rest * u).flatten(1).sum(1).abs().max()) < 1e-10
    along = u + 0.1 * (rest / rest.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1))  # s = 1 here
    other = convert_to_x0(along, X, NODE, flow)
    torch.testing.assert_close(
        blended(CFGZeroStar(3.0, zero_steps=0), U, other),
        plain(3.0, U, other),
        rtol=1e-6,
        atol=1e-7,
    )


def test_zero_steps_do_not_move_on_rectified_flow():
    grid = TimeGrid.of(FLOW, [0.9, 0.6, 0.4, 0.1])
    x = unit_noise((2, *SHAPE))
    visited = []
    from fewstep.samplers.loop import integrate

    integrate(
        denoiser(2, FLOW),
        DDIM.on(grid),
        grid,
        x,
        CFGZeroStar(3.0, zero_steps=2),
        lambda n, node, x, x0, ledger: visited.append(x),
    )
    torch.testing.assert_close(visited[0], x)
    torch.testing.assert_close(visited[1], x)
    assert not torch.allclose(visited[2], x)


def test_magnitude_weakens_what_is_far_apart():
    flow = choose_prediction("v", FLOW)
    u, c = (convert_from_x0(each, X, NODE, flow).flatten(1) for each in (U, C))
    scale = 1.0 + 2.0 * torch.exp(-0.5 * (c - u).norm(dim=1) / u.norm(dim=1))
    wanted = U + scale.reshape(-1, 1, 1, 1) * (C - U)
    torch.testing.assert_close(blended(MagnitudeAware(3.0, alpha=0.5)), wanted)


# Where a policy is named


def test_the_package_and_the_page_name_every_policy():
    page = (Path(fewstep.__file__).parent / "docs" / "guidance.md").read_text()
    for name in names():
        cls = policy_class(name)
        assert getattr(fewstep, cls.__name__) is getattr(fewstep.samplers.guidance, cls.__name__)
        assert f"`{name}`" in page, name
        assert cls.source.partition(";")[0].split(" ")[0] in page, name
    unable = page.partition("**These do not work**")[2].partition("`rewrite_history`")[0]
    unable = unable.partition("`smc`")[0]
    assert {name for name in names() if f"`{name}`" in unable} == {*names()} - {*list_unbound()}


def test_the_table_of_rules_has_the_defaults():
    page = (Path(fewstep.__file__).parent / "docs" / "guidance.md").read_text()
    rules = page.partition("## Other rules")[2].partition("\n\n| name | source")[0]
    cells = [line.split("|")[1:-1] for line in rules.splitlines() if line.startswith("| `")]
    for name, *_, defaults, _ in cells:
        spec, shown = name.strip(" `"), defaults.strip(" `") if "=" in defaults else ""
        made = guidance(spec) if spec == "cfg-pp" else guidance(spec, scale=2.0)
        for key, value in parse_spec(f"x:{shown}")[1].items():
            field = getattr(made, key)
            assert (list(field) if isinstance(field, tuple) else field) == value, (spec, key)
    other = WRAPPERS | {"cfg", "auto", "adaptive", "linear-ag"}
    shown = {name.strip(" `").partition(":")[0] for name, *_ in cells}
    assert shown == {*names()} - other - {"guidance-forecast", "cfg-cache"}


# Adaptive guidance


def fed(policy, gammas, images=1, forecast=()):
    """The branches asked in each step of a run whose similarities are given (steps, images)."""
    guide, asked = policy.begin(setup_of(grid_of(len(gammas)), images=images)), []
    for n, row in enumerate(gammas):
        node = guide_node(n, len(gammas))
        asks = guide.ask(Moment(node, n))
        asked.append(sum(images if ask.rows is None else len(ask.rows) for ask in asks))
        u = torch.tensor([[1.0, 0.0]] * images, dtype=torch.float64).reshape(images, 2, 1, 1)
        c = torch.tensor([[g, math.sqrt(1 - g * g)] for g in row], dtype=torch.float64)
        c = c.reshape(images, 2, 1, 1)
        outputs = [c] if len(asks) == 1 else [u if asks[0].rows is None else u[asks[0].rows], c]
        guide.combine(outputs, torch.zeros_like(c), Moment(node, n, forecast=n in forecast))
    return asked


def guide_node(n, steps):
    return grid_of(steps).nodes[n]


ONE = [[g] for g in (0.5, 0.99, 0.99, 0.99, 0.5, 0.5, 0.5, 0.5)]


def test_it_stops_from_the_next_step_on_and_for_good():
    own = {"threshold": 0.9, "warmup": 1}
    assert fed(AdaptiveGuidance(2.0, need=1, **own), ONE) == [2, 2, 1, 1, 1, 1, 1, 1]
    assert fed(AdaptiveGuidance(2.0, need=2, **own), ONE) == [2, 2, 2, 1, 1, 1, 1, 1]
    assert fed(AdaptiveGuidance(2.0, need=4, **own), ONE) == [2] * 8


def test_the_warm_up_is_guided_whatever_the_similarity():
    same = [[1.0]] * 8
    for warmup in (1, 3, 5):
        asked = fed(AdaptiveGuidance(2.0, warmup=warmup, need=1), same)
        assert asked == [2] * warmup + [1] * (8 - warmup)


def test_a_gap_starts_the_count_again():
    gaps = [[g] for g in (0.95, 0.5, 0.95, 0.95, 0.5, 0.5)]
    policy = AdaptiveGuidance(2.0, threshold=0.9, warmup=1, need=2)
    assert fed(policy, gaps) == [2, 2, 2, 2, 1, 1]


def test_forecast_answers_do_not_count():
    policy = AdaptiveGuidance(2.0, threshold=0.9, warmup=1, need=2)
    assert fed(policy, [[0.95]] * 6, forecast=(0, 1, 2)) == [2, 2, 2, 2, 2, 1]


PAIR = [(0.95, 0.1), (0.95, 0.1), (0.95, 0.95), (0.95, 0.95), (0.95, 0.95)]


def test_who_has_to_agree():
    own = {"threshold": 0.9, "warmup": 1, "need": 1}
    assert fed(AdaptiveGuidance(2.0, batch="all", **own), PAIR, 2) == [4, 4, 4, 2, 2]
    lenient = {**own, "threshold": 0.5}
    assert fed(AdaptiveGuidance(2.0, batch="mean", **lenient), PAIR, 2) == [4, 2, 2, 2, 2]
    assert fed(AdaptiveGuidance(2.0, batch="per-sample", **own), PAIR, 2) == [4, 3, 3, 2, 2]


def test_in_eps_the_similarity_begins_near_one_and_must_not_stop_it():
    """Near pure noise both predictions are mostly that noise, in eps and in nothing else."""
    grid = grid_of(12, first=80.0, last=0.5)
    node, x = grid.nodes[0], unit_noise((2, *SHAPE)) * grid.nodes[0].sigma
    u, c = denoiser(2).x0(x, node, (Branch.UNCOND, Branch.COND))
    eps = (convert_from_x0(each, x, node, Prediction.EPS) for each in (u, c))
    assert float(compute_similarity(*eps).min()) > 0.999
    assert float(compute_similarity(u, c).min()) < 0.95
    hasty = AdaptiveGuidance(3.0, threshold=0.991, space="eps", warmup=1, need=1)
    assert sum(rows_on(hasty, grid)) == 2 * (12 + 1)
    careful = AdaptiveGuidance(3.0, threshold=0.991)
    assert sum(rows_on(careful, grid)) > 2 * (12 + 3)


def rows_on(policy, grid):
    seen = []
    ends(TWO_M, 0, policy, grid, unit_noise((2, *SHAPE)), denoiser(2, seen=seen))
    return seen


@pytest.mark.parametrize("batch", ["all", "mean", "per-sample"])
def test_a_run_costs_its_steps_and_the_guided_ones(batch):
    policy = AdaptiveGuidance(3.0, threshold=0.97, warmup=1, need=1, batch=batch)
    who = denoiser(2, seen=(seen := []))
    ends(TWO_M, 12, policy, who=who)
    guided = sum(n - 2 for n in seen)
    assert 0 < guided < 24
    assert who.ledger.rows == 24 + guided == sum(seen)
    assert who.ledger.evaluations == 24
    assert who.ledger.saved == pytest.approx((24 - guided) / 48)
    assert [who.ledger.steps[n] for n in range(12)] == seen


def test_per_sample_gives_each_image_what_it_gets_alone():
    policy = AdaptiveGuidance(3.0, threshold=0.97, warmup=1, need=1, batch="per-sample")
    grid = grid_of(10)
    x = unit_noise((4, *SHAPE)) * grid.schedule.noise_scale(grid.nodes[0])
    seen = []
    together = ends(TWO_M, 0, policy, grid, x, denoiser(4, seen=seen))
    assert any(4 < n < 8 for n in seen)  # some of them are guided still
    for row in range(4):
        alone = ends(TWO_M, 0, policy, grid, x[row : row + 1], denoiser(1))
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("batch", ["all", "per-sample"])
def test_a_soft_landing_holds_the_difference_of_eps(batch):
    """Row 0 is dropped after the first step; row 1 never agrees."""
    own = {"threshold": 0.5, "warmup": 1, "need": 1, "landing": "hold"}
    policy = AdaptiveGuidance(3.0, batch=batch, **own)
    grid = grid_of(4)
    guide = policy.begin(setup_of(grid, images=2))
    u = torch.tensor([[1.0, 0.0], [1.0, 0.0]], dtype=torch.float64).reshape(2, 2, 1, 1)
    c = torch.tensor([[1.0, 0.2], [0.0, 1.0]], dtype=torch.float64).reshape(2, 2, 1, 1)
    c = c if batch == "per-sample" else c[[0, 0]]
    first, second = (Moment(node, n) for n, node in enumerate(grid.nodes[:2]))
    guide.ask(first)
    guide.combine([u, c], torch.zeros_like(c), first)
    asks = guide.ask(second)
    outputs = [u[1:], c] if batch == "per-sample" else [c]
    assert [len(outputs[0]), 2] == [1 if batch == "per-sample" else 2, 2]
    assert len(asks) == len(outputs)
    found = guide.combine(outputs, torch.zeros_like(c), second)
    fade = second.node.kappa / first.node.kappa
    torch.testing.assert_close(found[0], (c + 2.0 * fade * (c - u))[0])
    if batch == "per-sample":
        torch.testing.assert_close(found[1], (u + 3.0 * (c - u))[1])


@pytest.mark.parametrize("landing", ["hold", "linear"])
def test_a_soft_landing_costs_what_the_hard_one_does(landing):
    own = {"threshold": -0.99, "warmup": 3, "need": 1}
    hard, soft = AdaptiveGuidance(3.0, **own), AdaptiveGuidance(3.0, landing=landing, **own)
    assert rows(hard) == rows(soft) == [4, 4, 4, 2, 2, 2, 2, 2]
    assert not torch.equal(ends(TWO_M, 8, hard), ends(TWO_M, 8, soft))


# The difference, forecast


def test_patterns():
    digits = lambda p, n: "".join("01"[each] for each in p.list_flags(n))  # noqa: E731
    assert digits(Pattern(1, 2), 8) == "10101010"
    assert digits(Pattern(3, 2), 8) == "11101010"
    assert digits(Pattern(2, 3), 9) == "110010010"
    assert digits(Pattern(2, 0), 6) == "110000"
    assert digits(Pattern(4, 2, "", 2), 10) == "1111010100"
    assert digits(Pattern(4, 2, "", 3), 10) == "1111010000"
    assert digits(Pattern(1, 1), 4) == "1111"
    assert digits(Pattern(1, 2, "1011"), 4) == "1011"
    with pytest.raises(SettingError, match="4 steps, and this run has 5"):
        Pattern(1, 2, "1011").list_flags(5)
    for mask in ("0111", "12", "1x1"):
        with pytest.raises(SettingError, match="begins with 1"):
            Pattern(1, 2, mask)


def test_a_polynomial_of_its_order_is_forecast_exactly():
    nodes = grid_of(6).nodes
    for order, clock in ((1, "lam"), (2, "lam"), (1, "t"), (2, "t")):
        past = PastDifferences(order, clock)
        value = lambda node, k=order, w=clock: torch.full((1,), getattr(node, w) ** k).double()  # noqa: E731
        for node in nodes[:4]:
            past.add(node, value(node))
        torch.testing.assert_close(past.at(nodes[5]), value(nodes[5]))


@pytest.mark.parametrize("space", ["x0", "v", "eps"])
@pytest.mark.parametrize("process", ["vp", "flow", "edm"])
def test_a_difference_is_held_in_its_space(space, process):
    schedule = PROCESSES[process]
    kind = choose_prediction(space, schedule)
    early, late = grid_of(6, schedule=schedule).nodes[1:3]
    past = PastDifferences(0, "lam", kind)
    past.add(early, C - U)
    held = convert_from_x0(C, X, early, kind) - convert_from_x0(U, X, early, kind)
    torch.testing.assert_close(past.at(late) * compute_factor(late, kind), held)


def test_pure_noise_has_no_place_on_lam_and_is_held():
    pure, then, after = FLOW.at(1.0), FLOW.at(0.8), FLOW.at(0.7)
    past = PastDifferences(1, "lam")
    past.add(pure, torch.ones(1))
    assert past.at(then).tolist() == [1.0]
    past.add(then, torch.full((1,), 3.0))
    assert past.at(after).tolist() == [3.0]


def test_where_eps_says_nothing_of_x0_the_difference_of_x0_is_held():
    one, pure, middle, clean = torch.ones(1), FLOW.at(1.0), FLOW.at(0.5), FLOW.at(0.0)
    for order, clock in ((0, "lam"), (0, "t"), (1, "lam"), (1, "t")):
        past = PastDifferences(order, clock, Prediction.EPS)
        past.add(pure, one)  # alpha = 0
        assert past.at(middle).tolist() == past.at(pure).tolist() == [1.0]
        past.add(middle, 3.0 * one)
        assert past.at(FLOW.at(0.25)).tolist() == [pytest.approx(1.0)]  # sigma / alpha is a third
        assert past.at(pure).tolist() == [3.0]
        assert past.at(clean).tolist() == [0.0]  # sigma = 0, where c = u = x
    for kind in (Prediction.EPS, Prediction.V, Prediction.FLOW):
        past = PastDifferences(0, "lam", kind)
        past.add(clean, 2.0 * one)
        assert past.at(middle).tolist() == [2.0]


def test_a_typed_forecast_gets_its_space_and_warmup():
    assert (GuidanceForecast(2.0).space, GuidanceForecast(2.0).warmup) == ("eps", 3)
    for spec, there in {
        "guidance-forecast": "guidance-forecast:space=eps,warmup=3",
        "guidance-forecast:scale=2": "guidance-forecast:space=eps,warmup=3,scale=2",
        "guidance-forecast+threshold": "guidance-forecast:space=eps,warmup=3+threshold",
        "guidance-forecast:scale=2, space = v": "guidance-forecast:warmup=3,scale=2, space = v",
        "guidance-forecast:mask=10,space=v": "guidance-forecast:mask=10,space=v",
        "guidance-forecast:warmup=1": "guidance-forecast:space=eps,warmup=1",
        "adaptive:scale=2": "adaptive:scale=2",
    }.items():
        assert write_forecast(spec) == there
        assert parse_guidance(spec, 2.0) == parse_guidance(there, 2.0)
    older = parse_guidance(write_forecast("guidance-forecast", OLDER), 2.0)
    assert older == GuidanceForecast(2.0, space="x0", warmup=1)


def test_a_forecast_of_what_does_not_change_is_exact_and_cheaper():
    class Constant(Guidance):
        pass

    seen = []
    base = network(FLOW, seen)

    def forward(x, node, conditions):
        seen.append(len(x))
        return x * 0.1 + conditions["w"].reshape(-1, 1, 1, 1)

    who = replace(denoiser(2, FLOW), network=replace(base, forward=forward))
    grid = grid_of(9, schedule=FLOW)
    true = ends(TWO_M, 0, CFG(3.0), grid, unit_noise((2, *SHAPE)), who)
    assert seen == [4] * 9
    seen.clear()
    policy = GuidanceForecast(3.0, every=3, warmup=2, space="x0")
    found = ends(TWO_M, 0, policy, grid, unit_noise((2, *SHAPE)), who)
    assert seen == [4, 4, 2, 2, 4, 2, 2, 4, 2]
    torch.testing.assert_close(found, true, rtol=1e-12, atol=1e-12)


def test_both_stages_of_a_step_follow_its_flag():
    seen = rows(GuidanceForecast(3.0, mask="1010"), 4, solver("heun"))
    assert seen == [4, 4, 2, 2, 4, 4, 2, 2]


# CFG-cache


def test_the_bands_are_those_of_diffusers_and_add_up():
    from diffusers.hooks.faster_cache import _split_low_high_freq

    x = torch.randn(2, 3, 16, 12, generator=DRAW)
    low, high = split_bands(x)
    theirs = _split_low_high_freq(x)
    for ours, band in zip((low, high), theirs, strict=True):
        expected = torch.fft.ifft2(torch.fft.ifftshift(band)).real
        torch.testing.assert_close(ours, expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(low + high, x)
    for frequency, band in ((3, 0), (4, 1)):  # a disc of radius 3 of 16
        waves = torch.cos(2 * math.pi * frequency * torch.arange(16.0) / 16).expand(1, 1, 16, 16)
        torch.testing.assert_close(split_bands(waves)[band], waves, rtol=0, atol=1e-5)


def test_gains_grow_at_each_skipped_step_in_the_window_of_their_band():
    policy = CFGCache(2.0, every=4, window=(0.2, 1.0), low_gain=2.0, high_gain=3.0)
    policy = replace(policy, low_window=(0.0, 0.6), high_window=(0.6, 1.0))
    flags = [True, True, False, False, True, False, False, False, True, False]
    assert list(policy.list_flags(10)) == flags
    skipped = [gains for gains, both in zip(policy.list_gains(10), flags, strict=True) if not both]
    assert skipped == [(2, 1), (4, 1), (2, 1), (2, 3), (2, 9), (1, 3)]


def test_a_skipped_step_is_as_by_the_hook_of_diffusers():
    """u = c - (gained bands of the last difference), in the network's own output."""
    grid = TimeGrid.of(FLOW, [0.9, 0.8, 0.7, 0.6, 0.5, 0.2])
    policy = CFGCache(3.0, every=5, window=(0.2, 1.0), low_window=(0, 1), high_window=(0.4, 1))
    guide, kind = policy.begin(setup_of(grid)), choose_prediction("v", FLOW)
    outputs = torch.randn(5, 3, 2, 8, 8, generator=DRAW, dtype=torch.float64)
    states = torch.randn(5, 3, 2, 8, 8, generator=DRAW, dtype=torch.float64)
    low = high = None
    gains = [(1, 1), (1.1, 1), (1.21, 1.1), (1.331, 1.21), (1.4641, 1.331)]
    assert policy.list_flags(5) == (True, False, False, False, False)
    for n, (c, x) in enumerate(zip(outputs, states, strict=True)):
        moment = Moment(grid.nodes[n], n)
        asked = guide.ask(moment)
        to_x0 = [convert_to_x0(each, x, moment.node, kind) for each in (0.5 * c, c)]
        found = guide.combine(to_x0 if len(asked) == 2 else to_x0[1:], x, moment)
        if n == 0:
            low, high = split_bands(0.5 * c - c)
            continue
        u = c + gains[n][0] * low + gains[n][1] * high
        expected = convert_to_x0(u + 3.0 * (c - u), x, moment.node, kind)
        torch.testing.assert_close(found, expected)


def test_rows_of_a_run_with_a_cfg_cache_are_counted():
    assert rows(CFGCache(3.0, every=3, window=(0.25, 1.0)), 8) == [4, 4, 2, 4, 2, 2, 4, 2]


def test_a_list_of_tokens_has_no_frequencies(conditional):
    tokens = replace(conditional.network, shape=(4, 4))
    with pytest.raises(SettingError, match="list of tokens; take guidance-forecast"):
        Sampler(tokens)(range(2), class_labels=1, nfe=6, guidance=CFGCache(2.0))
    with pytest.raises(SettingError, match="list of tokens; take guidance-forecast"):
        split_bands(torch.zeros(1, 4, 4))


# Intervals


@pytest.mark.parametrize(
    ("in_", "low", "high", "guided"),
    [
        ("step", 0.25, 0.75, [2, 3, 4, 5]),
        ("step", 0.0, 0.3, [0, 1]),
        ("sigma", 0.9, 4.0, [3, 4]),
        ("lam", -1.4, 0.1, [3, 4]),
    ],
)
def test_intervals_guide_inside_only(in_, low, high, guided):
    seen = rows(Interval(CFG(3.0), low, high, in_))
    assert [n for n, size in enumerate(seen) if size == 4] == guided
    grid = grid_of(8)
    low, high = grid.nodes[4].t, grid.nodes[2].t
    seen = rows(Interval(CFG(3.0), low, high, "t"))
    assert [n for n, size in enumerate(seen) if size == 4] == [2, 3]


def test_an_interval_narrows_any_policy():
    policy = Interval(GuidanceForecast(3.0, warmup=1), 0.0, 0.5, "step")
    assert rows(policy) == [4, 2, 4, 2, 2, 2, 2, 2]
    assert rows(Interval(APG(3.0), 0.5, 1.0, "step")) == [2] * 4 + [4] * 4


# Autoguidance


def test_autoguidance_pushes_away_from_the_weaker_network():
    weak, seen = network(), []
    weak = replace(weak, forward=lambda x, node, c: torch.zeros_like(x), name="weak")
    policy = AutoGuidance(2.0, weak)
    who = replace(denoiser(2, seen=seen), others={Branch.WEAK: replace(denoiser(2), network=weak)})
    x = unit_noise((2, *SHAPE))
    guide = policy.begin(setup_of(images=2))
    node = grid_of(8).nodes[3]
    outputs = who.x0(x, node, guide.ask(Moment(node, 3)))
    (strong,) = denoiser(2).x0(x, node)
    torch.testing.assert_close(guide.combine(outputs, x, Moment(node, 3)), 2.0 * strong)
    assert (who.ledger.rows, who.ledger.calls, who.ledger.evaluations) == (4, 2, 2)
    assert seen == [2]


def test_autoguidance_in_a_sampler(conditional):
    weak = replace(conditional.network, forward=lambda x, node, c: x * 0.0)
    result = conditional(range(2), class_labels=1, nfe=4, guidance=AutoGuidance(1.5, weak))
    assert result.ledger.rows_per_image == 8
    assert torch.isfinite(result.samples).all()


# Rows, caches, whole samplers


def test_rows_asked_are_rows_evaluated_under_their_own_conditions():
    who = denoiser(4, seen=(seen := []))
    who.conditions[Branch.UNCOND]["w"] = torch.tensor([0.0, 0.2, 0.4, 0.6], dtype=torch.float64)
    x, node = unit_noise((4, *SHAPE)), grid_of(8).nodes[3]
    full_u, full_c = who.x0(x, node, (Branch.UNCOND, Branch.COND))
    some = torch.tensor([2, 0])
    u, c = who.x0(x, node, (Ask(Branch.UNCOND, some), Branch.COND))
    torch.testing.assert_close(u, full_u[some])
    torch.testing.assert_close(c, full_c)
    assert seen == [8, 6]
    assert (who.ledger.rows, who.ledger.evaluations, who.ledger.calls) == (14, 8, 2)


def test_a_cached_network_takes_whole_batches_only():
    who = denoiser(2)
    who.cache = object()
    with pytest.raises(ModelError, match="whole batches"):
        who.x0(unit_noise((2, *SHAPE)), grid_of(4).nodes[0], (Ask(Branch.COND, torch.tensor([0])),))


@pytest.fixture
def conditional():
    """A class-conditional flow network: label 2 is the null class."""

    def net(x, time, class_labels):
        return x * (class_labels + 1.0).reshape(-1, 1, 1, 1) * 0.1

    return Sampler(
        from_module(
            net,
            schedule=RectifiedFlow(time_scale=1000),
            prediction="flow",
            shape=(1, 2, 2),
            num_classes=2,
            null_class=2,
        )
    )


@pytest.mark.parametrize("name", sorted({*names()} - WRAPPERS - {"linear-ag"}))
def test_every_policy_samples(conditional, name):
    own = {"cfg-pp": {}, "auto": {"scale": 2.0, "network": conditional.network}}
    policy = guidance(name, **own.get(name, {"scale": 2.0}))
    result = conditional(range(3), class_labels=1, solver="ddim", nfe=6, guidance=policy, batch=2)
    assert torch.isfinite(result.samples).all()
    most = {"rect-cfg-pp": 18, "cfg-mp": 24}.get(name, 12)
    assert 6 <= result.ledger.rows_per_image <= most
    assert sum(result.ledger.rows_per_step) == pytest.approx(result.ledger.rows_per_image)


def test_batches_begin_afresh(conditional):
    """What a guide remembers is of its batch: the second is sampled as if it were the first."""
    policy = GuidanceForecast(2.0, order=1, every=3, warmup=1)
    whole = conditional(range(4), class_labels=1, nfe=6, guidance=policy, batch=2)
    last = conditional([2, 3], class_labels=1, nfe=6, guidance=policy)
    assert torch.equal(whole.samples[2:], last.samples)


# What is refused

WRONG = [
    ("adaptive", {"scale": 3.0, "threshold": 1.1}, r"\(-1, 1\]"),
    ("adaptive", {"scale": 3.0, "threshold": -1.0}, r"\(-1, 1\]"),
    ("adaptive", {"scale": 3.0, "warmup": 0}, "warmup"),
    ("adaptive", {"scale": 3.0, "space": "noise"}, "space"),
    ("adaptive", {"scale": 3.0, "landing": "hold", "rewrite_history": True}, "rewrite_history"),
    ("adaptive", {"threshold": 0.9}, "adaptive needs scale"),
    ("adaptive", {"scale": "much"}, "scale"),
    ("adaptive", {"scale": math.inf}, "must be a number"),
    ("adaptive", {"scale": 3.0, "treshold": 0.9}, "did you mean 'threshold'"),
    ("adaptve", {}, "did you mean 'adaptive'"),
    ("cfg", {"scale": "much"}, "scale=.much.: it must be a number"),
    ("cfg", {"scale": 2.0, "rescale": 1.5}, "rescale"),
    ("cfg", {"scale": 2.0, "interval": (2.0, 1.0)}, "empty"),
    ("cfg", {"scale": 2.0, "interval": "all"}, r"write interval=\[0.3,5\]"),
    ("cfg-pp", {"scale": 3.0}, r"\[0, 1\]"),
    ("apg", {"scale": 2.0, "norm": 0.0}, "norm"),
    ("guidance-forecast", {"scale": 2.0, "order": 3}, "order"),
    ("guidance-forecast", {"scale": 2.0, "mask": "1011", "every": 3}, "whole pattern"),
    ("guidance-forecast", {"scale": 2.0, "mask": 11012}, "begins with 1"),
    ("cfg-cache", {"scale": 2.0, "every": 0}, "every"),
    ("cfg-cache", {"scale": 2.0, "low_gain": 0.0}, "low_gain"),
    ("cfg-cache", {"scale": 2.0, "high_gain": math.nan}, "high_gain"),
    ("cfg-cache", {"scale": 2.0, "window": (0.9, 0.3)}, "0.9,0.3 is empty"),
    ("cfg-cache", {"scale": 2.0, "low_window": (0.0, 1.5)}, "from 0 to 1"),
    ("tcfg", {"scale": 2.0, "space": "raw"}, "space"),
    ("smc", {"scale": 2.0, "k": -0.1}, "smc: k=-0.1: .* greater than or equal to 0"),
    ("smc", {"scale": 2.0, "k": math.inf}, "k=inf: .* finite"),
    ("smc", {"scale": 2.0, "rate": math.nan}, "rate"),
    ("smc", {"scale": 2.0, "switch": "hard"}, "'sign' or 'soft'"),
    ("fdg", {"scale": 2.0, "gains": (-1.0,)}, "gains"),
    ("fdg", {"scale": 2.0, "gains": (math.inf,)}, "gains"),
    ("rect-cfg-pp", {"scale": 2.0, "power": -1.0}, "power"),
    ("cfg-mp", {"scale": 2.0, "iterations": -1}, "iterations"),
    ("cfg-mp", {"scale": 2.0, "share": 1.5}, "share"),
    ("cfg-mp", {"scale": 2.0, "beta": math.nan}, "beta"),
    ("fbg", {"scale": 0.5}, "the most that guidance may be, at least 1, not 0.5"),
    ("fbg", {"scale": 2.0, "prior": 1.0}, "prior"),
    ("fbg", {"scale": 2.0, "t0": 1.0}, "t0"),
    ("fbg", {"scale": 2.0, "temperature": -1.0}, "temperature"),
    ("fbg", {"scale": 2.0, "offset": math.inf}, "offset"),
    ("interval", {"inner": 3.0, "low": 0.0, "high": 1.0}, "inner"),
    ("interval", {"inner": CFG(2.0), "low": 2.0, "high": 1.0}, "empty"),
    ("interval", {"inner": CFG(2.0), "low": 0.0, "high": 2.0, "in": "step"}, "from 0 to 1"),
    ("auto", {"scale": 2.0}, "auto needs network"),
    ("auto", {"scale": 2.0, "network": 3}, "a Network, or a name or folder"),
]


@pytest.mark.parametrize(("name", "settings", "text"), WRONG, ids=lambda v: str(v)[:30])
def test_bad_settings(name, settings, text):
    with pytest.raises(FewstepError, match=text):
        guidance(name, **settings)


def test_runs_that_cannot_be_guided_so_are_refused_before_the_network_runs(conditional):
    def refused(text, **call):
        with pytest.raises(SettingError, match=text):
            conditional(range(2), class_labels=1, **{"nfe": 6, **call})

    refused("covers no step", guidance=Interval(CFG(2.0), 500.0, 900.0))
    refused("covers no step", guidance=CFG(2.0, (500.0, 900.0)))
    refused("5 steps, and this run has 6", guidance=GuidanceForecast(2.0, mask="10101"))
    refused("leaves out none of 6 uncond", guidance=CFGCache(2.0, window=(0.0, 0.1)))
    refused("ddim or euler", guidance=CFGPlusPlus(), solver="unipc-2")
    refused("ddim or euler", guidance=CFGPlusPlus(), solver="ddpm")
    for name in ("rect-cfg-pp", "cfg-mp"):
        for solver_name in ("unipc-2", "dpmpp-2s", "ddpm", "ode-dopri5"):
            nfe = None if solver_name == "ode-dopri5" else 6
            refused("take --solver ddim", guidance=f"{name}:scale=2", solver=solver_name, nfe=nfe)
    refused(r"\(switch=soft does not\); take --solver ddim", guidance=SlidingModeCFG(2.0))
    refused(
        "2 x 2 allows 1 halvings, one for each gain, not 2", guidance=FDG(2.0, gains=(2.0, 2.0))
    )
    tokens = Sampler(replace(conditional.network, shape=(4, 4)))
    with pytest.raises(SettingError, match="list of tokens; take apg or magnitude"):
        tokens(range(2), class_labels=1, nfe=6, guidance=FDG(2.0))
    adaptive = {"solver": "ode-dopri5", "nfe": None}
    refused("steps that it does not take", guidance=FeedbackGuidance(2.0), **adaptive)
    refused("own steps", guidance=GuidanceForecast(2.0), **adaptive)
    refused("own steps", guidance=CFGCache(2.0), **adaptive)
    refused("fixed steps", guidance=AdaptiveGuidance(2.0), **adaptive)
    refused("no number of steps", guidance=Interval(CFG(2.0), 0.0, 0.5, "step"), **adaptive)
    zero = Interval(CFG(0.0), 0.1, 1.0, rewrite_history=True)
    refused("never asks for the conditional", guidance=zero)
    other = replace(conditional.network, shape=(1, 4, 4), name="other")
    refused("one shape: .* has .*1, 2, 2.*other .*1, 4, 4", guidance=AutoGuidance(2.0, other))
    other = replace(conditional.network, schedule=RectifiedFlow(shift=3.0), name="other")
    refused("'shift': 1.0, .*other {'shift': 3.0, ", guidance=AutoGuidance(2.0, other))
    for value in (2.0, CFG):
        refused("not a guidance policy; give a text", guidance=value)


@pytest.mark.parametrize("name", sorted({*names()} - WRAPPERS - {"auto", "linear-ag"}))
def test_an_unconditional_network_cannot_be_guided(name):
    own = {} if name == "cfg-pp" else {"scale": 2.0}
    alone = Sampler(replace(network(), needs=()))
    call = {"conditions": {"w": torch.ones(1, 1)}, "solver": "ddim", "nfe": 3}
    with pytest.raises(SettingError, match="no unconditional branch"):
        alone([0], guidance=guidance(name, **own), **call)


def test_a_policy_with_memory_is_no_rule_of_a_node():
    for policy in (
        AdaptiveGuidance(2.0),
        GuidanceForecast(2.0),
        Interval(CFG(2.0), 0, 0.5, "step"),
    ):
        with pytest.raises(SettingError, match="take cfg"):
            policy.stateless()
    inside = Interval(CFG(3.0), 0.0, math.inf).stateless()
    assert inside.ask(Moment(NODE)) == BOTH
    torch.testing.assert_close(inside.combine([U, C], C, Moment(NODE)), plain(3.0))


# Typed guidance


def test_a_spec_names_a_policy_and_what_narrows_it():
    assert parse_guidance("cfg:scale=2") == CFG(2.0)
    assert parse_guidance("cfg", 2.0) == CFG(2.0) == parse_guidance("cfg:scale=2", 2.0)
    found = parse_guidance("adaptive:scale=3,threshold=0.98+interval:low=0.3,high=5")
    assert found == Interval(AdaptiveGuidance(3.0, threshold=0.98), 0.3, 5.0)
    assert parse_guidance("interval:low=0,high=0.5,in=step", 2.0) == Interval(
        CFG(2.0), 0.0, 0.5, "step"
    )
    both = parse_guidance("cfg:scale=2+interval:low=0.3,high=1e+3+threshold:quantile=0.9")
    assert both == Thresholded(Interval(CFG(2.0), 0.3, 1000.0), 0.9)
    assert parse_guidance("guidance-forecast:scale=2,mask=1101").mask == "1101"
    assert parse_guidance("apg:scale=2,norm=inf").norm == math.inf
    with pytest.raises(SettingError, match="do not agree"):
        parse_guidance("cfg:scale=2", 3.0)
    with pytest.raises(SettingError, match="wraps another guidance"):
        parse_guidance("interval:low=0,high=1")
    with pytest.raises(FewstepError, match="another 'intervall'; did you mean 'interval'"):
        parse_guidance("cfg:scale=2+intervall:low=0,high=1")
    with pytest.raises(FewstepError, match="another 'cfg'; known: interval, pag, seg, threshold"):
        parse_guidance("cfg:scale=2+cfg:scale=3")


def test_every_policy_is_written_as_the_spec_that_reads_as_it():
    needs = {"auto": "network=fashion-unet", "guidance-forecast": "mask=1001", "fdg": "gains=[2]"}
    alone = [*({*names()} - WRAPPERS)]
    scales = {"fbg": 2.0}  # no less than 1; cfg-pp has no more
    specs = [
        f"{name}:scale={scales.get(name, 0.75)},{needs.get(name, '')}"
        for name in alone
        if name != "linear-ag"
    ]
    wrapped = [f"{spec}+interval:low=0,high=0.5,in=step+threshold:quantile=0.9" for spec in specs]
    more = ["apg:scale=2,norm=inf", "cfg:scale=2,rescale=0.7", "adaptive:scale=3,batch=all"]
    for spec in [*specs, *wrapped, *more]:
        policy = parse_guidance(spec)
        assert parse_guidance(format_guidance(policy)) == policy, spec
    assert parse_guidance(format_guidance(Unguided())).off


def test_caches_and_guidance_go_together():
    sampler = Sampler.from_pretrained("fashion-dit")
    call = {"class_labels": [1, 2], "solver": "ddim", "nfe": 8, "cache": TaylorSeer(interval=2)}
    for name in ("rect-cfg-pp", "cfg-mp"):
        with pytest.raises(SettingError, match=f"drop the cache, or {name}"):
            sampler([0, 1], guidance=f"{name}:scale=2", **call)
    sure = AdaptiveGuidance(2.0, threshold=-0.99, need=1)  # stops where it can
    ledger = sampler([0, 1], guidance=sure, **call).ledger
    assert [each.kind for each in ledger.cache.calls[:4]] == ["full", "full", "skip", "full"]
    assert ledger.rows_per_step == (2, 2, 2, 2, 1, 1, 1, 1)  # nothing is decided on a forecast
    with pytest.raises(SettingError, match="batch=all"):
        sampler([0, 1], guidance=AdaptiveGuidance(2.0, batch="per-sample"), **call)
