"""The closed-form network: data drawn from a mixture of Gaussians, whose x0 is known exactly."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from .errors import ModelError
from .network import Network
from .prediction import Prediction, convert
from .schedule import Node, NoiseSchedule

POINTS = 64  # of the quadrature over c; 10 digits from D = 4 on
Spread = tuple[Tensor, Tensor, Tensor, Tensor | float]  # means, stds, weights, factor on sigma^2


@dataclass(frozen=True, eq=False)
class GaussianMixture:
    """Data sum_k weights_k N(means_k, diag(stds_k^2)), with d = prod(shape) dimensions.

    means:   (K, d).
    stds:    (K, d), or (K, 1) for isotropic components.
    weights: (K,), summing to 1.

    With v_k = alpha^2 stds_k^2 + sigma^2 and r_k ~ weights_k N(x; alpha means_k, v_k), sum r_k = 1,
    x0 = sum_k r_k [means_k + alpha stds_k^2 / v_k (x - alpha means_k)], exactly. Under the noise of
    PFGM++, sigma z sqrt(D / c), the sum is over the values of c too, with sigma^2 D / c for
    sigma^2: by Gauss-Laguerre quadrature with the weight c^{D/2 - 1} e^{-c/2}.
    """

    means: Tensor
    stds: Tensor
    weights: Tensor

    @classmethod
    def single(cls, mean: Tensor, std: Tensor) -> "GaussianMixture":
        """Makes one Gaussian N(mean, diag(std^2)); mean and std have shape (d,)."""
        return cls(mean[None], std[None], mean.new_ones(1))

    def x0(self, x_t: Tensor, node: Node, aug_dim: int | None = None) -> Tensor:
        """Returns E[x0 | x_t] for x_t of shape (B, *), with the noise of `EDM(aug_dim=...)`."""
        means, stds, weights, stretch = self._spread(aug_dim)
        x = x_t.flatten(1)[:, None].to(means.dtype)  # (B, 1, d)
        var = node.alpha**2 * stds**2 + node.sigma**2 * stretch  # (K, d)
        off = x - node.alpha * means  # (B, K, d)
        log_p = -0.5 * (off**2 / var + var.log()).sum(-1) + weights.log()
        each = means + node.alpha * stds**2 / var * off
        return (log_p.softmax(-1)[..., None] * each).sum(1).reshape(x_t.shape).to(x_t.dtype)

    def _spread(self, aug_dim: int | None) -> Spread:
        """Returns a component for each of ours and each value of c."""
        if aug_dim is None:
            return self.means, self.stds, self.weights, 1.0
        c, shares = (self.means.new_tensor(each) for each in _weigh_chi_square(aug_dim))
        rows, k = torch.cartesian_prod(torch.arange(len(c)), torch.arange(len(self.means))).T
        stretch = (aug_dim / c)[rows, None]
        return self.means[k], self.stds[k], self.weights[k] * shares[rows], stretch

    def flow_map(self, x: Tensor, start: Node, end: Node) -> Tensor:
        """Carries x (B, *) along the probability-flow ODE from start to end, exactly.

        x_s = alpha_s m + sqrt(v_s / v_t) (x_t - alpha_t m), v = alpha^2 std^2 + sigma^2.

        Raises:
            ModelError: for a mixture, whose flow has no closed form.
        """
        if len(self.weights) > 1:
            raise ModelError("a mixture's flow has no closed form; use GaussianMixture.single")
        mean, var = self.means[0], self.stds[0] ** 2
        ratio = (end.alpha**2 * var + end.sigma**2) / (start.alpha**2 * var + start.sigma**2)
        moved = end.alpha * mean + ratio.sqrt() * (x.flatten(1) - start.alpha * mean)
        return moved.reshape(x.shape)

    def draw(self, n: int, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
        """Draws n samples of the data, (n, *shape)."""
        k = torch.multinomial(self.weights, n, replacement=True, generator=generator)
        z = torch.randn(n, math.prod(shape), generator=generator, dtype=self.means.dtype)
        return (self.means[k] + self.stds[k] * z).reshape(n, *shape)

    def network(
        self,
        schedule: NoiseSchedule,
        shape: tuple[int, ...],
        prediction: Prediction = Prediction.X0,
    ) -> Network:
        """Makes this law a network on any schedule, answering in any prediction."""
        sigma_data = getattr(schedule, "sigma_data", 0.5)
        aug_dim = getattr(schedule, "aug_dim", None)

        def forward(x_in: Tensor, node: Node, conditions: Mapping[str, Any]) -> Tensor:
            x_t = x_in / prediction.input_scale(node, sigma_data)
            x0 = self.x0(x_t, node, aug_dim)
            return convert(x0, x_t, node, Prediction.X0, prediction, sigma_data)

        return Network(
            forward=forward,
            schedule=schedule,
            prediction=prediction,
            shape=shape,
            name="gaussian mixture",
        )


def _weigh_chi_square(dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns values of a chi^2 variable and their shares: nodes by Golub and Welsch, at any D."""
    i, a = np.arange(POINTS), 0.5 * dim - 1.0
    places, vectors = eigh_tridiagonal(2.0 * i + 1.0 + a, np.sqrt(i[1:] * (i[1:] + a)))
    return 2.0 * places, vectors[0] ** 2
