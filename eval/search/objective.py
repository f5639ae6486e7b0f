"""The objectives of a search: figures of the samples that a schedule ends at, by name.

`terminal` and `log_mse` compare with the teacher's ends, noise by noise. `feature` does so in the
space of an image network's features. `fd`, `kid` and `fid` compare the set of images with real
ones. They are comparable only at the same noises, which is how a search uses them.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from ...models.denoiser import Network
from ...models.errors import NonFiniteError, ScheduleError, SettingError, UnknownNameError
from ...samplers.images import to_uint8
from ...solvers.artefact import Artefact
from ..data import images_of
from ..extractors import LOADERS, Extractor, extractor
from ..extractors.small import small_reference
from ..metrics import Features, Gather, SetMetric, metric
from ..metrics.measure import reference_features
from .problem import Block, Problem

SMALL_IMAGES = ((1, 32, 32), (1, 28, 28))  # what fd-small is made for
EMOJI = "emoji"  # the embedded network, and the extractor of its data
EXTRACTED = 64  # images taken through an extractor at once
Figure = Callable[[Tensor, Block], float]  # (ends, block) -> lower is better


class Objective(Protocol):
    """A figure of a schedule on a block, lower is better; infinite where it is not finite."""

    @property
    def name(self) -> str: ...

    def of(self, ends: Tensor, block: Block) -> float: ...

    def __call__(self, problem: Problem, schedule: Artefact, block: Block) -> float: ...


@dataclass(frozen=True)
class OfEnds:
    """A figure of the ends alone."""

    name: str
    figure: Figure

    def __call__(self, problem: Problem, schedule: Artefact, block: Block) -> float:
        schedule.check_process(problem.network.schedule)
        try:
            return self.of(problem.ends(schedule, block), block)
        except (NonFiniteError, ScheduleError):  # of its process, it has weights beyond float32
            return math.inf

    def of(self, ends: Tensor, block: Block) -> float:
        """Returns the figure of ends (n, *) that some run reached from this block."""
        if not torch.isfinite(ends).all():
            return math.inf
        value = self.figure(ends, block)
        return value if math.isfinite(value) else math.inf


def rmse(ends: Tensor, block: Block) -> float:
    """Root of the mean square of ends - teacher's ends over all noises and dimensions."""
    return float((ends.double() - block.ends.double()).square().mean().sqrt())


def log_mse(ends: Tensor, block: Block) -> float:
    """Mean over noises of ln of the mean square error: PSNR up to a factor (arXiv:2403.01329)."""
    squares = (ends.double() - block.ends.double()).square().flatten(1).mean(1)
    return float(squares.clamp_min(1e-30).log().mean())


@dataclass(frozen=True)
class FeatureError:
    """RMSE between features of the images at the ends and at the teacher's ends."""

    network: Network
    extractor: Extractor

    def __call__(self, ends: Tensor, block: Block) -> float:
        return float(self.squares(ends, block).mean().sqrt())

    def squares(self, ends: Tensor, block: Block) -> Tensor:
        """Returns the mean squares (n,) of single noises."""
        return self.compare(ends, block.ends)

    def compare(self, ends: Tensor, others: Tensor) -> Tensor:
        """Returns the mean squares (n,) of the features of ends less those of others."""
        mine, theirs = (self.extract(each) for each in (ends, others))
        return (mine - theirs).square().mean(1)

    def extract(self, ends: Tensor) -> Tensor:
        images = images_at(self.network, ends)
        parts = (images[i : i + EXTRACTED] for i in range(0, len(images), EXTRACTED))
        return torch.cat([self.extractor(part)["pool"].double() for part in parts])


@dataclass(frozen=True)
class SetFigure:
    """A metric of the images at the ends against the features of real ones."""

    network: Network
    extractor: Extractor
    metric: SetMetric
    reference: Features

    def __call__(self, ends: Tensor, block: Block) -> float:
        gather = Gather(self.extractor, self.metric.needs)
        images = images_at(self.network, ends)
        for i in range(0, len(images), EXTRACTED):
            gather.update(images[i : i + EXTRACTED])
        return self.metric.function(gather.features(), self.reference)


