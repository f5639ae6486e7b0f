"""Rows of numbers: the form in which a search moves tables."""

import pytest
from laws import MIXTURE, even_in_lam, start, with_table
from test_search_newton import unipc, with_afs
from test_step_schedule import RANDOM, execute
from torch.testing import assert_close

from fewstep.eval.search.canonical import columns_of, make_canonical, rows_of, schedule_of, times_of
from fewstep.eval.search.guided import guide_schedule
from fewstep.eval.search.log import Trial
from fewstep.models.errors import ScheduleError
from fewstep.models.schedule import EDM
from fewstep.solvers import solver

GRID = even_in_lam(EDM(), 6)


def again(schedule):
    """The schedule from its rows."""
    table = make_canonical(schedule)
    return schedule_of(rows_of(table), schedule.grid(), table.evaluations, table.given)


def test_there_and_back_is_the_same_run():
    """Of steps as a search draws them, of old tables and of linear solvers of other kinds."""
    others = [solver(name).encode(GRID) for name in ("dpmpp-3s", "ipndm-4", "deis-tab2")]
    for schedule in (*RANDOM[:8], with_table(RANDOM[1]), with_afs(), *others):
        x = start(schedule.grid()) * 0.2
        made = again(schedule)
        assert_close(
            execute(made, x, MIXTURE.x0), execute(schedule, x, MIXTURE.x0), rtol=0.0, atol=1e-12
        )
        assert (made.nfe, made.rows, made.mean) == (schedule.nfe, schedule.rows, schedule.mean)
        assert again(made) == made


def test_columns_are_in_the_order_they_come():
    made = guide_schedule(unipc(), 3.0, [0, 2])
    columns = [("x", 0), ("u0", 0), ("x0", 0), ("x0", 1), ("u0", 2), ("x0", 2)]
    assert columns_of(made.table().evaluations) == columns
    assert [len(row) for row in rows_of(made.table())] == [3, 4, 6]
    assert again(made) == made


def test_a_step_that_asks_nothing_has_the_time_of_its_node():
    made = again(with_afs())
    assert made.evaluations[0] is None
    assert times_of(made) == times_of(with_afs()) == list(made.t[:-1])


def test_noise_has_no_row():
    with pytest.raises(ScheduleError, match="adds noise"):
        make_canonical(solver("ddpm").encode(GRID))


def test_a_log_holds_steps_and_tables():
    for schedule in (unipc(), again(unipc())):
        trial = Trial.of(schedule, 1.0, strategy="fit", seed=0, evals=1)
        read = Trial.model_validate_json(trial.model_dump_json())
        assert read == trial
        assert type(read.schedule) is type(schedule)
