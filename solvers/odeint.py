"""torchdiffeq as the integrator of an `ode-*` solver.

torchdiffeq calls the function that it integrates, and a step of ours asks for x0 and is sent it. So
its integration runs in a thread of its own, one question and one answer at a time.
"""

import queue
from collections.abc import Callable, Generator
from dataclasses import dataclass
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from ..models.errors import FewstepError, SettingError
from ..models.schedule import Node
from .base import Query
from .coordinates import Straight

Ask = Callable[[Tensor, Node], Tensor]


@dataclass(frozen=True, slots=True)
class OdeintSteps:
    """dy/dtau = (y - x0) / tau from node to node by `torchdiffeq.odeint`; the state counts calls.

    method:   its name there; tolerances mean what they mean there.
    options:  of `odeint`, such as first_step.
    check:    raises if a run has made too many calls: check(calls, node).
    """

    line: Straight
    method: str
    rtol: float
    atol: float
    options: dict[str, Any]
    check: Callable[[int, Node], None]

    def init(self) -> int:
        return 0

    def step(
        self, x: Tensor, state: int, t: Node, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, int]]:
        """Steps from t to s; by x0 alone if s is clean data."""
        if s.sigma == 0.0:
            return (yield x, t) * s.alpha, state + 1
        calls = state

        def integrate(ask: Ask) -> Tensor:
            def find_slope(tau: Tensor, y: Tensor) -> Tensor:
                nonlocal calls
                node = self._find_node(float(tau), t, s)
                self.check(calls, node)
                calls += 1
                x0 = ask(y * self.line.scale(node), node)
                return (y - x0) / self.line.tau(node)

            return self._integrate(find_slope, x / self.line.scale(t), t, s)

        stream = torch.cuda.current_stream(x.device) if x.is_cuda else None
        y = yield from converse(integrate, stream)
        return y * self.line.scale(s), calls

    def _find_node(self, tau: float, t: Node, s: Node) -> Node:
        """Returns the node of a time, which is exact at the ends and never beyond them."""
        if tau >= self.line.tau(t):
            return t
        return s if tau <= self.line.tau(s) else self.line.node_at(tau)

    def _integrate(
        self, slope: Callable[[Tensor, Tensor], Tensor], y: Tensor, t: Node, s: Node
    ) -> Tensor:
        from torchdiffeq import odeint

        ends = [self.line.tau(t), self.line.tau(s)]
        taus = torch.tensor(ends, dtype=torch.float64, device=y.device)
        options = {**self.options, "dtype": torch.float64, "step_t": taus[1:]}
        try:
            found: Tensor = odeint(
                slope, y, taus, rtol=self.rtol, atol=self.atol, method=self.method, options=options
            )[-1]
        except AssertionError as error:  # of its own, such as an underflow of the step
            raise SettingError(
                f"torchdiffeq could not integrate with {self.method}: {error}; raise rtol and atol"
            ) from error
        return found


class _Left(FewstepError):
    """The conversation was left before its end."""


def converse(
    work: Callable[[Ask], Tensor], stream: torch.cuda.Stream | None = None
) -> Generator[Query, Tensor, Tensor]:
    """Yields what `work` asks, in a thread of its own, and returns what it returns.

    work: calls its argument with (x, node) for x0. Its errors are raised here, and it ends with an
        error if this generator is closed. It runs with the caller's gradient mode.
    stream: the CUDA stream that it runs on; None is the default one.
    """
    asked: queue.SimpleQueue[Any] = queue.SimpleQueue()
    answered: queue.SimpleQueue[Tensor | None] = queue.SimpleQueue()
    inference, gradient = torch.is_inference_mode_enabled(), torch.is_grad_enabled()

    def ask(x: Tensor, node: Node) -> Tensor:
        asked.put((x, node))
        answer = answered.get()
        if answer is None:
            raise _Left("the run was left")
        return answer

    def run() -> None:
        modes = torch.inference_mode(inference), torch.set_grad_enabled(gradient)
        try:
            with modes[0], modes[1], torch.cuda.stream(stream):
                asked.put(work(ask))
        except BaseException as error:
            asked.put(error)

    thread = Thread(target=run, name="odeint", daemon=True)
    thread.start()
    try:
        while isinstance(query := asked.get(), tuple):
            answered.put((yield query))
    finally:
        answered.put(None)
        thread.join()
    if isinstance(query, BaseException):
        raise query
    result: Tensor = query
    return result
