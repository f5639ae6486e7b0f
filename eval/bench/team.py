"""Several processes on one job: `accelerate launch -m fewstep.cli ...` or torchrun start them.

Work is split into whole batches, dealt out in turn, so that every image is drawn in the same batch
whatever the number of processes; what they gather is merged in the order of their ranks. Without a
launcher there is one process and nothing here waits for anything.
"""

import atexit
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from ...models.errors import FewstepError, SettingError

T = TypeVar("T")
PATIENCE = timedelta(days=1)  # a process may wait this long for the others to finish a cell


@dataclass(frozen=True)
class Team:
    """The processes of this run, seen from one of them.

    rank, size: this one's number and how many there are; rank 0 writes.
    device:     where this one's networks live.
    """

    rank: int = 0
    size: int = 1
    device: str = "cpu"

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, parts: Sequence[T]) -> Sequence[T]:
        """Returns every size-th part, starting at this rank."""
        return parts[self.rank :: self.size]

    def gather(self, value: T) -> list[T]:
        """Returns the value of each process, by rank, on all of them; for small ones."""
        if self.size == 1:
            return [value]
        from accelerate.utils import gather_object

        gathered: list[T] = gather_object([value])
        return gathered

    def collect(self, value: T) -> list[T]:
        """Returns the value of each process on rank 0, which has the room; else one's own."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        collected: list[T] = [value] * self.size if self.leads else [value]
        dist.gather_object(value, collected if self.leads else None, dst=0)
        return collected

    def together(self, work: Callable[[], T]) -> T:
        """Returns what this process made of its work, once all have done theirs.

        Raises:
            FewstepError: in every process if it was raised in one, so that none waits in vain.
        """
        try:
            made, failure = work(), None
        except FewstepError as error:
            if self.size == 1:
                raise
            failure = str(error)  # not every error can be sent
        for rank, reason in enumerate(self.gather(failure)):
            if reason is not None:
                raise FewstepError(f"{reason} (process {rank} of {self.size})")
        return made

    def lead(self, work: Callable[[], T]) -> T:
        """Returns what rank 0, and it alone, made of a work."""
        made = self.together(lambda: work() if self.leads else None)
        first = self.gather(made)[0]
        return first  # type: ignore[return-value]


def team(device: str = "cpu") -> Team:
    """Returns the team that the launcher made, or this process alone.

    Args:
        device: cpu, or cuda for one GPU per process.

    Raises:
        SettingError: for a device with a number, if there are several processes.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Team(device=device)
    if ":" in device:
        raise SettingError(f"each process has its own device; write {device.partition(':')[0]!r}")
    import torch.distributed as dist

    # Imported later, its functions would have the group as a default argument and keep it alive.
    import torch.distributed.nn  # noqa: F401
    from accelerate import PartialState

    begun = dist.is_initialized()
    state = PartialState(cpu=device == "cpu", timeout=PATIENCE)
    if not begun:  # gloo's threads abort a process that ends before them
        atexit.register(state.destroy_process_group)
    place = str(state.device)
    return Team(state.process_index, state.num_processes, place)
