"""Learned corrections of tables: what they add, their file, and where they are refused."""

import hashlib
import json
import math

import pytest
import torch
from safetensors.torch import save
from test_plan_file import make_plan_file
from test_scheduler import FLOW
from torch.testing import assert_close

from fewstep import CFG, EDM, Sampler, Schedule, SolverScheduler, from_module, solver, time_grid
from fewstep.eval.search.log import Log, Trial
from fewstep.models.errors import ScheduleError, SettingError
from fewstep.models.schedule import RectifiedFlow
from fewstep.samplers.plan_file import PlanFile
from fewstep.samplers.run_record import read_run
from fewstep.samplers.run_settings import RunSettings
from fewstep.solvers.cached_calls import CachedCalls
from fewstep.solvers.correction import MOST_PARAMETERS, Correction

SHAPE, STEPS = (2, 4, 4), 4


def make_network(shape=SHAPE, schedule=None):
    schedule = RectifiedFlow(time_scale=1) if schedule is None else schedule
    prediction = "edm" if schedule.family == "edm" else "flow"
    return from_module(
        lambda x, time: torch.tanh(1.5 * x) * 0.6 + 0.1 * time.view(-1, *[1] * len(shape)),
        schedule=schedule,
        prediction=prediction,
        shape=shape,
    )


def make_plain(network, steps=STEPS):
    return solver("unipc-2").encode(time_grid("logsnr", network.schedule, steps))


def make_correction(shape=SHAPE, steps=(STEPS - 1,), **fields):
    """One with weights of unit size in all layers."""
    torch.manual_seed(0)
    empty = Correction(shape=shape, steps=steps, width=3, **fields)
    net = empty.make_net()
    for each in net.parameters():
        torch.nn.init.normal_(each, std=0.3)
    return empty.with_net(net)


@pytest.fixture(scope="module")
def network():
    return make_network()


@pytest.fixture(scope="module")
def corrected(network):
    return make_plain(network).with_correction(make_correction())


def draw(network, schedule, seeds=range(3), **call):
    return Sampler(network)(seeds, solver=schedule, **call)


def test_an_untrained_correction_adds_nothing(network):
    plain = make_plain(network)
    empty = Correction(shape=SHAPE, steps=(1, 3))
    same = plain.with_correction(empty.with_net(empty.make_net()))
    assert torch.equal(draw(network, same).samples, draw(network, plain).samples)


@pytest.mark.parametrize("shape", [(2, 4, 4), (3, 5), (6,)])
@pytest.mark.parametrize("schedule", [RectifiedFlow(time_scale=1), EDM()], ids=["flow", "edm"])
def test_a_corrected_step_is_that_of_the_table_and_the_network_of_what_was_seen(shape, schedule):
    """By the formula, with states of unit size and zeros for predictions to come."""
    network, steps = make_network(shape, schedule), (1, 3)
    correction = make_correction(shape, steps)
    made, net = make_plain(network).with_correction(correction), correction.load_net()
    seen = []
    draw(network, made, callback=lambda n, node, x, x0, ledger: seen.append((x, x0)))
    table, nodes = made.table(), made.grid().nodes
    sizes = [math.hypot(node.alpha, node.sigma) for node in nodes]
    start = draw_start(network, nodes[0])
    states, predictions = [start, *[x for x, _ in seen]], [x0 for _, x0 in seen]
    for n in range(STEPS):
        known = {"x": states, "x0": predictions}
        y = sum(
            weight * part
            for (kind, j), weight in table.steps[n].items()
            for part in [
                known[kind][j]
                if kind in known
                else (states[j] - nodes[j].alpha * predictions[j]) / nodes[j].sigma
            ]
        )
        if n in steps:
            image = correction.image
            parts = [start / sizes[0], y / sizes[n + 1], *predictions[: n + 1]]
            parts += [torch.zeros_like(start)] * (STEPS - 1 - n)
            planes = [torch.full((3, 1, *image[1:]), float(n == step)) for step in steps]
            given = torch.cat([*(each.reshape(3, *image) for each in parts), *planes], 1)
            added = sizes[n + 1] * net(given).reshape(y.shape)
            assert added.abs().mean() > 0.01 * y.abs().mean()
            y = y + added
        assert_close(states[n + 1], y, rtol=1e-4, atol=1e-4 * sizes[n + 1])


