"""Where `fewstep stats` takes the samples from that it measures a network on."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..models.denoiser import Network
from ..models.errors import SettingError
from ..samplers.sampler import Sampler
from .data import images_of
from .measure_statistics import Measurement

OWN_NFE = 50  # evaluations with which a network draws its own samples


def measurement(
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
