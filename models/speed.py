"""Running the same network faster: compiled, in another memory layout, without the host.

None of it changes what is computed but for rounding, and all of it is decided once, when a network
is loaded: `load(source, speed=Speed(compile=True))`.
"""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from .errors import SettingError
from .graphs import CudaCapture, Graphs, record_calls
from .modules import hold
from .network import Network
from .schedule import Node


@dataclass(frozen=True)
class Speed:
    """The ways to run a network faster.

    compile:       by torch.compile, in the default mode of inductor.
    channels_last: convolutions in the layout (B, H, W, C), which is theirs on tensor cores.
    cuda_graph:    its calls, and whole runs where they allow it, are recorded once and replayed.
    """

    compile: bool = False
    channels_last: bool = False
    cuda_graph: bool = False


def faster(network: Network, speed: Speed) -> Network:
    """Returns the network made faster; its module is changed in place and stays so.

    Attach caches, adapters and the like as usual: a cache works on a compiled network. What
    changes the module itself (LoRA, quantisation) comes before this.

    Raises:
        SettingError: for a plain function, a layout that the network has no convolutions for, or
            CUDA graphs elsewhere than on a CUDA device.
    """
    if speed == Speed():
        return network
    module = _require_module(network)
    if speed.cuda_graph and network.device.type != "cuda":
        raise SettingError(
            f"CUDA graphs need a CUDA device and {network.name} is on {network.device}; add"
            " --device cuda, or drop --cuda-graph"
        )
    with hold(module, alone=True):
        if speed.channels_last:
            _use_channels_last(module, network.name)
        if speed.compile:
            _compile(module, network.name)
    if not speed.cuda_graph:
        return network
    return record_graphs(network, Graphs(module, CudaCapture(network.device)))


def record_graphs(network: Network, graphs: Graphs) -> Network:
    """Records the calls of a network in `graphs`, in which its sampler records whole runs."""
    module = _require_module(network)
    with hold(module, alone=True):
        record_calls(module, graphs)
    return replace(network, graphs=graphs)


def use_tf32(network: Network) -> Network:
    """Lets matrix products of a float32 network round their factors to TF32 (10 bits).

    Convolutions may do so in fp32 already, by torch's own default. Where there is no TF32 it warns
    and changes nothing.
    """
    if network.device.type != "cuda":
        warnings.warn(
            f"tf32 is a mode of CUDA devices; on {network.device.type} it is fp32", stacklevel=2
        )
        return network

    def forward(x: Tensor, node: Node, conditions: Mapping[str, Any]) -> Tensor:
        with _set_matmul_precision("high"):
            return network.forward(x, node, conditions)

    return replace(network, forward=forward)


@contextmanager
def _set_matmul_precision(precision: str) -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _require_module(network: Network) -> nn.Module:
    if network.module is None:
        raise SettingError(
            f"{network.name} is a plain function, which is run as it is; make it with from_module"
            " from a torch module, or drop the speed options"
        )
    return network.module


def _use_channels_last(module: Any, name: str) -> None:
    if not any(isinstance(each, nn.Conv2d) for each in module.modules()):
        raise SettingError(f"{name} has no 2D convolutions; drop --channels-last")
    module.to(memory_format=torch.channels_last)


def _compile(module: nn.Module, name: str) -> None:
    """Compiles in place, at the first call; a compiled module stays unchanged."""
    if vars(module).get("_compiled_call_impl") is not None:
        return
    backend = Backend(name)
    try:
        module.compile(backend=backend)
    except RuntimeError as error:  # such as a Python that dynamo does not know
        backend.give_up(error)


@dataclass
class Backend:
    """Inductor, with the traced code in its place where it fails."""

    name: str
    broken: bool = False
    _lower: Callable[..., Any] | None = field(default=None)

    def __call__(self, graph: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        plain: Callable[..., Any] = graph.forward
        if self.broken:
            return plain
        try:
            return self._lower_graph(graph, inputs)
        except Exception as error:  # inductor, Triton and the C++ compiler raise what they like
            self.give_up(error)
            return plain

    def give_up(self, error: Exception) -> None:
        """Says once why the network runs uncompiled."""
        self.broken = True
        text = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(f"{self.name} cannot be compiled and runs as it is: {text}", stacklevel=2)

    def _lower_graph(self, graph: Any, inputs: Sequence[Any]) -> Callable[..., Any]:
        if self._lower is None:
            from torch._inductor import compile_fx  # slow to import

            lower: Any = compile_fx.compile_fx
            self._lower = lower
        compiled: Callable[..., Any] = self._lower(graph, inputs)
        return compiled
