"""Claims: ours beside the best of both sides, and the intervals of what they say."""

import numpy as np
import pytest
from test_report import ROWS, drawn, scheduled

from fewstep.eval.bench.rows import GroupFigures
from fewstep.eval.experiments.fid_claims import (
    bootstrap,
    find_distance,
    list_claims,
    list_pseudo_values,
)
from fewstep.eval.experiments.fid_points import QualityTable
from fewstep.eval.experiments.fid_report import details, markdown


def grouped(row, distance, spread=0.0, target="t"):
    """A row whose groups lie around its figure and a mean square distance."""
    groups = [
        GroupFigures(
            without=row.value + (-1) ** i * spread, distance=distance, features=4.0 * distance
        )
        for i in range(4)
    ]
    return row.model_copy(update={"groups": tuple(groups), "target": target})


def tuned(nfe, value, block=0):
    return scheduled(f"m-nfe{nfe}", nfe, value, block)


def rows():
    converged = drawn("unipc-3", 60, 2.0)
    converged = grouped(converged, 0.0, target=converged.protocol.setting)
    target = converged.target
    return [
        converged,
        grouped(tuned(5, 3.0), 0.01, 0.1, target),
        grouped(drawn("ddim", 5, 9.0), 0.09, 0.1, target),
        grouped(drawn("unipc-2", 5, 8.0), 0.04, 0.1, target),
        grouped(drawn(None, 5, 7.0, grid=None, rival="unipc"), 0.16, 0.1, target),
        grouped(drawn(None, 5, 6.0, grid=None, rival="euler"), 0.25, 0.1, target),
    ]


def test_ours_is_beside_the_nearest_of_both_sides_and_diffusers_of_the_best_figure():
    table = QualityTable.of(rows())
    (claim,) = list_claims(table)
    assert (claim.network, claim.rows) == ("m", 5)
    assert (claim.best.setting, claim.rival.setting) == ("unipc-2 beta", "diffusers euler")
    assert claim.distance == pytest.approx((0.5, 0.5, 0.5))
    assert claim.difference.value == pytest.approx(-5.0)
    assert claim.gap.value == pytest.approx((3.0 - 2.0) / (6.0 - 2.0))
    assert claim.gap.low <= claim.gap.value <= claim.gap.high
    assert find_distance(claim.ours).value == pytest.approx(0.1)
    assert find_distance(claim.ours, "features").value == pytest.approx(0.2)
    text = markdown(table)
    (line,) = [line for line in text.splitlines() if line.startswith("| 5 ")]
    assert [cell.strip() for cell in line.split("|")][2:4] == [
        "unipc-2 beta",
        "0.100 (0.100..0.100)",
    ]
    assert "| 0.250 (" in line
    header, converged, *_ = details(table, "m")
    assert converged[0] == "converged, unipc-3 beta"
    assert (header[-2:], converged[-2]) == (["distance", "features"], "0 (0..0)")


def test_there_is_no_claim_of_other_rows_or_blocks_and_none_without_groups():
    assert list(list_claims(QualityTable.of(ROWS))) == []
    assert "distance" not in details(QualityTable.of(ROWS), "m")[0]
    found = rows()
    (claim,) = list_claims(QualityTable.of([*found[1:3], *found[4:]]))
    assert claim.gap is None  # no converged run
    assert list(list_claims(QualityTable.of([found[0], found[1], tuned(6, 3.0)]))) == []


def test_rows_that_are_missing_leave_a_claim_on_the_blocks_that_all_have():
    further = [grouped(drawn("ddim", 5, 50.0, block=1), 9.0), grouped(tuned(5, 40.0, 1), 9.0)]
    (claim,) = list_claims(QualityTable.of([*rows(), *further]))
    assert (len(claim.ours.rows), claim.difference.value) == (1, pytest.approx(-5.0))
    assert claim.gap.value == pytest.approx(0.25)
    apart = [grouped(tuned(5, 3.0, 2), 0.01), *rows()[2:]]
    assert list(list_claims(QualityTable.of(apart))) == []


def test_a_figure_without_a_converged_run_has_its_interval_too():
    groups = tuple(GroupFigures(without=without) for without in (3.9, 4.1, 3.9, 4.1))
    (header, row) = details(
        QualityTable.of([drawn("ddim", 5, 4.0).model_copy(update={"groups": groups})]), "m"
    )
    assert header[-2:] == ["ms", "95 %"]
    low, high = map(float, row[-1].split(".."))
    assert 3.7 <= low < 4.0 < high <= 4.3  # the pseudo-values are 3.7 and 4.3


def test_an_interval_is_as_wide_as_the_mean_of_its_groups_varies():
    values = np.random.default_rng(1).normal(3.0, 2.0, 400).tolist()
    interval = bootstrap(lambda mean: mean, values)
    half = 1.96 * np.std(values) / 20.0
    assert interval.value == pytest.approx(np.mean(values))
    assert interval.high - interval.low == pytest.approx(2.0 * half, rel=0.05)
    paired = bootstrap(lambda a, b: a - b, values, [value - 1.0 for value in values])
    assert paired == pytest.approx((1.0, 1.0, 1.0))  # the same groups are drawn of both


def test_pseudo_values_of_a_mean_are_the_values():
    values = [1.0, 2.0, 6.0, 7.0]
    row = drawn("ddim", 5, 4.0)
    groups = tuple(GroupFigures(without=(16.0 - value) / 3.0) for value in values)
    assert list_pseudo_values(row.model_copy(update={"groups": groups})) == pytest.approx(values)
    shifted = row.model_copy(update={"groups": groups, "value": 5.0})
    assert list_pseudo_values(shifted) == pytest.approx([value + 1.0 for value in values])
