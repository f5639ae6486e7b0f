"""EVODiff against golden numbers, against its formulas written out, and where those divide by 0."""

import json
import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise, product
from pathlib import Path

import pytest
import torch
from laws import GAUSSIAN, MIXTURE, PROCESSES, even_in_lam, f64, run, start, unit_noise, walk
from torch.testing import assert_close

from fewstep.eval.experiments.overhead import CountOps
from fewstep.models.errors import SettingError
from fewstep.models.schedule import EDM, RectifiedFlow, TimeGrid
from fewstep.samplers.grid import Final, choose_default_grid, time_grid
from fewstep.solvers import list_queries, solver

GOLDEN = json.loads(Path(__file__).with_name("golden_evodiff.json").read_text())


@pytest.mark.parametrize(
    "row", GOLDEN["rows"], ids=lambda r: f"{r['grid']}-{r['steps']}-{r['final']}-{r['settings']}"
)
def test_golden_end_states(row):
    grid = time_grid(row["grid"], EDM(), row["steps"], Final(row["final"]))
    x = run(solver("evodiff", **row["settings"]), grid, start(grid), MIXTURE.x0)
    assert_close(x.flatten(), f64(*row["x"]), rtol=0, atol=1e-8)


# The released algorithm as it is published: corrected states, differences and probes are formed,
# and every inner product is taken of them. It divides without a safeguard.


def released(nodes, y, law, inner="channel", final="reference", lower=True):
    """y = x / alpha at the last node; law(y, i)."""
    kappa = [node.kappa for node in nodes]
    big_n = len(nodes) - 1

    def dot(u, v):
        axes = tuple(range(1 if inner == "sample" else 2, u.ndim))
        return (u * v).sum(axes, keepdim=True)

    def ratio(a, b):
        return (a / b).clamp(-2, 2)

    older = law(y, 0)
    y = kappa[1] / kappa[0] * y + (1 - kappa[1] / kappa[0]) * older
    if big_n == 1:
        return y
    cur = law(y, 1)
    for i in range(2, big_n + (not lower)):
        rate = kappa[i] / kappa[i - 1]
        g, dq = 1 - rate, 1 / kappa[i] - 1 / kappa[i - 1]
        r = math.log(kappa[i - 2] / kappa[i - 1]) / math.log(kappa[i - 1] / kappa[i])
        w = 0.5 * (1 - ((kappa[i] + kappa[-1]) / (kappa[0] + kappa[-1])) ** 2)
        b = math.sqrt(rate / (kappa[i - 1] / kappa[i - 2]))
        xi = (1 - w) * b + w * ratio(dot(cur, older), dot(older, older))
        d1 = cur - xi * older
        rho = (torch.sigmoid(xi.abs() / 4) * r).clamp(r / 4, 1.5 * r)
        base = rate * y + g * cur
        probe = base + g / (2 * rho) * d1
        new = law(probe, i)
        d2 = new - ((1 - w) * b + w * ratio(dot(new, cur), dot(cur, cur))) * cur
        bm, bp = d1 / (r * dq), r * d2 / dq
        eta = torch.sigmoid((0.5 * ratio(dot(bp + bm, bp - bm), dot(bp - bm, bp - bm))).abs()) / 2
        mixed = -eta / r * d1 + (1 - eta) * r * d2
        gap = probe - base - g / (2 * rho) * mixed
        d = (ratio(dot(gap, d1), dot(d1, d1)) / g).abs() - 0.5
        zeta = torch.sigmoid(d)
        if big_n > 20:
            slope = (cur - older) / dq
            k = ratio(dot(cur, slope), dot(slope, slope))
            zeta = torch.sigmoid(-d * torch.sigmoid(k * (2 - rate**2)))
        y = base + g / (2 * zeta) * mixed
        older, cur = cur, new
    if not lower:
        return y
    rate = kappa[-1] / kappa[-2]
    y = rate * y + (1 - rate) * cur
    if final == "reference":
        k = 1 - math.sqrt(rate if rate < 0.5 else rate - 0.5) / 2
        y = (1 - math.sqrt(kappa[-1] * kappa[-2])) * y + (1 - rate) / 2 * (cur - k * older)
    return y


