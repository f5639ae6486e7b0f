"""CUDA graphs: work on tensors is recorded once and replayed, without the host launching kernels.

A graph holds kernels with the addresses they read and write, so a replay needs its inputs copied to
where they were, and its outputs copied away before the next one. What the host decided while it was
recorded (shapes, branches, coefficients, which blocks a cache ran) is fixed in it: all of that is
the key under which a graph is found. Work that lets the host wait for the device cannot be
recorded; it is run without a graph, and one warning says why.
"""

import warnings
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .caching import find_attachment
from .devices import Reading
from .modules import hold

Replay = Callable[[], None]
Capture = Callable[[Callable[[], Any]], tuple[Any, Replay]]
MOST = 16  # graphs of one network; beyond that the oldest are dropped


@dataclass(frozen=True)
class Captured:
    """One graph, with its inputs, its outputs and its replay.

    work: the recorded function, whose constants the graph reads, so that it must not be freed.
    """

    inputs: list[Tensor]
    outputs: Any
    replay: Replay
    work: Callable[[Any], Any]


class CudaCapture:
    """Records work in a CUDA graph, all in one pool of memory.

    The pool can be shared since replays follow each other on one stream and no output is read
    after the next replay.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.pool = device, torch.cuda.graph_pool_handle()

    def __call__(self, work: Callable[[], Any]) -> tuple[Any, Replay]:
        """Raises RuntimeError if the host waits for the device anywhere in it."""
        with torch.cuda.device(self.device):
            return self._record(work)

    def _record(self, work: Callable[[], Any]) -> tuple[Any, Replay]:
        streams: Any = torch.cuda
        here, aside = streams.current_stream(), streams.Stream()
        aside.wait_stream(here)
        with torch.cuda.stream(aside), _forbid_waiting():
            work()
        here.wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self.pool, capture_error_mode="thread_local"):
            outputs = work()
        return outputs, graph.replay


@contextmanager
def _forbid_waiting() -> Iterator[None]:
    """Raises at every wait of the host for the device, before a recording, where it is harmless."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


@dataclass
class Graphs:
    """The recorded graphs of one network.

    module:  the network; when its weights have moved, everything is recorded again.
    capture: runs work, a function without arguments, once more, records it and returns its outputs
             and what replays it into them: a `CudaCapture`.
    """

    module: nn.Module
    capture: Capture
    _graphs: dict[Hashable, Captured | None] = field(default_factory=dict)
    _failed: set[Hashable] = field(default_factory=set)
    _said: set[tuple[str, str]] = field(default_factory=set)
    _weights: tuple[int, ...] = ()

    recording: ClassVar[bool] = False  # of any network: one recording cannot hold another

    def run(self, work: Callable[[Any], Any], key: Hashable, inputs: Any, what: str) -> Any:
        """Returns work(inputs), replayed if possible, by one thread at a time.

        The first time it runs without a graph, which leaves libraries and compilers ready; it is
        recorded the second time, so that work that is run only once costs nothing.

        Args:
            work: a function from tensors on one device to tensors, without side effects.
            key: all that it depends on beside the inputs; each shape of inputs has its own graph.
            inputs: tensors and plain values in tuples, lists and dicts.
            what: its name in a warning.
        """
        with hold(self.module, alone=True):
            return self._run(work, key, inputs, what)

    def _run(self, work: Callable[[Any], Any], key: Hashable, inputs: Any, what: str) -> Any:
        tensors: list[Tensor] = []
        if not self._can_record() or not is_hashable(
            full_key := (key, _read_modes(), _describe_inputs(inputs, tensors))
        ):
            return work(inputs)
        self._check_weights()
        if full_key in self._failed or full_key not in self._graphs:
            self._keep(full_key, None)
            return work(inputs)
        graph = self._graphs[full_key] or self._record(work, inputs, what)
        if graph is None:
            self._failed.add(full_key)
            return work(inputs)
        self._graphs[full_key] = graph
        for static, fresh in zip(graph.inputs, tensors, strict=True):
            static.copy_(fresh, non_blocking=True)
        graph.replay()
        return _clone_tensors(graph.outputs)

    def refuse(self, what: str, why: str) -> None:
        """Warns, once, of work that is not recorded."""
        if (what, why) not in self._said:
            self._said.add((what, why))
            warnings.warn(f"{what} is not recorded in a CUDA graph: {why}", stacklevel=3)

    def _can_record(self) -> bool:
        """Tells whether to record: not in a recording, nor with gradients or watched operations."""
        watched = torch._C._len_torch_dispatch_stack() > 0
        return not (Graphs.recording or torch.is_grad_enabled() or watched)

    def _check_weights(self) -> None:
        now = tuple(each.data_ptr() for each in self._parameters())
        if now != self._weights:
            self._graphs.clear()
            self._failed.clear()
            self._weights = now

    def _parameters(self) -> list[Tensor]:
        if "_listed" not in vars(self):  # walking a large network takes longer than a replay
            self._listed = [*self.module.parameters(), *self.module.buffers()]
        return self._listed

    def _keep(self, key: Hashable, graph: Captured | None) -> None:
        while len(self._graphs) >= MOST:
            del self._graphs[next(iter(self._graphs))]
        self._graphs[key] = graph

    def _record(self, work: Callable[[Any], Any], inputs: Any, what: str) -> Captured | None:
        static, tensors = _clone_tensors(inputs), list[Tensor]()
        _describe_inputs(static, tensors)
        try:
            with _mark_recording():
                outputs, replay = self.capture(lambda: work(static))
            _check_plain(outputs)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, TypeError) as error:
            self.refuse(what, (str(error).strip() or type(error).__name__).splitlines()[0])
            return None
        return Captured(tensors, outputs, replay, work)


