"""Functions of predictions as terms of a table: how they run, what they cost, what is refused."""

import json
from itertools import pairwise

import pytest
import torch
from guided import denoiser, grid_of
from laws import MIXTURE, even_in_lam, start, unit_noise, walk
from test_schedule_data import example, guided_example, parse, steps_with
from test_scheduler import FLOW, net, noise, ours, run
from test_scheduler import SHAPE as PIPE
from torch.testing import assert_close

from fewstep import from_module
from fewstep.models.denoiser import Denoiser
from fewstep.models.errors import ScheduleError
from fewstep.models.schedule import EDM, RectifiedFlow
from fewstep.samplers.guidance import CFG, Unguided
from fewstep.samplers.loop import integrate
from fewstep.samplers.sampler import Sampler
from fewstep.solvers import Executor, Revision, Schedule, drive, solver
from fewstep.solvers.cached_calls import CachedCalls
from fewstep.solvers.prediction_functions import FUNCTIONS, read_function, spell_function
from fewstep.solvers.table import rewrite

TANH, CLAMP, BLUR = "tanh:gain=2.0,shift=0.5", "clamp:low=-1.0,high=1.0", "blur:radius=1"
FURTHER = ((TANH, 0, 0.25), (TANH, 1, -0.5), (CLAMP, 1, 0.125), (BLUR, 0, 0.3))


def make_schedule(*weights, name="dpmpp-2m", process=None, steps=4):
    """A solver's schedule whose step 2 weighs functions too."""
    grid = even_in_lam(process or RectifiedFlow(), steps)
    body = json.loads(solver(name).encode(grid).dump())
    body["steps"][2] += [list(weight) for weight in weights]
    return parse({**body, "version": 4 if any(weight[2] for weight in weights) else 2})


def bend(x, node):
    return torch.tanh(x / (node.sigma + 0.5))


def test_functions_are_what_they_say():
    x0 = torch.tensor([-3.0, -0.5, 0.25, 2.0]).reshape(1, 1, 2, 2)
    assert torch.equal(read_function("clamp:low=-2,high=0.5")(x0), x0.clamp(-2.0, 0.5))
    assert_close(read_function(TANH)(x0), torch.tanh(2.0 * (x0 + 0.5)))
    wide = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))
    blurred = read_function("blur:radius=2")(wide)
    rows = [min(max(i, 0), 4) for i in range(-2, 3)]  # around the first pixel, repeated outside
    around = wide[:, :, rows][..., [0, 0, 0, 1, 2]]
    assert_close(blurred[:, :, 0, 0], around.mean((2, 3)))
    for name in FUNCTIONS:
        function = FUNCTIONS.make(name)
        assert read_function(spell_function(function)) == function
        assert function(wide).shape == wide.shape
        assert torch.equal(function(wide)[1:], function(wide[1:]))  # rows are independent


def test_a_step_adds_weighed_functions_of_its_and_of_earlier_predictions():
    x, answers = unit_noise((2, 2, 3, 2)), [unit_noise((2, 2, 3, 2)) * (n + 1) for n in range(4)]
    runs = {}
    for weights in ((), FURTHER, (*FURTHER, (TANH, 2, 0.2))):
        made, told = make_schedule(*weights), iter(answers)
        runs[len(weights)] = [
            state for state, _ in walk(Executor(made), made.grid(), x, lambda *_, t=told: next(t))
        ]
    for count in (4, 5):
        assert torch.equal(runs[count][1], runs[0][1])
        added = sum(w * read_function(f)(answers[n]) for f, n, w in FURTHER)
        added = added + (0.2 * torch.tanh(2.0 * (answers[2] + 0.5)) if count == 5 else 0.0)
        assert_close(runs[count][2], runs[0][2] + added)


