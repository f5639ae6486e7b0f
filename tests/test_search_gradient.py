"""Gradient search: coefficients, the differentiable run, the descent and its strategies."""

import math
from dataclasses import replace

import pytest
import torch
from laws import PROCESSES, f64, with_table
from test_search_problem import ddim, small
from test_step_schedule import RANDOM
from torch.testing import assert_close

from fewstep.eval.search import coefficients, student
from fewstep.eval.search.budget import Budget, Meter
from fewstep.eval.search.coefficients import MovingNode
from fewstep.eval.search.descent import Descent, descend
from fewstep.eval.search.guided import guided_schedule, parameters_of
from fewstep.eval.search.log import Log, Trial
from fewstep.eval.search.objective import objective, rmse
from fewstep.eval.search.parameters import Parameters
from fewstep.eval.search.problem import Block, Problem
from fewstep.eval.search.size import SearchSize
from fewstep.eval.search.space import DEFAULT, Space
from fewstep.eval.search.strategies import Task, strategy
from fewstep.eval.search.student import Student, check_differentiable
from fewstep.eval.search.toy import named, toy, toy_mean
from fewstep.models.denoiser import Network
from fewstep.models.errors import ModelError, SettingError
from fewstep.models.prediction import Prediction
from fewstep.models.schedule import RectifiedFlow
from fewstep.samplers.grid import time_grid
from fewstep.solvers import StepSchedule, phi, solver
from fewstep.solvers.step_schedule import compiled

PLAIN = [each.model_copy(update={"afs": None, "nfe": 7}) for each in RANDOM]


def rows_of(schedule):
    table, n = compiled(schedule), len(schedule.steps)
    rows = [[a, *b, *[0.0] * (n - len(b))] for a, b in zip(table.A, table.B, strict=True)]
    return f64(*rows)


# Coefficients


@pytest.mark.parametrize("schedule", PLAIN, ids=range(24))
def test_coefficients_are_those_of_the_executor(schedule):
    """The theory alone, with nothing added, is the schedule's table."""
    parameters = Parameters(schedule)
    theory = parameters._theory().table(
        torch.zeros_like(parameters.scale), torch.zeros_like(parameters.free)
    )
    assert_close(theory, rows_of(schedule), rtol=1e-11, atol=1e-11)
    assert float(parameters.scale.detach().abs().max()) < 1e-11
    assert float(parameters.free.detach().abs().max()) < 1e-11


@pytest.mark.parametrize("seed", range(8))
def test_coefficients_are_those_of_the_executor_everywhere(seed):
    """Wherever the parameters have moved, the schedule they export has their table."""
    parameters = Parameters(PLAIN[seed])
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for each, size in zip(parameters.all(), (0.3, 0.01, 0.05, 0.05), strict=True):
            each.add_(size * torch.randn(each.shape, generator=generator, dtype=torch.float64))
    parameters.project()
    made = parameters.schedule()
    assert made.compiled is None
    assert_close(parameters.table().detach(), rows_of(made), rtol=1e-10, atol=1e-10)
    asked = [parameters.coordinate.time(float(u)) for u in parameters.asked().detach()]
    assert list(compiled(made).tau) == pytest.approx(asked, rel=1e-12)
    assert made.t != PLAIN[seed].t


@pytest.mark.parametrize("seed", [1, 4, 7, 13])
def test_tables_and_odd_schedules_are_starts_too(seed):
    """A start without a theory of its own is the theory of its steps and free weights."""
    body = with_table(PLAIN[seed]).model_dump()
    plain = [{"order": min(2, i + 1)} for i in range(6)] + [{}]
    made = StepSchedule.model_validate(body | {"steps": plain})
    parameters = Parameters(made)
    assert_close(parameters.table().detach(), rows_of(PLAIN[seed]), rtol=1e-10, atol=1e-10)
    assert_close(rows_of(parameters.schedule()), rows_of(PLAIN[seed]), rtol=1e-10, atol=1e-10)
    assert float(parameters.free.detach().abs().max()) > 1e-3


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_phi_and_its_slope(k):
    for z in [0.0, 1e-9, -1e-4, 0.3, -0.999, 0.999, 1.001, -1.001, 2.5, -7.0]:
        place = f64(z)[0].requires_grad_()
        value = coefficients.phi(k, place)
        value.backward()
        assert float(value.detach()) == pytest.approx(phi.phi(k, z), rel=1e-13), z
        slope = (phi.phi(k, z + 1e-5) - phi.phi(k, z - 1e-5)) / 2e-5
        assert float(place.grad) == pytest.approx(slope, rel=1e-6), z


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_derivative_weights(n):
    offsets = f64(-0.4, 1.1, -1.7, 0.6)[:n]
    for k in range(1, n + 1):
        wanted = phi.derivative_weights(offsets.tolist(), k)
        assert_close(coefficients.derivative_weights(offsets, k), f64(*wanted))


