"""The table of image quality as Markdown and as CSV."""

import csv
import io
from collections.abc import Sequence
from statistics import mean, stdev

from ..bench.rows import ResultRow
from ..bench.table import aligned_table, format_number, format_range
from .fid_points import FLOOR, QualityPoint, QualityTable

BEST = "*"


def markdown(table: QualityTable) -> str:
    """Returns for each network the means against NFE, then spread and cost of each figure."""
    lines = [table.caption, "", f"Floor: {table.floor_text}.", ""]
    lines += [f"{BEST} is the best of its column.", ""]
    for network in table.networks:
        lines += [f"### {network}", "", *aligned_table(means(table, network)), ""]
        lines += [*aligned_table(details(table, network)), ""]
    lines += [f"- {remark}" for remark in table.remarks]
    return "\n".join(lines).rstrip()


def means(table: QualityTable, network: str) -> list[list[str]]:
    """Returns header and rows: settings by NFE, the floor first, the best of each column marked."""
    settings = table.of_network(network)
    budgets = sorted({nfe for each in settings.values() for nfe in each})
    best = {n: table.best(each[n] for each in settings.values() if n in each) for n in budgets}
    rows = [["NFE", *map(str, budgets)]]
    if table.floor:
        floor = format_number(mean(row.value for row in table.floor))
        rows.append([FLOOR, *[floor] * len(budgets)])
    for setting, points in settings.items():
        marks = [BEST if points.get(n) is best[n] else "" for n in budgets]
        cells = [format_number(points[n].mean) if n in points else "-" for n in budgets]
        rows.append([setting, *(cell + mark for cell, mark in zip(cells, marks, strict=True))])
    return rows


def details(table: QualityTable, network: str) -> list[list[str]]:
    """Returns header and rows: spread over the blocks (runs) and cost of each setting and NFE."""
    header = ["setting", "NFE", "runs", "mean±sd", "min..max", "rows", "eff.", "GFLOP", "ms"]
    rows = [header]
    for points in table.of_network(network).values():
        rows += [_detail(points[nfe]) for nfe in sorted(points)]
    if all(row[5] == row[6] for row in rows[1:]):  # without caches they are the same
        header[5] = "rows=eff"
        for row in rows:
            del row[6]
    return rows


def _detail(point: QualityPoint) -> list[str]:
    spread = "" if point.spread is None else f"±{format_number(point.spread)}"
    return [
        point.setting,
        str(point.nfe),
        str(len(point.rows)),
        format_number(point.mean) + spread,
        "-" if point.spread is None else format_range(point.values),
        f"{point.cost('rows'):g}",
        f"{point.cost('effective'):.4g}",
        f"{point.cost('flops') / 1e9:.2f}",
        f"{point.cost('seconds') * 1e3:.1f}",
    ]


CSV = (
    *("network", "setting", "nfe", "blocks", "mean", "sd", "min", "max", "rows", "effective_nfe"),
    *("gflops", "seconds_per_image", "metric", "n", "reference", "hashes"),
)


def as_csv(table: QualityTable) -> str:
    """Returns one line per setting and budget, all digits; the floor first."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV)
    if table.floor:
        figures = _figures([row.value for row in table.floor])
        head = ["", FLOOR, "", len(table.floor)]
        writer.writerow([*head, *figures, *[""] * 4, *_tail(table, table.floor)])
    for p in table.points:
        cost = [p.cost("rows"), p.cost("effective"), p.cost("flops") / 1e9, p.cost("seconds")]
        head = [p.network, p.setting, str(p.nfe), len(p.rows)]
        writer.writerow([*head, *_figures(p.values), *cost, *_tail(table, p.rows)])
    return out.getvalue().rstrip("\n")


def _figures(values: Sequence[float]) -> list[float | str]:
    spread = stdev(values) if len(values) > 1 else ""
    return [mean(values), spread, min(values), max(values)]


def _tail(table: QualityTable, rows: Sequence[ResultRow]) -> list[object]:
    measure = table.measure
    return [measure.metric, measure.n, measure.reference, " ".join(row.hash for row in rows)]
