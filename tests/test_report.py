"""Tables and the page: what stands in them, what is marked, and what they refuse to mix."""

import csv
import io
import json
import re
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from test_protocol import MEASURE, protocol
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.eval.bench.plot import MOST, colour
from fewstep.eval.bench.protocol import Protocol, Real
from fewstep.eval.bench.report import ReportFiles
from fewstep.eval.bench.rows import ResultRow, ResultStore, SamplingCost
from fewstep.eval.bench.table import format_number
from fewstep.eval.experiments.fid_nfe import picture_path
from fewstep.eval.experiments.fid_points import QualityTable
from fewstep.eval.experiments.fid_report import as_csv, details, markdown, means, page, write_report
from fewstep.models.errors import SettingError, UnknownNameError
from fewstep.models.schedule import VPDiscrete
from fewstep.samplers.grid import time_grid
from fewstep.solvers import solver


def drawn(solver, nfe, value, block=0, rows=1, **changes):
    seeds = tuple(range(20 * block, 20 * block + 20))
    made = protocol(solver=solver, nfe=nfe, seeds=seeds, **changes)
    cost = SamplingCost(
        nfe=nfe, rows=nfe * rows, effective=nfe * rows, flops=1e9 * nfe * rows, seconds=0.1
    )
    return ResultRow.now(made, value, cost=cost)


def real(value, block=0):
    source = Real(source="x:test", sha256="a", rows=f"{20 * block}-{20 * block + 19}")
    return ResultRow.now(Protocol(images=source, measure=MEASURE), value)


ROWS = [
    drawn("ddim", 5, 12.0),
    drawn("ddim", 5, 14.0, block=1),
    drawn("ddim", 5, 19.0, block=2),
    drawn("unipc-2", 5, 14.5),
    drawn("unipc-2", 10, 3.0),
    drawn("ddim", 10, 4.0),
    real(0.5),
    real(0.7, block=1),
]


def test_means_are_of_all_blocks_and_the_best_is_marked():
    rows = means(QualityTable.of(ROWS), "m")
    assert rows == [
        ["NFE", "5", "10"],
        ["real images", "0.600", "0.600"],
        ["ddim beta", "15.0", "4.00"],
        ["unipc-2 beta", "14.5*", "3.00*"],  # not ddim, whose least block is 12
    ]


def scheduled(name, nfe, value, block=0, kind="ddim"):
    schedule = solver(kind).encode(time_grid("uniform", VPDiscrete(), nfe))
    named = schedule.model_copy(update={"provenance": {"name": name}})
    return drawn(None, nfe, value, block, grid=None, schedule=named)


def test_schedules_of_one_search_are_one_line():
    mine = [scheduled(name, nfe, 1.0) for name, nfe in (("mine-nfe5", 5), ("mine-6", 6))]
    package = [scheduled(f"m-nfe{nfe}", nfe, 1.0, kind="dpmpp-2m") for nfe in (5, 6, 8)]
    rows = [*mine, *package, scheduled("run-1", 5, 1.0, kind="unipc-2")]
    first = [line[0] for line in means(QualityTable.of(rows), "m")]
    assert first == ["NFE", "mine", "searched", "run-1"]
    twice = [*rows, scheduled("m-nfe8", 8, 3.0)]
    names = [line[0] for line in means(QualityTable.of(twice), "m")]
    assert names[:3] == ["NFE", "mine", "searched"]
    assert [name[:9] for name in names[3:]] == ["searched ", "run-1", "searched "]


def test_spread_is_over_the_blocks():
    header, first, *_ = details(QualityTable.of(ROWS), "m")
    assert header[:5] == ["setting", "NFE", "runs", "mean±sd", "min..max"]
    assert header[5:] == ["rows=eff", "GFLOP", "ms"]
    assert first == ["ddim beta", "5", "3", "15.0±3.61", "12.0..19.0", "5", "5.00", "100.0"]


def test_effective_evaluations_have_a_column_where_they_differ():
    cached = SamplingCost(nfe=5, rows=5, effective=2.5, flops=1e9, seconds=0.1)
    rows = [ROWS[0], ResultRow.now(protocol(nfe=8), 1.0, cost=cached)]
    assert details(QualityTable.of(rows), "m")[0][5:7] == ["rows", "eff."]


