"""Fronts of error against cost: runs from the same noises, compared pixel by pixel with others."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor

from ...models.denoiser import Network
from ...models.errors import SettingError
from ...models.files import make_folder
from ...models.hashing import hash_json
from ...models.load import load
from ...models.weights import hash_weights
from ...samplers.guidance.settings import Checked
from ...samplers.run_record import Run
from ...samplers.sampler import Result
from ...solvers import take_solver
from ..teacher import teacher
from .cell import Experiment
from .front_table import FrontPoint, FrontRun
from .protocol import Drawn, Measure, Protocol
from .rows import ResultRow, ResultStore, SamplingCost, check_weights


@dataclass(frozen=True, kw_only=True)
class FrontSettings(Checked):
    """Settings of every front.

    name:      of the command, for errors.
    models:    every one is a panel of its own, or several.
    steps:     of the runs that are to save work.
    grid:      of all runs.
    images:    noises, from seed 0, of all classes in turn.
    reference, reference_nfe: the converged run.
    """

    name: ClassVar[str]
    models: tuple[str, ...] = ("fashion-dit", "fashion-unet")
    steps: tuple[Annotated[int, Field(ge=2)], ...] = ()
    grid: str | None = None
    images: Annotated[int, Field(ge=2)] = 48
    reference: str = "unipc-3"
    reference_nfe: Annotated[int, Field(ge=0)] = 200


@dataclass
class FrontBench(Experiment[FrontRun, ResultRow]):
    """A front of error against cost on this machine.

    store: where rows go and come from; reference images lie beside it.
    """

    policy_field: ClassVar[str]  # of `Run`
    front: Any
    store: ResultStore
    device: str = "cpu"
    remarks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = lru_cache(maxsize=1)(self._load)
        self._find_weights = lru_cache(maxsize=1)(self._hash_weights)
        self.draw_reference = lru_cache(maxsize=2)(self._draw_reference)

    @abstractmethod
    def points(self) -> list[FrontPoint]:
        """Returns the runs of this front that are in the store."""

    def describe_run(self, cell: FrontRun) -> dict[str, Any]:
        """Returns what draws the images of a cell, as fields of `Run`."""
        named = {"solver": cell.solver, "grid": self.front.grid, "nfe": cell.nfe}
        return {**named, self.policy_field: cell.policy, "seeds": tuple(range(self.front.images))}

    def protocol(
        self, cell: FrontRun, measure: Measure, files: Mapping[str, str] | None = None
    ) -> Protocol:
        """Returns all that decides one error of a cell; files: sha256 of what it reads, by name."""
        run = Run(
            model=cell.model,
            cfg_scale=cell.scale,
            device=self.device,
            **self.describe_run(cell),
        )
        classes = self.network(cell.model).num_classes
        labels = f"seed modulo {classes}" if classes else "none"
        weights = self._find_weights(cell.model)
        drawn = Drawn(run=run, weights=weights, files=dict(files or {}), labels=labels)
        return Protocol(images=drawn, measure=measure)

    def measure_to(self, reference: str, metric: str) -> Measure:
        """Returns how images are compared with those of a reference, named in words."""
        return Measure(
            metric=metric,
            extractor="pixels",
            extractor_sha256="",
            resize="none",
            reference=reference,
            reference_sha256=hash_json([reference, self.front.grid, self.front.images]),
            n=self.front.images,
        )

    @property
    def converged(self) -> str:
        """The converged run in words."""
        return f"{self.front.reference}, {self.front.reference_nfe} evaluations"

    def labels(self, model: str, seeds: Sequence[int]) -> list[int] | None:
        """Returns the class of each image, all classes in turn."""
        classes = self.network(model).num_classes
        return [seed % classes for seed in seeds] if classes else None

    def folder_beside(self, name: str) -> Path:
        """Returns a folder beside the store, which is made if it is not there."""
        folder = self.store.path.with_name(f"{self.store.path.name}.{name}")
        make_folder(folder)
        return folder

    def _load(self, model: str) -> Network:
        return load(model, device=self.device)

    def _hash_weights(self, model: str) -> str | None:
        """Returns the hash of the weights; raises SettingError for a store with rows of others."""
        weights = hash_weights(model, whole=True)
        check_weights(self.store, model, weights)
        return weights

    def _draw_reference(self, model: str, seeds: range, **call: Any) -> Tensor:
        """Returns the images of a run that others are compared with; they are kept on disk."""
        folder, labels = self.folder_beside("reference"), self.labels(model, seeds)
        call = {"batch": len(seeds), **call}
        return teacher(self.network(model), seeds, cache=folder, class_labels=labels, **call)


def check_fixed(solvers: Sequence[str], reason: str) -> None:
    """Raises SettingError, with the reason, for a solver that chooses its own steps."""
    for solver in solvers:
        if take_solver(solver).info.adaptive:
            raise SettingError(f"{solver} chooses its {reason}; take dpmpp-2m or another")


def cost_of(result: Result, effective: float | None = None) -> SamplingCost:
    """Returns what a run cost per image; by default its network rows are effective evaluations."""
    ledger = result.ledger
    rows = ledger.rows_per_image
    return SamplingCost(
        nfe=ledger.nfe,
        rows=rows,
        effective=rows if effective is None else effective,
        flops=0.0,
        seconds=ledger.seconds / ledger.images,
    )


def relative_error(samples: Tensor, target: Tensor) -> float:
    """Returns |x - y| / |y| over all images."""
    return float((samples - target).norm() / target.norm())
