"""The artefact, version 2: it runs as what it was written from, and what is refused."""

import json
import math

import pytest
import torch
from laws import (
    CASES,
    MIXTURE,
    PROCESSES,
    answering,
    even_in_lam,
    run,
    start,
    unit_noise,
    walk,
    with_table,
)
from pydantic import ValidationError
from test_step_schedule import RANDOM, execute
from torch.testing import assert_close

from fewstep.models.errors import ScheduleError
from fewstep.models.schedule import EDM, RectifiedFlow, VPDiscrete
from fewstep.samplers.grid import Final, choose_default_grid, time_grid
from fewstep.samplers.run_record import Run
from fewstep.samplers.sampler import Sampler
from fewstep.solvers import Executor, Schedule, list_queries, solver
from fewstep.solvers.linear import LinearSolver
from fewstep.solvers.mean_image import MeanImage
from fewstep.solvers.table_steps import TableSteps

LINEAR = [each for each in CASES if isinstance(solver(each[0]), LinearSolver)]


def example(**fields):
    """Three steps on EDM that use every term but those of guidance; the last asks nothing."""
    data = {
        "version": 2,
        "process": {"family": "edm", "params": {"sigma_min": 0.002, "sigma_max": 80.0}},
        "t": [80.0, 4.0, 0.3, 0.0],
        "evaluations": [{"t": 80.0}, {"t": 3.5}, None],
        "steps": [
            [["x", 0, 0.05], ["x0", 0, 0.95], ["z", 0, 0.1]],
            [["x", 0, 0.5], ["eps", 0, 0.25], ["v", 1, -0.125]],
            [["x0", 1, 1.0]],
        ],
        "nfe": 2,
        "provenance": {"by": "hand"},
    }
    return {**data, **fields}


def guided_example(**fields):
    data = example(
        evaluations=[
            {"t": 80.0, "branches": ["uncond", "cond"]},
            {"t": 4.0, "branches": ["cond"]},
            {"t": 0.3, "branches": ["cond"]},
        ],
        nfe=3,
    )
    return {**data, **fields}


def parse(data):
    return Schedule.parse(json.dumps(data))


def test_every_linear_solver_is_data_that_runs_as_it_does():
    """To the last bit in both precisions, noise included, wherever the grid ends."""
    for name, process in LINEAR:
        schedule = PROCESSES[process]
        for final in Final:
            grid = time_grid(choose_default_grid(schedule), schedule, 7, final)
            made = solver(name).encode(grid)
            again = Schedule.parse(made.dump())
            assert again == made
            assert again.dump() == made.dump()
            assert again.provenance["solver"] == name
            for dtype in (torch.float32, torch.float64):
                x = start(grid).to(dtype)
                named = run(solver(name), grid, x, MIXTURE.x0)
                assert torch.equal(execute(again, x, MIXTURE.x0), named), (name, process, final)


def test_settings_are_told_as_the_origin():
    made = solver("dpmpp-2m", kind="taylor").encode(even_in_lam(EDM(), 4))
    told = {"kind": "taylor", "lower_order_final": "under-15", "coordinate": "auto"}
    assert made.provenance["settings"] == told


def test_version_1_is_read_and_runs_as_it_did():
    """To the last bit: the same operations remain, in both forms that version 1 had."""
    for old in (*RANDOM, *map(with_table, RANDOM[:6])):
        new = Schedule.parse(old.dump())
        assert (new.version, new.nfe, new.rows) == (2, old.nfe, old.rows)
        assert new.provenance == old.provenance
        assert json.loads(new.dump())["version"] == 2
        assert Schedule.parse(new.dump()) == new
        for dtype in (torch.float32, torch.float64):
            x = start(old.grid()).to(dtype) * 0.2
            assert torch.equal(execute(new, x, MIXTURE.x0), execute(old, x, MIXTURE.x0))


def test_a_record_of_version_1_is_read():
    """As it lies in a picture: without what is null."""
    old = solver("unipc-2").step_schedule(even_in_lam(RectifiedFlow(), 4))
    record = {"model": "m", "seeds": "0-1", "schedule": old.model_dump(exclude_none=True)}
    assert Run.model_validate(record).schedule == Schedule.of_steps(old)
    record["schedule"]["nfe"] = 3
    with pytest.raises(ValidationError, match="nfe is 3, but the steps take 4"):
        Run.model_validate(record)


