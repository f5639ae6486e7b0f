"""`fewstep bench gpu`: what a run costs beside its network, on one device, beside diffusers.

Small networks: images per second of whole runs, from noise to samples on the host, ours and the
loop of a diffusers pipeline; and how far a run is from its calls of the network alone. Large ones,
of published sizes with random weights: the share of solver and guidance in a run, and what caches
save in time against what they save in blocks. Random weights say nothing about quality, and gates
are set so that they skip a fixed share.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch

from ...models.devices import memory_advice
from ...models.errors import FewstepError, SettingError
from ..bench.cell import Advance, Experiment
from ..bench.rows import machine, versions
from ..bench.store import RowStore
from .gpu_figures import GpuFigure, GpuRow
from .gpu_jobs import CACHES, NFE, RIVALS, Large, Scale, Small
from .gpu_networks import dit, flux


@dataclass(frozen=True)
class GpuJob:
    """The run behind some figures, by name."""

    name: str
    work: Callable[[str], list[GpuFigure]] = field(compare=False)


class GpuBench(Experiment[GpuJob, GpuRow]):
    """All jobs; of the rows in the file those of this machine and these versions count.

    where: the device and the sizes in words.
    """

    unit = "job"

    def __init__(self, path: Path, where: str, device: torch.device, scale: Scale) -> None:
        self.device, self.scale, self.remarks = device, scale, []
        self.store = RowStore(path, GpuRow)
        self.store.check()
        self.here = {"machine": f"{where}, {machine()}", **versions()}

    def cells(self) -> list[GpuJob]:
        return list(self._jobs())

    def find_rows(self, cell: GpuJob) -> list[GpuRow]:
        rows = (row for row in self.store.rows.values() if row.job == cell.name)
        return [row for row in rows if self.here.items() <= row.model_dump().items()]

    def identify(self, cell: GpuJob) -> str:
        return repr((*self.here.values(), cell.name))

    def leave_out(self, cell: GpuJob, error: FewstepError) -> None:
        """Goes on: one job that fails must not cost the others."""
        self.note(f"{cell.name}: {' '.join(str(error).split())[:200]}")

    def measure(self, cell: GpuJob, advance: Advance) -> list[GpuRow]:
        """Returns the rows of one job."""
        try:
            advice = memory_advice(cell.name, "it needs a device with more")
            with advice, warnings.catch_warnings(action="ignore"):  # of settings meant for timing
                return self.make_rows(cell.work(cell.name))
        except FewstepError:
            raise
        except Exception as error:
            raise SettingError(f"{type(error).__name__}: {error}") from error
        finally:
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    def make_rows(self, figures: list[GpuFigure]) -> list[GpuRow]:
        """Returns figures as they are stored here."""
        return [GpuRow.model_validate(self.here | asdict(figure)) for figure in figures]

    def _jobs(self) -> Iterator[GpuJob]:
        for network in self.scale.small:
            for batch in self.scale.batches:
                small = Small(network, batch, self.device, self.scale)
                yield GpuJob(f"{network}, batch {batch}, NFE {NFE}", small.figures)
        for size, make in zip(self.scale.large, (dit, flux), strict=True):
            large = Large(size, make, self.device, self.scale)
            yield GpuJob(f"{size}", large.overhead)
            for cache in CACHES:
                yield GpuJob(f"{size}, {cache}", large.time_cache(cache))
            for spec in RIVALS:
                yield GpuJob(f"{size}, {spec}", large.time_rival(spec))
