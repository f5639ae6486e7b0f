"""Recording network calls and whole runs, with a tape in the place of a CUDA graph."""

import warnings
from dataclasses import replace

import pytest
import tiny
import torch
from laws import DETERMINISTIC, MIXTURE, ONE_BRANCH, solver
from tape import Taped
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fewstep import CFG, Measured, Prediction, RectifiedFlow, Sampler, VPDiscrete, from_module
from fewstep.models.caching import CGTaylor, TaylorSeer, caching
from fewstep.models.errors import MemoryLackError, NonFiniteError
from fewstep.models.graphs import MOST, Graphs
from fewstep.models.speed import record_graphs
from fewstep.samplers.guidance import AdaptiveGuidance, Thresholded

SEEDS, BATCH = range(6), 2
LABELS = [k % 10 for k in SEEDS]


def dit(**facts):
    """A conditional network, the same weights each time; a null class makes it guidable."""
    usual = {"schedule": VPDiscrete(), "prediction": "eps", "shape": (2, 8, 8)}
    usual |= {"num_classes": 10, "null_class": 10, "name": "tiny"}
    return from_module(tiny.network("dit", num_layers=2), **usual | facts)


def taped(network=None, fails=None):
    capture, network = Taped(fails), network or dit()
    return record_graphs(network, Graphs(network.module, capture)), capture


def arguments(k, rows=2):
    given = {"hidden_states": torch.full((rows, 2, 8, 8), 0.3 * k), "return_dict": False}
    return {
        **given,
        "timestep": torch.full((rows,), 90.0 * k),
        "class_labels": torch.arange(rows) % 10,
    }


@pytest.fixture(autouse=True)
def _no_grad():
    with torch.no_grad():
        yield


# Calls of the network


def test_calls_are_recorded_the_second_time_and_follow_their_inputs():
    plain, (network, capture) = tiny.network("dit", num_layers=2), taped()
    found = [network.module(**arguments(k))[0] for k in range(5)]
    for k, each in enumerate(found):  # looked at last: a replay must not write over what it gave
        assert torch.equal(each, plain(**arguments(k))[0])
    assert (capture.recordings, capture.replays) == (1, 4)


def test_another_shape_dtype_or_setting_is_another_graph():
    network, capture = taped()
    plain = tiny.network("dit", num_layers=2)
    calls = [arguments(1), arguments(1, rows=3), {**arguments(1), "return_dict": None}]
    calls += [{**arguments(1), "timestep": torch.full((2,), 90)}]
    for _ in range(3):
        for each in calls:
            assert torch.equal(network.module(**each)[0], plain(**each)[0])
    assert capture.recordings == len(calls)
    with torch.inference_mode():
        for _ in range(2):
            network.module(**arguments(1))
    assert capture.recordings == len(calls) + 1


def test_new_values_of_weights_are_seen_and_moved_weights_are_recorded_anew():
    (network, capture), plain = taped(), tiny.network("dit", num_layers=2)
    for module in (plain, network.module):
        for _ in range(2):
            module(**arguments(1))
        next(module.parameters()).mul_(2.0)
    assert torch.equal(network.module(**arguments(1))[0], plain(**arguments(1))[0])
    assert capture.recordings == 1
    last = list(network.module.parameters())[-1]
    last.data = last.data * 0.5
    list(plain.parameters())[-1].mul_(0.5)
    for _ in range(2):
        assert torch.equal(network.module(**arguments(1))[0], plain(**arguments(1))[0])
    assert capture.recordings == 2


def test_what_cannot_be_recorded_runs_as_it_is_and_one_warning_says_why():
    network, capture = taped(fails=RuntimeError("not permitted\nwhen capturing"))
    plain = tiny.network("dit", num_layers=2)
    with pytest.warns(UserWarning, match="DiTTransformer2DModel is not recorded .*: not permitted"):
        found = [network.module(**arguments(k))[0] for k in range(4)]
    for k, each in enumerate(found):
        assert torch.equal(each, plain(**arguments(k))[0])
    assert capture.tried == 1
    with warnings.catch_warnings(action="error"):
        for _ in range(2):
            network.module(**arguments(1, rows=3))
    assert capture.tried == 2


