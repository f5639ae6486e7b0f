"""The training images, all of them on the device as bytes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from fewstep.eval.data import ImageSet, images_of
from fewstep.models.errors import SettingError

from .recipe import Recipe


@dataclass(frozen=True)
class Pixels:
    """The images of a recipe.

    images:   uint8 (N, C, H, W).
    labels:   int64 (N,).
    weights:  (N,), how likely each image is to be drawn.
    mirrored: bool (classes,), which classes are flipped at times.
    """

    images: Tensor
    labels: Tensor
    weights: Tensor
    mirrored: Tensor

    def to(self, device: torch.device) -> "Pixels":
        return Pixels(*(each.to(device) for each in vars(self).values()))

    def draw(self, n: int) -> tuple[Tensor, Tensor]:
        """Returns n images in [-1, 1] and their labels, drawn with replacement, some flipped."""
        rows = torch.multinomial(self.weights, n, replacement=True)
        x0, labels = self.images[rows].float() / 127.5 - 1.0, self.labels[rows]
        flipped = (torch.rand(n, device=x0.device) < 0.5) & self.mirrored[labels]
        return torch.where(flipped[:, None, None, None], x0.flip(3), x0), labels


def pixels_of(recipe: Recipe) -> Pixels:
    """Returns the images of a recipe.

    Raises:
        DataError: if they are not here; the message says which command fetches them.
        SettingError: if they are not what the recipe is for.
    """
    unknown = set(recipe.unmirrored) - set(recipe.classes)
    if unknown:
        raise SettingError(f"{recipe.name} has no class {min(unknown)!r} to leave unmirrored")
    sets = [images_of(source) for source in recipe.sources]
    labels = torch.cat([_labels(images, recipe) for images in sets])
    pairs = zip(sets, recipe.sources.values(), strict=True)
    weights = torch.cat([torch.full((len(images),), weight) for images, weight in pairs])
    return Pixels(
        torch.cat([batch for images in sets for batch in images.batches(4096)]),
        labels,
        weights * labels.bincount()[labels] ** -recipe.balance,
        torch.tensor([name not in recipe.unmirrored for name in recipe.classes]),
    )


def _labels(images: ImageSet, recipe: Recipe) -> Tensor:
    if images.labels is None:
        raise SettingError(f"{images.name} has no classes; {recipe.name} needs labelled images")
    if images.shape != recipe.shape or int(images.labels.max()) >= len(recipe.classes):
        raise SettingError(
            f"{images.name} has {int(images.labels.max()) + 1} classes of shape {images.shape},"
            f" but {recipe.name} is for {len(recipe.classes)} of shape {recipe.shape}"
        )
    return images.labels
