"""Masks by dynamic programming, against brute force and against one with a smaller state."""

from itertools import combinations, product
from time import perf_counter

import numpy as np
import pytest

from fewstep.eval.search.masks import (
    find_best_mask,
    forecast_error,
    list_errors,
    sum_gaps,
    tabulate_errors,
)
from fewstep.models.errors import SettingError

H = (8.0, 8.0, 7.0, 7.0, 6.0, 5.0, 3.0, 3.0, 3.0, 0.0)


def line(call, times):
    """The weights of order 1, newest first."""
    if len(times) == 1:
        return (1.0,)
    reach = (call - times[0]) / (times[0] - times[1])
    return (1.0 + reach, -reach)


def errors_of(h):
    """|forecast - truth| of a scalar series along the line through the last two full calls."""
    errors = np.zeros((len(h),) * 3)
    for t in range(1, len(h)):
        errors[0, 0, t] = abs(h[0] - h[t])
        for i, j in combinations(range(t), 2):
            errors[i, j, t] = abs(h[j] + (h[j] - h[i]) * (t - j) / (j - i) - h[t])
    return errors


def cost_of(costs, mask):
    pairs = zip((0, *mask), mask, strict=False)
    return sum(costs[i, j, k] for (i, j), k in zip(pairs, (*mask[1:], len(costs)), strict=True))


def all_masks(calls, full, lead):
    for rest in combinations(range(lead, calls), full - lead):
        yield (*range(lead), *rest)


def best_of(costs, full, lead, fits=lambda mask: True):
    """The least cost and the lexicographically first mask that has it."""
    masks = [each for each in all_masks(len(costs), full, lead) if fits(each)]
    return min((cost_of(costs, each), each) for each in masks)


def test_the_example_of_ten_calls():
    costs = sum_gaps(errors_of(H))
    known = {(0, 1, 3): 1, (0, 1, 4): 2, (0, 1, 10): 30, (1, 4, 7): 2, (1, 4, 10): 6, (4, 7, 10): 2}
    for place, cost in known.items():
        assert costs[place] == cost
    assert find_best_mask(costs, 4, lead=2) == (0, 1, 3, 4)
    best = {full: cost_of(costs, find_best_mask(costs, full, lead=2)) for full in (3, 4, 5, 6)}
    assert best == {3: 6, 4: 4, 5: 3, 6: 2}
    assert sum(cost_of(costs, each) <= 4 for each in all_masks(10, 4, 2)) == 1
    assert cost_of(costs, (0, 1, 3, 5)) == 4.5, "what one full call as the state finds"
    assert cost_of(costs, (0, 1, 4, 7)) == 6


def test_the_best_of_all_masks():
    """Errors are whole numbers, so that equal costs are exactly equal: the first mask is told."""
    dice = np.random.default_rng(0)
    for _ in range(150):
        costs = sum_gaps(dice.integers(0, 9, (9, 9, 9)).astype(float))
        for full, lead in product((3, 4, 5), (1, 2, 3)):
            mask = find_best_mask(costs, full, lead=lead)
            assert (cost_of(costs, mask), mask) == best_of(costs, full, lead)


def test_equal_costs_give_the_first_mask():
    costs = sum_gaps(np.zeros((7, 7, 7)))
    assert find_best_mask(costs, 4) == (0, 1, 2, 3)
    assert find_best_mask(costs, 4, last_full=True) == (0, 1, 2, 6)
    assert find_best_mask(costs, 4, max_gap=2) == (0, 1, 3, 5)


def test_masks_that_end_full_or_keep_their_gaps_small():
    dice = np.random.default_rng(1)
    for _ in range(40):
        costs = sum_gaps(errors_of(dice.normal(size=9)))
        for full in (3, 4, 5):
            ends = best_of(costs, full, 1, lambda mask: mask[-1] == 8)
            mask = find_best_mask(costs, full, last_full=True)
            assert (cost_of(costs, mask), mask) == (pytest.approx(ends[0]), ends[1])
            near = best_of(costs, full, 1, lambda mask: max(np.diff([*mask, 9])) <= 4)
            mask = find_best_mask(costs, full, max_gap=4)
            assert (cost_of(costs, mask), mask) == (pytest.approx(near[0]), near[1])


def test_inner_products_are_enough():
    """Errors by the quadratic form are those of the forecasts, and so is the best mask."""
    dice = np.random.default_rng(2)
    values = np.cumsum(dice.normal(size=(9, 40)), axis=0)
    gram = values @ values.T
    errors = tabulate_errors(gram, line)
    for i, j, t in ((0, 1, 2), (0, 3, 7), (2, 5, 6), (6, 7, 8)):
        forecast = line(t, (j, i)) @ values[[j, i]]
        direct = np.sum((forecast - values[t]) ** 2) / np.sum(values[t] ** 2)
        assert errors[i, j, t] == pytest.approx(direct, rel=1e-12, abs=1e-12)
    costs = sum_gaps(errors)
    for full in (3, 4, 5):
        mask = find_best_mask(costs, full)
        assert mask == best_of(costs, full, 1)[1]
        assert list_errors(gram, mask, line).sum() == pytest.approx(cost_of(costs, mask), rel=1e-9)


def test_a_series_on_a_line_costs_nothing():
    values = np.outer(np.arange(1.0, 9.0), np.arange(1.0, 6.0))
    gram = values @ values.T
    assert list_errors(gram, (0, 2), line)[3:].max() < 1e-12
    assert forecast_error(gram, 5, (2, 0), (1.0,)) == pytest.approx(0.25), "a repeat misses half"


def test_thirty_calls_take_a_moment():
    values = np.random.default_rng(3).normal(size=(30, 40)).cumsum(0)
    start = perf_counter()
    mask = find_best_mask(sum_gaps(tabulate_errors(values @ values.T, line)), 9)
    assert perf_counter() - start < 1.0
    assert len(mask) == 9


@pytest.mark.parametrize(
    ("full", "options", "message"),
    [
        (0, {}, "1 to 9 full ones"),
        (10, {}, "not 10"),
        (2, {"lead": 3}, "2 with 3 at the start"),
        (3, {"max_gap": 2}, "no 3 of 9 calls lie at most 2 apart"),
    ],
)
def test_masks_that_cannot_be(full, options, message):
    with pytest.raises(SettingError, match=message):
        find_best_mask(sum_gaps(np.zeros((9, 9, 9))), full, **options)
