"""Measures the model statistics of a network on noised data: what `fewstep stats` does.

At each node of lam, samples x = alpha x0 + sigma z of the data give

    l = mean of sigma (J^T v) v,   J = d eps / dx, v of independent random signs,
    eps' = (eps(x+, lam + d) - eps(x-, lam - d)) / 2 d,   x+- the DDIM steps from x to lam +- d.

(arXiv:2310.13268, app. C, takes J v and a forward derivative in time. The mean of l is the same.
Time enters our networks as a number, and between two labels that a network was trained on its
answer wiggles: a difference over several labels is the slope that a step of a run sees.) As

    alpha f  = sigma eps - l x,
    alpha f' = (l - 1) sigma eps + sigma eps' - l' x,

only means of eps, x, eps' and of their products have to be kept until l and l' are known; then
`statistics_tables` makes the tables of them.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ..models.denoiser import Branch, Denoiser, Network
from ..models.errors import SettingError
from ..models.files import check_folder, make_folder, remove_file, write_bytes
from ..models.probe import answer
from ..models.progress import make_bar
from ..models.reading import read_tensors
from ..models.schedule import Node, process_of
from ..samplers.conditions import Branches, Conditions, make_branches, take_rows
from ..samplers.guidance import CFG, guide_x0
from ..samplers.noise import make_generator, spread_noise
from ..samplers.ramps import find_lam_ends
from ..samplers.sampler import Sampler
from ..solvers.model_statistics import ModelStatistics, StatisticsFacts
from ..solvers.schedule_parts import Process
from .data import images_of
from .statistics_tables import PAIRS, Means, make_tables

OWN_NFE = 50  # evaluations with which a network draws its own samples
DELTA = 0.1  # of lam, in the central difference: over several labels of a network of 1000 steps
NODE_NAMES = "[0-9]" * 5 + ".safetensors"  # of the files that finished nodes are kept in


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """The choices of a measurement, and the folder that keeps it while it lasts.

    data:      x0 (K, *shape), in the range that the network was trained on.
    labels:    one class per sample, if the network has classes.
    source:    what the data are, in words.
    cfg_scale: guidance of the network; 1 is none.
    nodes:     M, so that the tables have M + 1 rows, even in lam.
    batch:     samples evaluated at once.
    seed:      of the noise and the signs.
    partial:   folder for finished nodes, from which an interrupted measurement goes on;
               `write_statistics` removes it. None keeps nothing.
    """

    data: Tensor
    labels: Sequence[int] | None = None
    source: str = "data"
    cfg_scale: float = 1.0
    nodes: int = 120
    batch: int = 32
    seed: int = 0
    partial: Path | None = None

    def __post_init__(self) -> None:
        if self.nodes < 2 or self.batch < 1 or len(self.data) < 2:
            raise SettingError(
                "statistics need at least 2 nodes, 2 samples and a batch of at least 1"
            )


def make_measurement(
    network: Network, source: str | None, samples: int, *, progress: bool = False, **settings: Any
) -> Measurement:
    """Returns the first samples of a data set, or of the network's own samples (source None).

    settings: further fields of `Measurement`.

    Raises:
        SettingError: if the set has fewer images, or the network samples latents, for which it
            has to draw its own.
    """
    if source is None:
        classes = network.num_classes
        labels = [i % classes for i in range(samples)] if classes else None
        latent = Sampler(replace(network, decode=None))
        data = latent(range(samples), class_labels=labels, nfe=OWN_NFE, progress=progress).samples
        words = f"{samples} samples of {network.name} at NFE {OWN_NFE}"
        return Measurement(data=data, labels=labels, source=words, **settings)
    if network.decode is not None:
        raise SettingError(
            f"{network.name} samples latents, not images; drop --data, and it draws its own"
        )
    images = images_of(Path(source) if Path(source).exists() else source)
    if len(images) < samples:
        raise SettingError(f"{source!r} has {len(images)} images; use --samples {len(images)}")
    batches = islice(images.batches(64), -(-samples // 64))
    data = torch.cat(list(batches))[:samples].float() / 127.5 - 1.0
    known = images.labels if network.num_classes else None
    labels = None if known is None else known[:samples].tolist()
    return Measurement(data=data, labels=labels, source=images.name, **settings)


def measure(network: Network, what: Measurement, *, progress: bool = False) -> ModelStatistics:
    """Returns the statistics of a network.

    It takes about 5 evaluations per sample and node, one of them with a gradient.

    Raises:
        SettingError: if the data do not have the network's shape, or labels are wrong.
        NonFiniteError: if the network returns NaN or infinity.
    """
    if what.data.shape[1:] != network.shape:
        raise SettingError(
            f"{network.name} takes samples of shape {tuple(network.shape)}, the data have"
            f" {tuple(what.data.shape[1:])}; resize or pad them (fashion-mnist-32 is in 32x32)"
        )
    branches = make_branches(network, len(what.data), what.labels, None, None)
    probe = _make_probe(network, take_rows(branches, slice(0, 1))[Branch.COND], what.seed)
    low, high = find_lam_ends(network.schedule)
    lams = [low + (high - low) * i / what.nodes for i in range(what.nodes + 1)]
    facts = StatisticsFacts(
        process=Process.model_validate(process_of(network.schedule)),
        network=network.name,
        data=what.source,
        samples=len(what.data),
        cfg_scale=what.cfg_scale,
        seed=what.seed,
    )
    rows = [
        _keep_means(_Task(network, branches, what, lam, i, (low, high)), facts, probe)
        for i, lam in enumerate(make_bar(lams, unit="node", show=progress))
    ]
    nodes = [network.schedule.at_lam(lam) for lam in lams]
    tables = make_tables(nodes, rows, len(what.data))
    return ModelStatistics(tuple(lams), *tables, facts, probe)


def write_statistics(statistics: ModelStatistics, path: Path, what: Measurement) -> None:
    """Writes the file that `ModelStatistics.load` reads, and removes the nodes that were kept."""
    write_bytes(path, statistics.to_bytes())
    if what.partial is not None:
        for each in sorted(what.partial.glob(NODE_NAMES)):
            if _read_key(each) is not None:
                remove_file(each)
        with suppress(OSError):  # something else lies there
            what.partial.rmdir()


def check_partial(folder: Path) -> None:
    """Raises SettingError if finished nodes could not be kept in a folder without loss."""
    check_folder(folder)
    for each in folder.glob(NODE_NAMES):
        if _read_key(each) is None:
            raise SettingError(
                f"{str(each)!r} is in the way of the nodes to be kept in {str(folder)!r}, and no"
                " measurement has made it; move it, or give another --out"
            )


@dataclass(frozen=True)
class _Task:
    """One node of the tables."""

    network: Network
    branches: Branches
    what: Measurement
    lam: float
    number: int
    ends: tuple[float, float]

    def compute_means(self) -> Means:
        """Returns means over the samples, in float64: l, e, x, d and the products in PAIRS."""
        generator = make_generator(1_000_003 * self.what.seed + self.number)
        sums: Means = {}
        for rows in _split(len(self.what.data), self.what.batch):
            x0 = self.what.data[rows].float()
            z = torch.randn(x0.shape, generator=generator)
            z = spread_noise(z, self.network.schedule, [generator] * len(z))
            v = torch.randint(0, 2, x0.shape, generator=generator).float() * 2.0 - 1.0
            for name, value in self._batch(rows, x0, z, v).items():
                sums[name] = sums.get(name, 0.0) + value.double().sum(0).cpu()
        return {name: total / len(self.what.data) for name, total in sums.items()}

    def _batch(self, rows: slice, x0: Tensor, z: Tensor, v: Tensor) -> Means:
        node, device = self.network.schedule.at_lam(self.lam), self.network.device
        denoiser = Denoiser(self.network, take_rows(self.branches, rows))
        x = (node.alpha * x0 + node.sigma * z).to(device).requires_grad_()
        e = self._eps(denoiser, x, node)
        (pulled,) = torch.autograd.grad((e * v.to(device)).sum(), x)
        e, x = e.detach().double(), x.detach().double()
        d = self._slope(denoiser, x, e, node)
        products = dict(zip(PAIRS, (e * e, e * x, x * x, e * d, x * d, d * d), strict=True))
        return {"l": node.sigma * pulled * v.to(device), "e": e, "x": x, "d": d, **products}

    def _eps(self, denoiser: Denoiser, x: Tensor, node: Node) -> Tensor:
        x0 = guide_x0(denoiser, CFG(self.what.cfg_scale), x, node)
        denoiser.check()
        return (x - node.alpha * x0) / node.sigma

    def _slope(self, denoiser: Denoiser, x: Tensor, e: Tensor, node: Node) -> Tensor:
        """Returns eps' along the trajectory."""
        low, high = max(self.lam - DELTA, self.ends[0]), min(self.lam + DELTA, self.ends[1])
        ends = []
        with torch.inference_mode():
            for end in map(self.network.schedule.at_lam, (low, high)):
                ratio = end.alpha / node.alpha
                moved = x * ratio + e * (end.sigma - ratio * node.sigma)
                ends.append(self._eps(denoiser, moved.float(), end).double())
        return (ends[1] - ends[0]) / (high - low)


