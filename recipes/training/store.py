"""What a training leaves behind: a checkpoint folder of diffusers with its card, and a picture."""

import hashlib
import io
import json
from collections.abc import Mapping
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

from .loop import Place
from .recipe import Recipe, Times, build
from .run import Run, check_same, read_checkpoint

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
    recipe, facts = run.recipe, _facts(run)
    return {
        "name": recipe.name,
        "class": recipe.model,
        "parameters": sum(each.numel() for each in network.parameters()),
        "schedule": process_of(recipe.process),
        "prediction": recipe.prediction,
        "training": _describe_training(run, facts),
        "trained": facts,
        "shape": list(recipe.shape),
        "num_classes": len(recipe.class_names),
        "null_class": recipe.null_class,
        "class_names": list(recipe.class_names),
        "data": _describe_data(recipe),
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
    }


def _describe_training(run: Run, facts: Mapping[str, Any]) -> str:
    recipe = run.recipe
    start = f"from weights of sha256 {run.start[:12]}..." if run.start else "from scratch"
    return (
        f"{start} with recipes/train_network.py on {facts['device']}: {facts['steps']:,} steps"
        f" of AdamW in {facts['seconds'] / 60:.1f} minutes, batch {recipe.batch}, times"
        f" {', '.join(map(_describe_times, recipe.times))}, warm-up {recipe.warmup} steps, half"
        f" cosine from {recipe.rate:g} to 1 % of it, gradient clip {recipe.clip:g},"
        f" {'bf16 autocast with the borders in float32, ' if recipe.bf16 else ''}class dropped"
        f" {100 * recipe.label_dropout:g} % of the time; the EMA ({recipe.ema:g}) is stored; mean"
        f" loss of the last hundred steps {facts['loss']:.4f}"
    )


def _describe_times(times: Times) -> str:
    share = "" if times.share == 1.0 else f"{100 * times.share:g} % "
    at = "" if times.law == "steps" else f" {times.at[0]:g}, {times.at[1]:g}"
    return f"{share}{times.law}{at}"


def _find_licence(recipe: Recipe) -> str:
    names = (source.partition(":")[0] for source in recipe.sources)
    known = (DATA_SETS.get(PADDED.get(name, name)) for name in names)
    return ", ".join(dict.fromkeys(each.licence if each else "not known" for each in known))


def _describe_data(recipe: Recipe) -> str:
    sources = (
        name if weight == 1.0 else f"{name} with weight {weight:g}"
        for name, weight in recipe.sources.items()
    )
    balance = f", drawn with weight count^-{recipe.balance:g}" if recipe.balance else ""
    flips = "horizontal flips"
    if recipe.unmirrored:
        flips += f" except {', '.join(recipe.unmirrored)}"
    shape = "x".join(map(str, recipe.shape))
    return f"{', '.join(sources)} (training images, {shape}){balance}, range [-1, 1], {flips}"


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
