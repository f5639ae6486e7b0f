"""A report of `fewstep tune` as lines of a terminal, 80 columns wide."""

from collections.abc import Iterator
from pathlib import Path
from textwrap import wrap

from ...samplers.columns import Column
from ...samplers.plan_file import JudgedPoint
from .report import TuneReport

WIDTH = 80
SHOWN = 8  # points beside each plan


def list_lines(report: TuneReport, out: Path) -> Iterator[str]:
    """Yields costs, then each plan with what it was compared with, then what was found."""
    where = report.where
    yield from _fold(
        f"{report.network}, batch {where.batch}, {where.dtype} on {where.device}: a row takes"
        f" {report.parts.row}, a solver's step {report.parts.step}, the start {report.parts.start}"
    )
    if report.parts.pair is not None:
        yield f"both branches take {report.parts.pair}"
    for each in report.parts.partial.values():
        yield f"an evaluation that a cache forecasts takes {each}"
    for written in report.plans:
        plan = written.plan
        yield ""
        yield f"{out.with_name(written.file)}: {plan.point.name}"
        yield from _fold(f"chosen: {plan.verdict}")
        yield from _list_table(plan.point, plan.rivals)
    yield ""
    for text in (*map(str, report.compared), *report.verdicts):
        yield from _fold(text)
    judged = report.judged
    count = report.plans[0].plan.point.count if report.plans else 0
    yield from _fold(
        f"judged on {count} test noises, seeds {judged.seeds['test']}, against {judged.reference};"
        f" intervals are of 95 %; {report.seconds:.0f} s, {report.searched:,} network rows searched"
    )
    for written in report.plans if report.network != "toy" else ():
        yield f"sample {report.network} --plan {out.with_name(written.file)}"


def _list_table(point: JudgedPoint, rivals: tuple[JudgedPoint, ...]) -> Iterator[str]:
    """Yields one row for each point; names are on a line of their own where they are long."""
    yield f"{'rows':>6} {'eff.':>6} {'ms':>7}  {'distance':<23} {'features':<23} {'FD':>6}"
    for each in (point, *rivals[:SHOWN]):
        cost = each.cost
        ms = cost.amount("ms")
        time = "" if ms is None else f"{ms:.4g}"
        columns = each.columns
        near = "" if columns is None else _show(columns.distance)
        seen = "" if columns is None or columns.features is None else _show(columns.features)
        fd = "" if each.fd is None else f"{each.fd:.3f}"
        figures = (
            f"{cost.rows:>6.4g} {cost.effective:>6.4g} {time:>7}  {near:<23} {seen:<23} {fd:>6}"
        )
        mark = "*" if each is point else " "
        yield f"{mark} {each.name}"[:WIDTH]
        yield figures


def _show(column: Column) -> str:
    return f"{column.value:.4f} [{column.low:.4f},{column.high:.4f}]"


def _fold(text: str) -> Iterator[str]:
    yield from wrap(text, WIDTH)
