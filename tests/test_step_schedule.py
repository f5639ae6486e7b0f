"""Step specifications: what is read and refused, and the executor held to a textbook one."""

import json
import math
import random

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import (
    CASES,
    GAUSSIAN,
    MIXTURE,
    PROCESSES,
    even_in_lam,
    run,
    start,
    textbook,
    unit_noise,
    walk,
)
from pydantic import ValidationError
from torch.testing import assert_close

from fewstep.models.errors import ScheduleError
from fewstep.models.schedule import EDM, RectifiedFlow, TimeGrid, VPDiscrete, VPLinear, process_of
from fewstep.samplers.grid import Final, choose_default_grid, time_grid
from fewstep.samplers.plan import make_plan
from fewstep.solvers import Executor, Schedule, StepSchedule, drive, list_queries, solver
from fewstep.solvers.exponential import StepSpec, compute_relaxation, find_derivative_weights, phi

ENCODED = [(name, process) for name, process in CASES if hasattr(solver(name), "step_schedule")]


def execute(schedule, x, law):
    *_, (x, _) = walk(Executor(schedule), schedule.grid(), x, law)
    return x


def schedule_of(grid, *steps, **fields):
    """A schedule over a grid; the last step specification is repeated to fill it."""
    steps = [*steps, *[steps[-1]] * (grid.steps - len(steps))]
    made = StepSchedule.of(grid, tuple(StepSpec(**step) for step in steps))
    return StepSchedule.model_validate({**made.model_dump(), **fields})


# The artefact


def example(**fields):
    """A schedule as JSON data, three steps on EDM."""
    data = {
        "process": {"family": "edm", "params": {"sigma_min": 0.002, "sigma_max": 80.0}},
        "t": [80.0, 4.0, 0.3, 0.0],
        "steps": [{"corr": {"on": True, "relax": "bh2"}}, {"order": 2, "relax": "bh2"}, {}],
        "nfe": 3,
        "provenance": {"by": "hand"},
    }
    return {**data, **fields}


def parse(data):
    return StepSchedule.parse(json.dumps(data))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("name", "process"), ENCODED)
def test_named_equals_decoded_to_the_last_bit(name, process, dtype):
    schedule = PROCESSES[process]
    for final in Final:
        grid = time_grid(choose_default_grid(schedule), schedule, 7, final)
        made = solver(name).step_schedule(grid)
        again = StepSchedule.parse(made.dump())
        assert again == made
        assert again.schedule_id == made.schedule_id
        assert again.dump() == made.dump()
        assert again.provenance == {"solver": name}
        x = start(grid).to(dtype)
        named = run(solver(name), grid, x, MIXTURE.x0)
        assert torch.equal(execute(again, x, MIXTURE.x0), named)


def test_file_round_trip(tmp_path):
    made, path = parse(example(xi=[0.0, 0.1, -0.1])), tmp_path / "schedule.json"
    path.write_text(made.dump(), encoding="utf-8")
    assert StepSchedule.load(path) == made
    assert StepSchedule.load(str(path)).dump() == made.dump()


def test_times_survive_json_to_the_last_bit():
    times = [80.0, 1 / 3, 0.1 + 0.2, math.nextafter(0.2, 1.0), 0.0]
    data = example(t=times, steps=[{}] * 4, nfe=4)
    assert parse(json.loads(parse(data).dump())).t == tuple(times)


def test_id_is_that_of_the_content_alone():
    plain = parse(example())
    assert len(plain.schedule_id) == 64
    assert plain.schedule_id == parse(example(provenance={"score": 1.5})).schedule_id
    assert plain.schedule_id == parse(dict(reversed(example().items()))).schedule_id
    others = [
        example(t=[80.0, 4.0, 0.3, 0.002]),
        example(xi=[0.0, 0.1, 0.0]),
        example(afs="zero", nfe=2),
        example(steps=[{}, {"order": 2, "relax": "bh2"}, {}]),
        example(process={"family": "edm", "params": {"sigma_data": 1.0}}),
    ]
    assert len({plain.schedule_id, *(parse(each).schedule_id for each in others)}) == 6


