"""The full calls of a run, and how well the others can be forecast, without the network.

A forecast is a weighted sum of what earlier full calls gave, F^_t = sum_a w_a F_a. So its squared
error is a quadratic form in the inner products of what all calls of one full run gave:

    |F^_t - F_t|^2 = w G_AA w - 2 w G_At + G_tt,   G_ab = sum over noises and numbers of F_a F_b.

Where the weights depend on the last two full calls alone, the best of all masks is found by dynamic
programming over pairs of them; with one as the state it is not, since the cost of a gap depends on
the gap before.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from ...models.errors import SettingError

Weigh = Callable[[int, tuple[int, ...]], Sequence[float]]
Array = NDArray[np.float64]


def forecast_error(
    gram: Array, call: int, times: tuple[int, ...], weights: Sequence[float]
) -> float:
    """Returns |F^_t - F_t|^2 / |F_t|^2 of a forecast, and 0 where rounding makes it negative.

    Args:
        gram: (S, S) inner products.
        call: t.
        times: full calls, newest first.
        weights: of the first of them; the rest have none.
    """
    chosen, w = list(times[: len(weights)]), np.asarray(weights)
    square = w @ gram[np.ix_(chosen, chosen)] @ w - 2.0 * (w @ gram[chosen, call])
    return max(float(square / gram[call, call]) + 1.0, 0.0)


def tabulate_errors(gram: Array, weigh: Weigh) -> Array:
    """Returns (S, S, S): the error at call t after full calls i < j; at (0, 0, t) after 0 alone.

    Args:
        gram: (S, S) inner products.
        weigh: returns the weights of at most two full calls, newest first, in a forecast.
    """
    calls = len(gram)
    errors = np.zeros((calls, calls, calls))
    for t in range(1, calls):
        errors[0, 0, t] = forecast_error(gram, t, (0,), weigh(t, (0,)))
        for j in range(1, t):
            for i in range(j):
                errors[i, j, t] = forecast_error(gram, t, (j, i), weigh(t, (j, i)))
    return errors


def sum_gaps(errors: Array) -> Array:
    """Returns (S, S, S + 1): C[i, j, k], the sum of errors at j+1 .. k-1 after i and j.

    The last of them, k = S, is the cost of making no further full call.
    """
    calls = len(errors)
    later = np.arange(calls) > np.arange(calls)[:, None]  # t > j
    sums = np.cumsum(np.where(later[None], errors, 0.0), axis=2)
    return np.concatenate([np.zeros((calls, calls, 1)), sums], axis=2)


def find_best_mask(
    costs: Array,
    full: int,
    *,
    lead: int = 1,
    last_full: bool = False,
    max_gap: int | None = None,
) -> tuple[int, ...]:
    """Returns the full calls of least total cost; of equal ones the lexicographically first.

    With V_n(i, j) the least cost of what follows the full calls i and j with n more to make,

        V_0(i, j) = C[i, j, S],   V_{n+1}(i, j) = min over k > j of C[i, j, k] + V_n(j, k).

    Args:
        costs: C of `sum_gaps`.
        full: K, how many calls are full.
        lead: so many at the start are full.
        last_full: whether call S - 1 is.
        max_gap: the largest distance between full calls, and from the last one to S.

    Raises:
        SettingError: if there is no such mask.
    """
    calls = len(costs)
    if not 1 <= lead <= full <= calls:
        raise SettingError(
            f"a run of {calls} calls has 1 to {calls} full ones, and at least as many as it starts"
            f" with; not {full} with {lead} at the start"
        )
    gaps = np.arange(calls + 1) - np.arange(calls)[:, None]  # k - j
    allowed = (gaps > 0) & (gaps <= (calls if max_gap is None else max_gap))
    steps = np.where(allowed[None], costs, np.inf)
    left, choices = steps[:, :, calls].copy(), []
    if last_full:
        left[:, :-1] = np.inf
    for _ in range(full - lead):
        totals = steps[:, :, :calls] + left[None]
        choices.append(totals.argmin(axis=2))
        left = totals.min(axis=2)
    i, j = max(lead - 2, 0), lead - 1
    if not np.isfinite(left[i, j]):
        raise SettingError(
            f"no {full} of {calls} calls lie at most {max_gap} apart; raise one of the two"
        )
    mask = list(range(lead))
    for choice in reversed(choices):
        i, j = j, int(choice[i, j])
        mask.append(j)
    return tuple(mask)


def list_errors(gram: Array, mask: Sequence[int], weigh: Weigh) -> Array:
    """Returns (S,): the error of each call under a mask, by any weights; 0 at full calls."""
    errors, times = np.zeros(len(gram)), tuple[int, ...]()
    for call in range(len(gram)):
        if call in mask:
            times = (call, *times)
        else:
            errors[call] = forecast_error(gram, call, times, weigh(call, times))
    return errors
