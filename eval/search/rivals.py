"""diffusers' schedulers beside a search: the best of them over their settings.

They are no schedules, so no trials of the log. Those that are judged on the test noises are chosen
on the validation noises, once, and written down in the search's folder.
"""

import math
from dataclasses import replace
from functools import partial
from importlib.util import find_spec

import torch
from torch import Tensor

from ...models.errors import FewstepError
from ..experiments.rival_grid import choose_rivals
from .identity import SearchRivals, read_rivals, write_rivals
from .problem import Block
from .search import OF_EACH, Search


def choose_search_rivals(search: Search) -> SearchRivals:
    """Returns the schedulers that are nearest, at most OF_EACH, or those that the folder keeps.

    Raises:
        SettingError: if the folder's file is damaged.
    """
    if not search.has_baseline:
        return SearchRivals()
    if find_spec("diffusers") is None:
        return SearchRivals(left_out="diffusers is not installed")
    known, mark = read_rivals(search.folder), search.size.mark
    if mark not in known:
        known[mark] = _find_nearest(search)
        write_rivals(search.folder, known)
    return known[mark]


def _find_nearest(search: Search) -> SearchRivals:
    block = search.problem.block("validation")
    few = block.first(search.count_few(len(block)))
    finalists = choose_rivals(search.problem.network.schedule, partial(_judge, search, few))
    if not finalists:
        return SearchRivals(left_out="no scheduler of diffusers runs on this network")
    nearest = sorted(finalists, key=partial(_judge, search, block))
    return SearchRivals(specs=tuple(nearest[:OF_EACH]))


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