def test_dump_is_canonical():
    text = parse(example()).dump()
    data = json.loads(text)
    assert text == json.dumps(data, sort_keys=True)
    assert data["steps"][0]["dB"] is None
    assert data["nfe"] == 3


def step(i, **changes):
    """The example with one step specification changed."""
    steps = example()["steps"]
    steps[i] = {**steps[i], **changes}
    return example(steps=steps)


BAD = [
    (example(extra=1), "extra: Extra inputs are not permitted"),
    (example(ems={"A": []}), "ems: Extra inputs"),
    (example(compiled={"A": []}), "compiled.B: Field required"),
    (step(0, skip=[1.0]), r"steps.0.skip: Extra inputs"),
    (step(0, corr={"on": True, "kind": "x"}), r"steps.0.corr.kind: Extra inputs"),
    (example(process={"family": "edm", "params": {}, "x": 1}), "process.x: Extra inputs"),
    (example(format="schedule"), "format: .*'solver-schedule'"),
    (example(prediction_store="noise"), "prediction_store: .*'data'"),
    (example(afs="mean"), "afs.*: Input should be 'zero'"),
    ({k: v for k, v in example().items() if k != "t"}, "t: Field required"),
    ({k: v for k, v in example().items() if k != "nfe"}, "nfe: Field required"),
    (example(t=[80.0]), "t: .*at least 2 items"),
    (example(steps=[]), "steps: .*at least 1 item"),
    (example(t=[80.0, math.nan, 0.3, 0.0]), "t.1: .*finite number"),
    (example(t=[math.inf, 4.0, 0.3, 0.0]), "t.0: .*finite number"),
    (example(t=[80.0, 4.0, 0.0]), "3 steps need 4 times, but there are 3"),
    (example(xi=[0.0]), "3 steps need 3 xi, but there are 1"),
    (example(xi=[0.0, math.inf, 0.0]), "xi.1: .*finite number"),
    (example(nfe=2), "nfe is 2, but the steps take 3"),
    (example(nfe=3, afs="zero"), "nfe is 3, but the steps take 2"),
    (example(nfe=-1), "nfe: .*greater than or equal to 0"),
    (example(t=[80.0, 0.3, 4.0, 0.0]), "must fall: node 1 has t=0.3, node 2 has t=4"),
    (example(t=[80.0, 4.0, 4.0, 0.0]), "must fall: node 1 has t=4, node 2 has t=4"),
    (example(t=[80.0, 4.0, -1.0, -2.0]), "t=-1 lies outside the edm schedule"),
    (example(t=[80.0, 4.0, 4.0 - 1e-8, 0.0]), "too close to tell apart"),
    (example(process={"family": "edmm"}), "did you mean 'edm'"),
    (example(process={"family": "edm", "params": {"sigmamin": 1}}), "did you mean 'sigma_min'"),
    (example(process={"family": "vp"}), "t=80 lies outside the vp schedule"),
    (step(0, pred="v"), "steps.0.pred: .*'data', 'noise' or 'mixed'"),
    (step(0, mix_l=1.5), "steps.0.mix_l: .*less than or equal to 1"),
    (step(0, mix_l=-0.1), "steps.0.mix_l: .*greater than or equal to 0"),
    (step(0, order=0), "steps.0.order: .*greater than or equal to 1"),
    (step(0, order=5), "steps.0.order: .*less than or equal to 4"),
    (step(0, order=2, corr={"on": True}), "step 0 has order 2, but at most 1 is possible"),
    (step(1, order=3), "step 1 has order 3, but at most 2 is possible"),
    (step(1, est=[1, 1]), "steps.1: est needs 1 numbers at order 2"),
    (step(1, est=[2]), r"steps.1: est\[0\]=2 must lie between 1 and 1"),
    (step(1, est=[0]), r"steps.1: est\[0\]=0 must lie between 1 and 1"),
    (step(1, relax="bh3"), "steps.1.relax: .*'bh2' or 'linear'"),
    (step(1, c=1.5), "steps.1.c: .*less than or equal to 1"),
    (step(1, kmul=[1.0, 0.5]), "steps.1: kmul needs 1 numbers at order 2"),
    (step(1, kmul=[math.nan]), "steps.1.kmul.0: .*finite number"),
    (step(1, corr={"on": True, "relax": "linear"}), "steps.1.corr.relax: .*'bh1' or 'bh2'"),
    (step(1, mix_l=0.5), "steps.1: mix_l has an effect with pred mixed only"),
    (step(1, c=0.5), "steps.1: c has an effect with relax linear only"),
    (step(0, relax="bh2"), "steps.0: relax has an effect from order 2 only"),
    (step(1, corr={"on": True, "relax": "bh2"}), "steps.1: corr.relax has an effect on"),
    (step(0, corr={"on": False, "relax": "bh2"}), "steps.0: corr.relax has an effect on"),
    (step(1, dA=math.inf), "steps.1.dA: .*finite number"),
    (step(1, dB=[0.0, 0.0, 0.0]), "step 1 has 3 dB for 2 predictions"),
    (step(2, corr={"on": True}), "the last step cannot have a corrector"),
    (step(2, order=2), "the step to sigma = 0 must have order 1 and prediction data"),
    (step(2, pred="noise"), "the step to sigma = 0 must have order 1 and prediction data"),
]