def images_at(network: Network, ends: Tensor) -> Tensor:
    """Ends as uint8 images (n, C, H, W)."""
    if network.decode is not None:
        with torch.no_grad():
            parts = (ends[i : i + EXTRACTED] for i in range(0, len(ends), EXTRACTED))
            ends = torch.cat([network.decode(part.to(network.device)) for part in parts])
    return to_uint8(ends).permute(0, 3, 1, 2)


def find_features(name: str, network: Network, weights: Path | None) -> FeatureError | None:
    """Returns what compares images of a network with the reference's, noise by noise.

    Args:
        name: of an extractor; "auto" takes fd-small's for grey images of 32x32 or 28x28, fd-emoji's
            for the network that draws emoji and none for others; "none".
        network: whose images are looked at.
        weights: of the extractor, if they are not found by themselves.

    Raises:
        UnknownNameError: for another name.
        FewstepError: if the weights are not at hand, or the images do not fit.
    """
    if name not in ("auto", "none", *LOADERS):
        raise UnknownNameError("extractor", name, ["auto", "none", *LOADERS])
    if name == "auto" and network.name == EMOJI:
        name = EMOJI
    plain = network.decode is None
    if name == "none" or (name == "auto" and plain and tuple(network.shape) not in SMALL_IMAGES):
        return None
    images = images_at(network, torch.zeros(2, *network.shape))
    if name == "auto" and tuple(images.shape[1:]) not in SMALL_IMAGES:
        return None
    seer = extractor("small") if name == "auto" else extractor(name, weights)
    seer(images)  # refuses images it cannot see
    return FeatureError(network, seer)


SIMPLE: dict[str, Figure] = {"terminal": rmse, "log_mse": log_mse}
OF_IMAGES = ("feature", "fd", "kid", "fid")


def names() -> Sequence[str]:
    """Returns all objectives, sorted."""
    return sorted([*SIMPLE, *OF_IMAGES])


def objective(
    name: str,
    network: Network,
    *,
    reference: str | None = None,
    weights: Path | None = None,
) -> OfEnds:
    """Returns the objective of a name, with all that it needs at hand.

    Args:
        name: terminal, log_mse, feature, fd, kid or fid. Features are those of Inception for fid,
            and for the others those of fd-small, the package's network for grey 32x32 images.
        network: whose images are looked at.
        reference: real images as `images_of` takes them, for kid, fid and fd; by default
            Fashion-MNIST, of which the package holds what fd needs.
        weights: Inception's, if they are not found by themselves.

    Raises:
        UnknownNameError: for another name.
        SettingError: if something is given that the objective does not use.
        FewstepError: if the weights or the data are not at hand, or the images do not fit.
    """
    if name in SIMPLE:
        if reference is not None or weights is not None:
            raise SettingError(f"objective {name} uses no reference and no weights; drop them")
        return OfEnds(name, SIMPLE[name])
    if name not in OF_IMAGES:
        raise UnknownNameError("objective", name, names())
    if name == "feature" and reference is not None:
        raise SettingError("objective feature compares with the teacher; drop the reference")
    seer = extractor("inception" if name == "fid" else "small", weights)
    seer(images_at(network, torch.zeros(2, *network.shape)))  # refuses images it cannot see
    if name == "feature":
        return OfEnds(name, FeatureError(network, seer))
    return OfEnds(name, _set_figure(name, network, seer, reference))


def _set_figure(name: str, network: Network, seer: Extractor, reference: str | None) -> SetFigure:
    kind = metric(name)
    if not isinstance(kind, SetMetric):
        raise SettingError(f"{name} compares pairs, not sets; take objective feature")
    if name == "fd" and reference is None:
        known = small_reference()
        return SetFigure(network, seer, kind, Features(known.n, {"pool": known}))
    real = images_of(reference or "fashion-mnist-32")
    return SetFigure(network, seer, kind, reference_features(real, kind.needs, seer))
