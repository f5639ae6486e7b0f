"""Forecasts: the exactness facts, the weights, the order's growth, memory."""

import pytest
import torch
from torch.testing import assert_close

from fewstep.models.caching.forecast import FiniteDifferences, Order, RowDifferences

EVEN = [0, 3, 6, 9, 12]
UNEVEN = [0, 1, 4, 6, 11]


def f64(value):
    return torch.full((2, 3), float(value), dtype=torch.float64)


def filled(order, function, times):
    memory = FiniteDifferences(order)
    for time in times:
        memory.update(f64(function(time)), time)
    return memory


@pytest.mark.parametrize("times", [EVEN, UNEVEN])
@pytest.mark.parametrize("degree", [1, 2, 3, 4])
@pytest.mark.parametrize("basis", ["published", "newton"])
def test_lines_are_exact_in_both_bases(times, degree, basis):
    memory = filled(Order(degree, basis), lambda i: 5 - 2 * i, times)
    assert_close(memory.forecast(14), f64(5 - 2 * 14), rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", [2, 3, 4])
@pytest.mark.parametrize("k", [1, 2])
def test_published_recursion_misses_a_parabola_by_a_k_n(degree, k):
    memory = filled(Order(degree), lambda i: 0.7 * i * i, EVEN)
    error = memory.forecast(12 + k) - f64(0.7 * (12 + k) ** 2)
    assert_close(error, f64(-0.7 * k * 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("degree", [2, 3, 4])
def test_newton_is_exact_to_its_degree_at_uneven_spacing(degree):
    def law(i):
        return sum((0.3 - j) * (i / 4) ** j for j in range(degree + 1))

    memory = filled(Order(degree, "newton"), law, UNEVEN)
    assert_close(memory.forecast(13), f64(law(13)), rtol=1e-12, atol=1e-11)


WEIGHTS = {  # of the values at full calls, newest first, at s = k / N = 0.8
    ("published", 1): [1.8, -0.8],
    ("published", 2): [2.12, -1.44, 0.32],
    ("published", 3): [2.2053, -1.696, 0.576, -0.0853],
    ("published", 4): [2.2224, -1.7643, 0.6784, -0.1536, 0.0171],
    ("newton", 1): [1.8, -0.8],
    ("newton", 2): [2.52, -2.24, 0.72],
    ("newton", 3): [3.192, -4.256, 2.736, -0.672],
    ("newton", 4): [3.8304, -6.8096, 6.5664, -3.2256, 0.6384],
}


@pytest.mark.parametrize(("basis", "degree"), WEIGHTS)
def test_weights_of_the_table(basis, degree):
    """A unit impulse at one full call after the other."""
    times = [5 * i for i in range(degree + 1)]
    found = [
        filled(Order(degree, basis), lambda i, at=at: i == at, times).forecast(times[-1] + 4)[0, 0]
        for at in reversed(times)
    ]
    assert_close(
        torch.stack(found).float(), torch.tensor(WEIGHTS[basis, degree]), rtol=0, atol=1e-4
    )


def test_order_grows_by_one_per_full_call_and_waits_for_the_last_warm_up_call():
    memory, sizes = FiniteDifferences(Order(2, first=3)), []
    for time in [0, 1, 2, 6, 10]:
        memory.update(f64(time), time)
        sizes.append(len(memory.stored))
    assert sizes == [1, 1, 2, 3, 3]


def test_first_slope_comes_from_the_last_two_warm_up_calls():
    memory = FiniteDifferences(Order(1, first=3))
    for time, value in [(0, 100.0), (1, 2.0), (2, 5.0)]:
        memory.update(f64(value), time)
    assert_close(memory.forecast(4), f64(11.0))


def test_change_of_shape_or_dtype_starts_anew():
    memory = filled(Order(2), float, [0, 1, 2])
    memory.update(torch.ones(2, 4, dtype=torch.float64), 3)
    assert [tuple(each.shape) for each in memory.stored] == [(2, 4)]
    memory.update(torch.ones(2, 4), 4)
    assert len(memory.stored) == 1


def test_values_are_copies():
    memory, x = FiniteDifferences(Order(1)), f64(1)
    memory.update(x, 0)
    x.add_(5)
    memory.forecast(1).add_(7)
    assert_close(memory.forecast(1), f64(1))


def test_forecast_adds_onto_a_tensor_and_leaves_it():
    memory, base = filled(Order(1), float, [0, 1]), f64(10)
    assert_close(memory.forecast(4, base), f64(14))
    assert_close(base, f64(10))


@pytest.mark.parametrize(("degree", "expected"), [(1, torch.bfloat16), (3, torch.float32)])
def test_high_orders_of_half_precision_are_held_in_single(degree, expected):
    memory = FiniteDifferences(Order(degree))
    for i in range(6):
        memory.update(torch.full((4,), 1 + i / 64, dtype=torch.bfloat16), i)
    assert {each.dtype for each in memory.stored} == {expected}


@pytest.mark.parametrize("degree", [0, 1, 4])
@pytest.mark.parametrize("onto", [False, True])
def test_forecast_allocates_one_tensor(degree, onto):
    """Every other operation writes into it."""
    memory = FiniteDifferences(Order(degree))
    for i in range(degree + 1):
        memory.update(torch.randn(64, 64), i)
    base = torch.zeros(64, 64) if onto else None
    with torch.profiler.profile(profile_memory=True) as profile:
        memory.forecast(degree + 1, base)
    allocated = sum(
        e.self_cpu_memory_usage for e in profile.events() if e.self_cpu_memory_usage > 0
    )
    assert allocated == 64 * 64 * 4


@pytest.mark.parametrize("basis", ["published", "newton"])
@pytest.mark.parametrize(("degree", "first"), [(0, 1), (1, 1), (3, 1), (1, 3), (2, 3), (3, 3)])
def test_rows_with_calls_of_their_own_are_forecast_as_if_alone(basis, degree, first):
    order, draw = Order(degree, basis, first), torch.Generator().manual_seed(1)
    times = [[0, 1, 2, 5, 7], [0, 1, 4, 7], [0, 6]]
    together, alone = RowDifferences(order), [FiniteDifferences(order) for _ in times]
    for index in range(8):
        x = torch.randn(3, 4, generator=draw, dtype=torch.float64)
        rows = [b for b in range(3) if index in times[b]]
        if index == 0:
            together.update(x, 0)
        elif rows:
            together.update(x[rows], index, rows)
        for b in rows:
            alone[b].update(x[b : b + 1], index)
    found = together.forecast(9)
    assert_close(found, torch.cat([each.forecast(9) for each in alone]), rtol=1e-12, atol=1e-12)


def test_rows_of_a_branch_can_be_kept():
    memory = RowDifferences(Order(1))
    memory.update(torch.arange(4.0)[:, None], 0)
    memory.update(torch.full((1, 1), 9.0), 3, [2])
    memory.keep([1], 2)
    assert memory.times == [[3, 0], [0]]
    assert_close(memory.forecast(3), torch.tensor([[9.0], [3.0]]))


def test_bytes_are_those_of_the_formula():
    """(order + 1) tensors."""
    memory = filled(Order(2), float, [0])
    assert memory.expected_bytes == 3 * 2 * 3 * 8
    for time in (1, 2, 3):
        memory.update(f64(time), time)
    assert memory.nbytes == memory.expected_bytes