def test_outputs_that_are_no_tensors_are_refused():
    class Odd(nn.Module):
        def forward(self, x):
            return type("Out", (), {"sample": x + 1})()

    module = Odd()
    capture = Taped()
    record_graphs(replace(dit(), module=module), Graphs(module, capture))
    with pytest.warns(UserWarning, match="it returns a Out"):
        found = [module(torch.tensor(float(k))).sample for k in range(3)]
    assert found == [1.0, 2.0, 3.0]


def test_gradients_and_counted_operations_see_the_network_itself():
    network, capture = taped()
    for _ in range(3):
        with torch.enable_grad():
            network.module(**arguments(1))
    counts = []
    for _ in range(3):
        with FlopCounterMode(display=False) as counter:
            network.module(**arguments(1))
        counts.append(counter.get_total_flops())
    assert len(set(counts)) == 1
    assert counts[0] > 0
    assert capture.tried == 0


def test_only_so_many_graphs_are_held():
    network, _ = taped()
    for rows in range(1, MOST + 4):
        for _ in range(2):
            network.module(**arguments(1, rows=rows))
    assert len(network.graphs._graphs) == MOST


def test_a_cache_on_the_network_keeps_its_decisions():
    plain, (network, capture) = dit(), taped()
    for _ in range(2):
        network.module(**arguments(1))
    found = []
    for each in (plain, network):
        with caching(each, TaylorSeer(interval=2), calls=6) as ledger:
            found.append([each.module(**arguments(k))[0] for k in range(6)])
        assert ledger.hits > 0
    assert all(map(torch.equal, *found))
    assert capture.replays == 1
    network.module(**arguments(1))
    assert capture.replays == 2


# Whole runs


def runs(network, times=3, **choices):
    """So many calls of the sampler; the calls of the network itself are counted in each."""
    calls, counts = [], []
    network.module.register_forward_hook(lambda *_: calls.append(1))
    results = []
    for _ in range(times):
        calls.clear()
        results.append(Sampler(network)(SEEDS, class_labels=LABELS, batch=BATCH, **choices))
        counts.append(len(calls))
    return results, counts


def same(found, wanted):
    assert torch.equal(found.samples, wanted.samples)
    for ledger in (found.ledger, wanted.ledger):
        ledger.seconds = 0.0
    assert found.ledger.as_dict() == wanted.ledger.as_dict()
    assert found.ledger.steps == wanted.ledger.steps


@pytest.mark.parametrize("name", sorted({*ONE_BRANCH} & {*DETERMINISTIC}))
def test_a_recorded_run_is_the_run(name):
    settings, schedule, predicts = solver(name), RectifiedFlow(), Prediction.FLOW
    if settings.info.families and "flow" not in settings.info.families:
        schedule, predicts = VPDiscrete(), Prediction.EPS
    network = MIXTURE.network(schedule, (1, 2, 2), predicts)
    network = replace(network, distilled=name if name == "flow-map" else None)
    capture = Taped()
    recorded = replace(network, graphs=Graphs(nn.Identity(), capture))
    wanted = Sampler(network)(SEEDS, batch=BATCH, solver=settings, steps=6)
    with warnings.catch_warnings(action="error"):
        found = Sampler(recorded)(SEEDS, batch=BATCH, solver=settings, steps=6)
    same(found, wanted)
    assert (capture.recordings, capture.replays) == (1, 2)


