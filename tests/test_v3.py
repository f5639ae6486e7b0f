"""DPM-Solver-v3 and its statistics: exact where its assumptions hold, else measured."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from laws import GAUSSIAN, MIXTURE, PROCESSES, even_in_lam, find_end, run, start
from torch.testing import assert_close
from typer.testing import CliRunner

from fewstep import Sampler, from_module, solver
from fewstep.cli import app
from fewstep.eval.measure_statistics import Measurement, check_partial, measure, write_statistics
from fewstep.models.errors import NonFiniteError, ScheduleError, SettingError
from fewstep.models.schedule import EDM, TimeGrid, VPLinear
from fewstep.samplers.grid import time_grid
from fewstep.samplers.ramps import find_lam_ends
from fewstep.solvers import StepSchedule, drive
from fewstep.solvers.artefact import Executor
from fewstep.solvers.exponential import Corrector, StepSpec
from fewstep.solvers.model_statistics import ModelStatistics

SHAPE = (2, 1, 2)


def v3(stats="data", **settings):
    return solver("dpm-solver-v3", stats=stats, **settings)


# Special cases


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize(
    ("stats", "order", "same"),
    [("data", 1, "ddim"), ("data", 2, "dpmpp-2m"), ("noise", 2, "dpm-2m"), ("noise", 3, "dpm-3m")],
)
def test_constant_tables_are_the_solvers_before_it(process, stats, order, same):
    grid = even_in_lam(process, 7)
    settings = {"kind": "taylor", "lower_order_final": "always"} if order > 1 else {}
    settings |= {"third_order": "exact"} if order == 3 else {}
    one = v3(stats, order=order, corrector="off")
    a, b = (run(each, grid, start(grid), MIXTURE.x0) for each in (one, solver(same, **settings)))
    assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_corrector_is_that_of_a_schedule(order):
    grid = even_in_lam(VPLinear(), 7)
    corrected = [
        StepSpec(order=min(order, n + 1, 7 - n), corr=Corrector(on=n < 6)) for n in range(7)
    ]
    schedule = Executor(StepSchedule.of(grid, tuple(corrected)))
    state, x = schedule.init(), start(grid)
    for t, s in pairwise(grid.nodes):
        x, state = drive(schedule.step(x, state, t, s), MIXTURE.x0)
    got = run(v3(order=order, corrector="full"), grid, start(grid), MIXTURE.x0)
    assert_close(got, x, rtol=1e-11, atol=1e-11)


# Tables that vary along lam and from element to element


def curves(lam):
    """l, s, b (n, *SHAPE) at places lam (n,): smooth, and different for each element."""
    lam = torch.as_tensor(lam, dtype=torch.float64).reshape(-1, 1, 1, 1)
    phase = torch.arange(4, dtype=torch.float64).reshape(SHAPE)
    return (
        0.6 + 0.3 * torch.sin(lam / 2 + phase),
        -0.4 + 0.5 * torch.cos(lam / 3 + phase),
        0.3 * torch.sin(lam + 2 * phase),
    )


def table(nodes=1500):
    lams = torch.linspace(-4, 4, nodes + 1, dtype=torch.float64)
    return ModelStatistics(tuple(lams.tolist()), *curves(lams))


def solution(grid, degree, per_step=100):
    """(y, f) at the nodes for f' = s f + b + e^S p(lam), y' = -(l y + f): RK4, y = x / alpha.

    Then g, f carried back along s and b, is the integral of p, a polynomial of the given degree.
    """
    first = grid.nodes[0].lam

    def slope(lam, state):
        y, f, grown = state
        l, s, b = (value[0] for value in curves([lam]))  # noqa: E741
        p = sum(0.3 * k * (lam - first) ** (k - 1) for k in range(1, degree + 1))
        return torch.stack([-(l * y + f), s * f + b + grown.exp() * p, s])

    state = torch.stack([torch.full(SHAPE, v, dtype=torch.float64) for v in (0.4, -0.7, 0.0)])
    states = [state]
    for t, s in pairwise(grid.nodes):
        h = (s.lam - t.lam) / per_step
        for i in range(per_step):
            lam = t.lam + i * h
            k1 = slope(lam, state)
            k2 = slope(lam + h / 2, state + h / 2 * k1)
            k3 = slope(lam + h / 2, state + h / 2 * k2)
            k4 = slope(lam + h, state + h * k3)
            state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
        states.append(state)
    return states


@pytest.mark.parametrize("corrector", ["off", "full", "pseudo"])
@pytest.mark.parametrize("predictor", ["full", "pseudo"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_polynomial_remainder_is_integrated_exactly(order, predictor, corrector):
    """A predictor of order k is exact for g of degree k - 1, which pseudo derivatives are not."""
    kappas = [9.0, 5.0, 1.5, 0.8, 0.3]  # uneven, so that a swapped history shows
    schedule = VPLinear()
    grid = TimeGrid.of(schedule, [schedule.at_lam(-math.log(k)).t for k in kappas])
    states = solution(grid, degree=order - 1)
    values = {node: (node.alpha * y, f) for node, (y, f, _) in zip(grid.nodes, states, strict=True)}

    def law(x, node):
        _, f = values[node]
        return (1 - curves([node.lam])[0][0]) / node.alpha * x - f[None]

    settings = v3(
        table(), order=order, predictor=predictor, corrector=corrector, lower_order_final="never"
    )
    steps, errors = settings.on(grid), []
    state = steps.init()
    for t, s in pairwise(grid.nodes):
        x, state = drive(steps.step(values[t][0][None], state, t, s), law)
        errors.append(float((x - values[s][0]).abs().max()))
        if state.start is not None:
            state = state._replace(start=values[t][0][None])
    exact = order < 3 or "pseudo" not in (predictor, corrector)
    assert all(error < 1e-6 for error in errors[order - 1 :]) == exact
    assert order == 1 or errors[0] > 1e-3


def test_tables_are_read_linearly():
    tables = table(8)
    l, s, b = tables.at(0.3)  # noqa: E741
    for got, i in ((l, 0), (s, 1), (b, 2)):
        ends = [curves([lam])[i][0] for lam in (0.0, 1.0)]
        assert_close(got, 0.7 * ends[0] + 0.3 * ends[1])
    cells = tables.cells(-0.5, 1.25)
    assert cells.edges.tolist() == [-0.5, 0.0, 1.0, 1.25]
    halves = [tables.at(lam)[0] for lam in (-0.25, 0.5, 1.125)]  # linear: the mean is the middle
    assert_close(cells.l, torch.stack(halves))


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
@pytest.mark.parametrize("stats", ["data", "noise"])
def test_ends_are_decided(process, stats):
    """One step ends at the prediction, many near the exact end."""
    ends = {}
    for steps in (1, 2, 3, 50):
        grid = time_grid("uniform" if process.family == "flow" else "logsnr", process, steps)
        ends[steps] = run(v3(stats, order=3), grid, start(grid), MIXTURE.x0)
        assert ends[steps].isfinite().all(), steps
    prediction = MIXTURE.x0(start(grid), grid.nodes[0])
    assert_close(ends[1], prediction, rtol=1e-12, atol=1e-12)
    assert_close(ends[50], find_end(grid, start(grid)), rtol=0, atol=0.05)


# Measuring


def network(law=GAUSSIAN, schedule=VPLinear()):  # noqa: B008
    dims = law.means.shape[-1] // 2
    return law.network(schedule, (2, 1, dims))


def measured(net, samples=64, nodes=40, **settings):
    generator = torch.Generator().manual_seed(5)
    data = GAUSSIAN.means[0] + GAUSSIAN.stds[0] * torch.randn(
        samples, 4, generator=generator, dtype=torch.float64
    )
    return measure(
        net, Measurement(data=data.reshape(-1, 2, 1, 2), nodes=nodes, batch=64, **settings)
    )


@pytest.mark.parametrize("process", PROCESSES.values(), ids=PROCESSES)
def test_l_of_a_gaussian(process):
    """x0 is linear in x, each element by itself: l = sigma^2 / (alpha^2 std^2 + sigma^2)."""
    stats = measured(network(schedule=process), samples=8, nodes=8)
    for lam, l in zip(stats.lam, stats.l, strict=True):  # noqa: E741
        node = process.at_lam(lam)
        exact = node.sigma**2 / (node.alpha**2 * GAUSSIAN.stds[0] ** 2 + node.sigma**2)
        assert_close(l.flatten(), exact, rtol=1e-4, atol=1e-5)


def test_a_gaussian_is_solved_in_any_number_of_steps():
    """Its f is the same for all samples, so that the tables know the whole trajectory."""
    process = VPLinear()
    stats = measured(network(schedule=process), nodes=400)
    low, high = find_lam_ends(process)
    grid = even_in_lam(process, 4, first=0.99 * math.exp(-low), last=1.01 * math.exp(-high))
    x = start(grid, (3, 2, 1, 2))
    exact = GAUSSIAN.flow_map(x, grid.nodes[0], grid.nodes[-1])
    ours, ddim = (run(each, grid, x, GAUSSIAN.x0) for each in (v3(stats, order=1), solver("ddim")))
    assert (ours - exact).abs().max() < 0.02 * (ddim - exact).abs().max()


def test_s_and_b_are_the_line_through_f_and_its_slope():
    """Against f and f' worked out sample by sample in float64, with a difference of its own."""
    process, nodes, samples = VPLinear(), 24, 200
    stats = measured(network(MIXTURE, process), samples, nodes)
    i = nodes // 2
    lam = stats.lam[i]
    generator = torch.Generator().manual_seed(5)
    data = GAUSSIAN.means[0] + GAUSSIAN.stds[0] * torch.randn(
        samples, 4, generator=generator, dtype=torch.float64
    )
    generator = torch.Generator().manual_seed(i)
    z = []
    for rows in data.reshape(-1, 2, 1, 2).split(64):  # noise, then signs, batch by batch
        z.append(torch.randn(rows.shape, generator=generator))
        torch.randint(0, 2, rows.shape, generator=generator)
    node = process.at_lam(lam)
    x = node.alpha * data.reshape(-1, 2, 1, 2) + node.sigma * torch.cat(z).double()
    l_slope = (stats.l[i + 1] - stats.l[i - 1]) / (stats.lam[i + 1] - stats.lam[i - 1])

    def f(x, lam, l):  # noqa: E741
        node = process.at_lam(lam)
        return (x - node.alpha * MIXTURE.x0(x, node) - l * x) / node.alpha

    h = 1e-4
    grids = [TimeGrid.of(process, [node.t, process.at_lam(lam + h).t])]
    after = run(solver("ode-rk4"), grids[0], x, MIXTURE.x0)
    values = f(x, lam, stats.l[i])
    slopes = (f(after, lam + h, stats.l[i] + h * l_slope) - values) / h
    centred = values - values.mean(0)
    var = centred.square().mean(0)
    s = (centred * slopes).mean(0) / var
    left = slopes - slopes.mean(0) - s * centred
    noise = left.square().mean(0) / (samples * var)
    true = max(float(s.var() - noise.mean()), 0.0)
    drawn = s.mean() + (s - s.mean()) * true / (true + noise)
    assert (drawn - s).abs().max() > 0.03
    s = drawn
    assert_close(stats.s[i], s, rtol=0.01, atol=0.01)
    assert_close(stats.b[i], slopes.mean(0) - s * values.mean(0), rtol=0.02, atol=0.02)