SETTINGS = [
    {"inner": inner, "final_step": final, "lower_order_final": lower}
    for inner, final, lower in product(("channel", "sample"), ("reference", "plain"), (True, False))
    if lower or final == "reference"
]


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("process", PROCESSES)
def test_agrees_with_the_formulas_written_out(process, settings):
    """On grids even and uneven in lam, of up to 20 steps and of more."""
    schedule = PROCESSES[process]
    for name, steps in product(("logsnr", "karras"), (1, 2, 3, 4, 8, 20, 21, 30)):
        grid = time_grid(name, schedule, steps, Final.SIGMA_MIN)
        x = start(grid)
        ours = run(solver("evodiff", **settings), grid, x, MIXTURE.x0)
        nodes = grid.nodes
        law = lambda y, i, nodes=nodes: MIXTURE.x0(y * nodes[i].alpha, nodes[i])  # noqa: E731
        y = released(nodes, x / nodes[0].alpha, law, *settings.values())
        assert_close(ours / nodes[-1].alpha, y, rtol=1e-8, atol=1e-9)


def test_steps_before_a_last_evaluation_are_those_without_it():
    """N counts neither the step called `denoise` nor one to sigma = 0: 20 and 21 differ in it."""
    for steps in (1, 2, 3, 20, 21):
        grid = time_grid("karras", EDM(), steps, Final.SIGMA_MIN)
        x = run(solver("evodiff"), grid, start(grid), MIXTURE.x0)
        x0 = MIXTURE.x0(x, grid.nodes[-1])
        for denoise in (True, False):
            longer = TimeGrid.of(EDM(), [*(node.t for node in grid), 0.0], denoise)
            assert torch.equal(run(solver("evodiff"), longer, start(grid), MIXTURE.x0), x0)


def test_it_runs_in_kappa_on_every_process():
    for name in ("logsnr", "karras"):
        kappas = [node.kappa for node in time_grid(name, EDM(sigma_min=0.02), 12, Final.SIGMA_MIN)]
        ends = []
        for schedule in PROCESSES.values():
            times = [schedule.at_lam(-math.log(kappa)).t for kappa in kappas]
            grid = TimeGrid.of(schedule, times)
            x = unit_noise() * kappas[0] * grid.nodes[0].alpha
            ends.append(run(solver("evodiff"), grid, x, MIXTURE.x0) / grid.nodes[-1].alpha)
        for end in ends[1:]:
            assert_close(end, ends[0], rtol=1e-9, atol=1e-10)


# Order and the gain of contrast


def error(settings, steps):
    """Largest error on GAUSSIAN from kappa 20 to 0.05."""
    grid = even_in_lam(EDM(), steps)
    x = unit_noise((3, 4)) * 20.0
    exact = GAUSSIAN.flow_map(x, grid.nodes[0], grid.nodes[-1])
    return float((run(settings, grid, x, GAUSSIAN.x0) - exact).abs().max())


@pytest.mark.parametrize("inner", ["channel", "sample"])
@pytest.mark.parametrize("settings", [{"final_step": "plain"}, {"lower_order_final": False}])
def test_order_is_one(settings, inner):
    """First order in the limit, with a smaller error than DDIM's."""
    settings = solver("evodiff", inner=inner, **settings)
    coarse, fine = error(settings, 256), error(settings, 512)
    assert math.log2(coarse / fine) == pytest.approx(1.0, abs=0.03)
    assert fine < 0.8 * error(solver("ddim"), 512)


def test_released_last_step_does_not_converge():
    assert error(solver("evodiff"), 256) == pytest.approx(error(solver("evodiff"), 1024), rel=0.1)
    assert error(solver("evodiff"), 1024) > 0.02


def gain(grid):
    """G of the docstring."""
    t, s = (node.kappa for node in grid.nodes[-2:])
    k = 1 - 0.5 * math.sqrt(s / t if s / t < 0.5 else s / t - 0.5)
    return 1 - math.sqrt(s * t) + 0.5 * (1 - s / t) * (1 - k)


@pytest.mark.parametrize(("steps", "known"), [(9, 1.0924), (19, 1.0261), (24, 1.0313)])
def test_released_last_step_is_a_gain_of_contrast(steps, known):
    """By G where x0 is constant, and nearly so where it has settled: 9 steps and one to denoise."""
    grid = time_grid("logsnr", EDM(), steps, Final.SIGMA_MIN)
    assert gain(grid) == pytest.approx(known, abs=5e-5)
    boosted, straight = solver("evodiff"), solver("evodiff", final_step="plain")
    x0 = unit_noise() - 0.2
    x = run(boosted, grid, x0, lambda x, node: x0)  # from x0 itself, so that nothing else moves
    assert_close(x, gain(grid) * x0, rtol=1e-10, atol=1e-10)
    grid = time_grid("logsnr", EDM(), steps, Final.DENOISE)
    generator = torch.Generator().manual_seed(0)
    x = 80.0 * torch.randn(200, 2, 1, 2, generator=generator, dtype=torch.float64)
    a, b = (run(each, grid, x, MIXTURE.x0) for each in (boosted, straight))
    assert float((a * b).sum() / (b * b).sum()) == pytest.approx(known, abs=4e-3)


