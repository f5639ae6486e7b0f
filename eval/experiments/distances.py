"""Distances of runs on a network from its converged run, measured once and kept in a store.

The distance is the root mean square difference from what REFERENCE ends at on the same noises,
classes in turn and without guidance. Where an extractor fits the images, that of their features
stands beside it.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...models.errors import FewstepError, SettingError, shorten
from ...models.files import make_folder
from ...models.reading import StrictModel
from ...samplers.grid import choose_default_grid
from ...samplers.plan import DEFAULT_SOLVER
from ...samplers.sampler import Result, Sampler
from ...solvers.presets import best_preset, preset
from ..bench.rows import MeasuredRow, check_here
from ..bench.store import RowStore
from ..search.objective import FeatureError, find_features
from ..teacher import compute_digest, teacher
from .rivals import RivalSampler

PARTS = 3  # blocks of noises, whose range stands beside a distance
REFERENCE: dict[str, Any] = {"solver": "unipc-3", "nfe": 100}  # on the default grid of many steps
BATCH = 64


class DistantRun(StrictModel):
    """A run that is compared with the reference.

    reference: digest of the reference samples, which tells the network and the noises.
    noises:    how many of those of the reference, from the first.
    rival:     a scheduler of diffusers in place of the solver and the grid.
    """

    network: str
    process: str
    reference: str
    noises: int
    nfe: int
    solver: str | None = None
    grid: str | None = None
    rival: str | None = None

    @property
    def key(self) -> str:
        """Tells the run from all others; one network may have several names."""
        return self.model_dump_json(exclude={"network"})


class Distance(MeasuredRow):
    """The distance of a run.

    squares:  mean square difference of each noise's sample; none where the run failed.
    features: mean square difference of each noise's features; None where nothing sees the images.
    failure:  the reason why the run failed.
    """

    run: DistantRun
    squares: tuple[float, ...]
    features: tuple[float, ...] | None = None
    failure: str | None = None

    @property
    def key(self) -> str:
        return self.run.key

    @property
    def rms(self) -> float:
        return math.sqrt(sum(self.squares) / len(self.squares)) if self.squares else math.inf

    def __str__(self) -> str:
        return format_parts(self.squares)


def open_distances(path: Path) -> RowStore[Distance]:
    """Returns a store of distances.

    Raises:
        SettingError: if rows could not be added, or were made by another version.
    """
    store = RowStore(path, Distance)
    store.check()
    check_here(store.rows.values(), path)
    return store


def format_parts(squares: Sequence[float]) -> str:
    """Returns the root mean square over noises, and its range over blocks of them."""
    size = len(squares) // PARTS
    parts = [math.sqrt(sum(squares[i * size : (i + 1) * size]) / size) for i in range(PARTS)]
    return f"{math.sqrt(sum(squares) / len(squares)):.4f} ({min(parts):.4f}..{max(parts):.4f})"


class DistanceMeter:
    """Measures distances on one network, or takes them from the store.

    Args:
        name: of the network, as `Sampler.from_pretrained` takes it.
        seeds: of the noises.
        store: where distances go and come from; the reference lies beside it.
    """

    def __init__(self, name: str, seeds: range, store: RowStore[Distance]) -> None:
        self.name, self.seeds, self.store = name, seeds, store
        self.sampler = Sampler.from_pretrained(name)
        self.schedule = self.sampler.network.schedule
        self.labels = self.labels_of(seeds)

    def labels_of(self, seeds: range) -> list[int] | None:
        """Returns the class of each seed's image, all classes in turn."""
        classes = self.sampler.network.num_classes
        return [seed % classes for seed in seeds] if classes else None

    def measure(self, solver: str, grid: str, nfe: int, *, seen: bool = False) -> Distance:
        """Returns the distance of a named solver on a named grid.

        seen: whether features are compared, too, where an extractor sees the images.
        """
        what = {"solver": solver, "grid": grid, "nfe": nfe}
        draw = partial(self.sampler, solver=solver, grid=grid, nfe=nfe)
        return self._find(what, draw, features=self._features if seen else None)

    def measure_default(self, nfe: int, *, seen: bool = False) -> Distance:
        """Returns the distance of the default solver and grid at a number of evaluations."""
        return self.measure(DEFAULT_SOLVER, choose_default_grid(self.schedule, nfe), nfe, seen=seen)

    def measure_sampled(self, nfe: int) -> Distance:
        """Returns the same, but of the schedule of the package where `sample` takes one."""
        name = best_preset(self.name, nfe, 1.0)
        if name is None:
            return self.measure_default(nfe)
        return self._find({"solver": name, "nfe": nfe}, partial(self.sampler, solver=preset(name)))

    def measure_rival(self, spec: str, nfe: int, noises: int | None = None) -> Distance:
        """Returns the distance of a scheduler of diffusers, on all noises or the first ones."""

        def draw(*args: Any, **call: Any) -> Result:
            return RivalSampler(self.sampler.network, spec, nfe)(*args, **call)

        return self._find({"rival": spec, "nfe": nfe}, draw, noises)

    @cached_property
    def reference(self) -> Tensor:
        """The samples of the converged run (n, *)."""
        path = self.store.path
        folder = path.with_name(f"{path.name}.reference")
        make_folder(folder)
        grid = choose_default_grid(self.schedule)
        call = {**REFERENCE, **self._call(len(self.seeds)), "grid": grid}
        return teacher(self.sampler.network, self.seeds, cache=folder, **call)

    @cached_property
    def _digest(self) -> str:
        """Tells the weights and the noises; raises SettingError for a store of others."""
        digest = compute_digest(self.reference)
        runs = (row.run for row in self.store.rows.values())
        if any(each.network == self.name and each.reference != digest for each in runs):
            raise SettingError(
                f"{shorten(self.store.path)} holds distances of {self.name} with other weights or"
                " on other noises, which do not stand beside these; give another store"
            )
        return digest

    @cached_property
    def _features(self) -> FeatureError | None:
        return find_features("auto", self.sampler.network, None)

    def _call(self, noises: int) -> dict[str, Any]:
        """Returns the arguments of a run on the first noises."""
        labels = None if self.labels is None else self.labels[:noises]
        return {"class_labels": labels, "batch": BATCH}

    def _find(
        self,
        what: dict[str, Any],
        draw: Callable[..., Result],
        noises: int | None = None,
        features: FeatureError | None = None,
    ) -> Distance:
        noises = len(self.seeds) if noises is None else min(noises, len(self.seeds))
        family, digest = self.schedule.family, self._digest
        run = DistantRun(network=self.name, process=family, reference=digest, noises=noises, **what)
        known = self.store.rows.get(run.key)
        if known is None or (features and not known.features and not known.failure):
            known = self._compare(run, draw, features)
            self.store.append(known)
        return known

    def _compare(
        self, run: DistantRun, draw: Callable[..., Result], features: FeatureError | None
    ) -> Distance:
        try:
            samples = draw(self.seeds[: run.noises], **self._call(run.noises)).samples
        except FewstepError as error:
            return Distance.here(run=run, squares=(), failure=str(error))
        if not bool(torch.isfinite(samples).all()):
            return Distance.here(run=run, squares=(), failure="its samples are not finite")
        reference = self.reference[: run.noises]
        squares = (samples - reference).flatten(1).square().mean(1)
        seen = None if features is None else tuple(features.compare(samples, reference).tolist())
        return Distance.here(run=run, squares=tuple(squares.tolist()), features=seen)