def record_calls(module: nn.Module, graphs: Graphs) -> None:
    """Records the calls of a module, in place; around its compiled call if it has one.

    With a cache on it its calls run as they are: what the cache decides is inside them.
    """
    attributes = vars(module)
    if isinstance(attributes.get("_compiled_call_impl"), GraphedForward):
        attributes["_compiled_call_impl"].graphs = graphs
        return
    inner = attributes.get("_compiled_call_impl") or module._call_impl
    attributes["_compiled_call_impl"] = GraphedForward(module, inner, graphs)


@dataclass
class GraphedForward:
    """The call of a module that is recorded and replayed."""

    module: nn.Module
    inner: Callable[..., Any]
    graphs: Graphs

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if find_attachment(self.module) is not None:
            return self.inner(*args, **kwargs)
        name = f"the network {type(self.module).__name__}"
        return self.graphs.run(self._run, None, (args, kwargs), name)

    def _run(self, given: Any) -> Any:
        args, kwargs = given
        return self.inner(*args, **kwargs)


@contextmanager
def _mark_recording() -> Iterator[None]:
    Graphs.recording, Reading.allowed = True, False
    try:
        yield
    finally:
        Graphs.recording, Reading.allowed = False, True


def _read_modes() -> Hashable:
    """Returns the modes of torch that kernels depend on."""
    precision = torch.get_float32_matmul_precision()
    return torch.is_inference_mode_enabled(), torch.is_autocast_enabled(), precision


def _describe_inputs(tree: Any, tensors: list[Tensor]) -> Any:
    """Returns the facts of inputs that a graph depends on; collects the tensors."""
    if isinstance(tree, Tensor):
        tensors.append(tree)
        return tree.shape, tree.dtype, tree.device
    if isinstance(tree, dict):
        return tuple((name, _describe_inputs(each, tensors)) for name, each in tree.items())
    if type(tree) in (list, tuple):
        return type(tree), tuple(_describe_inputs(each, tensors) for each in tree)
    return type(tree), tree


def _clone_tensors(tree: Any) -> Any:
    if isinstance(tree, Tensor):
        return tree.clone()
    if isinstance(tree, dict):
        return {name: _clone_tensors(each) for name, each in tree.items()}
    if type(tree) in (list, tuple):
        return type(tree)(_clone_tensors(each) for each in tree)
    return tree


def _check_plain(outputs: Any) -> None:
    if type(outputs) not in (tuple, list, dict) and not isinstance(outputs, Tensor):
        raise TypeError(f"it returns a {type(outputs).__name__}, whose tensors are unknown")


def is_hashable(key: Any) -> bool:
    """Tells whether a value is hashable, as the key of a graph must be."""
    try:
        hash(key)
    except TypeError:
        return False
    return True
