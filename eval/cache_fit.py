"""Weights of a predictor, fitted to full runs of one network for one list of full calls.

With G the inner products of what the cache stores (`record_gram`), A the last full calls before a
skipped call t, and w_1 the weights of a line,

    w = w_1 + (G_AA + rho tr(G_AA) / |A| I)^-1 (G_At - G_AA w_1).

A large rho gives the line, 0 the least squares. These forecast true values best, but a run goes on
from forecasts: so cached runs of other noises are compared with uncached ones, and rho is the
largest that is worse than the best by no more than one standard error of their difference.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from ..models.caching import Policy
from ..models.caching.full_calls import list_full_calls
from ..models.caching.predictors import Fitted, Taylor
from ..models.caching.predictors.fitted import MOST, Row
from ..models.errors import SettingError
from .cache_gram import record_gram
from .search.masks import Array

RIDGES = (*(10.0**power for power in range(0, -6, -1)), 0.0)  # rho
LONGEST = 4  # full calls that a row looks at
FIT, CHOOSE = 16, 24  # noises

Draw = Callable[[Sequence[int], Policy | None], Tensor]  # of seeds and a cache


def fit_predictor(policy: Policy, draw: Draw, seeds: Sequence[int]) -> Policy:
    """Returns a policy with fitted weights, which are those of a line where nothing is better.

    Args:
        policy: one whose full calls follow from the index alone.
        draw: returns the images (B, *) of seeds, under a cache or without.
        seeds: FIT + CHOOSE of them, which no figure is measured on.

    Raises:
        SettingError: if a gate decides on its full calls, or they are too far apart.
    """
    if policy.gate is not None:
        raise SettingError(
            f"{policy.info.name} decides on its full calls by a gate, and fitted weights are for"
            " one list of them; take predictor=taylor:order=1"
        )
    fitted, others = seeds[:FIT], seeds[FIT:]
    gram = record_gram(policy, lambda full: draw(fitted, full))
    mask = list_full_calls(policy, len(gram))
    assert mask is not None
    uncached = draw(others, None)

    def measure(rows: Sequence[Row]) -> Array:
        apart = draw(others, _with_rows(policy, rows)) - uncached
        return np.asarray(apart.flatten(1).norm(dim=1) / uncached.flatten(1).norm(dim=1))

    tables = [fit_rows(gram, mask, rho) for rho in (np.inf, *RIDGES)]
    tame = [each for each in tables if _is_tame(each)]
    if not tame:
        raise SettingError(
            f"no fitted weights add up to {MOST:g} or less here, as full calls of"
            f" {policy.info.name} are too far apart; skip fewer in a row, or take predictor=reuse"
        )
    return _with_rows(policy, choose_table(tame, measure))


def choose_table(
    tables: Sequence[tuple[Row, ...]], measure: Callable[[Sequence[Row]], Array]
) -> tuple[Row, ...]:
    """Returns the first table that is worse than the best by no more than one standard error.

    measure: returns the errors (n,) of single noises.
    """
    errors = [measure(each) for each in tables]
    best = min(errors, key=np.mean)
    worse = [each - best for each in errors]
    near = (each.mean() <= each.std(ddof=1) / np.sqrt(len(each)) for each in worse)
    return next(table for table, is_near in zip(tables, near, strict=True) if is_near)


def fit_rows(gram: Array, mask: Sequence[int], rho: float) -> tuple[Row, ...]:
    """Returns the row of each skipped call, its full calls with the newest first.

    Args:
        gram: (S, S) inner products.
        mask: the full calls.
        rho: of the ridge; infinite for a line.
    """
    rows = []
    for call in range(len(gram)):
        if call not in mask:
            times = tuple(each for each in reversed(mask) if each < call)[:LONGEST]
            weights = np.array(Taylor().weights(call, times))
            if rho < np.inf:
                weights = weights + _solve(gram, times, call, weights, rho)
            rows.append((call, times, tuple(float(f"{each:.6g}") for each in weights)))
    return tuple(rows)


def _solve(gram: Array, times: tuple[int, ...], call: int, line: Array, rho: float) -> Array:
    """Returns what is added to the weights of a line."""
    known = gram[np.ix_(times, times)]
    ridge = rho * np.trace(known) / len(times) * np.eye(len(times))
    missing = gram[list(times), call] - known @ line
    return np.asarray(np.linalg.lstsq(known + ridge, missing)[0], dtype=np.float64)


def _is_tame(rows: Sequence[Row]) -> bool:
    return all(sum(map(abs, weights)) <= MOST for _, _, weights in rows)


def _with_rows(policy: Any, rows: Sequence[Row]) -> Policy:
    changed: Policy = replace(policy, predictor=Fitted(rows=tuple(rows)))
    return changed
