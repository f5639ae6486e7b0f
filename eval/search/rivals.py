"""diffusers' schedulers beside a search: the best of them over their settings.

They are no schedules, so no trials of the log. Those that are judged on the test noises are chosen
on the validation noises, once, and written down in the search's folder. Where a search has a time,
fewer of them are tried.
"""

import math
import time
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from ...models.errors import FewstepError
from ..experiments.rival_grid import choose_rivals
from .identity import SearchRivals, read_rivals, write_rivals
from .problem import Block
from .search import OF_EACH, Search

TRIED = 0.6  # of the time for them, in which they are tried on few noises


def choose_search_rivals(search: Search) -> SearchRivals:
    """Returns the schedulers that are nearest, at most OF_EACH, or those that the folder keeps.

    Raises:
        SettingError: if the folder's file is damaged.
    """
    if not search.has_baseline:
        return SearchRivals()
    known, mark = read_rivals(search.folder), search.size.mark
    if mark not in known:
        known[mark] = _find_nearest(search)
        write_rivals(search.folder, known)
    return known[mark]


def _find_nearest(search: Search) -> SearchRivals:
    start, most = time.perf_counter(), search.rival_seconds

    def has_time(share: float) -> bool:
        return time.perf_counter() - start < share * most

    block = search.problem.block("validation")
    few = block.first(search.count_few(len(block)))
    schedule = search.problem.network.schedule
    finalists = choose_rivals(schedule, partial(_judge, search, few), partial(has_time, TRIED))
    if not finalists:
        return SearchRivals(left_out="no scheduler of diffusers runs on this network")
    errors: dict[str, float] = {}
    for spec in finalists:
        if not errors or has_time(1.0):
            errors[spec] = _judge(search, block, spec)
    return SearchRivals(specs=tuple(sorted(errors, key=errors.__getitem__)[:OF_EACH]))


def _judge(search: Search, block: Block, spec: str) -> float:
    ends = reach_rival_ends(search, spec, block)
    return math.inf if ends is None else search.objective.of(ends, block)


def reach_rival_ends(search: Search, spec: str, block: Block) -> Tensor | None:
    """Returns where a scheduler takes a block, (n, *); None if it cannot, or if that is not finite.

    Under a number of rows it is guided at every step, and spends no more than those.
    """
    from ..experiments.rivals import RivalSampler

    problem = search.problem
    network = replace(problem.network, decode=None)
    try:
        ends = RivalSampler(network, spec, search.whole_evaluations)(
            block.seeds,
            class_labels=block.labels,
            guidance=problem.guidance,
            batch=problem.batch,
            **problem.conditions_of(block.seeds),
        ).samples
    except FewstepError:
        return None
    return ends if bool(torch.isfinite(ends).all()) else None