# Divisions by zero


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("name", ["logsnr", "karras"])
def test_zero_and_constant_channels_stay_finite(name, settings, dtype):
    """Channels of zero, of a constant, and that become either halfway; the fifth moves freely."""

    def law(x, node):
        late = node.sigma < 1.0
        free = torch.tanh(x[:, 4:] / (1.0 + node.sigma))
        zero, one = torch.zeros_like(free), torch.ones_like(free)
        return torch.cat([zero, 0.3 * one, zero if late else free, one if late else free, free], 1)

    for steps, final in product((2, 3, 4, 12, 30), Final):
        grid = time_grid(name, EDM(), steps, final)
        x = start(grid, (2, 5, 2, 2)).to(dtype)
        for state, _ in walk(solver("evodiff", **settings).on(grid), grid, x, law):
            assert state.isfinite().all()
        if settings["inner"] == "channel":
            alone = run(
                solver("evodiff"),
                grid,
                x[:, 4:],
                lambda x, node: law(x.repeat(1, 5, 1, 1), node)[:, 4:],
            )
            both = run(solver("evodiff"), grid, x, law)
            assert_close(both[:, 4:], alone)


def test_all_zero_and_all_constant_networks():
    for value, settings in product((0.0, 0.7), SETTINGS):
        grid = time_grid("logsnr", EDM(), 12, Final.SIGMA_MIN)
        x = start(grid)
        end = run(solver("evodiff", **settings), grid, x, lambda x, node, c=value: c + 0 * x)
        boost = settings["final_step"] == "reference" and settings["lower_order_final"]
        fade = 1 - math.sqrt(grid.nodes[-1].kappa * grid.nodes[-2].kappa) if boost else 1.0
        ratio = grid.nodes[-1].kappa / grid.nodes[0].kappa
        exact = fade * ratio * (x - value) + (gain(grid) if boost else 1.0) * value
        assert_close(end, exact, rtol=1e-9, atol=1e-9)


def sigmoid(v):
    return 1 / (1 + math.exp(-v))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("first", "steps"), [(0.0, 3), (3.0, 3), (0.0, 23), (3.0, 23)])
def test_settled_predictions_that_move_again(first, steps, dtype):
    """x0 = first until node N - 1, where it is first + c: D1 = 0, so eta = S(1/2) / 2 there.

    zeta = S(-1/2), or S(S(0) / 2) where N > 20, and y = base + g r (1 - eta) D2 / (2 zeta) with
    D2 = c - w mean(c), or c where first = 0. No step before it adds anything to DDIM.
    """
    kappas, c = [8.0 * 0.7**i for i in range(steps)] + [0.001], unit_noise().to(dtype)
    x, (t, s, end) = unit_noise().flip(0).to(dtype), kappas[-3:]
    w = 0.5 * (1 - ((s + end) / (8.0 + end)) ** 2)
    d2 = c - w * c.mean((2, 3), keepdim=True) if first else c
    zeta = sigmoid(-0.5) if steps <= 20 else sigmoid(0.25)
    y = first + s / 8.0 * (x - first) + (1 - s / t) / (2 * zeta) * (1 - sigmoid(0.5) / 2) * d2
    y = end / s * y + (1 - end / s) * (first + c)

    def law(x, node):
        return first + (c if node.t == s else 0.0 * c)

    grid = TimeGrid.of(EDM(), kappas)
    assert_close(run(solver("evodiff", final_step="plain"), grid, x, law), y)


def test_projection_on_zero_is_one():
    """After x0 = 0 the probe has p = 1 on a grid even in lam: base + g m0 / (2 S(1/4))."""
    asked, c = {}, unit_noise()

    def law(x, node):
        asked[node.t] = x
        return 0.0 * c if node.t == 8.0 else c

    run(solver("evodiff"), TimeGrid.of(EDM(), [8.0, 4.0, 2.0, 1.0]), 0.0 * c, law)
    assert_close(asked[2.0], 0.5 * c + 0.5 / (2 * sigmoid(0.25)) * c)


