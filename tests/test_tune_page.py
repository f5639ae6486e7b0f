"""The page of `fewstep tune`: its figures are those of the JSON, and a browser shows it."""

import base64
import io
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser

import pytest
import torch
from PIL import Image

from fewstep import RectifiedFlow, Sampler, from_module, load
from fewstep.eval.search.problem import Problem, Teacher
from fewstep.eval.tune.front_figure import Axis, FrontFigure, list_qualities
from fewstep.eval.tune.page import format_figure, render_page, write_page
from fewstep.eval.tune.page_drawings import (
    describe_steps,
    draw_plans,
    list_steps,
    scatter_points,
)
from fewstep.eval.tune.report import CostParts, TuneReport, WrittenPlan
from fewstep.samplers.columns import Column, Columns
from fewstep.samplers.plan_file import JudgedOn, JudgedPoint, MeasuredAt, PlanCost, PlanFile, Spread
from fewstep.samplers.run_settings import RunSettings

BROWSERS = ("chromium", "google-chrome", "chromium-browser", "chrome")
BROWSER = next(filter(None, map(shutil.which, BROWSERS)), None)
CACHE = "taylorseer:interval=2,order=1,level=last-block"
NAME = "<b>unipc-2</b> & more"  # names are text, whatever is in them


def spread(median):
    return Spread(median=median, low=0.9 * median, high=1.1 * median, repeats=5)


def column(value):
    return Column(value=value, low=0.8 * value, high=1.2 * value, median=value)


def judge(name, kind, nfe, distance, ms=None, **settings):
    seen = (
        None
        if distance is None
        else Columns(distance=column(distance), features=column(9 * distance))
    )
    return JudgedPoint(
        name=name,
        kind=kind,
        settings=RunSettings(nfe=nfe, **settings) if kind != "rival" else None,
        cost=PlanCost(nfe=nfe, rows=nfe, effective=nfe, predicted=11.1 * nfe, ms=ms),
        noises="test",
        count=16,
        columns=seen,
        fd=None if distance is None else 20 * distance,
    )


def make_report(network="fashion-dit"):
    chosen = [
        judge(NAME, "named", 3, 0.1234567, spread(34.5678), solver="unipc-2", cfg_scale=2.0),
        judge("cached", "cache", 6, 0.0345678, spread(70.123), solver="ddim", cache="taylorseer"),
    ]
    others = [
        judge(f"point {n}", kind, 2 + n, 0.4 / (n + 1))
        for n, kind in enumerate(
            ("searched", "named", "preset", "cache", "guidance", "rival", "rival")
        )
    ]
    others.append(judge("no finite end", "rival", 4, None))
    facts = {
        "network": network,
        "where": MeasuredAt(batch=2, device="cpu", dtype="fp32", machine="a machine", versions={}),
        "judged": JudgedOn(
            reference="unipc-3, 60", size=1.0, seeds={"test": "1-16"}, extractor="small"
        ),
        "seconds": 12.3,
        "searched": 4567,
    }
    plans = [
        WrittenPlan(
            file=f"plan-{n}.json",
            plan=PlanFile(
                point=each, rivals=tuple(others[:2]), verdict="it is the nearest", **facts
            ),
        )
        for n, each in enumerate(chosen)
    ]
    parts = CostParts(start=spread(1.0), row=spread(11.0), step=spread(0.1), pair=spread(21.0))
    return TuneReport(
        command="fewstep tune fashion-dit --html tune.html",
        parts=parts,
        points=(*others, *chosen),
        plans=tuple(plans),
        verdicts=("caches do not pay here",),
        **facts,
    )


def make_problem():
    """Eight noises of fashion-dit, and a converged run of few evaluations."""
    teacher = Teacher(solver="ddim", nfe=4)
    return Problem.of(load("fashion-dit"), (1, 1, 8), teacher=teacher, cfg_scale=2.0)


class Reader(HTMLParser):
    """Keeps the figures of each row of a table, and every address and text."""

    def __init__(self, page):
        super().__init__()
        self.rows, self.addresses, self.text, self._cell = {}, [], "", None
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        facts = dict(attrs)
        self.addresses += [facts[name] for name in ("src", "href") if name in facts]
        if tag == "tr":
            self._row = facts.get("data-point") or facts.get("data-plan")
            self.rows.setdefault(self._row, {})
        self._cell = facts.get("data-figure")

    def handle_data(self, data):
        self.text += data
        if self._cell:
            self.rows[self._row][self._cell] = data
        self._cell = None


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "tune.html"
    write_page(make_report(), make_problem(), path)
    return path


def test_every_figure_is_that_of_the_json(page, tmp_path):
    make_report().write(tmp_path / "report.json")
    body = json.loads((tmp_path / "report.json").read_text())
    reader = Reader(page.read_text())
    listed = {point["name"]: point for point in body["points"]}
    listed |= {each["file"]: each["plan"]["point"] for each in body["plans"]}
    assert set(listed) <= set(reader.rows)
    for name, point in listed.items():
        cost, columns = point["cost"], point.get("columns", {})
        figures = {
            "rows": cost["rows"],
            "effective": cost["effective"],
            "ms": cost["ms"]["median"] if "ms" in cost else cost["predicted"],
            "distance": columns.get("distance", {}).get("value"),
            "features": columns.get("features", {}).get("value"),
            "fd": point.get("fd"),
        }
        assert reader.rows[name] == {key: format_figure(value) for key, value in figures.items()}
    for text in ("12.3 s and 4567 network rows", "Caches do not pay here", body["command"]):
        assert text in reader.text


