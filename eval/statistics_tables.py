"""The tables l, s and b of DPM-Solver-v3, from means at every node (arXiv:2310.13268, app. C).

The slope s of f' over f has the sampling error v = var(f' - s f) / (K var f) of K samples, and e^s
stands in every step. So each element's s is drawn to the mean over all elements, m, by as much as
it is worth: s <- m + (s - m) w / (w + v), w the variance of the true s over the elements, which is
that of s less the mean of v, at least 0 (empirical Bayes, ours). With many samples v goes to 0 and
the tables to those of the paper.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.schedule import Node

STILL = 1e-4  # of E[f^2]: elements whose f varies less have no slope to be found
PAIRS = ("ee", "ex", "xx", "ed", "xd", "dd")
Means = dict[str, Tensor]


def make_tables(
    nodes: Sequence[Node], rows: Sequence[Means], samples: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns l, s and b from the means at every node."""
    lam = torch.tensor([node.lam for node in nodes], dtype=torch.float64)
    l = torch.stack([row["l"] for row in rows])  # noqa: E741
    (l_slope,) = torch.gradient(l, spacing=(lam,), dim=0)
    solved = [
        _fit_line(_compute_means_of_f(*each), samples)
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


def _compute_means_of_f(node: Node, m: Means, l: Tensor, l_slope: Tensor) -> _Fit:  # noqa: E741
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
