"""The output of a training: a checkpoint folder of diffusers with its card, and a picture."""

import hashlib
import io
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn

from fewstep.eval.data import DATA_SETS, PADDED
from fewstep.models.checkpoint import WEIGHTS
from fewstep.models.errors import ModelError, SettingError
from fewstep.models.files import check_folder, write_bytes
from fewstep.models.schedule import process_of
from fewstep.samplers.images import make_contact_sheet
from fewstep.samplers.sampler import Sampler

from .checkpoint import check_same, read_checkpoint
from .loop import Place
from .recipe import Recipe, build, write_recipe
from .run import Run

CONFIG, CARD, SAMPLES = "config.json", "card.json", "samples.png"
PER_CLASS = 8
NFE = 50


def check_out(place: Place, recipe: Recipe) -> bool:
    """Says whether there is a training of this recipe to go on with.

    Raises:
        SettingError: if the folder cannot be written to, or holds a network or a training that is
            not this recipe's and would be lost.
    """
    check_folder(place.folder)
    if place.checkpoint.exists():
        check_same(read_checkpoint(place.checkpoint)["recipe"], recipe, place.checkpoint)
        return True
    for name in (CARD, CONFIG, WEIGHTS, SAMPLES):
        if (place.folder / name).exists():
            raise SettingError(
                f"{str(place.folder)!r} holds {name} but no {place.checkpoint.name} to go on from;"
                " give another --out, so that nothing is lost"
            )
    return False


def write_network(folder: Path, run: Run) -> None:
    """Writes the averaged weights in half precision, their config and their card.

    Raises:
        ModelError: if a weight is too large for half precision.
    """
    network = _halve(run)
    with TemporaryDirectory() as temporary:
        network.save_pretrained(temporary)
        body = (Path(temporary) / WEIGHTS).read_bytes()
        write_bytes(folder / WEIGHTS, body)
        write_bytes(folder / CONFIG, (Path(temporary) / CONFIG).read_bytes())
    text = json.dumps(_card(run, network, body), indent=2)
    write_bytes(folder / CARD, (text + "\n").encode())


@torch.no_grad()
def _halve(run: Run) -> Any:
    network, average = build(run.recipe), run.averaged()
    for name, value in network.named_parameters():
        value.copy_(average[name])
    network.half()
    for name, value in network.named_parameters():
        if not value.isfinite().all():
            raise ModelError(f"{name} does not fit into half precision; the training diverged")
    return network


def _card(run: Run, network: nn.Module, body: bytes) -> dict[str, Any]:
    recipe, progress = run.recipe, run.progress
    return {
        "name": recipe.name,
        "class": recipe.model,
        "parameters": sum(each.numel() for each in network.parameters()),
        "schedule": process_of(recipe.process),
        "prediction": recipe.prediction,
        "training": f"{progress.steps:,} steps of recipes/train_network.py {recipe.name}",
        "trained": _facts(run),
        "shape": list(recipe.shape),
        "num_classes": len(recipe.class_names),
        "null_class": recipe.null_class,
        "class_names": list(recipe.class_names),
        "data": ", ".join(recipe.sources),
        "data_licence": _find_licence(recipe),
        "licence": "Apache-2.0",
        "weights": "fp16 safetensors",
        "sha256": hashlib.sha256(body).hexdigest(),
    }


def _facts(run: Run) -> dict[str, Any]:
    progress, cuda = run.progress, run.device.type == "cuda"
    return {
        "steps": progress.steps,
        "seconds": round(progress.seconds, 1),
        "device": torch.cuda.get_device_name(run.device) if cuda else "cpu",
        "images_per_second": round(progress.steps * run.recipe.batch / progress.seconds, 1),
        "loss": round(progress.loss, 6),
        "skipped_steps": progress.skipped,
        "started_from": run.start or None,
        "recipe": json.loads(write_recipe(run.recipe)),
    }


def _find_licence(recipe: Recipe) -> str:
    names = (source.partition(":")[0] for source in recipe.sources)
    known = (DATA_SETS.get(PADDED.get(name, name)) for name in names)
    return ", ".join(dict.fromkeys(each.licence if each else "not known" for each in known))


def draw(run: Run, folder: Path) -> None:
    """Draws a picture of the stored network: a row of images for each class, unguided."""
    sampler = Sampler.from_pretrained(folder, device=run.device)
    classes = len(run.recipe.class_names)
    labels = [label for label in range(classes) for _ in range(PER_CLASS)] or None
    noises = range(PER_CLASS * (classes or PER_CLASS))
    result = sampler(noises, class_labels=labels, nfe=NFE, batch=128, progress=True)
    sheet = io.BytesIO()
    make_contact_sheet(result.images, PER_CLASS).save(sheet, "PNG")
    write_bytes(folder / SAMPLES, sheet.getvalue())