def draw_start(network, node):
    """The states that the seeds 0, 1 and 2 start from."""
    from fewstep.samplers.noise import Noise, draw_start

    return draw_start(Noise([0, 1, 2], network.shape), network.schedule, node)


def test_a_sample_does_not_depend_on_its_batch_and_the_work_is_counted(network, corrected):
    one, all_ = (draw(network, corrected, batch=batch) for batch in (1, 3))
    assert_close(one.samples, all_.samples, rtol=1e-5, atol=1e-6)
    for result in (one, all_):
        assert result.ledger.multiplications == 3 * corrected.correction.multiplications
        assert result.ledger.nfe == STEPS
    flops = 2 * 16 * 9 * (12 * 3 + 3 * 3 + 3 * 3 + 3 * 2)
    assert all_.ledger.as_dict()["correction_flops_per_image"] == flops
    assert f"{flops / 1e6:.3g} MFLOPs of correction" in str(all_.ledger)
    plain = draw(network, corrected.with_correction(None)).ledger
    assert "correction" not in str(plain) + str(plain.as_dict())


def test_it_runs_under_guidance(network, corrected):
    conditional = from_module(
        lambda x, time, class_labels: torch.tanh(x + class_labels.view(-1, 1, 1, 1)),
        schedule=network.schedule,
        prediction="flow",
        shape=SHAPE,
        num_classes=2,
        null_class=2,
    )
    runs = [
        draw(conditional, each, class_labels=1, guidance=CFG(2.0)).samples
        for each in (corrected, corrected.with_correction(None))
    ]
    assert not torch.allclose(*runs, atol=1e-2)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"width": 200}, f"{MOST_PARAMETERS:,} are the most"),
        ({"steps": (3, 1)}, "must rise"),
        ({"steps": ()}, "at least 1"),
        ({"shape": (1,)}, "samples of one number"),
        ({"shape": (2, 3, 4, 4)}, "at most 3"),
        ({"dilations": (1,)}, "at least 2"),
        ({"sha256": "../../elsewhere"}, "pattern"),
    ],
)
def test_a_description_that_cannot_be_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Correction(**{"shape": SHAPE, "steps": (3,), **fields})


def test_its_size_is_that_of_the_network_it_makes():
    for shape in ((1, 32, 32), (3, 8), (7,)):
        made = Correction(shape=shape, steps=(2, 4), width=5, dilations=(1, 2, 1))
        assert made.parameters == sum(each.numel() for each in made.make_net().parameters())


def test_schedule_and_weights_are_a_pair_of_files_that_may_move(tmp_path, network, corrected):
    corrected.write(tmp_path / "five.json")
    assert json.loads((tmp_path / "five.json").read_text())["version"] == 5
    moved = tmp_path / "there"
    moved.mkdir()
    for path in [*tmp_path.glob("*.json"), tmp_path / corrected.correction.file]:
        path.rename(moved / path.name)
    again = Schedule.load(moved / "five.json")
    assert again == corrected
    assert torch.equal(draw(network, again).samples, draw(network, corrected).samples)
    again.save_pretrained(tmp_path / "folder")
    assert Schedule.from_pretrained(tmp_path / "folder") == corrected


def forge(tmp_path, corrected, body):
    """A pair of files whose hashes agree."""
    digest = hashlib.sha256(body).hexdigest()
    data = json.loads(corrected.dump())
    data["correction"]["sha256"] = digest
    (tmp_path / "five.json").write_text(json.dumps(data))
    (tmp_path / f"correction-{digest[:16]}.safetensors").write_bytes(body)
    return tmp_path / "five.json"


