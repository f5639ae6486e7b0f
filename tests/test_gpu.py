"""On a GPU: it gives what the CPU gives, waits for nothing, and its graphs are the runs.

Skipped where there is none: `make gpu-check` runs these and then measures. What the host decides
is tested on the CPU, in test_graphs.py and test_waits.py.
"""

import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import pytest
import tiny
import torch
from laws import DETERMINISTIC, FIXED, MIXTURE, solver
from torch.testing import assert_close

from fewstep import CFG, Prediction, RectifiedFlow, Sampler, VPDiscrete, from_module
from fewstep.models.caching import CGTaylor, TaylorSeer
from fewstep.models.denoiser import Denoiser
from fewstep.models.devices import Constant, Reading, send
from fewstep.models.errors import MemoryLackError
from fewstep.models.load import load
from fewstep.models.speed import Speed, faster, use_tf32
from fewstep.samplers.grid import time_grid
from fewstep.samplers.guidance import Thresholded, Unguided, parse_guidance
from fewstep.samplers.loop import BatchRun
from fewstep.solvers import drive

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
GPU = torch.device("cuda")
SEEDS, LABELS = range(6), [0, 1, 2, 3, 4, 10]
UNGATED = ["none", "cfg:scale=2", "cfg:scale=2,rescale=0.7", "apg:scale=2", "cfg-pp"]
UNGATED += ["cfg-zero:scale=2", "guidance-forecast:scale=2", "magnitude:scale=2"]
UNGATED += ["tcfg:scale=2", "smc:scale=2,switch=soft", "fdg:scale=2", "fbg:scale=2"]


def net(device="cuda", dtype=torch.float32, name="dit", **config):
    return from_module(
        tiny.network(name, **config).to(device, dtype),
        schedule=VPDiscrete(),
        prediction="eps",
        shape=(2, 8, 8),
        num_classes=10,
        null_class=10,
        name="tiny",
    )


def drawn(network, times=1, **choices):
    given = {"class_labels": LABELS, "batch": 2, "nfe": 8, **choices}
    found = [Sampler(network)(SEEDS, **given) for _ in range(times)]
    return found if times > 1 else found[0]