def test_a_file_runs_as_what_it_was_written_from_and_names_settings_in_one_way():
    made = make_schedule(*FURTHER, name="unipc-3", process=EDM())
    again = Schedule.parse(made.dump())
    assert (again, again.dump(), again.version) == (made, made.dump(), 4)
    assert made.functions == tuple(sorted({BLUR, CLAMP, TANH}))
    short = make_schedule(("tanh:gain=2,shift=.5", 0, 0.25), *FURTHER[1:3], ("blur", 0, 0.3))
    assert short.schedule_id == make_schedule(*FURTHER).schedule_id
    canonical = rewrite(made.table(), [0] * 4)  # functions of x0 stay columns of their own
    x = start(made.grid(), (2, 2, 3, 2))
    ends = [
        [x for x, _ in walk(Executor(each), made.grid(), x, bend)][-1]
        for each in (made, again, Schedule.of(canonical, made.grid(), {}))
    ]
    assert torch.equal(ends[0], ends[1])
    assert_close(ends[0], ends[2], rtol=0.0, atol=1e-9)


def test_functions_without_weight_leave_the_linear_table():
    plain = make_schedule()
    same = make_schedule((TANH, 1, 0.0), (BLUR, 0, 0.0))
    assert (same, same.schedule_id, same.version) == (plain, plain.schedule_id, 2)


def test_revised_predictions_are_seen_through_the_functions():
    """As guidance that begins or ends in a run asks for, with steps that begin anywhere."""
    draw = torch.Generator().manual_seed(0)
    old, new = (
        [torch.randn(2, 2, 3, 2, generator=draw, dtype=torch.float64) for _ in range(3)]
        for _ in range(2)
    )
    made = make_schedule(*FURTHER, (TANH, 2, 0.2))  # of its own prediction too
    grid = made.grid()

    def tell(answers, table, states=()):
        steps, x = Executor(Schedule.of(table, grid, {})), start(grid, (2, 2, 3, 2))
        memory, visited = steps.init(), []
        for n, (t, s) in enumerate(pairwise(grid.nodes[: len(answers) + 1])):
            visited.append(states[n] if states else x)
            x, memory = drive(steps.step(visited[n], memory, t, s), lambda *_, a=answers[n]: a)
        return steps, visited, memory, x

    body = json.loads(made.dump())
    body["steps"][3] += [list(weight) for weight in FURTHER]  # in memory after three steps
    table = parse(body).table()
    steps, visited, memory, x = tell(old, table)
    *_, wanted, _ = tell(new, table, visited)
    changes = [Revision(a, b) for a, b in zip(old[::-1], new[::-1], strict=True)]
    assert_close(steps.revise(memory, changes).past, wanted.past)

    steps, visited, memory, x = tell(old, rewrite(table, [0] * 4))
    revised, (t, s) = steps.revise(memory, changes), grid.nodes[3:5]
    answer = torch.randn(2, 2, 3, 2, generator=draw, dtype=torch.float64)
    there, _ = drive(steps.step(x, revised, t, s), lambda *_: answer)
    stepwise, _, memory, _ = tell(new, table, visited)
    wanted, _ = drive(stepwise.step(x, memory, t, s), lambda *_: answer)
    assert_close(there, wanted)  # the state that was reached stays, and the step goes on from it


def test_operations_are_counted_apart_from_evaluations():
    sampler, made = Sampler(MIXTURE.network(RectifiedFlow(), (2, 1, 2))), make_schedule(*FURTHER)
    result = sampler(range(3), solver=made, batch=2)
    counted = result.ledger
    assert (counted.nfe, counted.operations_per_image) == (4, 3 + 3 + 1 + 2)
    assert counted.as_dict()["operations_per_image"] == 9
    assert "9 operations of functions" in str(counted)
    assert torch.equal(sampler([2], solver=made).samples, result.samples[2:])
    plain = sampler(range(3), solver="dpmpp-2m", steps=4).ledger
    assert "operations_per_image" not in plain.as_dict()
    assert "operations" not in str(plain)


