"""Solvers that choose their own steps, the Runge-Kutta tableaux, and cached reference samples."""

import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import pairwise, product
from random import Random

import numpy as np
import pytest
import torch
from laws import GAUSSIAN, MIXTURE, PROCESSES, even_in_lam, run, start, unit_noise
from torch.testing import assert_close
from torchdiffeq import odeint
from typer.testing import CliRunner

from fewstep import CFG, Sampler, from_module, solver
from fewstep.cli import app
from fewstep.eval.teacher import teacher
from fewstep.models.denoiser import Network
from fewstep.models.errors import NonFiniteError, SettingError
from fewstep.models.prediction import Prediction
from fewstep.models.schedule import EDM, Cosine, RectifiedFlow, TimeGrid, VPDiscrete
from fewstep.samplers.grid import Final
from fewstep.samplers.plan import make_plan
from fewstep.solvers import names
from fewstep.solvers.adaptive import Pace
from fewstep.solvers.tableaux import (
    BOGACKI_SHAMPINE,
    DORMAND_PRINCE,
    PRINCE_DORMAND,
    RK4,
    TSITOURAS,
)

DPM = ["dpm-adaptive-12", "dpm-adaptive-23"]
ODE = ["ode-bosh3", "ode-dopri5", "ode-dopri8", "ode-tsit5"]
ADAPTIVE = [*DPM, *ODE]
FAMILIES = {**PROCESSES, "cosine": Cosine(), "zero-snr": VPDiscrete(zero_snr=True)}


def span(schedule, final=Final.SIGMA_MIN):
    """The grid that an adaptive run gets."""
    return make_plan(schedule, "ode-dopri5", final=final).grid


def tight(name, tolerance, **settings):
    return solver(name, rtol=tolerance, atol=tolerance, **settings)


def counting(law):
    """The law and the list of nodes it has been asked at."""
    asked = []

    def answer(x, node):
        asked.append(node)
        return law(x, node)

    return answer, asked


def flow_error(settings, grid):
    x, ends = start(grid, (3, 4)), (grid.nodes[0], grid.nodes[-1])
    wrong = run(settings, grid, x, GAUSSIAN.x0) - GAUSSIAN.flow_map(x, *ends)
    return float(wrong.abs().max())


def test_these_are_all():
    assert [name for name in names() if solver(name).info.adaptive] == ADAPTIVE


# Accuracy


@pytest.mark.parametrize("process", FAMILIES)
@pytest.mark.parametrize("name", ADAPTIVE)
def test_tighter_tolerances_come_closer_to_the_exact_flow(name, process):
    grid = span(FAMILIES[process])
    tolerances = (1e-2, 1e-3, 1e-4) if name in DPM else (1e-3, 1e-5, 1e-7)
    errors = [flow_error(tight(name, tolerance), grid) for tolerance in tolerances]
    assert errors[0] < 0.1
    assert errors[1] < errors[0] / 3
    assert errors[2] < errors[1] / 3


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", ["dpm-adaptive-23", *ODE])
def test_the_exact_flow_is_reached(name, process):
    grid = span(PROCESSES[process])
    assert flow_error(tight(name, 1e-6), grid) < 1e-5