def test_a_mean_of_version_1_stands_in_still():
    mean = MeanImage.of([0.25, -0.5, 1.0, 0.0], (2, 1, 2))
    body = solver("unipc-3").step_schedule(even_in_lam(EDM(), 5)).model_dump(mode="json")
    new = parse({**body, "afs": mean.model_dump(mode="json"), "nfe": 4})
    assert (new.stand_in, new.evaluations[0], new.nfe) == (mean, None, 4)
    assert len(list_queries(Executor(new), new.grid())) == 4


def test_terms_are_what_they_say():
    """eps = (x - alpha x0) / sigma and v = eps - x0 at the node, whatever time was asked for."""
    made, x = parse(example()), unit_noise()
    told = iter([torch.full_like(x, 2.0), torch.full_like(x, -1.0)])
    states = [state for state, _ in walk(Executor(made), made.grid(), x, lambda *_: next(told))]
    assert [node.t for node in list_queries(Executor(made), made.grid())] == [80.0, 3.5]
    noise = 10.0 * (states[0] - 0.05 * x - 0.95 * 2.0)
    assert_close(noise, answering(MIXTURE.x0, 0)(x, None))
    eps_0, v_1 = (x - 2.0) / 80.0, (states[0] + 1.0) / 4.0 + 1.0
    assert_close(states[1], 0.5 * x + 0.25 * eps_0 - 0.125 * v_1)
    assert_close(states[2], torch.full_like(x, -1.0))


def test_facts_of_a_table_are_counted_from_it():
    made = parse(guided_example())
    table = made.table()
    assert (made.guided, made.nfe, made.rows) == (True, 3, 4)
    assert (table.guided, table.nfe, table.rows) == (True, 3, 4)
    grid = even_in_lam(EDM(), 6)
    assert solver("dpmpp-3s").table(grid).starts == (0, 0, 0, 3, 3, 5)
    assert [solver(name).table(grid).memory for name in ("ddim", "dpmpp-2m", "unipc-3")] == [
        0,
        1,
        3,
    ]
    assert not Schedule.of(solver("lms").table(grid), grid, {}).guided


def test_the_order_of_weights_and_zeros_are_no_part_of_a_schedule():
    plain = parse(example())
    steps = [[*step[::-1]] for step in example()["steps"]]
    steps[2].append(["x", 2, 0.0])
    assert parse(example(steps=steps)) == plain
    assert parse(example(provenance={})).schedule_id == plain.schedule_id
    assert parse(example(t=[80.0, 4.0, 0.25, 0.0])).schedule_id != plain.schedule_id


def steps_with(n, *weights):
    steps = example()["steps"]
    steps[n] = [*steps[n], *weights]
    return steps


def asked(n, value):
    evaluations = example()["evaluations"]
    evaluations[n] = value
    return evaluations


MEAN = MeanImage.of([0.25], (1,)).model_dump(mode="json")
BAD = [
    (example(extra=1), "extra: Extra inputs are not permitted"),
    (example(format="schedule"), "format: .*'solver-schedule'"),
    (example(version=6), "version 6 is newer than this fewstep, which knows up to 5"),
    (example(version="2"), "version: Input should be 2"),
    (example(version=0), "version: Input should be 2"),
    (example(process={"family": "edmm"}), "did you mean 'edm'"),
    ({k: v for k, v in example().items() if k != "evaluations"}, "evaluations: Field required"),
    (example(nfe=3), "nfe is 3, but the steps take 2"),
    (example(t=[80.0, 0.3, 4.0, 0.0]), "must fall: node 1"),
    (example(t=[80.0, 4.0, 0.0]), "3 steps need 4 times, but there are 3"),
    (example(t=[80.0, 4.0, 4.0 - 1e-8, 0.0]), "too close to tell apart"),
    (example(t=[80.0, 4.0, -1.0, -2.0]), "lies outside the edm schedule"),
    (example(t=[math.inf, 4.0, 0.3, 0.0]), "t.0: .*finite number"),
    (example(evaluations=[{"t": 80.0}, {"t": 4.0}]), "3 steps need 3 evaluations, not 2"),
    (example(evaluations=asked(1, {"t": 0.0})), r"evaluations\[1\] moves .* t=0, outside"),
    (example(evaluations=asked(1, {"t": math.nan})), "evaluations.1.t: .*finite number"),
    (example(evaluations=asked(1, {"t": 4.0, "x": 1})), "evaluations.1.x: Extra inputs"),
    (example(evaluations=asked(1, {"t": 4.0, "branches": ["weak"]})), "branches must be"),
    (example(evaluations=asked(1, {"t": 4.0, "branches": ["cond"]})), "has branches, or none has"),
    (example(stand_in="mean"), "stand_in.*: Input should be 'zero'"),
    (guided_example(stand_in=MEAN), "stand_in has an effect where a step asks nothing only"),
    (example(steps=[]), "steps: .*at least 1 item"),
    (example(steps=steps_with(0, ["y", 0, 1.0])), "steps.0.3.0: no term 'y'; .*known: blur"),
    (example(steps=steps_with(0, ["x0", -1, 1.0])), "steps.0.3.1: .*greater than or equal to 0"),
    (example(steps=steps_with(0, ["eps", 0, math.nan])), "steps.0.3.2: .*finite number"),
    (example(steps=steps_with(0, ["eps", 0])), "steps.0.3.2: Field required"),
    (example(steps=steps_with(0, ["eps", 0, 1e41])), r"step 0 has a weight of 1.*e\+3"),
    (example(steps=steps_with(0, ["x", 0, 0.0])), "steps.0: x 0 is weighed twice"),
    (example(steps=steps_with(0, ["x0", 1, 1.0])), "step 0 cannot weigh x0 1"),
    (example(steps=steps_with(1, ["z", 0, 1.0])), "step 1 cannot weigh z 0"),
    (example(steps=steps_with(1, ["u0", 0, 1.0])), r"weighs u0 0, which evaluations\[0\] leaves"),
    (guided_example(steps=steps_with(1, ["u0", 1, 1.0])), r"u0 1, which evaluations\[1\] leaves"),
]


