"""The two columns, the choice of the last step by them, and what is said of both."""

import math
from types import SimpleNamespace

import pytest
import torch
from laws import GAUSSIAN, MIXTURE, start
from test_search_newton import unipc, with_afs
from test_search_problem import block_of, grey, small
from test_step_schedule import execute
from torch.testing import assert_close

from fewstep.eval.search.columns import judge_ends
from fewstep.eval.search.guided import guide_schedule
from fewstep.eval.search.last_row import (
    LastRow,
    choose_last_row,
    ends_in_prediction,
    judge_last_rows,
    make_last_rows,
    move_last_row,
)
from fewstep.eval.search.objective import find_features, rmse
from fewstep.models.errors import FewstepError, UnknownNameError
from fewstep.models.schedule import EDM, RectifiedFlow, VPLinear
from fewstep.samplers.columns import Column
from fewstep.samplers.grid import Final, time_grid
from fewstep.solvers import Schedule, solver


def test_a_column_in_closed_form():
    column = Column.of(torch.tensor([4.0, 1.0, 9.0, 1.0, 1.0]))
    assert column.value == pytest.approx(math.sqrt(16 / 5))
    assert column.median == 1.0
    assert 1.0 <= column.low < column.value < column.high <= 3.0
    wide = Column.of(torch.tensor([4.0, 1.0, 9.0, 1.0, 1.0]).repeat(20))
    assert wide.high - wide.low < 0.5 * (column.high - column.low)
    same = Column.of(torch.full((5,), 4.0))
    assert (same.low, same.value, same.high, same.median) == (2.0, 2.0, 2.0, 2.0)


def test_columns_are_of_single_noises():
    block = block_of(torch.zeros(2, 2))
    ends = torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    columns = judge_ends(ends, block, None)
    assert columns.distance.value == pytest.approx(rmse(ends, block))
    assert columns.distance.median == pytest.approx(math.sqrt((12.5 + 0.5) / 2))
    assert columns.features is None


def test_features_are_those_that_an_objective_lowers():
    problem = grey()
    features, block = find_features("auto", problem.network, None), problem.block("train")
    ends = block.ends + 0.1 * torch.linspace(-1.0, 1.0, len(block)).reshape(-1, 1, 1, 1)
    columns = judge_ends(ends, block, features)
    assert columns.features.value == pytest.approx(features(ends, block))
    assert columns.features.low < columns.features.value < columns.features.high


def test_an_extractor_is_taken_where_it_fits():
    assert find_features("auto", grey().network, None).extractor.name == "fd-small"
    assert find_features("none", grey().network, None) is None
    assert find_features("auto", small().network, None) is None
    colours = GAUSSIAN.network(RectifiedFlow(), (3, 32, 32))
    assert find_features("auto", colours, None) is None
    with pytest.raises(FewstepError):
        find_features("small", small().network, None)
    with pytest.raises(UnknownNameError, match="did you mean 'inception'"):
        find_features("inceptio", small().network, None)


@pytest.mark.parametrize("process", [EDM(), RectifiedFlow(), VPLinear()], ids=lambda p: p.family)
@pytest.mark.parametrize("final", [Final.ZERO, Final.SIGMA_MIN])
def test_the_last_step_moves_to_the_last_prediction_alone(process, final):
    """At sigma = 0 that is x0, and elsewhere a step of DDIM from the last state."""
    grid = time_grid("logsnr", process, 5, final)
    made = solver("dpmpp-2m:lower_order_final=never").encode(grid)
    whole = dict(make_last_rows(made))
    x = start(grid)
    ends = {share: execute(each, x, MIXTURE.x0) for share, each in whole.items()}
    assert whole[0.0] is made
    nodes = grid.nodes[-2:]
    before = Schedule.of(_cut(made.table()), _cut_grid(grid), {})
    state = execute(before, x, MIXTURE.x0)
    x0 = MIXTURE.x0(state, nodes[0])
    pure = nodes[1].alpha * x0 + nodes[1].sigma / nodes[0].sigma * (state - nodes[0].alpha * x0)
    assert_close(ends[1.0], pure, rtol=0.0, atol=1e-12)
    if final is Final.ZERO:
        assert list(whole[1.0].table().steps[-1]) == [("x0", 4)]
    else:
        assert float((ends[0.0] - pure).norm()) > 1e-6
    for share in (0.25, 0.5):
        wanted = (1.0 - share) * ends[0.0] + share * pure
        assert_close(ends[share], wanted, rtol=0.0, atol=1e-12)


def _cut(table):
    """The table without its last step."""
    return type(table)(table.nodes[:-1], table.steps[:-1], table.evaluations[:-1], table.given)


def _cut_grid(grid):
    return type(grid)(grid.schedule, grid.nodes[:-1])


def test_the_prediction_is_of_the_time_the_network_is_asked_at():
    table = unipc().table()
    grid = unipc().grid()
    aside = grid.schedule.at(0.5 * (grid.nodes[-2].t + grid.nodes[-3].t))
    asked = [*table.evaluations[:-1], table.evaluations[-1]._replace(node=aside)]
    end = grid.schedule.at(0.5 * grid.nodes[-2].t)
    moved = type(table)([*table.nodes[:-1], end], table.steps, asked)
    ratio = end.sigma / aside.sigma
    wanted = {("x", 2): ratio, ("x0", 2): end.alpha - ratio * aside.alpha}
    assert move_last_row(moved, 1.0).steps[-1] == pytest.approx(wanted)


def test_a_table_that_brings_its_guidance_keeps_its_last_step():
    guided = guide_schedule(unipc(), 3.0, [0])
    assert not ends_in_prediction(guided.table())
    assert [share for share, _ in make_last_rows(guided)] == [0.0]
    assert ends_in_prediction(with_afs().table())


def row(share, distance, features):
    def column(value):
        return None if value is None else SimpleNamespace(value=value)

    columns = SimpleNamespace(distance=column(distance), features=column(features))
    return LastRow(share, None, columns)


@pytest.mark.parametrize(
    ("rows", "share"),
    [
        (((0.0, 1.0, 5.0), (0.25, 1.01, 4.0), (0.5, 1.02, 3.0), (1.0, 1.2, 1.0)), 0.5),
        (((0.0, 1.0, 2.0), (0.25, 1.01, 4.0), (0.5, 1.02, 3.0)), 0.0),
        (((0.0, 1.0, 2.0), (0.25, 0.9, 3.0)), 0.25),  # the first is no longer near
        (((0.0, 1.0, 2.0), (0.5, 1.0, 2.0)), 0.5),  # the simpler one wins ties
        (((0.0, 1.0, None), (0.25, 1.01, None), (0.5, 1.02, None), (1.0, 1.2, None)), 0.0),
    ],
)
def test_the_least_feature_distance_among_the_nearest_is_chosen(rows, share):
    assert choose_last_row([row(*each) for each in rows]).share == share


def test_last_steps_are_judged_on_a_block():
    problem = grey()
    made = solver("unipc-2").encode(time_grid("uniform", problem.network.schedule, 3))
    last = len(made.steps) - 1
    skewed = made.model_copy(
        update={"steps": (*made.steps[:-1], (("x0", last - 1, -1.0), ("x0", last, 2.0)))}
    )
    block = problem.block("validation")
    features = find_features("auto", problem.network, None)
    rows = judge_last_rows(problem, skewed, block, features)
    assert [each.share for each in rows] == [0.0, 0.25, 0.5, 1.0]
    for each in rows:
        ends = problem.ends(each.schedule, block)
        assert each.columns == judge_ends(ends, block, features)
    assert len({each.columns.distance.value for each in rows}) == 4
