"""`Editor`: a network and an editing rule, ready to be given images."""

import time
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from ...models.arguments import Integers
from ...models.errors import SettingError
from ...models.ledger import Ledger
from ...models.modules import hold
from ..conditions import Negative, Wanted, make_user_branches
from ..images import Given, Picture, place_images, to_pil
from ..inversion import check_image, decode
from ..noise import Noise, check_seeds
from ..sampler import Sampler
from .base import EditorSettings, take_editor
from .scene import Scene


@dataclass(frozen=True)
class Edit:
    """The result of an edit.

    samples: (B, *) float32 on the CPU: images in [-1, 1], decoded where the network has a VAE.
    ledger:  what it cost, inversion included.
    bytes_held, bytes_predicted: the V kept at most, and by the formula of `models.attention`.
    """

    samples: Tensor
    ledger: Ledger
    bytes_held: int = 0
    bytes_predicted: int = 0

    @cached_property
    def images(self) -> list[Picture]:
        """The samples as PIL images."""
        return to_pil(self.samples)


class Editor:
    """Changes images with one network; holds no state between calls.

    >>> editor = Editor(Sampler.from_pretrained("fashion-dit"), "rf-edit:inject=4")
    >>> editor(image, source=3, target=6).images[0].save("edit.png")
    """

    def __init__(self, sampler: Sampler, settings: str | EditorSettings = "rf-edit") -> None:
        """Takes settings as a name, `name:key=value,...` or a settings value.

        Raises:
            SettingError: if the editor does not run on the network's noise schedule.
        """
        self.sampler = sampler
        self.settings = take_editor(settings)
        info, network = self.settings.info, sampler.network
        if info.families and network.schedule.family not in info.families:
            raise SettingError(
                f"{info.name} needs a velocity ({', '.join(info.families)} schedules), and"
                f" {network.name} has a {network.schedule.family} schedule; rf-edit runs on all"
            )

    def __call__(
        self,
        image: Given,
        *,
        source: Wanted = None,
        target: Wanted = None,
        negative: Negative = None,
        seeds: Integers | None = None,
    ) -> Edit:
        """Edits a batch of images.

        Args:
            image: a PIL picture or a list of them, or (B, *): pictures in [-1, 1], or latents. A
                network with a pipeline around it works at the size of the picture.
            source: what the images are: a class, a prompt, one of these each, or named condition
                tensors; None is the null class or the empty prompt where there is one.
            target: the same for what they shall become.
            negative: a prompt or condition tensors of the unconditional branch, for guided editors;
                None beside prompts is the pipeline's own, mostly the empty prompt. A network
                distilled for guidance is told the editor's scale instead if there is none.
            seeds: one per image, for editors that draw noise. Default: 0, 1, ...

        Raises:
            SettingError: for an image or conditions that the network does not take.
            ModelError: if the editor needs what the network has not, such as self-attention.
        """
        network, image = place_images(self.sampler.network, image)
        x = check_image(network, image)
        noise = Noise(_read_seeds(seeds, len(x)), network.shape)
        source_of, target_of = (
            make_user_branches(network, len(x), condition, negative)
            for condition in (source, target)
        )
        scene = Scene(network, x, source_of, target_of, noise, Ledger(images=len(x)))
        with torch.no_grad(), hold(network.module):
            start = time.perf_counter()
            samples = decode(network, self.settings.edit(scene))
        scene.ledger.seconds = time.perf_counter() - start
        return Edit(samples, scene.ledger, scene.bytes_held, scene.bytes_predicted)


def _read_seeds(seeds: Integers | None, n: int) -> list[int]:
    numbers = check_seeds(range(n) if seeds is None else seeds)
    if len(numbers) != n:
        raise SettingError(f"{len(numbers)} seeds for {n} images; give one for each")
    return numbers