@pytest.mark.parametrize(("data", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_tables_are_refused_with_what_is_wrong(data, message):
    parse(example())  # it is the change that is refused
    parse(guided_example(steps=steps_with(1, ["u0", 0, 1.0])))
    with pytest.raises(ScheduleError, match=message):
        parse(data)


def test_a_key_named_twice_is_refused():
    with pytest.raises(ScheduleError, match="names the key 'nfe' twice"):
        Schedule.parse(json.dumps(example())[:-1] + ', "nfe": 2}')


def test_tables_that_keep_too_much_are_refused():
    """Every prediction to the end of 4,000 steps: eight million tensors, summed over the steps."""
    n = 4_000
    times = [1.0 - i / n for i in range(n + 1)]
    steps = [[["x", i, 1.0]] for i in range(n - 1)] + [[["x0", i, 1.0] for i in range(n)]]
    data = example(
        process={"family": "flow", "params": {}},
        t=times,
        evaluations=[{"t": t} for t in times[:-1]],
        steps=steps,
        nfe=n,
    )
    with pytest.raises(ScheduleError, match="keep 7,998,000 tensors in all; 5,000,000 are"):
        parse(data)


def test_weights_that_are_no_numbers_are_refused_where_they_are_made():
    grid = even_in_lam(EDM(), 3)
    table = solver("ddim").table(grid)
    table.steps[1][("x0", 1)] = math.inf
    with pytest.raises(ScheduleError, match="step 1 has a weight of inf"):
        Schedule.of(table, grid, {})


def test_stochastic_schedules_are_drawn_with_noise_of_the_seed():
    """A schedule in the place of its solver gives its pictures, image by image."""
    network = MIXTURE.network(RectifiedFlow(), (2, 1, 2))
    sampler = Sampler(network)
    named = sampler(range(3), solver="sde-dpmpp-2", nfe=6).samples
    grid = time_grid(choose_default_grid(network.schedule, 6), network.schedule, 6)
    made = Schedule.parse(solver("sde-dpmpp-2").encode(grid).dump())
    assert torch.equal(sampler(range(3), solver=made).samples, named)
    assert torch.equal(sampler([2], solver=made).samples, named[2:])


def test_a_table_on_disk_costs_no_more_than_its_solver():
    for name in ("dpmpp-2m", "unipc-2", "dpmpp-3s", "lms", "sa-solver"):
        grid = even_in_lam(RectifiedFlow(), 6)
        rows = [
            TableSteps(each).rows
            for each in (
                solver(name).table(grid),
                Schedule.parse(solver(name).encode(grid).dump()).table(),
            )
        ]
        layouts = [[(len(row.past), row.push and len(row.push)) for row in each] for each in rows]
        assert layouts[0] == layouts[1]


def test_equal_schedules_are_one_key():
    grid = time_grid("uniform", VPDiscrete(), 3)
    first = solver("unipc-2").encode(grid)
    again, other = Schedule.parse(first.dump()), solver("ddim").encode(grid)
    noted = first.model_copy(update={"provenance": {"note": "another"}})
    assert hash(first) == hash(again)
    assert len({first, again, other, noted}) == 3