def test_they_are_functions_of_what_guidance_makes_of_the_branches():
    grid, cfg = grid_of(4, schedule=RectifiedFlow()), CFG(2.0)
    made, who = make_schedule(*FURTHER), denoiser(schedule=RectifiedFlow())
    x, answers = start(grid), []
    end = integrate(who, Executor(made), made.grid(), x, cfg, lambda *each: answers.append(each[3]))
    told = iter(answers)
    *_, (alone, _) = walk(Executor(made), made.grid(), x, lambda *_: next(told))
    assert torch.equal(end, alone)


def test_tables_with_guidance_and_with_a_cache_may_weigh_them():
    guided = parse(guided_example(version=4, steps=steps_with(1, [TANH, 0, 0.5], ["u0", 0, 0.1])))
    assert (guided.guided, guided.rows) == (True, 4)
    cached = make_schedule(*FURTHER).with_cache(CachedCalls(compute=(0, 2)))
    assert (cached.version, Schedule.parse(cached.dump())) == (4, cached)
    assert cached.with_cache(None) == make_schedule(*FURTHER)


def test_a_pipelines_scheduler_gives_bit_for_bit_what_our_loop_gives():
    process = ours(FLOW).process
    made = make_schedule(*FURTHER, process=process.fixed)
    scheduler = ours(FLOW, schedule=made)
    scheduler.set_timesteps(4)
    network = from_module(
        lambda x, time: net(x, time),
        schedule=process.fixed,
        prediction=process.prediction,
        shape=PIPE,
    )
    x = noise(2) * process.fixed.noise_scale(made.grid().nodes[0])
    wanted = integrate(Denoiser(network), Executor(made), made.grid(), x, Unguided())
    assert torch.equal(run(scheduler, noise(2)), wanted)
    assert scheduler.nfe == 4


BAD = [
    ([["tan", 0, 1.0]], "steps.0.3.0: no term 'tan'; did you mean 'tanh'. known: blur, clamp"),
    ([["tanh:gain=-1", 0, 1.0]], "steps.0.3.0: tanh: gain=-1: .*greater than 0"),
    ([["tanh:width=1", 0, 1.0]], "no setting of tanh 'width'; known: gain, shift"),
    ([["clamp:low=2", 0, 1.0]], "clamp needs low below high, not 2 and 1"),
    ([["blur:radius=0", 0, 1.0]], "radius=0: .*greater than or equal to 1"),
    ([["tanh", 0, 1.0], ["tanh:gain=3", 0, 1.0]], "tanh:gain=3.0,shift=0.0 0 is weighed twice"),
    ([["tanh", 1, 1.0]], "step 0 cannot weigh tanh:gain=3.0,shift=0.0 1"),
]


def test_what_cannot_be_is_refused():
    for weights, message in BAD:
        with pytest.raises(ScheduleError, match=message):
            parse(example(version=4, steps=steps_with(0, *weights)))
    steps = example()["steps"]
    steps[2].append(["clamp", 2, 0.5])
    with pytest.raises(ScheduleError, match=r"weighs clamp:.* of 2, which asks nothing"):
        parse(example(version=4, steps=steps))
    for version, weights in ((2, [TANH, 0, 1.0]), (4, ["eps", 0, 0.1])):
        with pytest.raises(ScheduleError, match=f"version is {version}, but a schedule has vers"):
            parse(example(version=version, steps=steps_with(0, weights)))


def test_a_blur_needs_pictures():
    made = make_schedule(*FURTHER)
    flat = MIXTURE.network(RectifiedFlow(), (4,))
    with pytest.raises(ScheduleError, match=r"blur:radius=1, which needs samples of .channels"):
        Sampler(flat)([0], solver=made)
    Sampler(flat)([0], solver=make_schedule(*FURTHER[:3]))
    packed = torch.zeros(2, 5, 4)  # as some pipelines hold latents
    with pytest.raises(ScheduleError, match=r"but those of this run have .5, 4."):
        read_function(BLUR)(packed)