@pytest.mark.parametrize(("data", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_schedules_are_refused_with_what_is_wrong(data, message):
    parse(example())  # it is the change that is refused
    for kind in (StepSchedule, Schedule):
        with pytest.raises(ScheduleError, match=message):
            kind.parse(json.dumps(data))


@pytest.mark.parametrize(
    ("family", "params"),
    [
        ("flow", {"shift": "3"}),
        ("flow", {"shift": None}),
        ("vp", {"num_train_timesteps": "many"}),
        ("vp", {"trained_betas": 0.1}),
        ("vp-linear", {"beta_0": [0.1]}),
    ],
)
def test_process_parameters_of_the_wrong_type_are_refused(family, params):
    with pytest.raises(ScheduleError):
        parse(example(process={"family": family, "params": params}, t=[0.9, 0.5, 0.2, 0.0]))


def test_third_order_needs_as_many_points_as_it_is_given():
    grid = even_in_lam(EDM(), 4)
    fits = {"order": 3, "est": [1, 2]}
    schedule_of(grid, {}, {"order": 2}, fits)
    with pytest.raises(ValidationError, match=r"est\[1\]=1 must lie between 2 and 2"):
        schedule_of(grid, {}, {"order": 2}, {"order": 3, "est": [2, 1]})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Invalid JSON: Expecting value"),
        ("{not json}", "Invalid JSON: "),
        (json.dumps(example())[:-20], "Invalid JSON: Unterminated string"),
        ("[1, 2]", "should be an object"),
        (json.dumps({**example(), "nfe": 2}), "nfe is 2"),
    ],
)
def test_files_that_hold_no_schedule(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ScheduleError, match=message) as caught:
        StepSchedule.load(path)
    assert "bad.json' is not a valid schedule" in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    for name in ("missing.json", ".", "binary.json"):
        with pytest.raises(ScheduleError, match="cannot read schedule"):
            StepSchedule.load(tmp_path / name)


def test_schedules_are_frozen():
    made = parse(example())
    with pytest.raises(ValidationError, match="frozen"):
        made.nfe = 2
    with pytest.raises(ValidationError, match="frozen"):
        made.steps[0].order = 2


