"""Functions of predictions in the best linear table, and Gauss-Newton on all of it.

Which functions is decided greedily: the one that lowers the error of a fitted last row most on the
training noises, then the one that does so beside it, and so on; see `search.function_columns`. Soft
steps and clamps are placed by the training ends: at their low, middle and high values. Then the
table with one function, that with two, and so on are refined in rounds as other tables are, on more
noises from the first round on: they begin where a linear table has no more to gain.
"""

from collections.abc import Iterator
from functools import partial

import torch

from ....solvers.prediction_functions import (
    BoxBlur,
    Clamp,
    PredictionFunction,
    Tanh,
    spell_function,
)
from ..function_columns import add_functions, rank_functions
from ..log import Trial
from ..problem import Block
from .base import Proposal, Task
from .refine import THEN, Rounds, is_step

LADDER = ((3, 1), (2, 3))  # so many of the best tables get so many rounds; then the best alone
MOST = 3  # functions of each prediction
PLACES = (0.05, 0.5, 0.95)  # quantiles of the training ends
STEEPNESS = 2.0  # gain of a soft step, over the deviation of the training ends
STEEPEST = 100.0
DIGITS = 3  # that settings keep
SAMPLED = 100_000  # numbers of the ends that are looked at, about


def propose(task: Task) -> Iterator[Proposal]:
    """From the best linear table in the log; from the space's own if there is none."""
    if (best := _find_linear(task)) is None:
        yield Proposal(task.space.base(task.nfe))
        best = _find_linear(task)
    if best is not None and sum(seed.parent == best.id for seed in _list_seeds(task)) < MOST:
        yield from _add_to(task, best)
    yield from Rounds(task, "columns", partial(_list_seeds, task), LADDER, THEN).take()


def list_candidates(block: Block) -> list[PredictionFunction]:
    """Returns the functions that are tried for a network whose ends a block holds."""
    ends = block.ends.flatten()[:: max(1, block.ends.numel() // SAMPLED)].double()
    quantiles = torch.quantile(ends, torch.tensor(PLACES, dtype=torch.float64))
    low, middle, high = map(_round, quantiles.tolist())
    if not low < middle < high:
        middle = _round((low + high) / 2.0)
    gain = min(_round(STEEPNESS / max(float(ends.std()), 1e-6)), STEEPEST)
    functions: list[PredictionFunction] = [
        Tanh(gain=gain, shift=-place) for place in dict.fromkeys((low, middle, high))
    ]
    if low < middle < high:
        functions += [Clamp(low=low, high=high), Clamp(low=low, high=middle)]
    functions += [BoxBlur(radius=1), BoxBlur(radius=2)] if block.ends.ndim == 4 else []
    return functions


def _round(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


def _find_linear(task: Task) -> Trial | None:
    """Returns the best linear table; of refined ones, that which is best on most noises."""
    usable = [trial for trial in task.best() if trial.score is not None and trial.linear]
    refined = [trial for trial in usable if is_step(trial, "refine")]
    best = min(refined, key=lambda trial: trial.schedule.provenance["wide"], default=None)
    return best or next(iter(usable), None)


def _add_to(task: Task, best: Trial) -> Iterator[Proposal]:
    """Yields the table with one function, with two, and so on."""
    candidates = [spell_function(each) for each in list_candidates(task.scored)]
    chosen = rank_functions(task.problem, best.schedule, candidates, MOST, task.scored)
    for count in range(1, len(chosen) + 1):
        made = add_functions(task.problem, best.schedule, chosen[:count], task.scored)
        facts = {"label": " ".join(chosen[:count])}
        yield Proposal(made.model_copy(update={"provenance": facts}), best.id)


def _list_seeds(task: Task) -> list[Trial]:
    """Returns the tables that rounds start from, the best first."""
    usable = [trial for trial in task.best() if trial.score is not None and not trial.linear]
    return [each for each in usable if each.strategy == "columns" and not is_step(each, "columns")]