def test_guidance_is_measured():
    net = Sampler.from_pretrained("fashion-dit").network
    data = torch.zeros(2, 1, 32, 32)
    plain, guided = (
        measure(net, Measurement(data=data, labels=[3, 4], nodes=2, cfg_scale=scale))
        for scale in (1.0, 3.0)
    )
    assert (plain.l[1] - guided.l[1]).abs().max() > 1e-2
    assert guided.facts.cfg_scale == 3.0


def failing_after(net, calls):
    """The network, failing after a number of calls, and the list it counts them in."""
    made = []

    def forward(x, node, conditions):
        made.append(len(x))
        if len(made) > calls:
            return torch.full_like(x, math.nan)
        return net.forward(x, node, conditions)

    return replace(net, forward=forward), made


def test_an_interrupted_measurement_goes_on(tmp_path):
    folder, whole = tmp_path / "out.partial", measured(network(), nodes=6)
    failing, made = failing_after(network(), 8)  # the probe, and 3 calls for each node
    with pytest.raises(NonFiniteError):
        measured(failing, nodes=6, partial=folder)
    assert len(list(folder.iterdir())) == 2
    counting, made = failing_after(network(), 99)
    resumed = measured(counting, nodes=6, partial=folder)
    assert len(made) == 1 + 5 * 3
    assert all(torch.equal(getattr(resumed, n), getattr(whole, n)) for n in "lsb")
    counting, made = failing_after(network(), 99)
    measured(counting, nodes=6, partial=folder, seed=1)  # other noise: nothing may be taken over
    assert len(made) == 1 + 7 * 3
    write_statistics(resumed, tmp_path / "out", Measurement(data=torch.zeros(2, 1), partial=folder))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_files_that_no_measurement_made_stay_in_its_folder(tmp_path):
    folder = tmp_path / "out.partial"
    measured(network(), nodes=6, partial=folder)
    for name in ("notes.txt", "00002.safetensors"):
        (folder / name).write_bytes(b"of the user")
    with pytest.raises(SettingError, match=r"00002\.safetensors' is in the way"):
        check_partial(folder)
    what = Measurement(data=torch.zeros(2, 1), partial=folder)
    write_statistics(measured(network(), nodes=6), tmp_path / "out", what)
    assert sorted(path.name for path in folder.iterdir()) == ["00002.safetensors", "notes.txt"]
    (folder / "00002.safetensors").unlink()
    check_partial(folder)