@pytest.mark.parametrize("family", PROCESSES)
def test_points_are_the_nodes_of_their_process(family):
    for lam in (-3.0, 0.1, 2.0):
        node = PROCESSES[family].at_lam(lam)
        point = MovingNode.at(PROCESSES[family], f64(node.lam)[0])
        assert_close(point.alpha, f64(node.alpha)[0], rtol=1e-12, atol=0.0)
        assert_close(point.sigma, f64(node.sigma)[0], rtol=1e-12, atol=0.0)


# The differentiable run


def double(problem):
    """The training block in float64, so that differences of losses mean something."""
    block = problem.block("train")
    return Block("train", block.seeds, block.labels, block.noise.double(), block.ends.double())


STARTS = [
    lambda problem: ddim(problem),
    lambda problem: solver("unipc-3").step_schedule(time_grid("beta", problem.network.schedule, 5)),
    lambda problem: guided_schedule(ddim(problem, 5), 3.0, [0, 1, 3]),
]


@pytest.mark.parametrize("start", STARTS, ids=["ddim", "unipc", "guided"])
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_run_ends_where_the_executor_takes_it(start, scale):
    problem = small(cfg_scale=scale)
    schedule, block = start(problem), double(problem)
    parameters = parameters_of(schedule, problem)
    with torch.no_grad():
        parameters.increments.add_(0.2 * torch.arange(len(parameters.increments)))
        parameters.shifts.sub_(0.01)
        parameters.scale.add_(0.02)
        parameters.free.add_(0.03)
    parameters.project()
    ends = Student(problem, parameters).ends(block).detach()
    wanted = problem.ends(parameters.schedule(), block)
    assert_close(ends, wanted, rtol=1e-9, atol=1e-9)
    assert (ends - problem.ends(schedule, block)).abs().max() > 1e-3


@pytest.mark.parametrize("start", STARTS, ids=["ddim", "unipc", "guided"])
def test_gradients_are_slopes_of_the_loss(start, monkeypatch):
    """Against central differences of whole runs; the network's own difference is made fine."""
    monkeypatch.setattr(student, "DIFFERENCE", 1e-6)
    problem = small(cfg_scale=3.0)
    parameters = parameters_of(start(problem), problem)
    with torch.no_grad():
        parameters.shifts[1:] -= 0.01  # off the edge of the range
        parameters.shifts[0] += 0.05
    run, block = Student(problem, parameters), double(problem)

    def loss():
        return (run.ends(block) - block.ends).square().mean()

    loss().backward()
    for each in parameters.all():
        grad, places = each.grad.clone().flatten(), each.data.view(-1)
        for i in range(0, len(places), 3):
            held, slopes = float(places[i]), []
            for step in (1e-5, -1e-5):
                places[i] = held + step
                slopes.append(float(loss().detach()))
            places[i] = held
            slope = (slopes[0] - slopes[1]) / 2e-5
            assert float(grad[i]) == pytest.approx(slope, rel=2e-3, abs=1e-7)


def test_a_mean_stands_for_the_first_prediction():
    problem = toy((4, 2, 2))
    base = named("dpmpp-2m", "logsnr", 5).model_dump()
    made = StepSchedule.model_validate({**base, "afs": toy_mean().model_dump(), "nfe": 4})
    block = double(problem)
    before = problem.evaluations
    ends = Student(problem, Parameters(made)).ends(block).detach()
    assert problem.evaluations - before == 4 * 4 + 1  # one row to see that gradients pass
    assert_close(ends, problem.ends(made, block), rtol=1e-9, atol=1e-9)


