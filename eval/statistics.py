"""Gaussian fits of features: gathered batch by batch, merged, compared.

A set of images is summed up by the mean and the covariance of its features. `Moments` gathers them
in float64 and memory that does not grow with the number of images; `Statistics` is the outcome, one
side of a Frechet distance.
"""

import hashlib
import warnings
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..models.errors import FewstepError

Array = NDArray[np.float64]
ROUNDING = 1e-5  # of a covariance, relative to its size: of one that was kept in float32


class StatisticsError(FewstepError, ValueError):
    """Features or statistics that cannot be used, or that do not belong together."""


@dataclass(frozen=True)
class FeatureOrigin:
    """The settings that features were taken with; sets compare only if all of them agree.

    extractor: its name, such as inception.
    weights:   sha256 of its weights.
    resize:    how images were brought to its size.
    """

    extractor: str
    weights: str
    resize: str


@dataclass(frozen=True)
class Statistics:
    """Mean (D,) and covariance (D, D) of n feature vectors, float64; ddof 1 unless said otherwise.

    n is 0 and origin None where a foreign file does not say.
    """

    mu: Array
    cov: Array
    n: int = 0
    origin: FeatureOrigin | None = None

    def __post_init__(self) -> None:
        dim = self.mu.size
        if dim == 0 or self.mu.shape != (dim,) or self.cov.shape != (dim, dim):
            raise StatisticsError(
                f"a mean of shape {self.mu.shape} and a covariance of shape {self.cov.shape} do not"
                " fit; they must be (D,) and (D, D)"
            )
        if not (np.isfinite(self.mu).all() and np.isfinite(self.cov).all()):
            raise StatisticsError("statistics hold NaN or infinity; make them again")
        _check_covariance(self.cov)
        if self.n < 0:
            raise StatisticsError(f"statistics are of 0 or more images, not {self.n}")

    @property
    def dim(self) -> int:
        """Features per image."""
        return int(self.mu.size)

    @cached_property
    def sha256(self) -> str:
        """Of the mean, the covariance and n, as little-endian bytes."""
        digest = hashlib.sha256()
        for part in (self.mu, self.cov):
            digest.update(np.ascontiguousarray(part, dtype="<f8").tobytes())
        digest.update(self.n.to_bytes(8, "little"))
        return digest.hexdigest()

    @cached_property
    def root(self) -> Array:
        """A with A A^T = cov: (D, R), as many columns as cov has rank.

        Of more images than features it is Cholesky's, which takes a tenth of the time.
        """
        if self.n > self.dim:
            with suppress(np.linalg.LinAlgError):  # features of which some are sums of others
                return np.asarray(np.linalg.cholesky(self.cov), np.float64)
        values, vectors = np.linalg.eigh(self.cov)
        positive = values > max(values[-1], 0.0) * self.dim * np.finfo(np.float64).eps
        root: Array = vectors[:, positive] * np.sqrt(values[positive])
        return root


def _check_covariance(cov: Array) -> None:
    """Raises StatisticsError for what is no covariance, but for rounding."""
    size = float(np.abs(cov).sum(0).max())  # no eigenvalue is larger
    slack = ROUNDING * size
    if not np.allclose(cov, cov.T, rtol=0.0, atol=slack):
        raise StatisticsError("the covariance is not symmetric; make the statistics again")
    if size == 0.0:
        return
    try:
        np.linalg.cholesky(cov + slack * np.eye(len(cov)))
    except np.linalg.LinAlgError:
        raise StatisticsError(
            "the covariance has negative eigenvalues; make the statistics again"
        ) from None


