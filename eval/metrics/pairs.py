"""Distances of images from those of a reference run, image by image."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from ...models.errors import SettingError
from ...models.extras import check_installed
from .base import PairMetric, register

WINDOW = 11


def psnr(images: Tensor, reference: Tensor) -> Tensor:
    """10 log10(4 / MSE) in decibels, 4 being the squared range; infinite for equal images."""
    return -10.0 * ((images - reference).square().flatten(1).mean(1) / 4.0).log10()


def rmse(images: Tensor, reference: Tensor) -> Tensor:
    """Root of the mean squared difference, in units in which images span -1 to 1."""
    return (images - reference).square().flatten(1).mean(1).sqrt()


def relative_l2(images: Tensor, reference: Tensor) -> Tensor:
    """|images - reference| / |reference|, 2-norms over all pixels, black being -1."""
    apart, size = (each.flatten(1).norm(dim=1) for each in (images - reference, reference))
    ratio: Tensor = apart / size
    return ratio


def ssim(images: Tensor, reference: Tensor) -> Tensor:
    """Structural similarity with a Gaussian window of 11 pixels, sigma 1.5; 1 for equal images."""
    if min(images.shape[-2:]) < WINDOW:
        raise SettingError(
            f"ssim needs sides of at least {WINDOW} pixels, not {tuple(images.shape[-2:])};"
            " take psnr or rmse"
        )
    measure = _torchmetrics("structural_similarity_index_measure")
    pixels = ((each + 1.0) / 2.0 for each in (images, reference))
    values: Tensor = measure(*pixels, data_range=1.0, reduction="none")
    return values.reshape(len(images))


def _torchmetrics(name: str) -> Callable[..., Any]:
    check_installed("torchmetrics")
    from torchmetrics.functional import image

    function: Callable[..., Any] = getattr(image, name)
    return function


register(PairMetric("psnr", "high", "", psnr))
register(PairMetric("rmse", "low", "", rmse))
register(PairMetric("rel-l2", "low", "", relative_l2))
register(PairMetric("ssim", "high", "Wang et al. 2004", ssim, needs="torchmetrics"))
