"""What holds for every strategy of a search."""

from dataclasses import replace
from itertools import islice
from pathlib import Path

import pytest
from test_search_full import searching_masks
from test_search_guided import searching
from test_search_newton import task_of, unipc
from test_search_problem import small

from fewstep.eval.search.log import Log
from fewstep.eval.search.run import evaluate, make_task, run
from fewstep.eval.search.size import SearchSize
from fewstep.eval.search.strategies import (
    HAND_MADE,
    ROWS,
    STRATEGIES,
    Proposal,
    Strategy,
    strategies_of,
)
from fewstep.eval.search.strategies.grid import propose as propose_named_grids

DOCS = Path(__file__).parents[1] / "docs" / "search.md"


def check_proposals(task, row):
    """Its first two, each evaluated before the next is asked for, as a search does it."""
    made = len(task.log.own)
    for proposal in islice(row.propose(task), 2):
        assert task.size.fits(proposal.schedule), row.name
        proposal.schedule.check_process(task.space.process)
        evaluate(task, row.name, proposal)
        assert task.log.own[-1].score is not None
    assert len(task.log.own) > made, "it proposed nothing that was not tried before"


@pytest.mark.parametrize("name", strategies_of("nfe", beyond=True))
def test_a_strategy_proposes_what_was_asked_for(tmp_path, name):
    """On a log that holds something of this size and of a smaller one."""
    task = replace(task_of(tmp_path), settings={"fine": 12})
    smaller = replace(task, size=SearchSize(2))
    evaluate(smaller, "grid", Proposal(unipc(2)))
    check_proposals(task, STRATEGIES.get(name))


@pytest.mark.parametrize("name", strategies_of("rows", beyond=True))
def test_one_of_rows_proposes_schedules_with_guidance(tmp_path, name):
    task = make_task(searching(tmp_path, problem=small(cfg_scale=3.0)), Log(tmp_path))
    if name not in HAND_MADE:
        evaluate(task, "grid", next(iter(STRATEGIES.get("grid").propose(task))))
    check_proposals(task, STRATEGIES.get(name))


@pytest.mark.parametrize("name", strategies_of("full"))
def test_one_of_masks_proposes_schedules_with_a_cache(tmp_path, name):
    task = make_task(searching_masks(tmp_path), Log(tmp_path))
    if name not in HAND_MADE:
        evaluate(task, "mask-even", next(iter(STRATEGIES.get("mask-even").propose(task))))
    check_proposals(task, STRATEGIES.get(name))


def test_one_that_has_ended_is_run_again_if_its_row_says_so(tmp_path, monkeypatch):
    runs = []
    for again in (False, True):

        def propose(task, again=again):
            runs.append(again)
            yield Proposal(task.space.base(3))

        row = Strategy("grid", propose, share=1.0, colour="", again=again)
        monkeypatch.setitem(STRATEGIES._values, "grid", row)
        fields = {"problem": small(), "size": SearchSize(3), "strategies": ("grid",)}
        for _ in range(2):
            run(searching(tmp_path / str(again), **fields))
    assert runs == [False, True, True]


def test_every_strategy_is_told_in_the_docs_and_seen_in_the_picture():
    page = DOCS.read_text()
    for row in ROWS:
        assert f"| `{row.name}` |" in page
        assert row.share > 0.0
    assert len({row.colour for row in ROWS}) == len(ROWS)
    assert ROWS[0].name in HAND_MADE, "the baseline is there whatever the budget"


def test_grids_of_many_steps_end_where_the_reference_ends(tmp_path):
    """An early end is tried before the plain grid; a reference to the end adds no grids."""
    task, problem = task_of(tmp_path), small()
    early = replace(problem, teacher=replace(problem.teacher, grid="uniform:end=0.2"))
    for asked, steps, tried in ((early, 12, True), (early, 3, False), (problem, 12, False)):
        sized = replace(task, problem=asked, size=SearchSize(steps))
        labels = [p.schedule.provenance["label"] for p in islice(propose_named_grids(sized), 5)]
        assert ("unipc-3 on uniform:end=0.2" in labels) is tried, (steps, labels)