def test_missing_or_changed_weights_are_refused(tmp_path, network, corrected):
    corrected.write(tmp_path / "five.json")
    weights = tmp_path / corrected.correction.file
    weights.write_bytes(weights.read_bytes()[:-1] + b"!")
    with pytest.raises(ScheduleError, match=r"have changed \(sha256\); put back"):
        Schedule.load(tmp_path / "five.json")
    weights.unlink()
    with pytest.raises(ScheduleError, match="there is no such file; put back"):
        Schedule.load(tmp_path / "five.json")
    alone = Schedule.parse(corrected.dump())
    with pytest.raises(ScheduleError, match=f"with {corrected.correction.file} beside it"):
        draw(network, alone)
    with pytest.raises(ScheduleError, match="did not come with it"):
        alone.write(tmp_path / "six.json")
    assert not (tmp_path / "six.json").exists()


def test_weights_of_another_shape_or_kind_are_refused(tmp_path, corrected):
    tensors = dict(corrected.correction.load_net().state_dict())
    name = next(iter(tensors))
    forged = [
        (b"no safetensors at all", "not a file of weights"),
        (save({**tensors, name: tensors[name][:1].clone()}), "other tensors"),
        (save({**tensors, "more": torch.zeros(1)}), "other tensors"),
        (save({**tensors, name: tensors[name].double()}), "finite float32"),
        (save({**tensors, name: tensors[name] / 0.0}), "finite float32"),
        (b"!" * 2**20, "too many"),
    ]
    for body, message in forged:
        with pytest.raises(ScheduleError, match=message):
            Schedule.load(forge(tmp_path, corrected, body))


def test_another_network_is_refused(network, corrected):
    for shape in ((3, 4, 4), (2, 8, 8), (32,)):
        with pytest.raises(ScheduleError, match="run `fewstep search"):
            draw(make_network(shape), corrected)
    with pytest.raises(ScheduleError, match="made for process"):
        draw(make_network(schedule=EDM()), corrected)


def test_a_table_that_it_does_not_fit_is_refused(network, corrected):
    plain = make_plain(network)
    noisy = solver("sde-dpmpp-2").encode(plain.grid())
    guided = json.loads(corrected.dump())
    for each in guided["evaluations"]:
        each["branches"] = ["uncond", "cond"]
    unasked = json.loads(corrected.dump())
    unasked["evaluations"][0], unasked["nfe"] = None, STEPS - 1
    for make, message in (
        (lambda: noisy.with_correction(corrected.correction), "adds no noise"),
        (lambda: corrected.with_cache(CachedCalls(compute=(0, 1))), "without a cache"),
        (lambda: Schedule.parse(json.dumps(guided)), "one prediction in every step"),
        (lambda: Schedule.parse(json.dumps(unasked)), "one prediction in every step"),
        (lambda: make_plain(network, 3).with_correction(corrected.correction), "for step 3"),
        (
            lambda: Schedule.parse(json.dumps({**json.loads(corrected.dump()), "version": 2})),
            "version 5",
        ),
    ):
        with pytest.raises(ScheduleError, match=message):
            make()


def test_a_scheduler_refuses_it_by_name(tmp_path, corrected):
    corrected.write(tmp_path / "five.json")
    for given in (corrected, corrected.dump(), tmp_path / "five.json"):
        with pytest.raises(SettingError, match="learned correction, whose weights"):
            SolverScheduler.from_config(FLOW, schedule=given)
    SolverScheduler.from_config(FLOW, schedule=corrected.with_correction(None))


def test_plans_pictures_and_logs_find_the_weights_beside_them(tmp_path, network, corrected):
    expected = draw(network, corrected)
    make_plan_file(network, RunSettings(schedule=corrected)).write(tmp_path / "plan.json")
    plan = PlanFile.load(tmp_path / "plan.json")
    assert torch.equal(draw(network, plan.settings.schedule).samples, expected.samples)
    log = Log(tmp_path)
    log.append(Trial.of(corrected, 1.0, strategy="correction", seed=0, evals=1))
    log.close()
    (trial,) = Log(tmp_path).trials.values()
    assert trial.schedule == corrected
    fashion = Sampler.from_pretrained("fashion-dit")
    schedule = make_plain(fashion.network).with_correction(make_correction((1, 32, 32)))
    fashion([0], solver=schedule).save(tmp_path / "one.png")
    with pytest.raises(SettingError, match="put back the file"):
        read_run(tmp_path / "one.png")
    schedule.write_files(tmp_path)
    assert read_run(tmp_path / "one.png").schedule == schedule