@pytest.mark.parametrize(
    "choices",
    [
        {},
        {"guidance": CFG(3.0)},
        {"guidance": CFG(3.0, interval=(0.5, 5.0))},
        {"guidance": Thresholded(CFG(3.0))},
        {"cache": TaylorSeer(interval=3)},
        {"cache": TaylorSeer(interval=2, level="last-block"), "guidance": CFG(2.0)},
    ],
    ids=str,
)
def test_guidance_and_a_fixed_cache_are_recorded_with_it(choices):
    (network, _), plain = taped(), dit()
    found, counts = runs(network, nfe=7, **choices)
    wanted, _ = runs(plain, times=1, nfe=7, **choices)
    for each in found:
        same(each, wanted[0])
    assert counts[1:] == [0, 0]


def test_other_labels_and_noises_run_through_the_same_graph():
    (network, capture), plain = taped(), Sampler(dit())
    sampler = Sampler(network)
    for labels in ([1, 2, 3, 4], [5, 6, 7, 9], 8):
        choices = {"class_labels": labels, "nfe": 5, "batch": 2, "guidance": CFG(2.0)}
        same(sampler(range(20, 24), **choices), plain(range(20, 24), **choices))
    assert (capture.recordings, capture.replays) == (2, 9)  # the run; its calls in the first batch


def test_other_choices_are_other_graphs():
    (network, _), plain = taped(), Sampler(dit())
    sampler = Sampler(network)
    others = [
        {"nfe": 4},
        {"nfe": 5},
        {"steps": 5, "solver": "dpmpp-2m"},
        {"nfe": 4, "grid": "karras"},
    ]
    others += [{"nfe": 4, "guidance": CFG(w)} for w in (2.0, 3.0)]
    for _ in range(2):
        for choices in others:
            given = {**choices, "class_labels": 3, "batch": 2}
            same(sampler(range(4), **given), plain(range(4), **given))


def test_a_replayed_run_says_where_the_network_returned_nothing_finite():
    network, capture = taped()
    runs(network, times=2, nfe=4)
    next(network.module.parameters()).fill_(float("nan"))
    before = capture.replays
    with pytest.raises(NonFiniteError, match="'tiny' returned NaN or infinity at t="):
        runs(network, times=1, nfe=4)
    assert capture.replays > before


REFUSED = {
    "adds noise": {"solver": "sde-dpmpp-2", "nfe": 4},
    "chooses its own steps": {"solver": "ode-dopri5:rtol=0.5,atol=0.5"},
    "cg-taylor looks at": {"cache": CGTaylor(threshold=0.5), "nfe": 6},
    "host reads numbers": {"guidance": AdaptiveGuidance(2.0, warmup=1), "nfe": 6},
    "hold lists": {"grid": [1.0, 0.5, 0.1], "solver": "dpmpp-2m"},
    "measurements of its own": {
        "guidance": Measured("blur:1", torch.zeros(1, 2, 8, 8)),
        "solver": "ddim",
        "nfe": 4,
    },
    "see every step": {"callback": lambda *_: None, "nfe": 4},
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_recorded_whole_runs_as_without_and_says_so(why):
    (network, capture), plain = taped(), dit()
    with pytest.warns(UserWarning, match=why) as caught:
        found, _ = runs(network, times=2, **REFUSED[why])
    assert len([each for each in caught if "recorded" in str(each.message)]) == 1
    wanted, _ = runs(plain, times=1, **REFUSED[why])
    for each in found:
        same(each, wanted[0])
    assert bool(capture.replays) == (why != "cg-taylor looks at")  # of calls


def test_a_run_that_was_refused_does_not_stand_in_the_way_of_another():
    network, _ = taped()
    with pytest.warns(UserWarning, match="host reads"):
        runs(network, times=2, guidance=AdaptiveGuidance(2.0, warmup=1), nfe=6)
    _, counts = runs(network, times=2, nfe=4)
    assert counts[1] == 0


def test_too_little_memory_says_what_to_lower():
    network, _ = taped(fails=torch.OutOfMemoryError("CUDA out of memory. Tried"))
    with pytest.raises(MemoryLackError, match="sampling 2 images at once; lower batch"):
        Sampler(network)(SEEDS, class_labels=LABELS, batch=BATCH, nfe=4)
