"""Times of what is compared: measured in turns, so that a slow moment of the machine hits all."""

import time
from collections.abc import Callable, Hashable, Mapping
from statistics import median
from typing import TypeVar

K = TypeVar("K", bound=Hashable)


def measure_in_turns(
    works: Mapping[K, Callable[[], float]], repeats: int, warm: int = 0
) -> dict[K, float]:
    """Returns the median of what each work measures of itself, by name.

    warm: turns before those that count.
    """
    taken: dict[K, list[float]] = {name: [] for name in works}
    for turn in range(warm + repeats):
        for name, work in works.items():
            value = work()
            if turn >= warm:
                taken[name].append(value)
    return {name: median(values) for name, values in taken.items()}


def time_call(work: Callable[[], object], wait: Callable[[], None] = lambda: None) -> float:
    """Returns the wall time of a call in seconds.

    wait: until the device has nothing to do, when the clock starts and when it stops.
    """
    wait()
    start = time.perf_counter()
    work()
    wait()
    return time.perf_counter() - start