def test_a_network_on_another_path_is_refused():
    made = parse(example())
    made.check_process(EDM(sigma_min=0.01, sigma_max=50.0))
    with pytest.raises(ScheduleError, match=r"made for process edm\(.*network's is vp\(beta_sch"):
        made.check_process(VPDiscrete())
    vp = solver("ddim").step_schedule(even_in_lam(VPDiscrete(), 3))
    vp.check_process(VPDiscrete())
    with pytest.raises(ScheduleError, match="scaled_linear"):
        vp.check_process(VPDiscrete("scaled_linear"))
    with pytest.raises(ScheduleError, match="use a schedule made for this network"):
        make_plan(VPDiscrete(), made)
    flow = solver("ddim").step_schedule(even_in_lam(RectifiedFlow(shift=3.0), 3))
    flow.check_process(RectifiedFlow())  # a shift names the times, the path is the same


def test_trained_betas_survive_the_round_trip():
    schedule = VPDiscrete(trained_betas=(0.1, 0.2, 0.3, 0.4))
    made = solver("ddim").step_schedule(TimeGrid.of(schedule, [1.0, 0.5, 0.0]))
    again = StepSchedule.parse(made.dump())
    assert again == made
    assert again.process.schedule() == schedule
    assert process_of(schedule) == again.process.model_dump()


# The executor against the textbook


def random_schedule(seed):
    """Seven random steps; every field of the format takes part, free coefficients do not."""
    rng = random.Random(seed)
    family = rng.choice(["vp-linear", "edm", "flow", "vp"])
    lams = [-2.8]
    for _ in range(7):
        lams.append(lams[-1] + rng.uniform(0.4, 1.0))
    schedule = PROCESSES[family]
    grid = TimeGrid.of(schedule, [schedule.at_lam(lam).t for lam in lams])
    to_zero = rng.random() < 0.4
    times = [node.t for node in grid.nodes[:-1]] + [0.0 if to_zero else grid.nodes[-1].t]
    steps = [random_step(rng, i, last=i == 6) for i in range(7)]
    if to_zero:
        steps[-1] = {}
    fields = {"t": times, "steps": steps, "provenance": {}}
    if rng.random() < 0.5:
        fields["xi"] = [rng.uniform(0.0, 0.02) * (-1 if i < 3 else 1) for i in range(7)]
    if rng.random() < 0.3:
        fields |= {"afs": "zero", "nfe": 6}
    base = solver("ddim").step_schedule(TimeGrid.of(schedule, times)).model_dump()
    return StepSchedule.model_validate({**base, **fields})


def random_step(rng, i, last):
    order = rng.randint(1, min(4, i + 1))
    step = {"pred": rng.choice(["data", "noise", "mixed"]), "order": order}
    if step["pred"] == "mixed":
        step["mix_l"] = rng.choice([rng.uniform(0.0, 0.4), rng.uniform(0.6, 1.0)])
    if order > 1:
        step["relax"] = rng.choice(["none", "bh1", "bh2", "linear"])
        step["c"] = rng.uniform(-0.3, 0.3) if step["relax"] == "linear" else 0.0
    if rng.random() < 0.5:
        step["est"] = [rng.randint(k, order - 1) for k in range(1, order)]
    if rng.random() < 0.5:
        step["kmul"] = [rng.uniform(0.5, 1.5) for _ in range(order - 1)]
    if not last and rng.random() < 0.5:
        relax = rng.choice(["none", "bh1", "bh2"]) if order == 1 else "none"
        step["corr"] = {"on": True, "relax": relax}
    return step


RANDOM = [random_schedule(seed) for seed in range(24)]


@pytest.mark.parametrize("schedule", RANDOM, ids=range(24))
def test_random_schedules_run_as_the_textbook_says(schedule):
    x = start(schedule.grid()) * 0.2
    assert_close(
        execute(schedule, x, MIXTURE.x0), textbook(schedule, x, MIXTURE.x0), rtol=1e-10, atol=1e-10
    )


