"""How a network is run: compiled, in another layout, in TF32, and what is refused."""

import warnings
from dataclasses import replace

import pytest
import tiny
import torch
from torch.testing import assert_close

from fewstep import CFG, Sampler, VPDiscrete, from_module
from fewstep.models import speed
from fewstep.models.caching import TaylorSeer
from fewstep.models.errors import MemoryLackError, ModelError, SettingError
from fewstep.models.gaussian import GaussianMixture
from fewstep.models.load import load
from fewstep.models.speed import Backend, Speed, faster, use_tf32

LABELS = [3, 7, 9]


def net(name="dit", **config):
    return from_module(
        tiny.network(name, **config),
        schedule=VPDiscrete(),
        prediction="eps",
        shape=(2, 8, 8),
        num_classes=10,
        null_class=10,
        name="tiny",
    )


def drawn(network, **choices):
    given = {"class_labels": LABELS, "batch": 3, "nfe": 6, "guidance": CFG(2.0), **choices}
    return Sampler(network)(range(3), **given)


@pytest.fixture
def traced(monkeypatch):
    """The graphs that inductor was given; they run as they were traced."""
    graphs = []

    def lower(backend, graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(Backend, "_lower_graph", lower)
    torch._dynamo.reset()
    return graphs


def test_nothing_asked_for_changes_nothing():
    network = net()
    assert faster(network, Speed()) is network
    assert load(network, speed=Speed()) is network
    assert "_compiled_call_impl" not in vars(network.module)


@pytest.mark.slow
def test_compiled_is_the_network_and_is_traced_once(traced):
    network = faster(net(), Speed(compile=True))
    with warnings.catch_warnings(action="error"):
        found = [drawn(network) for _ in range(2)]
    assert len(traced) == 1
    for each in found:
        assert_close(each.samples, drawn(net()).samples)


@pytest.mark.slow
@pytest.mark.parametrize("cache", [TaylorSeer(interval=2, level="last-block"), TaylorSeer(2)])
def test_a_cache_on_a_compiled_network_is_the_cache(traced, cache):
    network = faster(net(), Speed(compile=True))
    drawn(network)  # compiled before the cache comes
    found, wanted = drawn(network, cache=cache), drawn(net(), cache=cache)
    assert_close(found.samples, wanted.samples)
    assert found.ledger.cache.hits == wanted.ledger.cache.hits > 0
    assert found.ledger.effective_nfe == wanted.ledger.effective_nfe
    before = len(traced)
    drawn(network, cache=cache)
    assert len(traced) == before


def test_a_failing_compiler_leaves_the_network_as_it_is_and_one_warning(monkeypatch):
    calls = []

    def lower(backend, graph, inputs):
        calls.append(1)
        raise RuntimeError("No working C++ compiler found\nin all the usual places")

    monkeypatch.setattr(Backend, "_lower_graph", lower)
    torch._dynamo.reset()
    network = faster(net(), Speed(compile=True))
    with pytest.warns(UserWarning, match="tiny cannot be compiled .*: No working C") as caught:
        found = drawn(network)
    assert len([each for each in caught if "compiled" in str(each.message)]) == 1
    assert_close(found.samples, drawn(net()).samples)
    drawn(network, guidance=None)  # another shape is traced anew, but not compiled again
    assert len(calls) == 1


def test_a_python_that_cannot_compile_says_so(monkeypatch):
    def compile_(self, **options):
        raise RuntimeError("torch.compile is not supported on Python 4.0+")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_)
    with pytest.warns(UserWarning, match="tiny cannot be compiled and runs as it is: torch.comp"):
        network = faster(net(), Speed(compile=True))
    assert torch.equal(drawn(network).samples, drawn(net()).samples)


@pytest.mark.slow
def test_inductor_itself_compiles_the_network(monkeypatch):
    lowered, inductor = [], Backend._lower_graph

    def lower(backend, graph, inputs):
        lowered.append(inductor(backend, graph, inputs))
        return lowered[-1]

    monkeypatch.setattr(Backend, "_lower_graph", lower)
    torch._dynamo.reset()
    network = faster(net(num_layers=1), Speed(compile=True))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*cannot be compiled")
        found = drawn(network, nfe=2)
    assert_close(found.samples, drawn(net(num_layers=1), nfe=2).samples, atol=1e-4, rtol=1e-4)
    assert len(lowered) == 1


def test_channels_last_reaches_the_convolutions_and_changes_no_image():
    network = faster(net("unet"), Speed(channels_last=True))
    weights = [p for p in network.module.parameters() if p.ndim == 4 and min(p.shape[1:]) > 1]
    assert weights
    assert all(each.is_contiguous(memory_format=torch.channels_last) for each in weights)
    assert_close(drawn(network).samples, drawn(net("unet")).samples, atol=1e-4, rtol=1e-4)


def test_tf32_on_a_cpu_says_that_it_is_nothing():
    network = net()
    with pytest.warns(UserWarning, match="tf32 is a mode of CUDA devices; on cpu it is fp32"):
        assert use_tf32(network) is network
    with pytest.warns(UserWarning, match="tf32"):
        assert next(load("fashion-dit", dtype="tf32").module.parameters()).dtype is torch.float32


def test_tf32_is_on_during_the_call_and_off_after_it_even_when_it_fails():
    seen = []

    def forward(x, node, conditions):
        seen.append(torch.get_float32_matmul_precision())
        raise SettingError("so")

    network = use_tf32(replace(net(), forward=forward, device=torch.device("cuda")))
    with pytest.raises(SettingError, match="so"):
        network.forward(torch.zeros(1), None, {})
    assert seen == ["high"]
    assert torch.get_float32_matmul_precision() == "highest"


REFUSED = {
    "CUDA graphs need a CUDA device and tiny is on cpu": (net, Speed(cuda_graph=True)),
    "has no 2D convolutions; drop --channels-last": (
        lambda: replace(net(), module=torch.nn.Linear(2, 2), name="flat"),
        Speed(channels_last=True),
    ),
    "law is a plain function": (
        lambda: replace(
            GaussianMixture.single(torch.zeros(4), torch.ones(4)).network(VPDiscrete(), (1, 2, 2)),
            name="law",
        ),
        Speed(compile=True),
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_cannot_be_is_refused_before_anything_runs(why):
    make, wanted = REFUSED[why]
    with pytest.raises(SettingError, match=why):
        load(make(), speed=wanted)


def test_the_host_running_out_of_memory_says_what_to_lower():
    def forward(x, node, conditions):
        return torch.empty(2**50)

    with pytest.raises(MemoryLackError, match="3 images at once; lower batch"):
        drawn(replace(net(), forward=forward))

    def full(x, node, conditions):  # some devices say so in a plain RuntimeError
        raise RuntimeError("MPS backend out of memory (MPS allocated: 18.02 GB)")

    with pytest.raises(MemoryLackError, match="3 images at once; lower batch"):
        drawn(replace(net(), forward=full))

    def wrong(x, node, conditions):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(ModelError, match="mat1"):
        drawn(replace(net(), forward=wrong))


def test_the_module_of_speed_is_not_loaded_with_its_compiler():
    assert not hasattr(speed, "compile_fx")
