"""Facts of full runs, for masks: inner products of calls, and how errors grow to the end."""

from functools import partial

import torch
from torch import Tensor

from ...models.caching import FixedMask, Policy
from ...models.caching.predictors import IndexPredictor, Taylor, take_predictor
from ...solvers import Schedule
from ...solvers.cached_calls import CachedCalls
from ..cache_gram import record_gram
from .masks import Weigh, forecast_error
from .problem import Block, Problem

ROWS = 8  # noises whose features are held at once
LEAST = 1e-12  # relative squared error, below which a call is as good as known


def measure_gram(problem: Problem, schedule: Schedule, block: Block) -> Tensor:
    """Returns the inner products (S, S) of what enters the head at each call of a full run.

    Args:
        problem: the network.
        schedule: one without a cache, of S evaluations.
        block: the noises.
    """

    def run(cache: Policy) -> None:
        for first in range(0, len(block), ROWS):
            problem.run(schedule, block.rows(slice(first, first + ROWS)), cache)

    return torch.from_numpy(record_gram(FixedMask((0,)), run))


def measure_gains(problem: Problem, schedule: Schedule, block: Block, gram: Tensor) -> Tensor:
    """Returns (S,): how much a squared error at each call grows to the end of the run.

        g_t = |x_end - x_end,full|^2 / |x_end,full|^2 / E_t,

    where call t alone is skipped, and E_t is its own relative squared error. Call 0 has none.

    Args:
        problem, schedule, block: as of `measure_gram`.
        gram: (S, S) inner products, for E_t.
    """
    calls = schedule.nfe
    known = problem.ends(schedule, block).double()
    gains = torch.zeros(calls, dtype=torch.float64)
    for skipped in range(1, calls):
        mask = tuple(call for call in range(calls) if call != skipped)
        cached = schedule.with_cache(CachedCalls(compute=mask))
        change = (problem.ends(cached, block).double() - known).square().sum()
        times = tuple(range(skipped - 1, -1, -1))
        local = forecast_error(gram.numpy(), skipped, times, Taylor().weights(skipped, times))
        gains[skipped] = change / known.square().sum() / max(local, LEAST)
    return gains


def find_weights(predictor: str, calls: int) -> Weigh | None:
    """Returns the weights of a predictor in a run of so many calls, if indices decide on them."""
    kind = take_predictor(predictor)
    return partial(kind.weights, calls=calls) if isinstance(kind, IndexPredictor) else None
