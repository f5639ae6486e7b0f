"""`fewstep tune --html`: the report as one page that needs nothing beside itself."""

from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from ...models.extras import check_installed
from ...models.files import check_writable, write_bytes
from ...samplers.plan_file import JudgedPoint, Unit
from ..search.problem import Problem
from .front_figure import FrontFigure, list_qualities
from .page_drawings import PlanDrawing, describe_steps, draw_plans
from .report import TuneReport

TEMPLATE = "tune.html"
KINDS = {
    "searched": "tables searched here",
    "named": "named solvers",
    "preset": "published and shipped tables",
    "cache": "named solvers with a cache",
    "guidance": "runs guided in some steps",
    "joint": "tables fitted together with a cache",
    "rival": "schedulers of diffusers",
}


def check_page(path: Path) -> None:
    """Raises SettingError if a page could not be written there, or jinja2 is not installed."""
    check_writable(path, ".html", ".htm")
    check_installed("jinja2")


def write_page(report: TuneReport, problem: Problem, path: Path) -> None:
    """Writes the page of a report, with pictures of its plans on the first test noises."""
    write_bytes(path, render_page(report, list(draw_plans(report, problem))).encode())


def render_page(report: TuneReport, drawings: Sequence[PlanDrawing]) -> str:
    """Returns the page; drawings: of the plans, in their order."""
    from jinja2 import Environment

    text = (files(__package__) / "templates" / TEMPLATE).read_text(encoding="utf-8")
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {"figure": format_figure, "sentence": begin_sentence}
    qualities = list_qualities(report)
    units: tuple[Unit, ...] = ("ms", "rows")
    panels = {unit: [FrontFigure(report, unit, each) for each in qualities] for unit in units}
    page: str = environment.from_string(text).render(
        report=report,
        panels={unit: [each for each in row if each] for unit, row in panels.items()},
        plans=list(zip(report.plans, drawings, strict=True)),
        points=sorted(report.points, key=_sort_key),
        kinds={kind: KINDS[kind] for kind in KINDS if any(p.kind == kind for p in report.points)},
        describe=describe_steps,
    )
    return page


def format_figure(value: float | None) -> str:
    """Returns a figure as it stands on the page: four digits, or a dash where there is none."""
    return "-" if value is None else f"{value:.4g}"


def begin_sentence(text: str) -> str:
    """Returns a text with a capital letter at its beginning."""
    return text[:1].upper() + text[1:]


def _sort_key(point: JudgedPoint) -> tuple[float, float]:
    distance = float("inf") if point.columns is None else point.columns.distance.value
    return point.cost.effective, distance