def test_random_schedules_cover_the_format():
    steps = [step for schedule in RANDOM for step in schedule.steps]
    assert {step.pred for step in steps} == {"data", "noise", "mixed"}
    assert {step.order for step in steps} == {1, 2, 3, 4}
    assert {step.relax for step in steps if step.order > 1} == {"none", "bh1", "bh2", "linear"}
    assert {step.corr.on for step in steps} == {True, False}
    assert any(step.corr.relax != "none" for step in steps if step.corr.on and step.order == 1)
    assert any(step.est and step.est != (step.order - 1,) * (step.order - 1) for step in steps)
    assert {schedule.process.family for schedule in RANDOM} == {"vp", "vp-linear", "edm", "flow"}
    assert {schedule.afs for schedule in RANDOM} == {None, "zero"}
    assert {bool(schedule.xi) for schedule in RANDOM} == {True, False}
    assert {schedule.t[-1] == 0.0 for schedule in RANDOM} == {True, False}


@pytest.mark.parametrize(("name", "process"), ENCODED)
def test_named_solvers_run_as_the_textbook_says(name, process):
    grid = even_in_lam(PROCESSES[process], 8)
    made, x = solver(name).step_schedule(grid), start(grid)
    assert_close(
        execute(made, x, MIXTURE.x0), textbook(made, x, MIXTURE.x0), rtol=1e-11, atol=1e-11
    )


@pytest.mark.parametrize("schedule", RANDOM, ids=range(24))
def test_evaluations_and_memory_of_random_schedules(schedule):
    """x0 is asked for nfe times, at the moved times; the end leaves nothing behind."""
    asked = list_queries(Executor(schedule), schedule.grid())
    assert len(asked) == schedule.nfe
    edm, xi = schedule.process.family == "edm", schedule.xi or (0.0,) * 7
    moved = [t * math.exp(x) if edm else t + x for t, x in zip(schedule.t, xi, strict=False)]
    assert [node.t for node in asked] == pytest.approx(moved[7 - schedule.nfe :], rel=1e-14)
    *_, (_, state) = walk(Executor(schedule), schedule.grid(), unit_noise(), MIXTURE.x0)
    assert state.past == ()


def test_an_evaluation_moved_out_of_the_process_is_refused():
    grid = even_in_lam(RectifiedFlow(), 3)
    for xi in ([0.1, 0.0, 0.0], [0.0, 0.0, -grid.nodes[2].t]):
        with pytest.raises(ValidationError, match=r"xi\[\d\] moves the evaluation .* outside"):
            schedule_of(grid, {}, {}, {}, xi=xi)


CORRECTED = {"corr": {"on": True, "relax": "bh2"}}


@pytest.mark.parametrize(
    ("before", "free"),
    [
        ({}, {"dA": 0.03}),
        (CORRECTED, {"dA": 0.03}),
        ({}, {"dB": [0.05, -0.02]}),
        (CORRECTED, {"dB": [0.05, -0.02]}),
        ({}, {"dA": -0.02, "dB": [0.01], "corr": {"on": True}}),
        ({}, {"pred": "noise", "dA": -0.02, "dB": [0.01, 0.1]}),
    ],
)
def test_free_coefficients_are_added_to_the_weights(before, free):
    """dA to that of the state, corrected or not, dB to those of the predictions, newest first."""
    grid = even_in_lam(VPLinear(), 4)
    made = schedule_of(grid, before, {"order": 2, **free}, {"order": 2}, {})
    x = start(grid)
    found, plain = (
        execute(made, x, MIXTURE.x0),
        schedule_of(grid, before, {"order": 2}, {"order": 2}, {}),
    )
    assert_close(found, textbook(made, x, MIXTURE.x0), rtol=1e-11, atol=1e-11)
    assert (found - execute(plain, x, MIXTURE.x0)).abs().max() > 1e-3


