"""Measures the model statistics of a network on noised data: what `fewstep stats` does.

At each node of lam, samples x = alpha x0 + sigma z of the data give

    l = mean of sigma (J^T v) v,   J = d eps / dx, v of independent random signs,
    eps' = (eps(x+, lam + d) - eps(x-, lam - d)) / 2 d,   x+- the DDIM steps from x to lam +- d.

(arXiv:2310.13268, app. C, takes J v and a forward derivative in time. The mean of l is the same.
Time enters our networks as a number, and between two labels that a network was trained on its
answer wiggles: a difference over several labels is the slope that a step of a run sees.) As

    alpha f  = sigma eps - l x,
    alpha f' = (l - 1) sigma eps + sigma eps' - l' x,

only means of eps, x, eps' and of their products have to be kept until l and l' are known.

The slope s of f' over f has the sampling error v = var(f' - s f) / (K var f) of K samples, and e^s
stands in every step. So each element's s is drawn to the mean over all elements, m, by as much as
it is worth: s <- m + (s - m) w / (w + v), w the variance of the true s over the elements, which is
that of s less the mean of v, at least 0 (empirical Bayes, ours). With many samples v goes to 0 and
the tables to those of the paper.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import save
from torch import Tensor
from tqdm.auto import tqdm

from ..models.denoiser import Branch, Denoiser, Network
from ..models.errors import SettingError
from ..models.files import check_folder, make_folder, remove_file, write_bytes
from ..models.probe import answer
from ..models.reading import read_tensors
from ..models.schedule import Node, process_of
from ..samplers.conditions import Branches, Conditions, make_branches, take_rows
from ..samplers.guidance import CFG, guide_x0
from ..samplers.noise import make_generator
from ..samplers.ramps import find_lam_ends
from ..solvers.artefact import Process
from ..solvers.model_statistics import ModelStatistics, StatisticsFacts

DELTA = 0.1  # of lam, in the central difference: over several labels of a network of 1000 steps
NODE_NAMES = "[0-9]" * 5 + ".safetensors"  # of the files that finished nodes are kept in
STILL = 1e-4  # of E[f^2]: elements whose f varies less have no slope to be found
PAIRS = ("ee", "ex", "xx", "ed", "xd", "dd")
Moments = dict[str, Tensor]


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
            raise SettingError("statistics need at least 2 nodes, 2 samples and a batch of 1")


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
        _keep_moments(_Task(network, branches, what, lam, i, (low, high)), facts, probe)
        for i, lam in enumerate(tqdm(lams, unit="node", disable=None if progress else True))
    ]
    nodes = [network.schedule.at_lam(lam) for lam in lams]
    tables = _make_tables(nodes, rows, len(what.data))
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

    def moments(self) -> Moments:
        """Returns means over the samples, in float64: l, e, x, d and the products in PAIRS."""
        generator = make_generator(1_000_003 * self.what.seed + self.number)
        sums: Moments = {}
        for rows in _split(len(self.what.data), self.what.batch):
            x0 = self.what.data[rows].float()
            z = torch.randn(x0.shape, generator=generator)
            v = torch.randint(0, 2, x0.shape, generator=generator).float() * 2.0 - 1.0
            for name, value in self._batch(rows, x0, z, v).items():
                sums[name] = sums.get(name, 0.0) + value.double().sum(0).cpu()
        return {name: total / len(self.what.data) for name, total in sums.items()}

    def _batch(self, rows: slice, x0: Tensor, z: Tensor, v: Tensor) -> Moments:
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


def _make_tables(
    nodes: Sequence[Node], rows: Sequence[Moments], samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns l, s and b from the means at every node."""
    lam = torch.tensor([node.lam for node in nodes], dtype=torch.float64)
    l = torch.stack([row["l"] for row in rows])  # noqa: E741
    (l_slope,) = torch.gradient(l, spacing=(lam,), dim=0)
    solved = [
        _fit_line(_compute_moments_of_f(*each), samples)
        for each in zip(nodes, rows, l, l_slope, strict=True)
    ]
    s, b = (torch.stack(each) for each in zip(*solved, strict=True))
    return l, s, b


