"""The bench itself: cells are measured once, failures are told or raised, options are gathered."""

import re
from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from fewstep.commands.console import gather_options
from fewstep.eval.bench.cell import Experiment
from fewstep.eval.bench.runner import run_cells
from fewstep.eval.bench.store import KeyedRow, RowStore
from fewstep.eval.bench.table import align_table, format_number, markdown_table
from fewstep.models.errors import SettingError
from fewstep.models.progress import make_bar


class Square(KeyedRow):
    number: int
    square: int

    @property
    def key(self):
        return str(self.number)


class Squares(Experiment):
    """The squares of some numbers; negative ones cannot be measured."""

    def __init__(self, path, numbers, goes_on=True):
        self.store, self.numbers, self.goes_on = RowStore(path, Square), numbers, goes_on
        self.remarks, self.cleared = [], []

    def cells(self):
        return self.numbers

    def measure(self, cell, advance):
        if cell < 0:
            raise SettingError("it is negative")
        return [Square(number=cell, square=cell * cell)]

    def leave_out(self, cell, error):
        if not self.goes_on:
            raise error
        self.note(f"{cell}: {error}")

    def clear(self, cell):
        self.cleared.append(cell)


def test_cells_are_measured_once_in_their_order(tmp_path):
    path = tmp_path / "squares.jsonl"
    assert [row.square for (row,) in run_cells(Squares(path, [3, 2]))] == [9, 4]
    again = Squares(path, [1, 2, 3])
    assert [row.number for (row,) in run_cells(again)] == [1]
    assert [row.number for row in again.rows()] == [1, 2, 3]
    assert sorted(again.cleared) == [1, 2, 3]  # of those that were done before too


def test_a_cell_that_fails_is_told_once_or_ends_the_run(tmp_path):
    path = tmp_path / "squares.jsonl"
    bench = Squares(path, [-1, 2, -1])
    assert [row.number for (row,) in run_cells(bench)] == [2]
    assert bench.remarks == ["-1: it is negative"]
    with pytest.raises(SettingError, match="negative"):
        list(run_cells(Squares(path, [3, -1, 4], goes_on=False)))
    assert list(RowStore(path, Square).rows) == ["2", "3"]


def test_another_process_that_was_faster_is_not_repeated(tmp_path):
    path = tmp_path / "squares.jsonl"
    slow = Squares(path, [1, 2])
    turns = run_cells(slow)
    next(turns)
    list(run_cells(Squares(path, [2])))
    assert list(turns) == []
    assert len(path.read_text().splitlines()) == 2


@dataclass
class Options:
    name: Annotated[str, typer.Argument(help="Who.")]
    times: Annotated[int, typer.Option(min=1, help="How often.")] = 2


def test_the_fields_of_a_dataclass_are_the_options_of_a_command():
    app = typer.Typer()

    @app.command()
    @gather_options
    def greet(options: Options, *, loud: bool = False) -> None:
        """Greets."""
        word = "HELLO" if loud else "hello"
        typer.echo(f"{word} {options.name} " * options.times)

    done = CliRunner().invoke(app, ["you", "--times", "1", "--loud"])
    assert done.output.strip() == "HELLO you"
    assert CliRunner().invoke(app, ["you"]).output.count("hello you") == 2
    assert CliRunner().invoke(app, ["you", "--times", "0"]).exit_code == 2
    assert CliRunner().invoke(app, []).exit_code == 2
    assert "How often" in CliRunner().invoke(app, ["--help"]).output


def test_tables_in_markdown():
    rows = [["a", "bbb"], ["cc", "1"]]
    assert list(markdown_table(rows)) == ["| a | bbb |", "|---|---:|", "| cc | 1 |"]
    assert list(align_table(rows)) == ["| a  | bbb |", "|----|----:|", "| cc |   1 |"]
    assert list(align_table(rows, left=2))[1:] == ["|----|-----|", "| cc | 1   |"]
    assert [format_number(x) for x in (123456.0, 99.96, 1.0, 0.00012345)] == [
        *("123456", "100.", "1.00", "0.000123"),
    ]


def test_where_no_bar_is_seen_a_line_comes_each_half_minute_with_the_time_left(monkeypatch, capsys):
    clock = iter([0.0, 10.0, 31.0, 40.0, 61.0, 70.0, 70.0])
    monkeypatch.setattr("fewstep.models.progress.time.monotonic", lambda: next(clock))
    with make_bar(total=8, desc="runs", show=True) as bar:
        for _ in range(4):
            bar.update()
            bar.refresh()
    first, second, end = capsys.readouterr().err.split("\n")
    assert end == ""
    assert re.fullmatch(r"runs: 12 %, \d\d:\d\d passed, about \S+ left", first)
    assert second.startswith("runs: 38 %, ")
    with make_bar(total=1, show=False) as bar:
        bar.update()
    assert capsys.readouterr().err == ""