@pytest.mark.parametrize(("l", "pred"), [(1.0, "data"), (0.0, "noise")])
def test_mixed_has_data_and_noise_at_its_ends(l, pred):  # noqa: E741
    grid = even_in_lam(EDM(), 6)
    common = [{}, *({"relax": "bh2", "order": min(3, i + 1)} for i in range(1, 6))]
    mixed = schedule_of(grid, *({"pred": "mixed", "mix_l": l, **step} for step in common))
    pure = schedule_of(grid, *({"pred": pred, **step} for step in common))
    x = start(grid)
    a, b = (execute(each, x, MIXTURE.x0) for each in (mixed, pure))
    assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_data_and_noise_agree_at_order_1_and_only_there():
    grid, x = even_in_lam(VPLinear(), 6), unit_noise()
    ends = {
        (pred, order): execute(
            schedule_of(grid, {"pred": pred}, {"pred": pred, "order": order}), x, MIXTURE.x0
        )
        for pred in ("data", "noise")
        for order in (1, 2)
    }
    assert_close(ends["data", 1], ends["noise", 1], rtol=1e-12, atol=1e-12)
    assert (ends["data", 2] - ends["noise", 2]).abs().max() > 1e-3


def test_published_third_order_needs_its_multiplier():
    grid, x = even_in_lam(EDM(), 8), unit_noise() * 20
    steps = [{}, {"order": 2, "relax": "bh2"}]
    with_half = schedule_of(grid, *steps, {"order": 3, "kmul": [1.0, 0.5]})
    without = schedule_of(grid, *steps, {"order": 3})
    named = run(solver("dpmpp-3m", lower_order_final="never"), grid, x, MIXTURE.x0)
    assert torch.equal(execute(with_half, x, MIXTURE.x0), named)
    assert (execute(without, x, MIXTURE.x0) - named).abs().max() > 1e-2


def test_first_evaluation_taken_as_zero():
    """Where x0 is 0 at the first node, leaving it out changes nothing but the count."""
    grid = even_in_lam(EDM(), 5)
    steps = [{"pred": "noise", **CORRECTED}, {"pred": "noise", "order": 2}, {"order": 3}, {}]
    full, short = schedule_of(grid, *steps), schedule_of(grid, *steps, afs="zero", nfe=4)
    x = start(grid)

    def law(x, node):
        return torch.zeros_like(x) if node == grid.nodes[0] else MIXTURE.x0(x, node)

    assert_close(execute(short, x, MIXTURE.x0), execute(full, x, law), rtol=1e-13, atol=1e-13)
    assert [len(list_queries(Executor(each), grid)) for each in (short, full)] == [4, 5]


CONSISTENT = [
    StepSchedule.model_validate(
        {
            **schedule.model_dump(),
            "afs": None,
            "nfe": 7,
            "steps": [
                step.model_dump()
                | ({"pred": "noise", "mix_l": 1.0} if step.pred == "mixed" else {})
                for step in schedule.steps
            ],
        }
    )
    for schedule in RANDOM
]