def test_it_needs_nothing_beside_itself_and_takes_names_for_text(page):
    text = page.read_text()
    reader = Reader(text)
    assert len(reader.addresses) == 6  # three pictures of each plan
    assert all(each.startswith("data:image/png;base64,") for each in reader.addresses)
    assert not re.findall(r"https?://|@import|url\(", text)
    assert NAME in reader.text
    assert "<b>unipc" not in text


def test_marks_lie_where_their_figures_say():
    report = make_report()
    distance, features, fd = list_qualities(report)
    figure = FrontFigure(report, "ms", distance)
    axis = Axis.of([1.0, 100.0], 0.0, 100.0)
    assert axis.place(10.0) == pytest.approx(50.0)
    assert [text for _, text in axis.ticks] == ["1", "2", "5", "10", "20", "50", "100"]
    short = Axis.of([2.5, 3.4], 0.0, 100.0)
    assert [text for _, text in short.ticks] == ["2.5", "2.8", "3", "3.2"]
    marks = {mark.text: mark for mark in figure.marks()}
    assert len(marks) == 9  # the one without an end is left out
    first = marks[f"{NAME}: 33.3 ms, 0.1235"]  # predicted, as those of all others are
    assert (first.x, first.y) == (figure.x.place(33.3), figure.y.place(0.1234567))
    assert first.bar == (figure.y.place(0.8 * 0.1234567), figure.y.place(1.2 * 0.1234567))
    assert [mark.number for mark in marks.values()] == [None] * 7 + [1, 2]
    assert (features.read(report.points[0]), fd.read(report.points[0])) == (3.6, 8.0)


def test_the_strip_says_what_each_step_asked():
    sampler = Sampler.from_pretrained("fashion-dit")
    settings = RunSettings(
        solver="ddim", nfe=4, grid="uniform", cfg_scale=2.0, cfg_interval=(0.5, 3.0)
    )
    cached = RunSettings(
        solver="ddim", nfe=4, cache="taylorseer:interval=2,order=1,level=last-block"
    )
    for chosen, kinds in ((settings, ["full"] * 4), (cached, ["full", "full", "forecast", "full"])):
        result = sampler([0, 1], class_labels=[0, 1], **chosen.arguments())
        plan = sampler.plan(**chosen.choices())
        steps = list_steps(plan.grid, result.ledger)
        assert [step.kind for step in steps] == kinds
        assert [step.time for step in steps] == [node.t for node in plan.grid.nodes[:-1]]
        assert [step.rows for step in steps] == list(result.ledger.rows_per_step)
    assert (
        describe_steps(cached, steps) == "the solver ddim, 4 steps, 1 of them forecast by a cache"
    )


def test_points_are_scattered_and_other_samples_are_said_to_be_none():
    report = make_report()
    plans = report.plans[:1]
    for shape, shown in (((2,), True), ((3,), False)):
        network = from_module(
            lambda x, t: x, schedule=RectifiedFlow(time_scale=1), prediction="flow", shape=shape
        )
        problem = Problem.of(network, (1, 1, 16), teacher=Teacher(solver="ddim", nfe=4))
        settings = RunSettings(solver="ddim", nfe=2)
        point = plans[0].plan.point.model_copy(update={"settings": settings})
        plan = plans[0].plan.model_copy(update={"point": point})
        plain = report.model_copy(
            update={"plans": (plans[0].model_copy(update={"plan": plan}),), "points": (point,)}
        )
        (drawing,) = draw_plans(plain, problem)
        page = render_page(plain, [drawing])
        assert ("<img" in page, "are no images and not drawn" in page) == (shown, not shown)
    exact = torch.tensor([[0.0, 0.0], [1.0, 1.0]])
    uri = scatter_points(exact + torch.tensor([0.0, 1.0]), exact)
    with Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) as picture:
        assert picture.size == (480, 480)
        corner, middle = picture.getpixel((6, 474)), picture.getpixel((6, 240))
    assert (corner, middle) == ((150, 150, 150), (0, 114, 178))


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason=f"none of {', '.join(BROWSERS)} is installed")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_browser_shows_it_without_an_error(page, width, tmp_path):
    picture = tmp_path / "a.png"
    words = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    words += ["--enable-logging=stderr", f"--user-data-dir={tmp_path / 'profile'}"]
    words += [f"--window-size={width},3000", f"--screenshot={picture}", page.as_uri()]
    done = subprocess.run(words, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert "CONSOLE" not in done.stderr, done.stderr
    with Image.open(picture) as image:
        shown = image.convert("RGB")
        assert shown.width == width
        colours = {colour for _, colour in shown.getcolors(10**7)}
        assert (0, 0x72, 0xB2) in colours  # the plans
    dump = subprocess.run(
        [*words[:-2], "--dump-dom", page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Hover over a point" in dump.stdout
