"""Facts of a run that are known before it ends: the number of its calls, the noise at each."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf, sqrt
from typing import Any

import torch

from ..diffusers_config import is_flow
from ..modules import unwrap_compiled
from ..node import Node

CountCalls = Callable[[int, float | None], int | None]
FindLevels = Callable[[int, float | None], Sequence[float]]


@dataclass(frozen=True)
class RunFacts:
    """Functions that are asked once per run and stage, with the time of its first call.

    count:  the calls of a stage; None if nobody knows them.
    levels: sigma / alpha at each call of a stage; empty if nobody knows them.
    """

    count: CountCalls = lambda stage, time: None
    levels: FindLevels = lambda stage, time: ()


def run_of(target: Any, calls: int | None, module: Any = None) -> RunFacts:
    """Returns what a target knows of the runs of its module, which have so many calls, if given.

    A pipeline knows its scheduler's timesteps from where the run begins: at the begin index, or
    without one at the time of the first call, if that is a timestep.
    """
    scheduler = getattr(target, "scheduler", None)
    if scheduler is None:
        return RunFacts(lambda stage, time: calls)
    answers = _find_side(target, module)

    def select(stage: int, time: float | None) -> list[float]:
        return _select_stage(list(filter(answers, _list_times(scheduler, time))), stage)

    def count(stage: int, time: float | None) -> int | None:
        return len(select(stage, time)) or None

    def find_levels(stage: int, time: float | None) -> Sequence[float]:
        times = select(stage, time)
        levels = [_find_level(scheduler, each) for each in times]
        return [each for each in levels if each is not None]

    return RunFacts(count if calls is None else lambda stage, time: calls, find_levels)


def facts_of(nodes: Sequence[Node]) -> RunFacts:
    """Returns the facts of a run that evaluates at these nodes in turn."""
    times, levels = [node.t for node in nodes], {node.t: node.kappa for node in nodes}
    return RunFacts(
        lambda stage, time: len(_select_stage(times, stage)) or None,
        lambda stage, time: [levels[each] for each in _select_stage(times, stage)],
    )


def _find_side(pipe: Any, module: Any) -> Callable[[float], bool]:
    """Returns whether a network of a pipeline answers at a timestep: one of two has its side."""
    low, ratio = (
        getattr(pipe, "transformer_2", None),
        getattr(getattr(pipe, "config", None), "boundary_ratio", None),
    )
    if low is None or ratio is None:
        return lambda time: True
    boundary = ratio * pipe.scheduler.config.get("num_train_timesteps", 1000)
    below = unwrap_compiled(low) is module
    return lambda time: (time < boundary) == below


def _select_stage(times: Sequence[float], stage: int) -> list[float]:
    """Returns the times of the calls of a stage in order; a time that repeats is a further one."""
    return [time for time, count in Counter(times).items() if count > stage]


def _list_times(scheduler: Any, time: float | None) -> list[float]:
    """Returns the timesteps of a run."""
    timesteps = getattr(scheduler, "timesteps", None)
    if timesteps is None or getattr(scheduler, "num_inference_steps", None) is None:
        return []
    times: list[float] = torch.as_tensor(timesteps).tolist()
    begin = getattr(scheduler, "begin_index", None)
    if begin is None:
        begin = times.index(time) if time in times else 0
    return times[begin:]


def _find_level(scheduler: Any, time: float) -> float | None:
    """Returns sigma / alpha at a timestep; None of a scheduler that says neither."""
    config = {"_class_name": type(scheduler).__name__, **getattr(scheduler, "config", {})}
    if is_flow(config):
        share = time / float(config.get("num_train_timesteps", 1000))
        return share / (1.0 - share) if share < 1.0 else inf
    known = getattr(scheduler, "alphas_cumprod", None)
    if known is None:
        return None
    signal = float(known[min(max(round(time), 0), len(known) - 1)])
    return sqrt((1.0 - signal) / signal) if signal > 0.0 else inf