@pytest.mark.parametrize("schedule", CONSISTENT, ids=range(24))
def test_every_data_or_noise_schedule_is_exact_for_constant_x0(schedule):
    first, last = schedule.grid().nodes[0], schedule.grid().nodes[-1]
    x, x0 = unit_noise() * first.sigma, unit_noise().flip(0)
    ratio = last.sigma / first.sigma
    exact = ratio * x + (last.alpha - first.alpha * ratio) * x0
    assert_close(execute(schedule, x, lambda x, node: x0), exact, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(
    ("fields", "order"),
    [
        ({"order": 1}, 1),
        ({"order": 2}, 2),
        ({"order": 3}, 3),
        ({"order": 4}, 4),
        ({"order": 3, "est": (1, 2)}, 2),
        ({"order": 3, "kmul": (1.0, 0.5)}, 2),
        ({"order": 2, "relax": "bh1"}, 2),
        ({"order": 2, "relax": "linear", "c": 0.3}, 2),
    ],
)
@pytest.mark.parametrize(("pred", "l"), [("data", 1.0), ("noise", 1.0), ("mixed", 0.3)])
def test_local_error_falls_with_order_plus_one(fields, order, pred, l):  # noqa: E741
    """One step of q terms from exact past states, unevenly spaced, has an error of h^(q+1)."""
    schedule = VPLinear()

    def error(h):
        lams = [0.9 + h * place for place in (-2.9, -1.7, -0.8, 0.0, 1.0)]
        grid = TimeGrid.of(schedule, [schedule.at_lam(lam).t for lam in lams])
        steps = [{"order": 1}] * 3 + [{"pred": pred, "mix_l": l, **fields}]
        made, nodes = Executor(schedule_of(grid, *steps)), grid.nodes
        xs = [GAUSSIAN.flow_map(unit_noise((3, 4)), nodes[0], node) for node in nodes]
        state = made.init()
        for n in range(4):
            x, state = drive(made.step(xs[n], state, *nodes[n : n + 2]), GAUSSIAN.x0)
        return float((x - xs[4]).norm())

    assert math.log2(error(0.04) / error(0.02)) == pytest.approx(order + 1, abs=0.25)


# Functions of exponential integrators


def exact_phi(k, z):
    """phi_k(z) = 1F1(1; k + 1; z) / k! in 50 digits."""
    with mpmath.workdps(50):
        return float(mpmath.hyp1f1(1, k + 1, mpmath.mpf(z)) / mpmath.factorial(k))


@pytest.mark.parametrize("k", [1, 2, 3, 4, 5])
def test_phi_agrees_with_many_digits(k):
    places = [0.0, 1e-300, 1e-12, 1e-6, 1e-3, 0.5, 0.999999, 1.0, 1.000001, 2.0, 7.0, 30.0]
    for z in [*places, *(-z for z in places)]:
        assert phi(k, z) == pytest.approx(exact_phi(k, z), rel=1e-13, abs=0), z
    assert phi(k, -math.inf) == 0.0


@settings(deadline=None)
@given(k=st.integers(1, 5), z=st.floats(-30, 30))
def test_phi_agrees_everywhere(k, z):
    assert phi(k, z) == pytest.approx(exact_phi(k, z), rel=1e-13, abs=0)


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_derivative_weights_are_exact_on_polynomials(n):
    offsets = [-1.3, 0.7, -2.1, 1.9][:n]
    rng = np.random.default_rng(n)
    polynomial = np.polynomial.Polynomial(rng.standard_normal(n + 1))
    for k in range(1, n + 1):
        weights = find_derivative_weights(offsets, k)
        found = sum(
            w * (polynomial(d) - polynomial(0.0)) for w, d in zip(weights, offsets, strict=True)
        )
        assert found == pytest.approx(polynomial.deriv(k)(0.0), rel=1e-12)


@pytest.mark.parametrize(("kind", "slope"), [("bh2", 1 / 6), ("bh1", -1 / 3), ("none", 0.0)])
def test_relaxations_expand_as_published(kind, slope):
    for signed in (1e-4, -1e-4):
        found = (compute_relaxation(kind, abs(signed), signed) - 1.0) / signed
        assert found == pytest.approx(slope, abs=1e-4)
    assert compute_relaxation("linear", 0.5, -0.5, c=0.2) == pytest.approx(1.1)
    h = 0.7
    assert compute_relaxation("bh2", h, -h) == pytest.approx(
        (-h / 2) * math.expm1(-h) / (math.expm1(-h) + h), rel=1e-14
    )
    assert compute_relaxation("bh1", h, h) == pytest.approx(
        (h * h / 2) / (math.expm1(h) - h), rel=1e-14
    )
