"""The store: what was appended is found again, whatever happened to the file's last line."""

import json
import math
from pathlib import Path

import pytest
from pydantic import ValidationError
from test_protocol import protocol

from fewstep.eval.bench.rows import ResultRow, ResultStore, SamplingCost, TimeSpent
from fewstep.models.errors import SettingError

COST = SamplingCost(nfe=5, rows=5, effective=5, flops=1e9, seconds=0.1)


def row(nfe=5, value=1.5):
    return ResultRow.now(protocol(nfe=nfe), value, cost=COST, clock=TimeSpent(total=2.0))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "results.jsonl"


def test_rows_are_found_again(path):
    store, rows = ResultStore(path), [row(nfe) for nfe in (4, 5, 6)]
    for each in rows:
        store.append(each)
    again = ResultStore(path)
    assert list(again.rows.values()) == rows == list(store.rows.values())
    assert again.broken == []


def test_a_row_has_reached_the_disk(path, monkeypatch):
    synced = []
    monkeypatch.setattr("os.fsync", lambda handle: synced.append(path.read_bytes()))
    ResultStore(path).append(row())
    assert synced == [path.read_bytes()]


def test_a_row_says_what_made_it():
    made = row()
    assert made.hash == made.protocol.hash
    assert made.versions.keys() == {"fewstep", "torch", "diffusers"}
    assert "cores" in made.machine
    assert made.finished.utcoffset().total_seconds() == 0.0


def test_the_later_of_two_counts(path):
    store = ResultStore(path)
    for value in (1.0, 2.0):
        store.append(row(value=value))
    assert [each.value for each in ResultStore(path).rows.values()] == [2.0]


@pytest.mark.parametrize("kept", [1, 2, 40, 500, -2])
def test_half_a_line_is_set_aside_and_hides_nothing(path, kept):
    store = ResultStore(path)
    store.append(row(4))
    whole = path.read_bytes()
    store.append(row(5))
    half = path.read_bytes()[len(whole) :][:kept]
    path.write_bytes(whole + half)

    found = ResultStore(path)
    assert [each.protocol.images.run.nfe for each in found.rows.values()] == [4]
    assert "line 2" in found.broken[0]
    found.append(row(6))
    again = ResultStore(path)
    assert [each.protocol.images.run.nfe for each in again.rows.values()] == [4, 6]
    assert again.broken == []
    assert path.with_name("results.jsonl.broken").read_bytes() == half + b"\n"


def test_a_whole_last_line_without_its_newline_is_kept(path):
    store = ResultStore(path)
    store.append(row(4))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    ResultStore(path).append(row(5))
    assert len(ResultStore(path).rows) == 2
    assert not path.with_name("results.jsonl.broken").exists()


def test_an_edited_line_is_told_and_left_where_it_is(path):
    store = ResultStore(path)
    store.append(row(4))
    store.append(row(5))
    first, second = path.read_text().splitlines()
    body = json.loads(first)
    body["protocol"]["images"]["run"]["solver"] = "euler"
    path.write_text(f"{json.dumps(body)}\n{second}\n")
    found = ResultStore(path)
    assert len(found.rows) == 1
    assert "line 1" in found.broken[0]
    assert "edited" in found.broken[0]
    found.append(row(6))
    assert len(path.read_text().splitlines()) == 3


def test_figures_are_finite():
    with pytest.raises(ValidationError):
        row(value=math.nan)


def test_places_that_cannot_be_written_or_read(tmp_path):
    with pytest.raises(SettingError, match="does not exist; create it first"):
        ResultStore(tmp_path / "no" / "where.jsonl").append(row())
    with pytest.raises(SettingError, match="cannot read"):
        ResultStore(tmp_path)
    with pytest.raises(SettingError, match="there is no row"):
        ResultStore.existing(tmp_path / "none.jsonl")


def test_overhead_is_what_sampling_and_extraction_do_not_explain():
    assert TimeSpent(sampling=8.0, features=2.0, total=10.5).overhead == pytest.approx(0.05)
    assert TimeSpent().overhead == 0.0


def test_rows_of_older_schedules_are_known_by_their_table():
    """A schedule of version 1 is read as a table, which has another hash; an edited one is told."""
    older = (Path(__file__).parent / "older_results.jsonl").read_text().splitlines()
    assert older
    for line in older:
        row = ResultRow.model_validate_json(line)
        assert row.hash == row.protocol.hash != json.loads(line)["hash"]
        assert ResultRow.model_validate_json(row.line) == row
    body = json.loads(older[0])
    body["protocol"]["images"]["run"]["schedule"]["compiled"]["A"][0] += 0.01
    with pytest.raises(ValidationError, match="the line was edited"):
        ResultRow.model_validate(body)