class _Fit(NamedTuple):
    """Means of f and f', their variances and their covariance."""

    f: Tensor
    slope: Tensor
    var: Tensor
    var_slope: Tensor
    cov: Tensor


def _compute_moments_of_f(node: Node, m: Moments, l: Tensor, l_slope: Tensor) -> _Fit:  # noqa: E741
    """Uses alpha f = sigma eps - l x and alpha f' = (l - 1) sigma eps + sigma eps' - l' x."""
    e, x, d = m["e"], m["x"], m["d"]
    var = {"e": m["ee"] - e * e, "x": m["xx"] - x * x, "d": m["dd"] - d * d}
    cov = {"ex": m["ex"] - e * x, "ed": m["ed"] - e * d, "xd": m["xd"] - x * d}

    def compute_covariance(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> Tensor:
        """Returns the covariance of two combinations of (eps, x, eps'), in units of f."""
        total = torch.stack([a[i] * b[i] * var[name] for i, name in enumerate("exd")]).sum(0)
        for name, (i, j) in zip(cov, ((0, 1), (0, 2), (1, 2)), strict=True):
            total = total + (a[i] * b[j] + a[j] * b[i]) * cov[name]
        return total / node.alpha**2

    sigma, zero = torch.full_like(l, node.sigma), torch.zeros_like(l)
    f, slope = (sigma, -l, zero), ((l - 1.0) * sigma, -l_slope, sigma)
    mean, mean_slope = ((c[0] * e + c[1] * x + c[2] * d) / node.alpha for c in (f, slope))
    return _Fit(
        mean,
        mean_slope,
        compute_covariance(f, f),
        compute_covariance(slope, slope),
        compute_covariance(f, slope),
    )


def _fit_line(fit: _Fit, samples: int) -> tuple[Tensor, Tensor]:
    """Returns slope and offset of the line that predicts f' from f."""
    moves = fit.var > STILL * (fit.var + fit.f * fit.f)
    var = torch.where(moves, fit.var, 1.0)
    s = torch.where(moves, fit.cov / var, 0.0)
    noise = (fit.var_slope - s * fit.cov).clamp_min(0.0) / (samples * var)
    s = torch.where(moves, _draw_to_mean(s, noise, moves), 0.0)
    return s, fit.slope - s * fit.f


def _draw_to_mean(s: Tensor, noise: Tensor, moves: Tensor) -> Tensor:
    """Returns the slopes drawn to their mean by their sampling error; see the module."""
    if int(moves.sum()) < 2:
        return s
    mean, spread = s[moves].mean(), s[moves].var()
    true = (spread - noise[moves].mean()).clamp_min(0.0)
    return mean + (s - mean) * true / (true + noise).clamp_min(1e-30)


def _make_probe(network: Network, conditions: Conditions, seed: int) -> dict[str, Tensor]:
    """Returns a noise image, the conditions of the first sample and what the network answers."""
    x = torch.randn(1, *network.shape, generator=make_generator(seed))
    given = {name: value.cpu().clone() for name, value in conditions.items()}
    return {"x": x, **given, "x0": answer(network, x, given)}


def _keep_moments(task: _Task, facts: StatisticsFacts, probe: dict[str, Tensor]) -> Moments:
    """Returns the node's means, from the folder of finished nodes or measured and put there."""
    if task.what.partial is None:
        return task.moments()
    digest = hashlib.sha256(probe["x0"].numpy().tobytes())
    digest.update(task.what.data.contiguous().numpy().tobytes())
    key = json.dumps([facts.model_dump_json(), task.what.nodes, digest.hexdigest()])
    path = task.what.partial / f"{task.number:05d}.safetensors"
    moments = _load(path, key)
    if moments is None:
        moments = task.moments()
        make_folder(task.what.partial)
        write_bytes(path, save(moments, {"key": key}))
    return moments


def _read_key(path: Path) -> str | None:
    """Returns what a kept node is of; None for a file that is none."""
    try:
        return read_tensors(path)[1].get("key")
    except SettingError:
        return None


def _load(path: Path, key: str) -> Moments | None:
    try:
        tensors, metadata = read_tensors(path)
    except SettingError:
        return None
    return tensors if metadata.get("key") == key else None


def _split(n: int, size: int) -> Iterator[slice]:
    return (slice(i, i + size) for i in range(0, n, size))