def test_memory_does_not_grow_with_the_steps():
    """What the graph keeps of the network: the state of each call, and no activation of it."""
    wide = 64

    def forward(x, node, conditions):
        inner = x.repeat(1, wide).tanh() * node.sigma
        return inner.reshape(len(x), wide, -1).mean(1)

    def saved(steps):
        network = Network(
            forward=forward,
            schedule=RectifiedFlow(),
            prediction=Prediction.X0,
            shape=(16,),
            name="wide",
        )
        problem = Problem.of(network, (8, 2, 2))
        run, sizes = Student(problem, Parameters(ddim(problem, steps))), []
        block = Block("train", tuple(range(8)), None, torch.ones(8, 16), torch.ones(8, 16))
        with torch.autograd.graph.saved_tensors_hooks(
            lambda kept: sizes.append(kept.numel()) or kept, lambda kept: kept
        ):
            run.ends(block)
        return max(sizes), sum(size for size in sizes if size >= 8 * 16)

    (largest, few), (_, many) = saved(4), saved(8)
    assert largest == 8 * 16  # an activation would have 64 times that
    assert few < 8 * 16 * 60
    assert many < 3.5 * few  # states only: about N^2 / 2 of them


class Held:
    """A tensor that a graph keeps for its way back; counts the bytes of all that are kept."""

    now = peak = 0

    def __init__(self, tensor):
        self.tensor = tensor
        Held.now += tensor.nbytes
        Held.peak = max(Held.peak, Held.now)

    def __del__(self):
        Held.now -= self.tensor.nbytes


def held(batch, steps):
    """The most bytes that a descent's gradients hold at once, the graphs of the calls included."""

    def forward(x, node, conditions):
        for _ in range(64):
            x = (x * node.sigma).sin()
        return x

    network = Network(
        forward=forward,
        schedule=RectifiedFlow(),
        prediction=Prediction.X0,
        shape=(256,),
        name="deep",
    )
    problem = Problem.of(network, (batch, 2, 2))
    ones = torch.ones(batch, 256)
    block = Block("train", tuple(range(batch)), None, ones, ones)
    run = Student(problem, Parameters(ddim(problem, steps)))
    Held.now = Held.peak = 0
    with torch.autograd.graph.saved_tensors_hooks(Held, lambda kept: kept.tensor):
        run.ends(block).square().mean().backward()
    return Held.peak


def test_memory_is_linear_in_the_batch_and_flat_in_the_steps():
    """The graph of one call, of 64 activations; of every other call its states alone."""
    least = held(8, 4)
    assert least > 64 * 8 * 256 * 4
    assert held(32, 4) == pytest.approx(4.0 * least, rel=0.1)
    assert held(8, 8) < 1.6 * least  # eight whole graphs would be twice as much


def opaque(x, node, conditions):
    return torch.from_numpy(x.detach().numpy() * 0.5)


def shut(x, node, conditions):
    return torch.from_numpy(x.numpy() * 0.5)


def blind(x, node, conditions):
    return torch.zeros_like(x, requires_grad=True) * 1.0


@pytest.mark.parametrize("forward", [opaque, shut, blind])
def test_networks_without_gradients_are_refused_before_any_work(forward):
    network = Network(
        forward=forward,
        schedule=RectifiedFlow(),
        prediction=Prediction.X0,
        shape=(4,),
        name="a black box",
    )
    problem = Problem.of(network, (4, 2, 2))
    with pytest.raises(ModelError, match=r"a black box lets no gradients through .* evolve"):
        descend(problem, ddim(problem), Descent())
    assert problem.evaluations <= 1
    assert not problem._blocks


# The descent

QUICK = Descent(iterations=60, batch=32, every=20)


def test_a_descent_finds_something_better_and_runs_as_it_says(tmp_path):
    problem = toy((128, 64, 64))
    start = named("dpmpp-2m", "logsnr", 5)
    found = descend(problem, start, QUICK, tmp_path / "run.pt")
    block = problem.block("validation")
    assert found.start == rmse(problem.ends(start, block), block)
    assert found.validation == rmse(problem.ends(found.schedule, block), block)
    assert found.validation < 0.95 * found.start
    assert found.schedule.nfe == 5
    assert found.schedule.t[0] == start.t[0]
    assert found.schedule.t[-1] == start.t[-1]
    assert found.iterations == 60


class Killed(Exception):
    pass


def test_a_killed_descent_ends_where_an_unbroken_one_does(tmp_path):
    start, path = ddim(small()), tmp_path / "run.pt"

    def fresh():
        return small()

    def killer(iterations, score):
        if iterations == 40:
            raise Killed
        return 0.0

    quick = replace(QUICK, batch=4)
    whole = descend(fresh(), start, quick)
    with pytest.raises(Killed):
        descend(fresh(), start, quick, path, killer)
    assert path.exists()
    again = descend(fresh(), start, quick, path)
    assert again == whole
    assert descend(fresh(), start, quick, path) == whole  # and once more, with nothing to do


def test_a_descent_stops_when_its_budget_is_gone():
    problem = small()
    found = descend(
        problem, ddim(problem), QUICK, progress=lambda iterations, score: iterations / 20.0
    )
    assert found.iterations == 20


