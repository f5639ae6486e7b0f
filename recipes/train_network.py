"""Trains a network by its recipe and writes it ready to sample from.

    python recipes/train_network.py fashion-dit --minutes 180 --out trained/fashion-dit
    python recipes/train_network.py --list

docs/training.md says what is written. The same command goes on with a training that was stopped.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import torch
from training.checkpoint import restore
from training.loop import Budget, Place, Stopped, train
from training.recipe import Recipe, parameters_of, recipe_of
from training.run import Run
from training.store import check_out, draw, write_network
from training.table import RECIPES, finish

from fewstep.models.devices import memory_advice
from fewstep.models.errors import FewstepError, SettingError
from fewstep.models.files import make_folder


def main() -> None:
    options = _read_options()
    try:
        if options.list:
            print(_table())
        else:
            _train(options)
    except FewstepError as error:
        _end(str(error), 2)
    except Stopped as stopped:
        _end(str(stopped), stopped.code)


def _read_options() -> argparse.Namespace:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("recipe", nargs="?", help="a name from --list, or a recipe as FILE.json")
    asked.add_argument("--minutes", type=float, help="wall time of the training")
    asked.add_argument("--steps", type=int, help="instead of --minutes")
    asked.add_argument("--batch", type=int, help="images a step, instead of the recipe's")
    asked.add_argument("--start", type=Path, help="folder of weights to begin with")
    asked.add_argument("--finish", action="store_true", help="train --start on for a clean ground")
    asked.add_argument("--out", type=Path, help="folder of the network; default trained/RECIPE")
    asked.add_argument("--save-every", type=float, default=60.0, help="seconds between checkpoints")
    asked.add_argument("--list", action="store_true", help="show the recipes")
    return asked.parse_args()


def _table() -> str:
    rows = [("recipe", "class", "parameters", "process", "predicts", "data", "batch")]
    for each in RECIPES.values():
        size, family = f"{parameters_of(each) / 1e6:.2f} M", str(each.schedule["family"])
        data = ", ".join(each.sources)
        row = (each.name, each.model, size, family, each.prediction, data, str(each.batch))
        rows.append(row)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n".join(lines)


def _train(options: argparse.Namespace) -> None:
    if options.recipe is None:
        raise SettingError(f"name a recipe: {', '.join(RECIPES)}, or a FILE.json")
    recipe = recipe_of(options.recipe, RECIPES)
    if options.finish:
        recipe = _finish(recipe, options.start)
    budget = Budget(options.minutes, options.steps)
    if options.batch is not None:
        recipe = replace(recipe, batch=_check_batch(options.batch))
    if not options.save_every > 0.0:
        raise SettingError(f"--save-every must be above 0 seconds, not {options.save_every:g}")
    place = Place(options.out or Path("trained") / recipe.name, options.save_every)
    remedy = f"try --batch {max(recipe.batch // 2, 1)}"
    with memory_advice(f"training with a batch of {recipe.batch}", remedy):
        _run(recipe, budget, place, options.start)


def _run(recipe: Recipe, budget: Budget, place: Place, start: Path | None) -> None:
    resumed = check_out(place, recipe)
    torch.set_float32_matmul_precision("high")  # TF32 where bf16 does not reach
    run = Run(recipe, start)
    if resumed:
        restore(run, place.checkpoint)
    make_folder(place.folder)
    train(run, budget, place)
    write_network(place.folder, run)
    print(f"written to {place.folder}; drawing samples.png", flush=True)
    draw(run, place.folder)


def _finish(recipe: Recipe, start: Path | None) -> Recipe:
    if start is None:
        raise SettingError("--finish trains a network on; give the folder of one with --start")
    return finish(recipe)


def _check_batch(batch: int) -> int:
    if batch < 1:
        raise SettingError(f"--batch must be at least 1, not {batch}")
    return batch


def _end(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