def _make_probe(network: Network, conditions: Conditions, seed: int) -> dict[str, Tensor]:
    """Returns a noise image, the conditions of the first sample and what the network answers."""
    x = torch.randn(1, *network.shape, generator=make_generator(seed))
    given = {name: value.cpu().clone() for name, value in conditions.items()}
    return {"x": x, **given, "x0": answer(network, x, given)}


def _keep_means(task: _Task, facts: StatisticsFacts, probe: dict[str, Tensor]) -> Means:
    """Returns the node's means, from the folder of finished nodes or measured and put there."""
    if task.what.partial is None:
        return task.compute_means()
    digest = hashlib.sha256(probe["x0"].numpy().tobytes())
    digest.update(task.what.data.contiguous().numpy().tobytes())
    key = json.dumps([facts.model_dump_json(), task.what.nodes, digest.hexdigest()])
    path = task.what.partial / f"{task.number:05d}.safetensors"
    moments = _load(path, key)
    if moments is None:
        moments = task.compute_means()
        make_folder(task.what.partial)
        write_bytes(path, save(moments, {"key": key}))
    return moments


def _read_key(path: Path) -> str | None:
    """Returns what a kept node is of; None for a file that is none."""
    try:
        return read_tensors(path)[1].get("key")
    except SettingError:
        return None


def _load(path: Path, key: str) -> Means | None:
    try:
        tensors, metadata = read_tensors(path)
    except SettingError:
        return None
    return tensors if metadata.get("key") == key else None


def _split(n: int, size: int) -> Iterator[slice]:
    return (slice(i, i + size) for i in range(0, n, size))