def test_high_is_better_for_some():
    measure = MEASURE.model_copy(update={"metric": "precision"})
    rows = [drawn("ddim", 5, 0.4, measure=measure), drawn("unipc-2", 5, 0.6, measure=measure)]
    table = QualityTable.of(rows)
    assert means(table, "m")[2] == ["unipc-2 beta", "0.600*"]
    assert "higher is better" in table.caption
    assert [point.setting for point in table.pareto()] == ["unipc-2 beta"]


def test_guidance_is_another_network():
    table = QualityTable.of([*ROWS, drawn("ddim", 5, 9.0, cfg_scale=2.0, rows=2)])
    assert table.networks == ["m", "m, CFG 2"]
    assert means(table, "m, CFG 2")[2] == ["ddim beta", "9.00*"]


def test_pareto_holds_what_nothing_cheaper_beats():
    rows = [*ROWS, drawn("euler", 8, 14.6), drawn("euler", 4, 30.0), drawn("euler", 20, 3.0)]
    front = [(point.nfe, point.mean) for point in QualityTable.of(rows).pareto()]
    assert front == [(4, 30.0), (5, 14.5), (10, 3.0)]


def test_rows_of_unlike_measures_are_refused():
    other = drawn("ddim", 5, 1.0, measure=MEASURE.model_copy(update={"resize": "bicubic"}))
    with pytest.raises(SettingError, match=r"unlike resize .*'none' and 'bicubic'"):
        QualityTable.of([*ROWS, other])
    with pytest.raises(SettingError, match="no rows"):
        QualityTable.of([])


def test_rows_of_unlike_software_are_refused():
    old = ROWS[0].model_copy(update={"versions": {**ROWS[0].versions, "torch": "1.0"}})
    with pytest.raises(SettingError, match=r"rows of torch '1.0' and .* do not stand together"):
        QualityTable.of([old, *ROWS[1:]])


def test_markdown_is_readable_as_text():
    budgets = (4, 5, 6, 8, 10, 20, 50)
    name = "dpmpp-3m:third_order=exact"
    rows = [
        row
        for b in range(3)
        for nfe in budgets
        for row in (drawn(name, nfe, 90.0 / nfe + b, b), drawn("unipc-2", nfe, 80.0 / nfe + b, b))
    ]
    text = markdown(QualityTable.of([*rows, real(0.5)], ["a remark"]))
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100
    assert lines[0].startswith("fd-small to fashion-mnist, n = 20, lower is better; mean over 3")
    assert "Floor: x:test, 20 images not in the reference: 0.500." in lines
    table = [line for line in lines if line.startswith("|")]
    assert {len(line) for line in table[:5]} == {len(table[0])}  # straight as plain text
    assert table[2].startswith("| real images ")
    assert lines[-1] == "- a remark"


def test_csv_keeps_all_digits_and_the_hashes():
    value = 14.123456789012345
    table = QualityTable.of([*ROWS, drawn("euler", 5, value)])
    rows = list(csv.DictReader(io.StringIO(as_csv(table))))
    assert rows[0]["setting"] == "real images"
    assert rows[-1]["mean"] == str(value)
    assert rows[1]["hashes"].split() == [row.hash for row in ROWS[:3]]
    assert float(rows[1]["sd"]) == pytest.approx(3.605551275)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.1524, "0.152"),
        (12.345, "12.3"),
        (123.4, "123"),
        (12345.0, "12345"),
        (0.0, "0"),
        (-0.00005, "-5e-05"),
        (2.0, "2.00"),
    ],
)
def test_numbers_have_three_digits(value, text):
    assert format_number(value) == text


class Outside(HTMLParser):
    """Collects everything a page would fetch, and its scripts."""

    def __init__(self):
        super().__init__()
        self.found, self.images = [], 0

    def handle_starttag(self, tag, attrs):
        self.images += tag == "img"
        for name, value in attrs:
            if name in ("src", "href", "xlink:href") and not value.startswith(("data:", "#")):
                self.found.append(value)
        if tag in ("script", "link", "iframe"):
            self.found.append(tag)


