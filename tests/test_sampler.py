"""The sampler: seeds, batches, conditions, counting, guidance."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
import torch
from laws import ONE_BRANCH, solver

from fewstep import (
    CFG,
    EDM,
    GaussianMixture,
    Prediction,
    RectifiedFlow,
    Sampler,
    VPDiscrete,
    from_module,
)
from fewstep.models.errors import (
    FewstepError,
    ModelError,
    NonFiniteError,
    ScheduleError,
    SettingError,
)
from fewstep.samplers.noise import Noise

LAW = GaussianMixture.single(
    torch.tensor([0.3, -0.6, 0.1, 0.9]), torch.tensor([0.5, 0.2, 1.0, 0.7])
)
PROCESSES = [VPDiscrete(), EDM(), RectifiedFlow(shift=3.0)]


def gaussian(schedule=None, prediction=Prediction.X0):
    return LAW.network(schedule or RectifiedFlow(), (1, 2, 2), prediction)


def labelled(x, time, class_labels):
    """A class-conditional flow network: label 2 is the null class."""
    return x * (class_labels + 1.0).reshape(-1, 1, 1, 1) * 0.1


@pytest.fixture
def conditional():
    network = from_module(
        labelled,
        schedule=RectifiedFlow(time_scale=1000),
        prediction="flow",
        shape=(1, 2, 2),
        num_classes=2,
        null_class=2,
    )
    return Sampler(network)


def test_seeds_0_and_1_give_these_numbers():
    """x0 = x / 2 takes noise z to 3 z / 8 in two steps of ddim: 1.5410, -0.2934, .. for seed 0."""
    half = from_module(
        lambda x, time: x / 2,
        schedule=RectifiedFlow(time_scale=1),
        prediction="x0",
        shape=(1, 2, 2),
    )
    found = Sampler(half)([0, 1], solver="ddim", steps=2, grid="uniform", batch=1).samples
    numbers = [[0.577874, -0.110036, -0.817046, 0.213162], [0.248007, 0.100097, 0.023129, 0.232994]]
    assert torch.allclose(found.flatten(1), torch.tensor(numbers), atol=2e-6)


@pytest.mark.parametrize("name", ["unipc-2", "lms", "dpmpp-2s"])
def test_times_too_near_for_the_weights_of_a_solver_are_refused(name):
    sampler = Sampler(gaussian())
    with pytest.raises(ScheduleError, match=r"0\.5 and 0\.49999999 are too close"):
        sampler([0], solver=name, grid=[1.0, 0.5, 0.49999999, 0.0])
    assert sampler([0], solver=name, grid=[1.0, 0.5, 0.4999, 0.0]).samples.isfinite().all()


def counted(network, seen):
    def forward(x, node, conditions):
        seen.append(len(x))
        return network.forward(x, node, conditions)

    return replace(network, forward=forward)


@pytest.mark.parametrize("schedule", PROCESSES, ids=lambda s: s.family)
@pytest.mark.parametrize("name", ["unipc-2", "dpmpp-2m", "heun"])
def test_noise_becomes_data(schedule, name):
    """The images lie where the exact flow carries their noise."""
    sampler = Sampler(gaussian(schedule))
    plan = sampler.plan(solver=name, steps=100)
    start = plan.grid.nodes[0]
    x = Noise(range(8), (1, 2, 2)).draw() * schedule.noise_scale(start)
    exact = LAW.flow_map(x, start, plan.grid.nodes[-1])
    result = sampler(range(8), solver=name, steps=100)
    torch.testing.assert_close(result.samples, exact, atol=5e-3, rtol=0)


@pytest.mark.parametrize("name", ONE_BRANCH)
def test_nfe_is_predicted_and_counted_at_the_network(name):
    schedule = {"edm": EDM(), "vp": VPDiscrete()}.get("".join(solver(name).info.families))
    told = "flow-map" if name == "flow-map" else None
    seen = []
    sampler = Sampler(replace(counted(gaussian(schedule), seen), distilled=told))
    plan = sampler.plan(solver=solver(name), steps=3)
    ledger = sampler(range(3), solver=solver(name), steps=3).ledger
    assert len(seen) == plan.nfe == ledger.nfe == ledger.calls == ledger.rows_per_image


def test_image_k_depends_on_its_seed_alone():
    sampler = Sampler.from_pretrained("fashion-dit")
    together = sampler([3, 4, 5], class_labels=[1, 2, 3], nfe=4, batch=3)
    one_by_one = sampler([5, 4, 3], class_labels=[3, 2, 1], nfe=4, batch=1)
    torch.testing.assert_close(together.samples, one_by_one.samples.flip(0), atol=1e-4, rtol=0)
    assert (together.ledger.calls, one_by_one.ledger.calls) == (4, 12)
    assert together.ledger.nfe == one_by_one.ledger.nfe == 4


def test_noise_rows_come_from_their_own_generator():
    pair, alone = Noise([7, 2**62], (3, 4)), Noise([7], (3, 4))
    for _ in range(2):
        rows = pair.draw()
        assert torch.equal(rows[0], alone.draw()[0])
        assert not torch.equal(rows[0], rows[1])
        assert rows.dtype == torch.float32


def test_two_threads_share_a_sampler():
    sampler = Sampler(gaussian())
    alone = sampler(range(4), nfe=10).samples
    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(sampler, range(4), nfe=10) for _ in range(8)]:
            assert torch.equal(future.result().samples, alone)


def test_callback_sees_every_step_once():
    seen = []

    def callback(n, node, x, x0, ledger):
        seen.append((n, node.t, x.shape == x0.shape, torch.equal(x, x0), ledger.evaluations))

    sampler = Sampler(gaussian())
    times = [node.t for node in sampler.plan(solver="heun", steps=3).grid.nodes[1:]]
    result = sampler([0], solver="heun", steps=3, callback=callback)
    assert [row[:3] for row in seen] == [(n, t, True) for n, t in enumerate(times)]
    assert [row[3] for row in seen] == [False, False, True]
    assert [row[4] for row in seen] == [2, 4, 5] == [2, 4, result.ledger.nfe]


def test_scale_one_is_no_guidance_to_the_bit_and_costs_nothing(conditional):
    plain = conditional(range(3), class_labels=1, nfe=6)
    guided = conditional(range(3), class_labels=1, nfe=6, guidance=CFG(1.0))
    assert torch.equal(plain.samples, guided.samples)
    assert plain.ledger.rows == guided.ledger.rows


def test_cfg_extrapolates_from_the_null_class(conditional):
    """The network is linear in its label, so scale 3 on label 1 is label 2 + 3 (1 - 2) = -1."""
    guided = conditional(range(3), class_labels=1, nfe=6, guidance=CFG(3.0))
    network = replace(
        conditional.network,
        forward=lambda x, node, conditions: labelled(x, None, torch.full((len(x),), -1.0)),
        num_classes=0,
        needs=(),
    )
    torch.testing.assert_close(guided.samples, Sampler(network)(range(3), nfe=6).samples)
    assert (guided.ledger.nfe, guided.ledger.rows_per_image, guided.ledger.calls) == (6, 12, 6)


def test_scale_zero_is_the_null_class(conditional):
    none = conditional(range(3), class_labels=1, nfe=6, guidance=CFG(0.0))
    assert torch.equal(none.samples, conditional(range(3), nfe=6).samples)
    assert none.ledger.rows_per_image == 6


def test_interval_guides_inside_only(conditional):
    plan = conditional.plan(nfe=8)
    inside = sum(0.5 < node.kappa <= 2.0 for node in plan.grid.nodes[:-1])
    ledger = conditional(range(2), nfe=8, guidance=CFG(2.0, interval=(0.5, 2.0))).ledger
    assert 0 < inside < 8
    assert ledger.rows_per_image == 8 + inside


def test_tensor_conditions_reach_the_network_by_branch():
    def network(x, time, *, shift):
        return x * 0 + shift.reshape(-1, 1, 1, 1)

    sampler = Sampler(
        from_module(
            network, schedule=RectifiedFlow(time_scale=1000), prediction="x0", shape=(1, 2, 2)
        )
    )
    each = torch.tensor([[1.0], [2.0], [3.0]])
    result = sampler(range(3), conditions={"shift": each}, nfe=3, batch=2)
    assert torch.equal(result.samples, each.reshape(3, 1, 1, 1).expand(3, 1, 2, 2))
    negative = {"shift": torch.zeros(1, 1)}
    guided = sampler(
        range(3), conditions={"shift": each}, negative=negative, guidance=CFG(2.0), nfe=3
    )
    torch.testing.assert_close(guided.samples, 2 * result.samples)
    with pytest.raises(ModelError, match="needs shift"):
        sampler(range(3), nfe=3)
    with pytest.raises(SettingError, match="2 rows for 3 images"):
        sampler(range(3), conditions={"shift": each[:2]}, nfe=3)


def test_latents_are_decoded():
    def decode(x):
        return x.repeat(1, 3, 4, 4)

    samples = Sampler(replace(gaussian(), decode=decode))([0], nfe=2).samples
    assert torch.equal(samples, decode(Sampler(gaussian())([0], nfe=2).samples))


def test_samples_are_ordinary_tensors():
    samples = Sampler(gaussian())([0], nfe=2).samples
    assert not samples.is_inference()
    assert samples.dtype == torch.float32


def test_low_precision_networks_keep_a_float32_state():
    sampler = Sampler.from_pretrained("fashion-dit", dtype="bf16")
    seen = []
    result = sampler(
        [0], class_labels=3, nfe=2, callback=lambda n, node, x, x0, ledger: seen.append(x.dtype)
    )
    assert seen == [torch.float32] * 2
    exact = Sampler.from_pretrained("fashion-dit")([0], class_labels=3, nfe=2)
    assert (result.samples - exact.samples).abs().mean() < 0.05


def test_nan_stops_the_run_at_its_first_call():
    seen = []
    broken = counted(
        replace(gaussian(RectifiedFlow(time_scale=1)), forward=lambda x, node, c: x * torch.nan),
        seen,
    )
    with pytest.raises(NonFiniteError, match=r"t=1 .*fp32"):
        Sampler(broken)([0], nfe=5)
    assert len(seen) == 1


BAD = [
    ({"seeds": []}, "no seeds"),
    ({"seeds": [-1]}, "seed -1"),
    ({"batch": 0}, "batch"),
    ({"class_labels": [0]}, "1 class labels for 2 seeds"),
    ({"class_labels": 3}, "class 3 does not exist"),
    ({"class_labels": -1}, "class -1 does not exist"),
    ({"nfe": 0}, "at least 1"),
    ({"nfe": 3, "steps": 3}, "not both"),
    ({"solver": "unipc"}, "did you mean"),
    ({"grid": [1.0, 0.5, 0.7, 0.0]}, "must fall"),
    ({"grid": [1.0, 0.0], "nfe": 2}, "explicit times"),
    ({"grid": [1.0, 0.0], "final": "denoise"}, "explicit times"),
    ({"grid": [2.0, 0.0]}, "outside"),
    ({"final": "never"}, "end rule"),
]


@pytest.mark.parametrize(("choices", "text"), BAD, ids=lambda v: str(v))
def test_bad_calls_are_refused_before_the_network_runs(conditional, choices, text):
    seen = []
    sampler = Sampler(counted(conditional.network, seen))
    with pytest.raises(FewstepError, match=text):
        sampler(**{"seeds": [0, 1], **choices})
    assert seen == []


def test_explicit_times_are_the_grid():
    sampler = Sampler(gaussian())
    times = [node.t for node in sampler.plan(grid="uniform", steps=4).grid.nodes]
    a = sampler([0], grid=times, solver=solver("ddim")).samples
    assert torch.equal(a, sampler([0], grid="uniform", steps=4, solver="ddim").samples)


def test_a_misspelt_choice_is_no_silent_default():
    with pytest.raises(TypeError, match="slover"):
        Sampler(gaussian())([0], slover="ddim")