def test_equal_differences_have_the_largest_eta():
    """x0 = 0, c and (2 + w) c at nodes 0, 1, 2: then D1 = D2 = c, [.] = 2 and B = (1 - 2 eta) c."""
    asked, c, w = {}, unit_noise(), 0.5 * (1 - ((2.0 + 0.3) / (8.0 + 0.3)) ** 2)

    def law(x, node):
        asked[node.t] = x
        return {8.0: 0.0, 4.0: 1.0, 2.0: 2.0 + w}[node.t] * c

    grid = TimeGrid.of(EDM(), [8.0, 4.0, 2.0, 0.3])
    x = run(solver("evodiff", final_step="plain"), grid, 0.0 * c, law)
    b, gain = 1 - sigmoid(1.0), 0.5 / (2 * sigmoid(0.25))
    zeta = sigmoid(gain * (1 - b) / 0.5 - 0.5)
    y = (0.5 + 0.5 / (2 * zeta) * b) * c
    assert_close(x, 0.15 * y + 0.85 * (2.0 + w) * c)


def test_predictions_that_collapse_and_come_back():
    """Norms are carried on by sums, which would lose a small one beside a large one."""
    grid = time_grid("logsnr", EDM(), 8, Final.SIGMA_MIN)
    kappas = [node.kappa for node in grid]
    scale = dict(zip(kappas, [1.0, 1.0, 1.1, 1e-4, 2e-4, 1.0, 1.1, 1.2, 1.2], strict=True))
    law = lambda y, kappa: scale[kappa] * torch.tanh(1.0 + y)  # noqa: E731
    x = start(grid)
    ours = run(solver("evodiff"), grid, x, lambda x, node: law(x, node.kappa))
    assert_close(ours, released(grid.nodes, x, lambda y, i: law(y, kappas[i])), rtol=1e-8, atol=0)


# Cost and memory


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 21])
def test_evaluations(steps):
    """N, one more to denoise, one more where the last step is like the others (N >= 2)."""
    for final, lower in product((Final.SIGMA_MIN, Final.DENOISE), (True, False)):
        grid = time_grid("karras", EDM(), steps, final)
        settings = solver("evodiff", lower_order_final=lower)
        extra = (final is Final.DENOISE) + (not lower and steps > 1)
        nodes = list_queries(settings.on(grid), grid)
        assert len(nodes) == steps + extra
        assert nodes == list(grid.nodes[:steps]) + [grid.nodes[steps]] * extra


class CountSums(CountOps):
    """Counts sums over the whole state too."""

    sums = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.sums += func.overloadpacket.__name__ == "sum" and args[0].numel() >= self.size
        return super().__torch_dispatch__(func, types, args, kwargs)


@pytest.mark.parametrize(("dtype", "full"), [(torch.float64, 8), (torch.float32, 11)])
def test_operations_of_a_step(dtype, full):
    """Three sums, <m0, f>, <f, f> and <e, f>; f, x, three weighed, three products, three casts."""
    grid = time_grid("logsnr", EDM(), 12, Final.DENOISE)
    for settings in ({}, {"lower_order_final": False}, {"inner": "sample"}):
        steps, state = solver("evodiff", **settings).on(grid), None
        x, state, out = torch.randn(2, 3, 8, 8, dtype=dtype), steps.init(), []
        for t, s in pairwise(grid.nodes):
            generator, m = steps.step(x, state, t, s), torch.randn_like(x)
            next(generator)
            with CountSums(x.numel()) as count:
                try:
                    generator.send(m)
                    generator.send(m)
                except StopIteration as done:
                    x, state = done.value
            out.append((count.sums, count.full))
        close = "lower_order_final" in settings
        assert [sums for sums, _ in out] == [0, 3] + [3] * 9 + [6 if close else 3, 0]
        assert all(n <= full for _, n in out[:11])


def test_memory_is_two_tensors_and_nothing_at_the_end():
    for final, counts in (
        (Final.SIGMA_MIN, [1, 2, 2, 2, 0]),
        (Final.DENOISE, [1, 2, 2, 2, 0, 0]),
        (Final.ZERO, [1, 2, 2, 0, 0]),
    ):
        grid = time_grid("logsnr", EDM(), 5, final)
        states = [s for _, s in walk(solver("evodiff").on(grid), grid, start(grid), MIXTURE.x0)]
        assert [len(state.past) for state in states] == counts
        assert all((state.probe is None) == (len(state.past) < 2) for state in states)
        small = [t.shape for state in states for t in state.probe or ()]
        assert set(small) == {(2, 2, 1, 1)}


# Shapes, batches, dtypes, threads


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_images_do_not_know_of_each_other(settings):
    """In any order and any company, some of it a thousand times as large."""
    grid = time_grid("karras", EDM(), 9, Final.DENOISE)
    x = torch.cat([start(grid), 1e3 * start(grid), -0.7 * start(grid).flip(0)])
    law = lambda x, node: torch.tanh(x / (1 + node.sigma)) + x / (4 + node.sigma)  # noqa: E731
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    together = run(solver("evodiff", **settings), grid, x, law)
    assert_close(run(solver("evodiff", **settings), grid, x[order], law), together[order])
    alone = torch.cat([run(solver("evodiff", **settings), grid, row[None], law) for row in x])
    assert_close(alone, together, rtol=1e-12, atol=1e-12)


