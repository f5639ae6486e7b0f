"""Canonical tables: what they compile from, what they run as, what they refuse."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from laws import (
    CASES,
    GAUSSIAN,
    MIXTURE,
    PROCESSES,
    compiled,
    even_in_lam,
    f64,
    measure_violations,
    run,
    start,
    unit_noise,
    walk,
    with_table,
)
from pydantic import ValidationError
from test_step_schedule import CONSISTENT, ENCODED, RANDOM, execute
from torch.testing import assert_close

from fewstep.eval.search.guided import guide_schedule
from fewstep.models.denoiser import Branch, Denoiser, Network
from fewstep.models.errors import ModelError, ScheduleError, SettingError
from fewstep.models.ledger import Ledger
from fewstep.models.load import load
from fewstep.models.prediction import Prediction
from fewstep.models.probe import are_alike, sketch
from fewstep.models.schedule import EDM, Node, RectifiedFlow, VPLinear
from fewstep.samplers.conditions import make_branches
from fewstep.samplers.grid import time_grid
from fewstep.samplers.guidance import CFG, Thresholded, Unguided
from fewstep.samplers.loop import integrate
from fewstep.samplers.plan import make_plan
from fewstep.samplers.sampler import Sampler
from fewstep.solvers import Executor, Schedule, StepSchedule, drive, list_queries, solver
from fewstep.solvers.artefact import ANSWER
from fewstep.solvers.linear import LinearSolver
from fewstep.solvers.mean_image import MeanImage
from fewstep.solvers.step_schedule import Compiled
from fewstep.solvers.table import (
    BOTH,
    Evaluation,
    Table,
    mirror,
    mirror_nodes,
    rewrite,
)
from fewstep.solvers.table_steps import TableMemory, TableSteps, brings_guidance


def example(**table):
    """Two steps on EDM with a table of their own."""
    body = {"A": [0.1, 0.0], "B": [[0.9], [0.25, 0.75]], "tau": [80.0, 3.0], **table}
    return {
        "process": {"family": "edm", "params": {}},
        "t": [80.0, 4.0, 0.0],
        "steps": [{}, {}],
        "compiled": body,
        "nfe": 2,
    }


def parse(data):
    return StepSchedule.parse(json.dumps(data))


# What a table is


@pytest.mark.parametrize("schedule", RANDOM, ids=range(24))
def test_tables_run_as_their_schedules(schedule):
    tabled = with_table(schedule)
    x = start(schedule.grid()) * 0.2
    found, wanted = (execute(each, x, MIXTURE.x0) for each in (tabled, schedule))
    assert_close(found, wanted, rtol=0.0, atol=2e-12)
    nodes = [list_queries(Executor(each), each.grid()) for each in (tabled, schedule)]
    assert nodes[0] == nodes[1]
    assert tabled.schedule_id != schedule.schedule_id


@pytest.mark.parametrize(("name", "process"), ENCODED)
def test_tables_of_named_solvers_run_as_they_do(name, process):
    grid = even_in_lam(PROCESSES[process], 8)
    tabled, x = with_table(solver(name).step_schedule(grid)), start(grid)
    wanted = run(solver(name), grid, x, MIXTURE.x0)
    assert_close(execute(tabled, x, MIXTURE.x0), wanted, rtol=0.0, atol=2e-12)


def test_a_table_weighs_states_and_predictions_as_it_says():
    """z_1 = .1 z_0 + .9 M_0, z_2 = .25 M_0 + .75 M_1, M_1 asked for at sigma 3."""
    x, asked = unit_noise(), []

    def law(z, node):
        asked.append((z, node.t))
        return torch.full_like(z, float(len(asked)))

    end = execute(parse(example()), x, law)
    assert [t for _, t in asked] == [80.0, 3.0]
    assert_close(asked[1][0], 0.1 * x + 0.9)
    assert_close(end, torch.full_like(x, 0.25 + 2 * 0.75))


def test_tables_survive_json_to_the_last_bit():
    made = with_table(RANDOM[0])
    again = StepSchedule.parse(made.dump())
    assert again == made
    assert again.schedule_id == made.schedule_id
    for dtype in (torch.float32, torch.float64):
        x = start(made.grid()).to(dtype)
        ends = [execute(each, x, MIXTURE.x0) for each in (again, made)]
        assert torch.equal(*ends)


def test_a_table_is_compiled_to_itself():
    made = parse(example())
    assert compiled(made.table()) == made.compiled


@pytest.mark.parametrize("schedule", CONSISTENT, ids=range(24))
def test_consistent_schedules_violate_nothing(schedule):
    found = measure_violations(schedule.table())
    assert found.state < 1e-12
    assert found.predictions < 1e-12
    assert found.largest > 0.0


def test_violations_are_those_of_the_table():
    made = parse(example())
    found = measure_violations(made.table())
    assert found.state == pytest.approx(0.1 - 4.0 / 80.0)
    assert found.predictions == pytest.approx(0.95 - 0.9)
    assert found.largest == 0.9


def test_free_weights_are_told_as_violations():
    body = RANDOM[0].model_dump(mode="json")
    body["steps"][3] |= {"dA": 0.01, "dB": [0.02]}
    made = StepSchedule.model_validate(body | {"afs": None, "nfe": 7})
    found = measure_violations(made.table())
    assert found.state > 1e-3
    assert found.predictions > 1e-3


LINEAR = [
    (name, process)
    for name, process in CASES
    if isinstance(solver(name), LinearSolver) and not solver(name).info.stochastic
]


def test_tables_are_rewritten_to_their_canonical_form_and_back():
    """The noise of a stochastic step is not kept, so those have none."""
    for name, process in LINEAR:
        grid = even_in_lam(PROCESSES[process], 6)
        table, x = solver(name).table(grid), start(grid)
        wanted = run(solver(name), grid, x, MIXTURE.x0)
        canonical = rewrite(table, [0] * 6)
        assert {term for combo in canonical.steps for term in combo if term[0] == "x"} <= {("x", 0)}
        assert not any(kind in ("eps", "v") for combo in canonical.steps for kind, _ in combo)
        for each in (canonical, rewrite(canonical, range(6)), rewrite(table, range(6))):
            *_, (end, _) = walk(TableSteps(each), grid, x, MIXTURE.x0)
            assert_close(end, wanted, rtol=0.0, atol=1e-12, msg=name)
    noisy = solver("ddpm").table(even_in_lam(VPLinear(), 4))
    with pytest.raises(ScheduleError, match="adds noise"):
        rewrite(noisy, [0] * 4)


def test_guided_tables_are_rewritten_too():
    base = solver("dpmpp-2m").step_schedule(time_grid("uniform", RectifiedFlow(), 5))
    made = guided(base, 3.0, [0, 2])
    grid = made.grid()
    table = Schedule.of(rewrite(made.table(), range(5)), grid, {})
    assert any(("x", n) in combo for n, combo in enumerate(table.table().steps[1:], start=1))
    assert_close(ends(table), ends(made), rtol=0.0, atol=1e-12)


def test_a_mirrored_table_runs_on_the_process_itself():
    """x0, eps and v of the mirrored process are eps, x0 and -v of the process."""
    grid, x = even_in_lam(VPLinear(), 3), unit_noise()
    rising = grid.nodes[::-1]
    steps = [
        {("x", 0): 0.9, ("x0", 0): 0.3, ("v", 0): 0.2},
        {("x", 1): 0.8, ("eps", 1): -0.4, ("v", 0): 0.1, ("x0", 0): 0.05},
        {("x", 0): 0.7, ("v", 1): 0.3, ("eps", 0): 0.2, ("x0", 2): 0.6},
    ]
    nodes = mirror_nodes(rising)
    table = Table(nodes, steps, list(map(Evaluation, nodes[:-1])))

    def eps(x, node):
        true = Node(node.t, node.sigma, node.alpha, -node.lam)
        return (x - true.alpha * MIXTURE.x0(x, true)) / true.sigma

    def end(table, law):
        solver_, state, out = TableSteps(table), TableMemory(), x
        for t, s in pairwise(table.nodes):
            out, state = drive(solver_.step(out, state, t, s), law)
        return out

    assert_close(end(mirror(table), MIXTURE.x0), end(table, eps), rtol=0.0, atol=1e-12)
    assert mirror(mirror(table)) == table
    with pytest.raises(ScheduleError, match="asks for one prediction"):
        mirror(replace(table, evaluations=[None, *table.evaluations[1:]]))


def test_linear_solvers_of_other_kinds_have_canonical_tables():
    grid = even_in_lam(VPLinear(), 6)
    table = compiled(solver("deis-tab2").table(grid))
    steps = solver("ddim").step_schedule(grid)
    made = StepSchedule.model_validate({**steps.model_dump(), "compiled": table.model_dump()})
    x = unit_noise()
    wanted = run(solver("deis-tab2"), grid, x, MIXTURE.x0)
    assert_close(execute(made, x, MIXTURE.x0), wanted, rtol=0.0, atol=2e-12)


@pytest.mark.parametrize("tabled", [False, True])
def test_a_linear_law_ends_where_the_weights_say(tabled):
    """For one Gaussian x0 = m + G (x - alpha m): the end is that of scalar arithmetic."""
    grid = even_in_lam(EDM(), 5)
    made = solver("unipc-3").step_schedule(grid)
    table, x = compiled(made.table()), start(grid)
    mean, var = GAUSSIAN.means[0], GAUSSIAN.stds[0] ** 2
    states, predictions = [x.flatten(1)], []
    for n, node in enumerate(grid.nodes[:-1]):
        gain = var / (var + node.sigma**2)
        predictions.append(mean + gain * (states[-1] - mean))
        terms = zip(table.B[n], predictions, strict=True)
        states.append(table.A[n] * states[0] + sum(b * m for b, m in terms))
    found = execute(with_table(made) if tabled else made, x, GAUSSIAN.x0)
    assert_close(found.flatten(1), states[-1], rtol=0.0, atol=1e-10)


BAD = [
    ({"tau": [80.0]}, "2 rows need 2 tau, but there are 1"),
    ({"B": [[0.9], [0.25]]}, "B needs 2 rows of 1, 2, ... 2 numbers"),
    ({"B": [[0.9, 0.1], [0.25, 0.75]]}, "B needs 2 rows"),
    ({"A": [0.1]}, "1 rows need 1 tau, but there are 2"),
    ({"A": [0.1, float("nan")]}, "compiled.A.1: .*finite"),
    ({"tau": [80.0, 0.0]}, r"tau\[1\] moves the evaluation to t=0, outside"),
    ({"tau": [-1.0, 3.0]}, r"tau\[0\] moves"),
    ({"U": [[0.0]]}, "U needs 2 rows"),
    ({"guided": [0]}, "guided has an effect with U only"),
    ({"U": [[0.0], [0.1, 0.0]], "guided": [1]}, r"U\[1\]\[0\] weighs a prediction that guided"),
    ({"U": [[0.0], [0.0, 0.0]], "guided": [2]}, "guided must rise and lie between 0 and 1"),
    ({"U": [[0.0], [0.0, 0.0]], "guided": [1, 0]}, "guided must rise"),
    ({"skip": [1.0]}, "compiled.skip: Extra inputs"),
]


@pytest.mark.parametrize(("change", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_tables_are_refused(change, message):
    parse(example())  # it is the change that is refused
    with pytest.raises(ScheduleError, match=message):
        parse(example(**change))


def test_tables_fit_their_steps():
    data = example()
    data |= {"steps": [{}] * 3, "t": [80.0, 4.0, 1.0, 0.0], "nfe": 3}
    with pytest.raises(ScheduleError, match="3 steps need 3 rows compiled, not 2"):
        parse(data)


# A mean for the first prediction


def test_a_mean_stands_for_the_first_prediction():
    grid = even_in_lam(EDM(), 5)
    base = solver("unipc-3").step_schedule(grid)
    mean = MeanImage.of([0.25, -0.5, 1.0, 0.0], (2, 1, 2))
    for each in (base, with_table(base)):
        made = StepSchedule.model_validate(
            {**each.model_dump(), "afs": mean.model_dump(), "nfe": 4}
        )
        assert StepSchedule.parse(made.dump()) == made
        x, value = start(grid), f64([[0.25, -0.5]], [[1.0, 0.0]])

        def law(z, node, value=value):
            return value.expand_as(z) if node == grid.nodes[0] else MIXTURE.x0(z, node)

        assert_close(execute(made, x, MIXTURE.x0), execute(each, x, law), rtol=0.0, atol=1e-12)
        assert len(list_queries(Executor(made), grid)) == 4


def test_a_mean_of_zero_is_zero():
    grid = even_in_lam(EDM(), 5)
    base = solver("dpmpp-2m").step_schedule(grid).model_dump()
    mean = MeanImage.of([0.0], (1,)).model_dump()
    zero, mean = (
        StepSchedule.model_validate({**base, "afs": afs, "nfe": 4}) for afs in ("zero", mean)
    )
    x = start(grid)
    assert_close(execute(zero, x, MIXTURE.x0), execute(mean, x, MIXTURE.x0))


def test_damaged_means_are_refused():
    good = MeanImage.of([0.25, -0.5], (2,)).model_dump()
    MeanImage.model_validate(good)
    for change, message in [
        ({"data": "?"}, "no base64"),
        ({"data": MeanImage.of([0.25, 0.5], (2,)).data}, "not the tensor that mean names"),
        ({"shape": (3,)}, "holds 8 bytes, not float32 of shape"),
        ({"shape": (0,)}, "greater than or equal to 1"),
    ]:
        with pytest.raises(ValidationError, match=message):
            MeanImage.model_validate({**good, **change})
    with pytest.raises(ValidationError, match="NaN or infinity"):
        MeanImage.of([float("inf")], (1,))


@pytest.mark.parametrize(
    ("shape", "fits"), [((1, 2), True), ((2, 1), False), ((4,), False), ((1, 1, 1, 2), False)]
)
def test_a_mean_must_fit_the_network(shape, fits):
    network = MIXTURE.network(EDM(), (2, 1, 2))
    values = [0.5] * torch.Size(shape).numel()
    base = solver("ddim").step_schedule(even_in_lam(EDM(), 3)).model_dump()
    afs = MeanImage.of(values, shape).model_dump()
    made = StepSchedule.model_validate({**base, "afs": afs, "nfe": 2})
    if fits:
        assert Sampler(network)([0], solver=made).ledger.nfe == 2
        return
    with pytest.raises(ScheduleError, match=r"has shape .* but samples of gaussian mixture have"):
        Sampler(network)([0], solver=made)


# Whose schedule it is


def found_for(network):
    """A schedule as a search leaves it."""
    made = solver("ddim").step_schedule(even_in_lam(EDM(), 3))
    return made.model_copy(update={"provenance": {"model": "m", ANSWER: sketch(network)}})


def test_a_schedule_of_another_network_is_refused_unless_forced():
    mine, other = (law.network(EDM(), (2, 1, 2)) for law in (MIXTURE, GAUSSIAN))
    schedule = found_for(mine)
    assert Sampler(mine)([0], solver=schedule).ledger.nfe == 3
    assert Sampler(mine)([0], solver=StepSchedule.parse(schedule.dump())).ledger.nfe == 3
    with pytest.raises(ScheduleError, match=r"another network \(m\).*fewstep search.*--force"):
        Sampler(other)([0], solver=schedule)
    assert Sampler(other)([0], solver=schedule.for_any()).ledger.nfe == 3


def test_the_same_network_in_another_dtype_answers_alike():
    network, half = (load("fashion-unet", dtype=dtype) for dtype in ("fp32", "bf16"))
    assert are_alike(sketch(half), sketch(network))
    assert not are_alike(sketch(load("fashion-dit")), sketch(network))


def test_who_cannot_be_asked_is_not_refused():
    mine, other = (law.network(EDM(), (2, 1, 2)) for law in (MIXTURE, GAUSSIAN))
    assert sketch(replace(other, needs=("prompt",))) is None
    found_for(mine).check_network(replace(other, needs=("prompt",)))


def test_a_damaged_answer_is_refused():
    body = {**example(), "provenance": {ANSWER: ["x"]}}
    with pytest.raises(ValidationError, match="must be a list of numbers"):
        StepSchedule.model_validate(body)


# Guided tables


def two_laws():
    """A network whose unconditional branch is another law."""

    def forward(x, node, conditions):
        cond = MIXTURE.x0(x, node)
        null = conditions["class_labels"].reshape(-1, *[1] * (x.ndim - 1)) == 1
        return torch.where(null, GAUSSIAN.x0(x, node), cond)

    facts = {"num_classes": 1, "null_class": 1, "name": "two laws"}
    return Network(
        forward=forward,
        schedule=RectifiedFlow(),
        prediction=Prediction.X0,
        shape=(2, 1, 2),
        **facts,
    )


def guided(schedule, scale, at):
    return guide_schedule(schedule, scale, at)


def ends(schedule, guidance=None, ledger=None):
    network, x = two_laws(), unit_noise()
    plan = make_plan(network.schedule, schedule)
    branches = make_branches(network, len(x), 0, None, None)
    denoiser = Denoiser(network, branches, ledger or Ledger())
    return integrate(denoiser, plan.solver, plan.grid, x, guidance or Unguided())


@pytest.mark.parametrize("name", ["ddim", "dpmpp-2m", "unipc-3", "dpm-2m"])
def test_guided_at_every_step_is_classifier_free_guidance(name):
    base = solver(name).step_schedule(time_grid("uniform", RectifiedFlow(), 6))
    assert_close(ends(guided(base, 3.0, range(6))), ends(base, CFG(3.0)), rtol=0.0, atol=1e-11)
    assert_close(ends(guided(base, 3.0, [])), ends(base), rtol=0.0, atol=1e-11)


def test_guided_early_steps_are_an_interval():
    base = solver("dpmpp-2m").step_schedule(time_grid("uniform", RectifiedFlow(), 6))
    nodes = base.grid().nodes
    first = guided(base, 3.0, range(6))
    wanted = ends(base, CFG(3.0, (nodes[3].kappa, nodes[0].kappa)))
    found = ends(guided(base, 3.0, [0, 1, 2]))
    assert (found - wanted).abs().max() > 1e-3  # the difference is held, not dropped
    assert [each.branches for each in first.evaluations] == [BOTH] * 6


def test_a_held_difference_is_that_of_the_last_guided_step():
    """Two DDIM steps guided at the first: the second takes c_1 + (s - 1) (c_0 - u_0)."""
    base = solver("ddim").step_schedule(time_grid("uniform", RectifiedFlow(), 2))
    x, (t, s, _) = unit_noise(), base.grid().nodes
    c, u = MIXTURE.x0(x, t), GAUSSIAN.x0(x, t)
    z = s.sigma * x + s.alpha * (u + 3.0 * (c - u))
    assert_close(ends(guided(base, 3.0, [0])), MIXTURE.x0(z, s) + 2.0 * (c - u))


def test_rows_of_a_guided_run_are_counted():
    base = solver("dpmpp-2m").step_schedule(time_grid("uniform", RectifiedFlow(), 6))
    made, ledger = guided(base, 3.0, [0, 2, 5]), Ledger(images=2)
    ends(made, ledger=ledger)
    assert (ledger.nfe, ledger.rows_per_image) == (6, 9) == (made.nfe, made.rows)
    assert base.rows == base.nfe == 6
    assert len(list_queries(Executor(made), made.grid())) == 6


def test_guided_tables_survive_json():
    base = solver("dpmpp-2m").step_schedule(time_grid("uniform", RectifiedFlow(), 4))
    made = guided(base, 3.0, [0, 2])
    again = Schedule.parse(made.dump())
    assert again == made
    assert torch.equal(ends(again), ends(made))
    assert brings_guidance(Executor(made))
    assert not brings_guidance(Executor(base))


@pytest.mark.parametrize("other", [CFG(2.0), CFG(0.0), Thresholded(), Thresholded(CFG(1.0))])
def test_no_other_guidance_stands_beside_a_guided_table(other):
    base = solver("ddim").step_schedule(time_grid("uniform", RectifiedFlow(), 3))
    made = guided(base, 3.0, [0])
    ends(made, CFG(1.0))
    with pytest.raises(SettingError, match="brings its own guidance"):
        ends(made, other)


def test_guided_tables_need_an_unconditional_branch():
    base = solver("ddim").step_schedule(time_grid("uniform", RectifiedFlow(), 3))
    network = MIXTURE.network(RectifiedFlow(), (2, 1, 2))
    with pytest.raises(ModelError, match="no conditions for uncond"):
        Sampler(network)([0], solver=guided(base, 3.0, [0]))


def test_guided_tables_weigh_their_columns():
    """A hand-made one: z_1 = z_0 + c_0 - 2 u_0, with constant branches 1 and 10."""
    table = Compiled(A=(1.0,), B=((1.0,),), U=((-2.0,),), tau=(1.0,), guided=(0,))
    base = solver("ddim").step_schedule(time_grid("uniform", RectifiedFlow(), 1))
    made = StepSchedule.model_validate({**base.model_dump(), "compiled": table.model_dump()})
    steps = Executor(made)
    step = steps.step(torch.zeros(1, 2), steps.init(), *made.grid())
    _, query = next(step)
    assert query.branches == (Branch.UNCOND, Branch.COND)
    with pytest.raises(StopIteration) as done:
        step.send(torch.tensor([[[10.0, 10.0]], [[1.0, 1.0]]]))
    assert_close(done.value.value[0], torch.full((1, 2), -19.0))


def test_walks_leave_the_first_state_alone():
    made, x = with_table(RANDOM[0]), unit_noise()
    before = x.clone()
    list(walk(Executor(made), made.grid(), x, MIXTURE.x0))
    assert torch.equal(x, before)