@contextmanager
def no_waiting():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture(autouse=True)
def _exact_convolutions(monkeypatch):
    """Those of fp32 may use TF32 by torch's default, which is no parity."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def process_of(settings):
    if settings.info.families and "flow" not in settings.info.families:
        return VPDiscrete(), Prediction.EPS
    return RectifiedFlow(time_scale=1000), Prediction.FLOW


# The same as on the CPU


@pytest.mark.parametrize("name", DETERMINISTIC)
def test_a_solver_gives_what_it_gives_on_the_cpu(name):
    settings = solver(name)
    schedule, _ = process_of(settings)

    def answer(x, time):
        return torch.tanh(1.5 * x) * 0.8

    ends = []
    for device in ("cpu", "cuda"):
        made = from_module(answer, schedule=schedule, prediction="x0", shape=(2, 4, 4))
        network = replace(made, device=torch.device(device))
        steps = {} if settings.info.adaptive else {"steps": 8}
        ends.append(Sampler(network)(range(4), solver=settings, **steps).samples)
    tolerance = 1e-2 if settings.info.adaptive else 2e-4  # steps are chosen from sums
    assert_close(*ends, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("name", ["dit", "unet"])
def test_a_network_gives_what_it_gives_on_the_cpu(name):
    choices = {"guidance": CFG(2.0), "solver": "unipc-3"}
    found, wanted = (drawn(net(device, name=name), **choices) for device in ("cuda", "cpu"))
    assert_close(found.samples, wanted.samples, atol=2e-3, rtol=2e-3)
    assert found.ledger.rows == wanted.ledger.rows


def test_noise_of_stochastic_solvers_is_that_of_the_cpu():
    found, wanted = (drawn(net(device), solver="sde-dpmpp-2") for device in ("cuda", "cpu"))
    assert_close(found.samples, wanted.samples, atol=2e-3, rtol=2e-3)


def test_lower_precision_stays_near():
    exact = load("fashion-dit", device="cuda")
    seeds = range(4)

    def error(network):
        a, b = (Sampler(each)(seeds, class_labels=3, nfe=8).samples for each in (network, exact))
        return float((a - b).square().mean().sqrt() / b.square().mean().sqrt())

    assert 0.0 < error(use_tf32(exact)) < 0.05
    assert 0.0 < error(load("fashion-dit", device="cuda", dtype="bf16")) < 0.3


def test_channels_last_changes_rounding_alone():
    network = faster(net(name="unet"), Speed(channels_last=True))
    assert_close(drawn(network).samples, drawn(net(name="unet")).samples, atol=2e-3, rtol=2e-3)


# Nothing waits


@pytest.mark.parametrize("name", FIXED)
def test_no_solver_waits_for_the_device(name):
    settings = solver(name)
    schedule, _ = process_of(settings)
    made = from_module(lambda x, time: 0.5 * x, schedule=schedule, prediction="x0", shape=(2, 4, 4))
    network = replace(made, device=GPU)
    grid = time_grid("logsnr", schedule, 6)
    ready, x = settings.on(grid), torch.ones(4, 2, 4, 4, device=GPU)

    def noise():
        return torch.ones(4, 2, 4, 4)

    with torch.inference_mode():
        for watch in (nullcontext, no_waiting):
            with watch():
                run = BatchRun(Denoiser(network), ready, grid, Unguided(), noise=noise)
                drive(run.steps(x), run.answer)


@pytest.mark.parametrize("spec", UNGATED)
def test_no_guidance_without_a_gate_waits(spec, monkeypatch):
    network = net()
    monkeypatch.setattr(Denoiser, "check_later", lambda self: lambda: None)  # waits at the end
    monkeypatch.setattr(Reading, "tensor", lambda self: self._host)
    guidance = Unguided() if spec == "none" else parse_guidance(spec)
    for policy in (guidance, Thresholded(guidance)):
        drawn(network, guidance=policy)
        sampler, label = Sampler(network), 3
        with no_waiting_after_labels(network, label):
            sampler(range(2), class_labels=label, batch=2, nfe=6, guidance=policy)


@contextmanager
def no_waiting_after_labels(network, label):
    """Labels go to the device once, before a run; from the first call on nothing waits."""
    before = network.module.forward

    def forward(*args, **kwargs):
        torch.cuda.set_sync_debug_mode("error")
        return before(*args, **kwargs)

    network.module.forward = forward
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
        del network.module.forward


def test_sending_reading_and_constants_do_not_wait():
    x, made = torch.arange(6.0, device=GPU), Constant(torch.tensor([2.0]))
    made.on(x)
    with no_waiting():
        reading = Reading(made.on(x) * send(torch.arange(6.0), GPU))
    assert reading.numbers() == [0.0, 2.0, 4.0, 6.0, 8.0, 10.0]


# Graphs


@pytest.mark.parametrize("name", sorted({*FIXED} & {*DETERMINISTIC}))
def test_a_recorded_run_is_the_run(name):
    settings = solver(name)
    schedule, predicts = process_of(settings)
    law = MIXTURE.network(schedule, (1, 2, 2), predicts)
    module = torch.nn.Linear(1, 1, device=GPU)
    own = torch.nn.Parameter(torch.full((1,), 0.7, device=GPU))

    def answer(x, time):
        return torch.tanh(x * own) * (1.0 + time.reshape(-1, 1, 1, 1) * 1e-4)

    made = from_module(answer, schedule=schedule, prediction=law.prediction, shape=(1, 2, 2))
    plain = replace(made, device=GPU, module=module)
    wanted = Sampler(plain)(range(8), batch=2, solver=settings, steps=6)
    recorded = faster(plain, Speed(cuda_graph=True))
    with warnings.catch_warnings(action="error"):
        for _ in range(2):
            found = Sampler(recorded)(range(8), batch=2, solver=settings, steps=6)
    assert_close(found.samples, wanted.samples, atol=1e-6, rtol=1e-5)
    assert any(graph is not None for graph in recorded.graphs._graphs.values())


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
def test_graphs_of_calls_and_runs_give_the_images(choices):
    recorded = faster(net(), Speed(cuda_graph=True))
    wanted = drawn(net(), **choices)
    with warnings.catch_warnings(action="error"):
        for found in drawn(recorded, times=3, **choices):
            assert_close(found.samples, wanted.samples, atol=1e-5, rtol=1e-5)
            assert found.ledger.rows == wanted.ledger.rows
            assert found.ledger.effective_nfe == pytest.approx(wanted.ledger.effective_nfe)


@pytest.mark.parametrize(
    ("why", "choices"),
    [
        ("adds noise", {"solver": "sde-dpmpp-2"}),
        ("cg-taylor looks at", {"cache": CGTaylor(threshold=0.5)}),
        ("host reads", {"guidance": parse_guidance("adaptive:scale=2,warmup=1")}),
    ],
)
def test_what_cannot_be_recorded_runs_as_without_and_says_so(why, choices):
    recorded, wanted = faster(net(), Speed(cuda_graph=True)), drawn(net(), **choices)
    with pytest.warns(UserWarning, match=why):
        found = drawn(recorded, times=2, **choices)
    for each in found:
        assert_close(each.samples, wanted.samples, atol=1e-5, rtol=1e-5)


def test_a_network_that_reads_its_input_is_run_as_it_is():
    class Reads(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, x, time):
            return x * self.weight * (1.0 if float(time[0]) > 0.5 else 2.0)

    made = from_module(
        Reads().to(GPU),
        schedule=RectifiedFlow(time_scale=1000),
        prediction="x0",
        shape=(1, 2, 2),
        name="reads",
    )
    wanted = Sampler(made)(range(4), batch=2, nfe=4)
    recorded = faster(made, Speed(cuda_graph=True))
    with pytest.warns(UserWarning, match="Reads is not recorded"):
        found = Sampler(recorded)(range(4), batch=2, nfe=4)
    assert torch.equal(found.samples, wanted.samples)
    assert torch.zeros(3, device=GPU).sum().item() == 0.0  # the device works on


@pytest.mark.parametrize("cache", [None, TaylorSeer(interval=2), CGTaylor(threshold=0.5)], ids=str)
def test_compiled_and_recorded_with_a_cache_is_the_cache(cache):
    torch._dynamo.reset()
    wanted = drawn(net(), cache=cache)
    with warnings.catch_warnings(action="ignore"):  # gates are not recorded
        network = faster(net(), Speed(compile=True, cuda_graph=True))
        for found in drawn(network, times=2, cache=cache):
            assert_close(found.samples, wanted.samples, atol=1e-3, rtol=1e-3)
    if cache is not None:
        assert found.ledger.cache.hits == wanted.ledger.cache.hits > 0


def test_recorded_runs_see_outliers_of_the_network():
    network = faster(net(), Speed(cuda_graph=True))
    drawn(network)
    with torch.no_grad():
        next(network.module.parameters()).fill_(float("nan"))
    with pytest.raises(ArithmeticError, match="NaN or infinity at t="):
        drawn(network)


# Memory


def test_too_little_memory_says_what_to_lower():
    network = net()
    free, _ = torch.cuda.mem_get_info()
    with pytest.raises(MemoryLackError, match="sampling 2 images at once; lower batch"):
        Sampler(replace(network, forward=lambda x, node, c: torch.empty(4 * free, device=GPU)))(
            range(2), class_labels=3, nfe=2
        )
    assert drawn(network).samples.shape == (6, 2, 8, 8)


def test_a_cache_holds_what_it_predicts():
    network = net(num_attention_heads=16, attention_head_dim=64, num_layers=6, sample_size=64)
    network = replace(network, shape=(2, 64, 64))
    policy, given = TaylorSeer(interval=3), {"class_labels": 3, "batch": 8, "nfe": 9}
    peaks = []
    for cache in (None, policy):
        Sampler(network)(range(8), cache=cache, **given)  # libraries take their workspaces
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        ledger = Sampler(network)(range(8), cache=cache, **given).ledger
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert ledger.cache.bytes_held == pytest.approx(ledger.cache.bytes_predicted, rel=0.05)
    assert peaks[1] - peaks[0] == pytest.approx(ledger.cache.bytes_predicted, rel=0.05)