# Files and networks


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file that the command writes for fashion-dit, and its own output."""
    out = tmp_path_factory.mktemp("stats") / "dit.safetensors"
    asked = ["stats", "fashion-dit", "--out", str(out), "--samples", "4", "--nodes", "6"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    return out, result.output


def test_command_writes_what_sample_takes(written, tmp_path):
    out, said = written
    assert f"dpm-solver-v3:stats={out}" in said
    picture = tmp_path / "x.png"
    asked = ["sample", "fashion-dit", "--solver", f"dpm-solver-v3:stats={out}"]
    asked += ["--nfe", "4", "--seeds", "0,1"]
    result = CliRunner().invoke(app, [*asked, "--out", str(picture)])
    assert result.exit_code == 0, result.output
    assert picture.is_file()
    assert "NFE 4" in result.output


def test_file_round_trip(written, tmp_path):
    stats = ModelStatistics.load(written[0])
    again = tmp_path / "again"
    again.write_bytes(stats.to_bytes())
    other = ModelStatistics.load(again)
    assert other.lam == stats.lam
    assert other.facts == stats.facts
    assert all(torch.equal(getattr(other, n), getattr(stats, n)) for n in "lsb")
    assert other.probe.keys() == stats.probe.keys() == {"x", "x0", "class_labels"}


def test_statistics_of_another_network_are_refused(written):
    stats = ModelStatistics.load(written[0])
    net = Sampler.from_pretrained("fashion-dit").network

    def other(x, time, class_labels):
        return x * 0.3

    stats.check_network(net)
    stranger = from_module(
        other,
        schedule=net.schedule,
        prediction="flow",
        shape=net.shape,
        num_classes=10,
        null_class=10,
    )
    with pytest.raises(
        SettingError, match=r"another network \(fashion-dit\).*fewstep stats function"
    ):
        Sampler(stranger)([0], solver=f"dpm-solver-v3:stats={written[0]}", nfe=3)
    with pytest.raises(ScheduleError, match="run `fewstep stats` for this network"):
        Sampler.from_pretrained("fashion-unet")([0], solver=v3(stats), nfe=3)


def test_statistics_are_demanded():
    grid = even_in_lam(EDM(), 3)
    with pytest.raises(SettingError, match=r"`fewstep stats NETWORK --out FILE` makes them"):
        solver("dpm-solver-v3").on(grid)
    with pytest.raises(SettingError, match="there is no file 'nowhere'"):
        v3("nowhere").on(grid)


@pytest.mark.parametrize("content", [b"", b"no file of tensors", None])
def test_files_that_hold_no_statistics(tmp_path, content):
    path = tmp_path / "x.safetensors"
    path.write_bytes(v3_without_lam() if content is None else content)
    with pytest.raises(SettingError, match=r"holds no statistics of `fewstep stats`"):
        v3(str(path)).on(even_in_lam(EDM(), 3))


def v3_without_lam():
    from safetensors.torch import save

    return save({"l": torch.zeros(2)})


def test_grids_beyond_the_tables_are_refused():
    with pytest.raises(ScheduleError, match=r"reach from lam=-4 to 4, the grid needs"):
        v3(table(10)).on(even_in_lam(EDM(), 4, last=0.002))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing", "--out", "x.safetensors"], "nothing"),
        (["fashion-dit", "--out", "no/folder/x"], "does not exist; create it first"),
        (["fashion-dit", "--out", "x.safetensors", "--nodes", "1"], "at least 2 nodes"),
        (["fashion-dit", "--out", "x.safetensors", "--data", "nowhere"], "nowhere"),
    ],
)
def test_bad_input_of_the_command(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["stats", "--samples", "2", *arguments])
    assert result.exit_code == 2
    assert message in result.output
    assert list(tmp_path.iterdir()) == []


def test_data_of_another_shape_are_refused():
    with pytest.raises(SettingError, match=r"shape \(2, 1, 2\), the data have \(1, 2, 2\)"):
        measure(network(), Measurement(data=torch.zeros(4, 1, 2, 2)))
