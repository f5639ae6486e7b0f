"""Times of what is compared: measured in turns, so that a slow moment of the machine hits all."""

import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from statistics import median, quantiles
from typing import TypeVar

K = TypeVar("K", bound=Hashable)
Works = Mapping[K, Callable[[], float]]
Quartiles = tuple[float, float, float]


def find_quartiles(values: Sequence[float]) -> Quartiles:
    """Returns the first quartile, the median and the third quartile."""
    if len(values) == 1:
        return (values[0],) * 3
    low, middle, high = quantiles(values, n=4, method="inclusive")
    return low, middle, high


def measure_in_turns(works: Works[K], repeats: int, warm: int = 0) -> dict[K, float]:
    """Returns the median of what each work measures of itself, by name.

    warm: turns before those that count.
    """
    taken = record_turns(works, repeats, warm)
    return {name: median(values) for name, values in taken.items()}


def record_turns(
    works: Works[K], repeats: int, warm: int = 0, seconds: float = 0.0
) -> dict[K, list[float]]:
    """Returns all that each work measures of itself, one value a turn, by name.

    warm:    turns before those that count.
    seconds: so long further turns follow after the repeats.
    """
    taken: dict[K, list[float]] = {name: [] for name in works}
    start, turn = time.perf_counter(), 0
    while turn < warm + repeats or time.perf_counter() - start < seconds:
        for name, work in works.items():
            value = work()
            if turn >= warm:
                taken[name].append(value)
        turn += 1
    return taken


def time_call(work: Callable[[], object], wait: Callable[[], None] = lambda: None) -> float:
    """Returns the wall time of a call in seconds.

    wait: until the device has nothing to do, when the clock starts and when it stops.
    """
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start
