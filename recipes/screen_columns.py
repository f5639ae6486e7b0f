"""Measures how much a last step gains by columns that are no linear ones, in shipped tables.

    python recipes/screen_columns.py [NAME ...] [--nfe 5] [--noises 256]

The last row of a shipped table is fitted by least squares to the ends of some training noises, as
it is and with further columns made of its predictions; printed is the error on validation noises,
relative to that of the row with linear columns alone. It asks the network once for each noise and
step, so that many ideas are told apart in a minute. The noises are those of `searched_schedules`.
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from beyond_linear import NETWORKS, STRATEGIES, request
from searched_schedules import LOGS
from torch import Tensor

from fewstep.eval.bench.table import markdown_table
from fewstep.eval.search.canonical import make_canonical, rows_of
from fewstep.eval.search.command import start_searches
from fewstep.eval.search.fitting import fit_weights
from fewstep.eval.search.function_columns import list_columns
from fewstep.eval.search.prepare import TEACHER, prepare_searches
from fewstep.models.files import make_folder
from fewstep.solvers.prediction_functions import read_function
from fewstep.solvers.presets import preset

Idea = Callable[[Tensor], list[Tensor]]  # from the predictions (N, n, C, H, W), oldest first


def apply(*texts: str) -> Idea:
    """Returns the columns of functions of every prediction."""
    return lambda seen: [read_function(text)(x0) for text in texts for x0 in seen]


def fix(function: Callable[[Tensor], Tensor]) -> Idea:
    """Returns the columns of one function of all predictions at once."""
    return lambda seen: list(function(seen))


def measure_spread(seen: Tensor) -> Tensor:
    """Returns the deviation of 3 x 3 neighbours."""
    blur = read_function("blur:radius=1")
    parts = [(blur(x0 * x0) - blur(x0) ** 2).clamp_min(0.0).sqrt() for x0 in seen]
    return torch.stack(parts)


def change(seen: Tensor) -> Tensor:
    """Returns the differences of predictions that follow each other."""
    return seen[1:] - seen[:-1]


IDEAS: dict[str, Idea] = {
    "clamp:low=-1,high=1": apply("clamp:low=-1,high=1"),
    "clamp:low=-0.9,high=0.9": apply("clamp:low=-0.9,high=0.9"),
    "tanh:gain=3": apply("tanh:gain=3"),
    "tanh:gain=3,shift=1": apply("tanh:gain=3,shift=1"),
    "blur:radius=1": apply("blur:radius=1"),
    "blur:radius=2": apply("blur:radius=2"),
    "both tanh": apply("tanh:gain=3", "tanh:gain=3,shift=1"),
    "both tanh, blur, clamp": apply("tanh:gain=3", "tanh:gain=3,shift=1", "blur", "clamp"),
    "x0 squared": fix(torch.square),
    "products of neighbours in time": fix(lambda seen: seen[1:] * seen[:-1]),
    "|change|": fix(lambda seen: change(seen).abs()),
    "change (1 - x0^2)": fix(lambda seen: change(seen) * (1.0 - seen[1:].clamp(-1.0, 1.0) ** 2)),
    "spread of 3 x 3": fix(measure_spread),
    "largest of 3 x 3": fix(lambda seen: torch.stack([_take_largest(x0) for x0 in seen])),
    "mean of the sample": fix(lambda seen: seen.mean((2, 3, 4), keepdim=True).expand_as(seen)),
}


def _take_largest(x0: Tensor) -> Tensor:
    return torch.nn.functional.max_pool2d(x0, 3, 1, 1)


def screen(name: str, options: argparse.Namespace) -> dict[str, float]:
    """Returns the error that each idea leaves on validation noises."""
    what = request(name, options.nfe, options)
    searches = prepare_searches(what)
    make_folder(what.folder / TEACHER)
    (search,) = start_searches(searches, what)
    problem, table = search.problem, make_canonical(preset(f"{name}-nfe{options.nfe}"))
    blocks = [problem.block("train"), problem.block("validation")]
    blocks = [each.first(min(options.noises, len(each))) for each in blocks]
    runs = [list_columns(problem, table, rows_of(table), table.functions, b) for b in blocks]

    def measure(idea: Idea) -> float:
        fitted, judged = ([*run, *idea(torch.stack(run[1:]))] for run in runs)
        weights = fit_weights(fitted, blocks[0].ends)
        ends = torch.einsum("c,c...->...", weights, torch.stack(judged).double())
        return float((ends - blocks[1].ends).square().mean().sqrt())

    return {key: measure(idea) for key, idea in {"linear": lambda seen: [], **IDEAS}.items()}


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("names", nargs="*", metavar="NAME", default=NETWORKS, help="a network")
    asked.add_argument("--nfe", type=int, default=5, help="evaluations of the shipped table")
    asked.add_argument("--noises", type=int, default=256, help="training noises that are fitted")
    asked.add_argument("--logs", type=Path, default=LOGS, help="folder of the searches")
    asked.set_defaults(strategy=STRATEGIES, budget="candidates=1", cfg_scale=1.0)
    options = asked.parse_args()
    names = options.names or NETWORKS
    errors = {name: screen(name, options) for name in names}
    lines = [("columns", *(f"`{name}`" for name in names))]
    lines.append(("linear", *(f"{errors[name]['linear']:.4f}" for name in names)))
    for idea in IDEAS:
        ratios = (errors[name][idea] / errors[name]["linear"] for name in names)
        lines.append((idea, *(f"{ratio:.3f}" for ratio in ratios)))
    sys.stdout.write("\n".join(markdown_table(lines)) + "\n")


if __name__ == "__main__":
    main()
