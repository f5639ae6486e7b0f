"""Runs a table with a learned correction."""

from collections.abc import Generator
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.denoiser import Network
from ..models.errors import ScheduleError
from ..models.schedule import Node
from .artefact import Artefact
from .base import Query
from .correction import Correction, CorrectionNet, find_scale
from .table_steps import TableMemory, TableSteps


class CorrectedMemory(NamedTuple):
    """The memory of the table, the state that the run started from, and all predictions."""

    table: TableMemory
    start: Tensor | None = None
    predictions: tuple[Tensor, ...] = ()


class CorrectedSteps:
    """Runs the table of a schedule and adds its correction; see `correction`.

    Its steps ask for one prediction each.
    """

    def __init__(self, schedule: Artefact, correction: Correction) -> None:
        self.schedule, self.correction = schedule, correction
        self.table_steps = TableSteps(schedule.table())
        self._nets = {torch.device("cpu"): correction.load_net()}

    def init(self) -> CorrectedMemory:
        return CorrectedMemory(self.table_steps.init())

    def step(
        self, x: Tensor, state: CorrectedMemory, t: Node, s: Node
    ) -> Generator[Query, Tensor, tuple[Tensor, CorrectedMemory]]:
        """Takes the step of the table, and corrects the state after it if it is one of those."""
        n, start = state.table.n, state.start
        start = x / find_scale(t) if start is None else start
        work = self.table_steps.step(x, state.table, t, s)
        predictions = (*state.predictions, (yield next(work)))
        try:
            work.send(predictions[-1])
        except StopIteration as done:
            x_s, table = done.value
        if n in self.correction.steps:
            self._correct(x_s, n, s, start, predictions)
        return x_s, CorrectedMemory(table, start, predictions)

    def _correct(
        self, x: Tensor, n: int, s: Node, start: Tensor, predictions: tuple[Tensor, ...]
    ) -> None:
        """Adds the correction of step n to the state x (B, *) after it."""
        if x.numel() == 1:  # of a dry run
            return
        if tuple(x.shape[1:]) != self.correction.shape:
            raise ScheduleError(
                f"the correction in this schedule is for samples of shape {self.correction.shape},"
                f" not {tuple(x.shape[1:])}; take a schedule without it"
            )
        scale = find_scale(s)
        given = self.correction.gather(n, start, x / scale, predictions)
        x.add_(self.net_on(x.device)(given.float()).reshape(x.shape), alpha=scale)

    def net_on(self, device: torch.device) -> CorrectionNet:
        """Returns the network on a device, where it is copied to once."""
        if device not in self._nets:
            with torch.inference_mode(False):  # a later run may record gradients
                self._nets[device] = self.correction.load_net().to(device)
        return self._nets[device]

    def check_network(self, network: Network) -> None:
        """Raises ScheduleError for a network that the schedule or its correction is not for."""
        self.correction.check_network(network)
        self.schedule.check_network(network)


def count_multiplications(solver: object, n: int) -> int:
    """Returns the multiply-adds that a learned correction takes for one sample in step n."""
    if not isinstance(solver, CorrectedSteps) or n not in solver.correction.steps:
        return 0
    return solver.correction.multiplications