def test_channels_are_axis_one_and_samples_are_whole():
    """Over channels, pixels may be laid out anyhow; over samples, channels too."""
    grid, x = time_grid("karras", EDM(), 9), unit_noise((2, 3, 4, 2)) * 80.0
    law = lambda x, node: torch.tanh(x / (1 + node.sigma))  # noqa: E731
    for inner, shapes, differs in (
        ("channel", [(2, 3, 8), (2, 3, 2, 2, 2)], (2, 24)),
        ("sample", [(2, 3, 8), (2, 24), (2, 4, 6)], None),
    ):
        settings = solver("evodiff", inner=inner)
        end = run(settings, grid, x, law).flatten(1)
        for shape in shapes:
            assert_close(run(settings, grid, x.reshape(shape), law).flatten(1), end)
        if differs:
            other = run(settings, grid, x.reshape(differs), law)
            assert (other - end).abs().max() > 1e-3


@pytest.mark.parametrize("steps", [9, 30])
def test_float32_stays_with_float64(steps):
    grid = time_grid("logsnr", EDM(), steps, Final.SIGMA_MIN)
    exact = run(solver("evodiff"), grid, start(grid), MIXTURE.x0)
    x = run(solver("evodiff"), grid, start(grid).float(), MIXTURE.x0)
    assert x.dtype is torch.float32
    assert_close(x.double(), exact, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_threads_share_a_solver(settings):
    grid = time_grid("karras", EDM(), 7, Final.SIGMA_MIN)
    steps, starts = solver("evodiff", **settings).on(grid), [start(grid) * k for k in (1, 0.5, -1)]

    def end(x):
        *_, (x, _) = walk(steps, grid, x, MIXTURE.x0)
        return x

    alone = [end(x) for x in starts * 4]
    with ThreadPoolExecutor(4) as pool:
        assert all(
            torch.equal(*pair) for pair in zip(alone, pool.map(end, starts * 4), strict=True)
        )


# Ends and short runs


def test_one_step_is_ddim_and_two_are_ddim_and_the_last():
    for steps, final in product((1, 2), (Final.SIGMA_MIN, Final.DENOISE)):
        grid = time_grid("logsnr", EDM(), steps, final)
        same = run(solver("ddim"), grid, start(grid), MIXTURE.x0)
        plain = run(solver("evodiff", final_step="plain"), grid, start(grid), MIXTURE.x0)
        assert_close(plain, same, rtol=1e-12, atol=1e-12)
        boosted = run(solver("evodiff"), grid, start(grid), MIXTURE.x0)
        assert torch.equal(boosted, plain) == (steps == 1)


def test_any_number_of_steps_stays_finite():
    for schedule, final in product(PROCESSES.values(), Final):
        for name, steps in product(
            {choose_default_grid(schedule), "uniform"}, (1, 2, 3, 4, 7, 21, 22, 50)
        ):
            grid = time_grid(name, schedule, steps, final)
            x = run(solver("evodiff"), grid, start(grid).float(), MIXTURE.x0)
            assert x.isfinite().all()
            assert x.abs().max() < 4.0


@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
def test_a_run_from_alpha_zero_is_counted_from_the_next_node(settings):
    for steps in (1, 2, 3, 5, 22, 23):
        grid = time_grid("uniform", RectifiedFlow(shift=3.0), steps, Final.SIGMA_MIN)
        assert grid.nodes[0].alpha == 0.0
        t, s = grid.nodes[:2]
        x = run(solver("evodiff", **settings), grid, unit_noise(), MIXTURE.x0)
        assert x.isfinite().all()
        first = s.sigma * unit_noise() + s.alpha * MIXTURE.x0(unit_noise(), t)
        if steps == 1:
            assert_close(x, first)
            continue
        rest = TimeGrid(grid.schedule, grid.nodes[1:])
        assert_close(x, run(solver("evodiff", **settings), rest, first, MIXTURE.x0))


@pytest.mark.parametrize(
    "settings", [{"inner": "pixel"}, {"final_step": "ddim"}, {"lower_order_final": "sometimes"}]
)
def test_bad_settings(settings):
    with pytest.raises(SettingError, match=f"evodiff: {next(iter(settings))}="):
        solver("evodiff", **settings)
