"""Trains a network that comes with the package, by its recipe, and writes it ready to sample from.

    accelerate launch recipes/train_network.py cifar-dit --minutes 8 --out trained/cifar-dit
    python recipes/train_network.py --list

docs/training.md says what is written. The same command goes on with a training that was stopped.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import parse_flag_from_env
from training.loop import Budget, Place, Stopped, train
from training.recipe import Recipe, parameters_of, recipe_of
from training.run import Run
from training.store import check_out, draw, write_network
from training.table import RECIPES

from fewstep.models.devices import memory_advice
from fewstep.models.errors import FewstepError, SettingError
from fewstep.models.files import make_folder


def main() -> None:
    options = _options()
    try:
        if options.list:
            print(_table())
        else:
            _train(options)
    except FewstepError as error:
        _end(str(error), 2)
    except Stopped as stopped:
        _end(str(stopped), stopped.code)


def _options() -> argparse.Namespace:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("recipe", nargs="?", help="a name from --list, or a recipe as FILE.json")
    asked.add_argument("--minutes", type=float, help="wall time of the training")
    asked.add_argument("--steps", type=int, help="instead of --minutes")
    asked.add_argument("--batch", type=int, help="images a step, instead of the recipe's")
    asked.add_argument("--out", type=Path, help="folder of the network; default trained/RECIPE")
    asked.add_argument("--save-every", type=float, default=60.0, help="seconds between checkpoints")
    asked.add_argument("--compile", action="store_true", help="with torch.compile")
    asked.add_argument("--list", action="store_true", help="show the recipes")
    return asked.parse_args()


def _table() -> str:
    rows = [("recipe", "class", "parameters", "process", "predicts", "data", "batch")]
    for each in RECIPES.values():
        size = f"{parameters_of(each) / 1e6:.2f} M"
        family = each.schedule["family"]
        row = (each.name, each.model, size, family, each.prediction, each.data, str(each.batch))
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _train(options: argparse.Namespace) -> None:
    if options.recipe is None:
        raise SettingError(f"name a recipe: {', '.join(RECIPES)}, or a FILE.json")
    recipe = recipe_of(options.recipe, RECIPES)
    budget = Budget(options.minutes, options.steps)
    if options.batch is not None:
        recipe = replace(recipe, batch=_at_least_1(options.batch))
    if not options.save_every > 0.0:
        raise SettingError(f"--save-every must be above 0 seconds, not {options.save_every:g}")
    place = Place(options.out or Path("trained") / recipe.name, options.save_every)
    remedy = f"try --batch {max(recipe.batch // 2, 1)}"
    with memory_advice(f"training with a batch of {recipe.batch}", remedy):
        _run(recipe, budget, place, options.compile)


def _run(recipe: Recipe, budget: Budget, place: Place, compiled: bool) -> None:
    resumed = check_out(place, recipe)
    accelerator = started()
    torch.set_float32_matmul_precision("high")  # TF32 where bf16 does not reach
    torch.backends.cudnn.benchmark = True
    run = Run(recipe, accelerator)
    if resumed:
        run.restore(place.checkpoint)
    accelerator.wait_for_everyone()
    make_folder(place.folder)
    if problem := run.start(compiled):
        accelerator.print(f"training goes on uncompiled: {problem}", file=sys.stderr)
    train(run, budget, place)
    if accelerator.is_main_process:
        write_network(place.folder, recipe, run.averaged(), _facts(run))
        print(f"written to {place.folder}; drawing samples.png", flush=True)
        draw(place.folder, accelerator.device, len(recipe.classes))
    accelerator.wait_for_everyone()
    accelerator.end_training()


def started() -> Accelerator:
    """This process's part of the launch: bf16 on its GPU, or float32 on the CPU."""
    cuda = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    return Accelerator(cpu=not cuda, mixed_precision="bf16" if cuda else "no")


def _facts(run: Run) -> dict[str, Any]:
    progress, cuda = run.progress, run.device.type == "cuda"
    name = torch.cuda.get_device_name(run.device) if cuda else "cpu"
    count = run.accelerator.num_processes
    return {
        "steps": progress.steps,
        "seconds": round(progress.seconds, 1),
        "device": name if count == 1 else f"{count} x {name}",
        "images_per_second": round(progress.steps * run.recipe.batch / progress.seconds, 1),
        "loss": round(progress.loss, 6),
        "skipped_steps": progress.skipped,
    }


def _at_least_1(batch: int) -> int:
    if batch < 1:
        raise SettingError(f"--batch must be at least 1, not {batch}")
    return batch


def _end(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
