"""What a training leaves behind: a checkpoint folder of diffusers with its card, and a picture."""

import hashlib
import io
import json
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from fewstep.eval.data import DATA_SETS, PADDED
from fewstep.models.checkpoint import WEIGHTS
from fewstep.models.errors import ModelError, SettingError
from fewstep.models.files import check_folder, write_bytes
from fewstep.models.schedule import process_of
from fewstep.samplers.images import make_contact_sheet
from fewstep.samplers.sampler import Sampler

from .loop import Place
from .recipe import Recipe, build
from .run import check_same, kept

CONFIG, CARD, SAMPLES = "config.json", "card.json", "samples.png"
PER_CLASS = 8
NFE = 50


def check_out(place: Place, recipe: Recipe) -> bool:
    """Whether there is a training of this recipe to go on with.

    Raises:
        SettingError: if the folder cannot be written to, or holds a network or a training that is
            not this recipe's and would be lost.
    """
    check_folder(place.folder)
    if place.checkpoint.exists():
        check_same(kept(place.checkpoint)["recipe"], recipe, place.checkpoint)
        return True
    held = [name for name in (CARD, CONFIG, WEIGHTS, SAMPLES) if (place.folder / name).exists()]
    if held:
        raise SettingError(
            f"{str(place.folder)!r} holds {held[0]} but no {place.checkpoint.name} to go on from;"
            " give another --out, so that nothing is lost"
        )
    return False


def write_network(
    folder: Path, recipe: Recipe, average: Mapping[str, Tensor], facts: Mapping[str, Any]
) -> None:
    """The averaged weights in half precision, their config and their card.

    Raises:
        ModelError: if a weight is too large for half precision.
    """
    network = _halved(build(recipe), average)
    with TemporaryDirectory() as temporary:
        network.save_pretrained(temporary)
        body = (Path(temporary) / WEIGHTS).read_bytes()
        write_bytes(folder / WEIGHTS, body)
        write_bytes(folder / CONFIG, (Path(temporary) / CONFIG).read_bytes())
    text = json.dumps(_card(recipe, network, body, facts), indent=2)
    write_bytes(folder / CARD, (text + "\n").encode())


@torch.no_grad()
def _halved(network: nn.Module, average: Mapping[str, Tensor]) -> Any:
    for name, value in network.named_parameters():
        value.copy_(average[name])
    network.half()
    for name, value in network.named_parameters():
        if not value.isfinite().all():
            raise ModelError(f"{name} does not fit into half precision; the training diverged")
    return network


def _card(recipe: Recipe, network: nn.Module, body: bytes, facts: Mapping[str, Any]) -> Any:
    known = DATA_SETS.get(PADDED.get(recipe.data, recipe.data))
    return {
        "name": recipe.name,
        "class": recipe.model,
        "parameters": sum(each.numel() for each in network.parameters()),
        "schedule": process_of(recipe.process),
        "prediction": recipe.prediction,
        "training": _told(recipe, facts),
        "trained": dict(facts),
        "shape": list(recipe.shape),
        "num_classes": len(recipe.classes),
        "null_class": recipe.null_class,
        "class_names": list(recipe.classes),
        "data": _data(recipe),
        "data_licence": known.licence if known else "not known",
        "licence": "Apache-2.0",
        "weights": "fp16 safetensors",
        "sha256": hashlib.sha256(body).hexdigest(),
    }


def _told(recipe: Recipe, facts: Mapping[str, Any]) -> str:
    law = recipe.times
    times = law.law if law.law in ("steps", "uniform") else f"{law.law} {law.mean:g}, {law.std:g}"
    return (
        f"from scratch with recipes/train_network.py on {facts['device']}: {facts['steps']:,} steps"
        f" of AdamW in {facts['seconds'] / 60:.1f} minutes, batch {recipe.batch}, times {times},"
        f" warm-up {recipe.warmup} steps, half cosine from {recipe.rate:g} to 0, gradient clip"
        f" {recipe.clip:g}, class dropped {100 * recipe.label_dropout:g} % of the time; the EMA"
        f" ({recipe.ema:g}) is stored; mean loss of the last hundred steps {facts['loss']:.4f}"
    )


def _data(recipe: Recipe) -> str:
    flips = "horizontal flips"
    if recipe.unmirrored:
        flips += f" except {', '.join(recipe.unmirrored)}"
    shape = "x".join(map(str, recipe.shape))
    return f"{recipe.data} (training images, {shape}), range [-1, 1], {flips}"


def draw(folder: Path, device: torch.device, classes: int) -> None:
    """A picture of the stored network: a row of images for each class, unguided."""
    sampler = Sampler.from_pretrained(folder, device=device)
    labels = [label for label in range(classes) for _ in range(PER_CLASS)]
    result = sampler(range(len(labels)), class_labels=labels, nfe=NFE, batch=128, progress=True)
    sheet = io.BytesIO()
    make_contact_sheet(result.images, PER_CLASS).save(sheet, "PNG")
    write_bytes(folder / SAMPLES, sheet.getvalue())