class Moments:
    """Sums of features and of their products in float64: D + D^2 + 1 numbers, whatever n is.

    The sums of parts add up to the sums of the whole, so processes merge by adding their tensors.
    """

    def __init__(self, dim: int) -> None:
        self.dim = dim
        self.n = 0
        self._sum = torch.zeros(dim, dtype=torch.float64)
        self._products = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, features: Tensor) -> None:
        """Adds a batch (B, D) of any float dtype.

        Raises:
            StatisticsError: if the shape is another, or a feature is NaN or infinite.
        """
        if features.ndim != 2 or features.shape[1] != self.dim:
            raise StatisticsError(f"features of shape {tuple(features.shape)}, not (B, {self.dim})")
        if not torch.isfinite(features).all():
            raise StatisticsError("features hold NaN or infinity; look at the images of this batch")
        features = features.double().cpu()
        self.n += len(features)
        self._sum += features.sum(0)
        self._products.addmm_(features.T, features)

    def merge(self, other: "Moments") -> None:
        """Adds what another process or another part gathered."""
        self._absorb(other.to_tensor())

    def to_tensor(self) -> Tensor:
        """Returns (1 + D + D^2,) float64: n, the sums, the products. Such tensors may be added."""
        head = torch.tensor([self.n], dtype=torch.float64)
        return torch.cat([head, self._sum, self._products.flatten()])

    @classmethod
    def from_tensor(cls, flat: Tensor) -> "Moments":
        """Inverts `to_tensor`, also of a sum of several."""
        dim = int((flat.numel() - 1) ** 0.5)
        moments = cls(dim)
        moments._absorb(flat)
        return moments

    def _absorb(self, flat: Tensor) -> None:
        if flat.numel() != 1 + self.dim + self.dim**2:
            raise StatisticsError(f"moments of another dimension cannot be added to {self.dim}")
        flat = flat.double().cpu()
        self.n += int(flat[0])
        self._sum += flat[1 : 1 + self.dim]
        self._products += flat[1 + self.dim :].view(self.dim, self.dim)

    def statistics(self, origin: FeatureOrigin | None = None) -> Statistics:
        """Returns the fit, ddof 1; raises StatisticsError for fewer than two images."""
        if self.n < 2:
            raise StatisticsError(f"a covariance needs at least 2 images, not {self.n}")
        mean = self._sum / self.n
        cov = (self._products - self.n * torch.outer(mean, mean)) / (self.n - 1)
        return Statistics(mean.numpy(), cov.numpy(), self.n, origin)


def frechet(a: Statistics, b: Statistics) -> float:
    """Returns |mu_a - mu_b|^2 + tr(cov_a + cov_b) - 2 tr((cov_a cov_b)^(1/2)), float64, >= 0.

    The eigenvalues of cov_a cov_b are the squares of the singular values of A^T B, where
    cov_a = A A^T and cov_b = B B^T; their roots are therefore had without taking any, which keeps
    all digits where a covariance is singular.

    Raises:
        StatisticsError: if dimension or origin differ.

    Warns:
        UserWarning: if a set has no more images than features, or does not say its origin.
    """
    check_comparable(a, b)
    moved = a.mu - b.mu
    roots = np.linalg.svd(a.root.T @ b.root, compute_uv=False)
    trace = np.trace(a.cov) + np.trace(b.cov) - 2.0 * roots.sum()
    return float(max(moved @ moved + trace, 0.0))


def check_comparable(a: Statistics, b: Statistics) -> None:
    """Refuses sets whose features differ in kind; warns where a figure says little."""
    if a.dim != b.dim:
        raise StatisticsError(
            f"one set has {a.dim} features per image and the other {b.dim}; take both with the same"
            " extractor"
        )
    check_origin(a.origin, b.origin)
    if a.origin != b.origin:
        warnings.warn("a set of unknown origin is taken as made with this extractor", stacklevel=3)
    small = [each.n for each in (a, b) if 0 < each.n <= a.dim]
    if small:
        warnings.warn(
            f"{min(small)} images are too few for {a.dim} features: the covariance is singular and"
            " the distance far too large; compare only with figures of the same n",
            stacklevel=3,
        )


def check_origin(a: FeatureOrigin | None, b: FeatureOrigin | None) -> None:
    """Raises StatisticsError if two known origins differ."""
    if a is None or b is None:
        return
    for field, mine in asdict(a).items():
        other = getattr(b, field)
        if mine != other:
            raise StatisticsError(
                f"the sets differ in {field}: {mine!r} and {other!r}; take both with the same"
                " extractor, weights and resize"
            )