def test_the_page_holds_everything_and_fetches_nothing(tmp_path):
    store = tmp_path / "s.jsonl"
    path = picture_path(store, ROWS[0].hash)
    path.parent.mkdir()
    Image.new("L", (4, 4)).save(path)
    text = page(QualityTable.of(ROWS, ["<script>alert(1)</script>"]), [store])
    parser = Outside()
    parser.feed(text)
    assert parser.found == []
    assert parser.images == 1
    assert "&lt;script&gt;alert(1)" in text
    assert "<svg" in text
    assert text.count("<details>") == len(ROWS)
    held = [json.loads(unescape(each)) for each in re.findall(r"<pre>(.*?)</pre>", text, re.S)]
    assert {each["hash"] for each in held} == {row.hash for row in ROWS}
    assert '<tr class="floor">' in text
    assert '<td class="best">14.5*</td>' in text


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_curves_are_drawn(tmp_path, suffix):
    path = tmp_path / f"curve.{suffix}"
    outputs = ReportFiles(plot=path)
    outputs.check()
    write_report(outputs, ROWS, [], [])
    head = {"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix]
    assert path.read_bytes().startswith(head)


def test_the_legend_names_the_eight_best_of_many_settings():
    """Not the first eight; the others are grey under one name, and no name stands twice."""
    solvers = ["ddim", "lms", "heun", "dpm-2m", "deis-2", "deis-3", "ipndm-2", "ipndm-3"]
    rows = [drawn(name, nfe, 90.0 - i) for i, name in enumerate(solvers) for nfe in (5, 10)]
    rows += [drawn(name, nfe, 4.0) for name in ("unipc-2", "unipc-3") for nfe in (5, 10)]
    text = page(QualityTable.of(rows), [])
    svg = text[text.index("<svg") : text.index("</svg>")]
    named = re.findall(r">(\S+ beta|others)</text>", svg)
    best = {"unipc-2 beta", "unipc-3 beta", *(f"{name} beta" for name in solvers[2:])}
    assert sorted(named) == sorted([*best, "others"])
    assert {colour(i) for i in range(MOST)} <= set(re.findall(r"#[0-9a-f]{6}", svg))


def test_curves_of_figures_below_zero():
    """KID may be negative: no logarithm then, but even ticks that pass zero, in both panels."""

    def read_ticks(*values):
        rows = [drawn("ddim", nfe, value) for nfe, value in enumerate(values, start=5)]
        return re.findall(r"<text[^>]*>(.?\d\.\d+)</text>", page(QualityTable.of(rows), []))

    below = ["\N{MINUS SIGN}0.10", "\N{MINUS SIGN}0.05", "0.00", "0.05", "0.10", "0.15", "0.20"]
    assert read_ticks(-0.1, 0.2) == 2 * below
    assert read_ticks(0.1, 0.2) == 2 * ["0.1", "0.15", "0.2"]


def test_outputs_are_checked_before_anything_runs(tmp_path, monkeypatch):
    with pytest.raises(UnknownNameError, match="no table 'tex'"):
        ReportFiles("tex").check()
    with pytest.raises(SettingError, match=r"must end in \.png"):
        ReportFiles(plot=tmp_path / "a.gif").check()
    with pytest.raises(SettingError, match="does not exist"):
        ReportFiles(page=tmp_path / "no" / "a.html").check()
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(SettingError, match=r"pip install 'fewstep\[report\]'"):
        ReportFiles(page=tmp_path / "a.html").check()
    ReportFiles().check()


def test_the_command_joins_stores(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, rows in (("a.jsonl", ROWS[:4]), ("b.jsonl", ROWS[4:])):
        store = ResultStore(Path(name))
        for row in rows:
            store.append(row)
    words = ["bench", "table", "a.jsonl", "b.jsonl", "--html", "r.html"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 0, result.output
    assert "| unipc-2 beta | 14.5* | 3.00* |" in result.output
    assert Path("r.html").stat().st_size > 10_000
    result = CliRunner().invoke(app, ["bench", "table", "none.jsonl"])
    assert result.exit_code == 2
    assert "there is no row" in result.output