@pytest.mark.parametrize("process", PROCESSES)
def test_all_agree_on_a_mixture(process):
    grid = span(PROCESSES[process])
    ends = [run(tight(n, 1e-8), grid, start(grid), MIXTURE.x0) for n in ("ode-dopri5", "ode-tsit5")]
    assert_close(ends[0], ends[1], rtol=0, atol=1e-6)
    for name, tolerance in (("dpm-adaptive-23", 1e-5), ("dpm-adaptive-12", 1e-4)):
        x = run(tight(name, tolerance), grid, start(grid), MIXTURE.x0)
        assert_close(x, ends[0], rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("name", [*ADAPTIVE, "ode-rk4"])
def test_all_processes_give_the_same(name):
    """On x / alpha, up to the rounding of the step lengths."""
    ends = []
    for schedule in PROCESSES.values():
        grid = even_in_lam(schedule, 3)
        x = unit_noise() * 20.0 * grid.nodes[0].alpha
        ends.append(run(solver(name), grid, x, MIXTURE.x0) / grid.nodes[-1].alpha)
    for end in ends[1:]:
        assert_close(end, ends[0], rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("name", [*ADAPTIVE, "ode-rk4"])
def test_from_alpha_zero(name):
    """tau = 1 is no limit of a logarithm: the run starts there, not near it."""
    settings = solver(name) if name == "ode-rk4" else tight(name, 1e-3)
    for times in ([1.0, 0.9995, 0.5], [1.0, 0.6, 0.3], [1.0, 0.7]):
        assert flow_error(settings, TimeGrid.of(RectifiedFlow(), times)) < 1e-2


# The DPM pairs, beside the plainest form of the published rule


def published(name, x, first, last, schedule, law):
    """arXiv:2206.00927 app. C.4 on x0, in tensors; returns x, accepted and rejected trials."""
    order, h, at = solver(name).info.order, 0.05, first
    low_before, counts = x, [0, 0]
    while at.lam < last.lam:
        h = min(h, last.lam - at.lam)

        def weight(share, at=at, h=h):
            v = schedule.at_lam(at.lam + share * h)
            e1 = math.exp(-share * h) - 1
            return v, v.sigma / at.sigma, -v.alpha * e1, v.alpha * (e1 / (share * h) + 1)

        x0 = law(x, at)
        end, ratio, full, bend = weight(1.0)
        one, ratio_1, full_1, _ = weight(1 / order)
        d1 = law(ratio_1 * x + full_1 * x0, one) - x0
        first_order = ratio * x + full * x0
        if order == 2:
            low, high = first_order, first_order + full * d1
        else:
            two, ratio_2, full_2, bend_2 = weight(2 / 3)
            d2 = law(ratio_2 * x + full_2 * x0 + 2 * bend_2 * d1, two) - x0
            low, high = first_order + 1.5 * full * d1, first_order + 1.5 * bend * d2
        allowed = torch.maximum(low.abs(), low_before.abs()).mul(0.05).clamp(min=0.0078)
        error = float(((high - low) / allowed).flatten(1).pow(2).mean(1).sqrt().max())
        counts[error > 1.0] += 1
        if error <= 1.0:
            x, at, low_before = high, end if last.lam - end.lam > 1e-9 else last, low
        h = 0.9 * h * error ** (-1 / order)
    return x, *counts


@pytest.mark.parametrize("process", ["vp", "vp-linear"])
@pytest.mark.parametrize("name", DPM)
def test_the_published_rule(name, process):
    """Also that a rejected trial does not ask for x0 at its start again."""
    schedule, rejections = PROCESSES[process], 0
    for scale in (0.3, 1.0, 3.0):
        grid = span(schedule)
        law, asked = counting(MIXTURE.x0)
        x = run(solver(name), grid, scale * start(grid), law)
        exact, accepted, rejected = published(
            name, scale * start(grid), *grid.nodes, schedule, MIXTURE.x0
        )
        assert_close(x, exact, rtol=1e-9, atol=1e-9)
        order = solver(name).info.order
        assert len(asked) == order * accepted + (order - 1) * rejected
        rejections += rejected
    assert rejections > 0


# The Runge-Kutta methods


def trees(order):
    """All rooted trees with that many vertices, each a sorted tuple of its branches."""
    if order == 1:
        return [()]
    found = set()
    for parts in partitions(order - 1):
        choices = [trees(part) for part in parts]
        found |= {tuple(sorted(pick)) for pick in product(*choices)}
    return sorted(found)


def partitions(n, most=None):
    if n == 0:
        return [[]]
    top = min(n, most or n)
    return [[k, *rest] for k in range(top, 0, -1) for rest in partitions(n - k, k)]


def vertices(tree):
    return 1 + sum(map(vertices, tree))


def density(tree):
    return vertices(tree) * math.prod(map(density, tree))


def defect(tableau, weights, tree):
    """sum_i weights_i Phi_i(tree) - 1 / gamma(tree): Butcher's condition for this tree."""
    stages = len(tableau.c)
    a = np.array([[0.0] * stages, *([*r, *[0.0] * (stages - len(r))] for r in tableau.a)])

    def phi(tree):
        return math.prod((a @ phi(b) for b in tree), start=np.ones(stages))

    return np.array([*weights, *[0.0] * (stages - len(weights))]) @ phi(tree) - 1 / density(tree)


TABLEAUX = {
    "ode-bosh3": BOGACKI_SHAMPINE,
    "ode-dopri5": DORMAND_PRINCE,
    "ode-dopri8": PRINCE_DORMAND,
    "ode-rk4": RK4,
    "ode-tsit5": TSITOURAS,
}


def test_there_are_as_many_trees_as_butcher_counted():
    assert [len(trees(n)) for n in range(1, 7)] == [1, 1, 2, 4, 9, 20]


@pytest.mark.parametrize("name", TABLEAUX)
def test_order_conditions(name):
    """Of the method up to its order and no further, and of the embedded one up to one less."""
    tableau, order = TABLEAUX[name], solver(name).info.order
    for c, row in zip(tableau.c, [(), *tableau.a], strict=True):
        assert sum(row) == pytest.approx(c, abs=1e-14)
    embedded = [b - e for b, e in zip(tableau.b, tableau.e, strict=False)]
    for n in range(1, order + 2):
        defects = [abs(defect(tableau, tableau.b, tree)) for tree in trees(n)]
        assert (max(defects) < 1e-13) == (n <= order)
        if embedded:
            assert (max(abs(defect(tableau, embedded, t)) for t in trees(n)) < 1e-13) == (n < order)
    assert (tableau.b == (*tableau.a[-1], 0.0)) == bool(embedded)


def slope_in_tau(schedule, law):
    def slope(tau, y):
        tau = float(tau)
        node = schedule.at_lam(math.log((1 - tau) / tau))
        return (y - law(y * (node.alpha + node.sigma), node)) / tau

    return slope


@pytest.mark.parametrize("process", PROCESSES)
@pytest.mark.parametrize("name", ODE)
def test_torchdiffeq_agrees(name, process):
    """torchdiffeq has no tsit5; its dopri5 judges it."""
    grid, method = span(PROCESSES[process]), {"ode-tsit5": "dopri5"}.get(name, name[4:])
    first, last = grid.nodes
    taus = torch.tensor([n.sigma / (n.alpha + n.sigma) for n in grid.nodes], dtype=torch.float64)
    tolerance = 1e-7 if name == "ode-bosh3" else 1e-10
    slope, x = slope_in_tau(grid.schedule, MIXTURE.x0), start(grid)
    y = odeint(
        slope,
        x / (first.alpha + first.sigma),
        taus,
        rtol=1e-10,
        atol=1e-10,
        method=method,
        options={"step_t": taus[1:]},  # or it would look beyond the end
    )
    ours = run(tight(name, tolerance), grid, x, MIXTURE.x0)
    assert_close(ours, y[-1] * (last.alpha + last.sigma), rtol=0, atol=30 * tolerance)


def test_rk4_is_the_classical_method():
    schedule = PROCESSES["vp"]
    slope = slope_in_tau(schedule, MIXTURE.x0)
    grid = even_in_lam(schedule, 5)
    x = start(grid)
    y = x / (grid.nodes[0].alpha + grid.nodes[0].sigma)
    taus = [n.sigma / (n.alpha + n.sigma) for n in grid.nodes]
    for a, b in pairwise(taus):
        h, mid = b - a, (a + b) / 2
        k1 = slope(a, y)
        k2 = slope(mid, y + h / 2 * k1)
        k3 = slope(mid, y + h / 2 * k2)
        y = y + h / 6 * (k1 + 2 * k2 + 2 * k3 + slope(b, y + h * k3))
    end = grid.nodes[-1]
    assert_close(run(solver("ode-rk4"), grid, x, MIXTURE.x0), y * (end.alpha + end.sigma))


def test_pace():
    """Hairer's rule: 0.9 E^-0.17 E'^0.04 at order 5, kept in bounds; no growth after a failure."""
    pace = Pace(5, 0.05)
    assert not pace.accepts(8.0, 0.05)
    assert pace.h == pytest.approx(0.05 * 0.9 * 8**-0.17)
    assert not pace.accepts(1e9, 1.0)
    assert pace.h == 0.2
    assert pace.accepts(1e-3, 0.1)
    assert pace.h == 0.1
    assert pace.accepts(0.5, 0.1)
    assert pace.h == pytest.approx(0.1 * 0.9 * 0.5**-0.17 * 1e-3**0.04)
    assert pace.accepts(0.0, 0.1)
    assert pace.h == 1.0


# The protocol, as far as the tests of all solvers assume given steps


@pytest.mark.parametrize("name", ADAPTIVE)
def test_finite_on_every_process(name):
    for (process, schedule), final in product(FAMILIES.items(), Final):
        case = (name, process, final)
        plan = make_plan(schedule, name, final=final)
        law, asked = counting(MIXTURE.x0)
        x = run(solver(name), plan.grid, start(plan.grid), law)
        assert x.isfinite().all(), case
        assert x.abs().max() < 3.0, case
        lams = [node.lam for node in asked]
        assert min(lams) == plan.grid.nodes[0].lam, case
        assert max(lams) <= schedule.at(schedule.t_min).lam, case
        assert plan.nfe > 0, case  # the dry run ends, whatever it counts


DEFAULTS = {  # calls and error of default settings from noise to data on MIXTURE
    "dpm-adaptive-12": (35, 0.0129583),
    "dpm-adaptive-23": (42, 0.00883793),
    "ode-bosh3": (131, 3.74159e-05),
    "ode-dopri5": (68, 1.32122e-05),
    "ode-dopri8": (158, 1.27883e-07),
    "ode-tsit5": (86, 1.04442e-05),
}


@pytest.mark.parametrize("name", ADAPTIVE)
def test_calls_and_error_of_default_settings(name):
    """What this version spends from noise to data on a mixture; any change of the rules shows."""
    grid = span(PROCESSES["vp"], Final.ZERO)
    law, asked = counting(MIXTURE.x0)
    x = run(solver(name), grid, start(grid), law)
    exact = run(tight("ode-dopri5", 1e-9), grid, start(grid), MIXTURE.x0)
    calls, error = DEFAULTS[name]
    assert len(asked) == calls
    assert float((x - exact).abs().max()) == pytest.approx(error, rel=1e-3)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_nothing_is_changed_in_place(name):
    """Neither a state nor a prediction, nor x when the network returns it."""
    grid, seen = span(PROCESSES["flow"], Final.ZERO), []

    def law(x, node):
        out = MIXTURE.x0(x, node) if seen else x
        seen.extend((tensor, tensor.clone()) for tensor in (x, out))
        return out

    run(tight(name, 1e-2), grid, start(grid), law)
    assert all(torch.equal(tensor, before) for tensor, before in seen)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("name", ADAPTIVE)
def test_state_keeps_its_dtype(name, dtype):
    grid = span(PROCESSES["edm"], Final.ZERO)
    settings = tight(name, 1e-2 if dtype is torch.bfloat16 else 1e-4)
    x = run(settings, grid, start(grid).to(dtype), MIXTURE.x0)
    assert x.dtype is dtype
    exact = run(settings, grid, start(grid), MIXTURE.x0)
    tolerance = {torch.float32: 1e-2, torch.float64: 1e-14, torch.bfloat16: 0.3}[dtype]
    assert_close(x.double(), exact, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_worst_image_sets_the_steps(name):
    """Together no image is worse than its tolerance allows alone, and the others share the cost."""
    grid = span(PROCESSES["vp"])
    hard, easy = start(grid)[:1], torch.zeros(7, *start(grid).shape[1:], dtype=torch.float64)

    def calls(x):
        law, asked = counting(MIXTURE.x0)
        run(tight(name, 1e-4), grid, x, law)
        return len(asked)

    alone = calls(hard)
    assert calls(hard.repeat(8, 1, 1, 1)) == alone
    assert calls(torch.cat([hard, easy])) >= 0.9 * alone


# Runs


def gaussian(schedule=None, dtype=torch.float32):
    law = replace(GAUSSIAN, **{k: getattr(GAUSSIAN, k).to(dtype) for k in ("means", "stds")})
    return replace(law, weights=law.weights.to(dtype)).network(
        schedule or RectifiedFlow(), (1, 2, 2)
    )


def spied(network, seen):
    def forward(x, node, conditions):
        seen.append(len(x))
        return network.forward(x, node, conditions)

    return replace(network, forward=forward)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_the_ledger_counts_every_call(name):
    seen = []
    sampler = Sampler(spied(gaussian(), seen))
    ledger = sampler(range(5), solver=name).ledger
    assert ledger.calls == len(seen) == ledger.nfe == ledger.rows_per_image > 5
    seen.clear()
    ledger = sampler(range(5), solver=name, batch=2).ledger
    assert ledger.calls == len(seen)
    assert ledger.nfe == sum(seen) / 5


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("choice", [{"nfe": 10}, {"steps": 5}, {"grid": "karras"}])
def test_budgets_are_refused(name, choice):
    with pytest.raises(SettingError, match=f"{name} chooses its own steps; drop nfe"):
        Sampler(gaussian())(range(2), solver=name, **choice)


@pytest.mark.parametrize("name", ADAPTIVE)
def test_two_threads_share_a_plan(name):
    sampler = Sampler(gaussian())
    alone = [sampler([seed], solver=name).samples for seed in range(4)]
    with ThreadPoolExecutor(2) as pool:
        both = pool.map(lambda seed: sampler([seed], solver=name).samples, range(4))
    assert all(torch.equal(a, b) for a, b in zip(alone, both, strict=True))


@pytest.mark.parametrize("name", ADAPTIVE)
def test_too_many_calls(name):
    settings = solver(name, max_calls=30, rtol=1e-9, atol=1e-9)
    seen = []
    match = rf"{name} has made [34]\d calls and is only at sigma/alpha = .* max_calls above 30"
    with pytest.raises(SettingError, match=match):
        Sampler(spied(gaussian(), seen))(range(2), solver=settings)
    assert 30 <= len(seen) <= 30 + settings.info.calls_per_step


@pytest.mark.parametrize("name", ADAPTIVE)
def test_calls_are_those_of_the_run(name):
    """Not of one of its steps."""
    grid = even_in_lam(PROCESSES["flow"], 4)
    law, asked = counting(GAUSSIAN.x0)
    run(tight(name, 1e-3), grid, start(grid), law)
    run(tight(name, 1e-3, max_calls=len(asked)), grid, start(grid), GAUSSIAN.x0)
    with pytest.raises(SettingError, match="max_calls"):
        run(tight(name, 1e-3, max_calls=len(asked) - 15), grid, start(grid), GAUSSIAN.x0)


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_endless_run_on_a_broken_network(name, bad):
    grid = span(PROCESSES["vp"])

    def law(x, node):
        return MIXTURE.x0(x, node) * (bad if node.lam > 0 else 1.0)

    with pytest.raises(NonFiniteError, match="error estimate of an adaptive step is not finite"):
        run(solver(name), grid, start(grid), law)


@pytest.mark.parametrize("name", ADAPTIVE)
@pytest.mark.parametrize(
    ("setting", "value"),
    [("rtol", 0.0), ("atol", -1e-3), ("h_init", 0), ("rtol", math.inf), ("max_calls", 0)],
)
def test_settings_out_of_range(name, setting, value):
    with pytest.raises(SettingError, match=f"{name}: {setting}="):
        solver(name, **{setting: value})


@pytest.mark.parametrize("theta", [0.0, 1.0])
def test_theta_out_of_range(theta):
    with pytest.raises(SettingError, match="dpm-adaptive-12: theta="):
        solver("dpm-adaptive-12", theta=theta)


def test_command_line(tmp_path):
    out = tmp_path / "grid.png"
    args = ["sample", "fashion-dit", "--solver", "dpm-adaptive-23", "--seeds", "0-3"]
    done = CliRunner().invoke(app, [*args, "--out", str(out)])
    assert done.exit_code == 0, done.output
    nfe = Sampler.from_pretrained("fashion-dit")(
        range(4), class_labels=range(4), solver="dpm-adaptive-23"
    ).ledger.nfe
    assert f"4 images | NFE {nfe:g} |" in done.output
    assert out.is_file()


# Reference samples


def labelled(gain):
    def forward(x, time, class_labels):
        return x * gain * (class_labels + 1.0).reshape(-1, 1, 1, 1)

    return from_module(
        forward,
        schedule=RectifiedFlow(time_scale=1000),
        prediction="flow",
        shape=(1, 2, 2),
        num_classes=2,
        null_class=2,
        name="labelled",
    )


def test_teacher_is_the_sampler(tmp_path):
    network = gaussian()
    direct = Sampler(network)(range(3), solver="ode-dopri5").samples
    assert torch.equal(teacher(network, range(3)), direct)
    assert torch.equal(teacher(network, range(3), cache=tmp_path), direct)
    assert torch.equal(teacher(network, range(3), cache=str(tmp_path)), direct)


def test_teacher_reads_what_it_wrote(tmp_path):
    seen = []
    network = spied(gaussian(), seen)
    first = teacher(network, range(3), cache=tmp_path)
    spent = len(seen)
    again = teacher(network, [0, 1, 2], cache=tmp_path)
    assert torch.equal(first, again)
    assert len(seen) - spent == 2
    assert [path.suffix for path in tmp_path.iterdir()] == [".safetensors"]


def test_teacher_keeps_apart_what_differs(tmp_path, monkeypatch):
    """Every change makes a file of its own, and none is read for another."""
    base = {"network": labelled(0.1), "seeds": range(3), "class_labels": [0, 1, 0]}
    changes = [
        {},
        {"network": labelled(0.2)},
        {"network": replace(labelled(0.1), name="other")},
        {"network": replace(labelled(0.1), schedule=RectifiedFlow(shift=3.0))},
        {"network": replace(labelled(0.1), schedule=RectifiedFlow(time_scale=1.0))},
        {"seeds": [0, 1, 3]},
        {"class_labels": [0, 1, 1]},
        {"class_labels": None},
        {"solver": "ode-bosh3"},
        {"solver": "ode-dopri5:rtol=1e-4"},
        {"guidance": CFG(2.0)},
        {"guidance": CFG(3.0)},
        {"final": "sigma_min"},
        {"batch": 2},
    ]
    for n, change in enumerate(changes, start=1):
        arguments = {**base, **change}
        found = teacher(**arguments, cache=tmp_path)
        assert len(list(tmp_path.iterdir())) == n, change
        assert torch.equal(found, teacher(**arguments))
    monkeypatch.setattr("fewstep.eval.teacher.__version__", "0.0.0")
    teacher(**base, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == len(changes) + 1


@pytest.mark.parametrize("damage", ["truncated", "flipped", "text", "other", "empty"])
def test_teacher_replaces_a_damaged_file(tmp_path, damage, recwarn):
    first = teacher(gaussian(), range(3), cache=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    teacher(gaussian(), [7, 8, 9], cache=other)
    (stranger,) = other.iterdir()
    broken = {
        "truncated": whole[:-3],
        "flipped": whole[:-3] + bytes([whole[-3] ^ 1]) + whole[-2:],
        "text": b"not a file of tensors",
        "other": stranger.read_bytes(),
        "empty": b"",
    }
    path.write_bytes(broken[damage])
    seen = []
    for calls_are_few in (False, True):
        seen.clear()
        assert torch.equal(teacher(spied(gaussian(), seen), range(3), cache=tmp_path), first)
        assert (len(seen) == 2) == calls_are_few
    assert not recwarn.list


def test_teachers_of_other_conditions_are_kept_apart(tmp_path):
    def forward(x, node, conditions):
        return conditions["y"].expand_as(x)

    network = Network(
        forward=forward, schedule=EDM(), prediction=Prediction.X0, shape=(1,), needs=("y",)
    )
    for value in (0.25, 0.5, 0.25):
        given = {"y": torch.tensor([[value], [value + 1.0]])}
        ends = teacher(network, range(2), solver="ddim", nfe=3, cache=tmp_path, conditions=given)
        torch.testing.assert_close(ends, given["y"])
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_teacher_says_what_cannot_be_cached(tmp_path):
    with pytest.raises(SettingError, match="cannot be named after a Random; use cache=None"):
        teacher(gaussian(), range(2), cache=tmp_path, guidance=Random(0))
    with pytest.raises(SettingError, match="missing' does not exist"):
        teacher(gaussian(), range(2), cache=tmp_path / "missing")