def test_a_descent_that_finds_nothing_gives_its_start_back():
    problem = small()
    start = ddim(problem)
    wild = Descent(iterations=20, batch=4, times=0.0, weights=50.0, every=10)
    found = descend(problem, start, wild)
    assert found.validation == pytest.approx(found.start, rel=1e-5)
    assert found.schedule.t == pytest.approx(start.t, rel=1e-12)


def test_times_can_be_held():
    start = ddim(small())
    held = Descent(iterations=20, batch=6, times=0.0, every=10)
    found = descend(small(), start, held)
    assert found.schedule.t == pytest.approx(start.t, rel=1e-12)
    assert found.validation < found.start


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"iterations": 0}, "iterations must be at least 1"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"weights": 0.0}, "rates of the weights"),
        ({"times": -1.0}, "rates of the weights"),
        ({"average": 1.0}, "average lies in"),
    ],
)
def test_bad_settings(fields, message):
    with pytest.raises(SettingError, match=message):
        Descent(**fields)


def test_checkpoints_of_something_else_are_refused(tmp_path):
    problem, path = small(), tmp_path / "run.pt"
    short = Descent(iterations=5, batch=4, every=5)
    descend(problem, ddim(problem), short, path)
    with pytest.raises(SettingError, match="belongs to another search"):
        descend(problem, ddim(problem, 5), short, path)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(SettingError, match="is no checkpoint of a gradient search"):
        descend(problem, ddim(problem), short, path)


def test_a_guided_descent_betters_its_start():
    problem = small(cfg_scale=3.0)
    start = guided_schedule(ddim(problem, 4), 3.0, [0, 2])
    found = descend(problem, start, Descent(iterations=60, batch=6, every=20))
    assert found.validation < 0.9 * found.start
    assert found.schedule.rows == start.rows == 6
    assert found.schedule.compiled.guided == (0, 2)


@pytest.mark.slow
def test_gradients_reach_what_they_should_on_the_toy():
    """A fraction of the benchmark: 2.5 times below the solver it starts from, on unseen noises."""
    problem = toy((2048, 512, 2048))
    start = named("dpmpp-2m", "logsnr", 5)
    found = descend(problem, start, Descent(iterations=600, batch=64))
    block = problem.block("test")
    gain = rmse(problem.ends(start, block), block) / rmse(
        problem.ends(found.schedule, block), block
    )
    assert gain > 2.5
    assert math.isfinite(gain)


def test_check_differentiable_lets_ordinary_networks_pass():
    check_differentiable(small())
    check_differentiable(toy((2, 1, 1)))


# Strategies


def task_of(folder, free=None):
    """A search of three evaluations on the small problem, with one trial in its log."""
    problem, log = small(), Log(folder)
    aim = objective("terminal", problem.network)
    if not log.trials:
        start = ddim(problem, 3)
        score = aim(problem, start, problem.block("train"))
        log.append(Trial.of(start, score, strategy="grid", seed=0, evals=18))
    budget = Budget("candidates", 1e6)
    return Task(
        problem=problem,
        objective=aim,
        space=Space(process=problem.network.schedule, free=DEFAULT if free is None else free),
        scored=problem.block("train"),
        size=SearchSize(3),
        log=log,
        meter=Meter(budget, log, SearchSize(3), lambda: problem.evaluations, 18),
        settings={"iterations": 40, "batch": 6, "every": 10},
    )


def test_it_betters_the_best_of_the_log(tmp_path):
    task = task_of(tmp_path)
    (start,) = task.best()
    (proposal,) = strategy("grad")(task)
    assert proposal.parent == start.id
    assert proposal.schedule.nfe == 3
    block = task.problem.block("train")
    assert task.objective(task.problem, proposal.schedule, block) < 0.9 * start.score
    assert "from" in proposal.schedule.provenance["label"]


def test_a_strategy_that_is_started_again_proposes_the_same(tmp_path):
    first = task_of(tmp_path)
    (one,) = strategy("grad")(first)
    first.log.close()
    (two,) = strategy("grad")(task_of(tmp_path))
    assert one.schedule.schedule_id == two.schedule.schedule_id


def test_times_that_are_not_free_stay(tmp_path):
    task = task_of(tmp_path, free=frozenset({"order"}))
    (start,) = task.best()
    (proposal,) = strategy("grad")(task)
    assert proposal.schedule.t == pytest.approx(start.schedule.t, rel=1e-12)
