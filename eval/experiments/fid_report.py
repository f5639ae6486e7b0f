"""The table of image quality: as Markdown, CSV, curves, and a page that needs no other file."""

import base64
import csv
import io
import json
from collections.abc import Mapping, Sequence
from functools import partial
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from ...models.files import write_bytes
from ..bench.plot import (
    MOST,
    Paint,
    colour,
    draw_panels,
    entry,
    marker,
    put_legend,
    render_panels,
    write_plain_numbers,
)
from ..bench.report import ReportFiles
from ..bench.rows import ResultRow
from ..bench.table import align_table, format_number, format_range
from .fid_claims import find_distance, find_figure, list_claims, tabulate_claims
from .fid_nfe import picture_path
from .fid_points import FLOOR, QualityPoint, QualityTable, row_line

BEST = "*"


def markdown(table: QualityTable) -> str:
    """Returns for each network the means against NFE, then spread and cost of each figure."""
    lines = [table.caption, "", f"Floor: {table.floor_text}.", ""]
    lines += [f"{BEST} is the best of its column.", ""]
    claims = list(list_claims(table))
    for network in table.networks:
        lines += [f"### {network}", "", *align_table(means(table, network)), ""]
        if own := [claim for claim in claims if claim.network == network]:
            lines += [*align_table(tabulate_claims(own)), ""]
        lines += [*align_table(details(table, network)), ""]
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
    """Returns header and rows: spread over the blocks (runs) and cost of each setting and NFE.

    Intervals of 95 % and distances to the converged run have columns where they were measured.
    """
    header = ["setting", "NFE", "runs", "mean±sd", "min..max", "rows", "eff.", "GFLOP", "ms"]
    header += ["95 %", "distance", "features"]
    rows = [header]
    for points in table.of_network(network).values():
        rows += [_detail(points[nfe]) for nfe in sorted(points)]
    for column in range(len(header) - 1, len(header) - 4, -1):
        if all(row[column] == "-" for row in rows[1:]):
            for row in rows:
                del row[column]
    if all(row[5] == row[6] for row in rows[1:]):  # without caches they are the same
        rows[0][5] = "rows=eff"
        for row in rows:
            del row[6]
    return rows


def _detail(point: QualityPoint) -> list[str]:
    spread = "" if point.spread is None else f"±{format_number(point.spread)}"
    figure = find_figure(point)
    distances = [find_distance(point, what) for what in ("distance", "features")]
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
        "-" if figure is None else format_range(figure[1:]),
        *("-" if each is None else str(each) for each in distances),
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


TEMPLATE = "fid_nfe.html"
LAYOUT: dict[str, Any] = {"across": 1, "size": (5.6, 5.6)}  # of the curves


def write_report(
    outputs: ReportFiles, rows: Sequence[ResultRow], remarks: Sequence[str], stores: Sequence[Path]
) -> str:
    """Writes the plot and the page that are asked for, and returns the text.

    stores: beside them lie the pictures of the cells.

    Raises:
        SettingError: for rows of unlike measures, or a file that cannot be written.
    """
    table = QualityTable.of(rows, remarks)
    if outputs.plot is not None:
        draw_panels(_panels(table), outputs.plot, **LAYOUT)
    if outputs.page is not None:
        write_bytes(outputs.page, page(table, stores).encode())
    return as_csv(table) if outputs.text == "csv" else markdown(table)


def page(table: QualityTable, stores: Sequence[Path]) -> str:
    """Returns the HTML page: tables, curves, Pareto front, samples and protocols."""
    text: str = _template().render(
        table=table,
        curves=[_draw_svg(paint) for paint in _panels(table)],
        means={network: means(table, network) for network in table.networks},
        details={network: details(table, network) for network in table.networks},
        pareto=[_on_front(point) for point in table.pareto()],
        samples={network: _samples(table, network, stores) for network in table.networks},
        protocols=[_protocol(row) for row in _rows(table)],
    )
    return text


def _rows(table: QualityTable) -> list[ResultRow]:
    return [*table.floor, *(row for point in table.points for row in point.rows)]


def _template() -> Any:
    from jinja2 import Environment

    text = (files(__package__) / "templates" / TEMPLATE).read_text(encoding="utf-8")
    return Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(text)


def _draw_svg(paint: Paint) -> Any:
    from markupsafe import Markup

    out = io.BytesIO()
    render_panels([paint], out, "svg", **LAYOUT)
    text = out.getvalue().decode()
    return Markup(text[text.index("<svg") :])


def _panels(table: QualityTable) -> list[Paint]:
    """Returns a panel of figure against NFE per network, and one of all against FLOPs."""
    panels = [partial(_network_panel, table, network) for network in table.networks]
    return [*panels, partial(_cost_panel, table)]


def _network_panel(table: QualityTable, network: str, panel: Any) -> None:
    settings = table.of_network(network)
    for i, setting in enumerate(_order_settings(table, settings)):
        points = settings[setting]
        budgets = sorted(points)
        values = [points[nfe].mean for nfe in budgets]
        ends = [_error_bar(points[nfe]) for nfe in budgets]
        style = "--" if setting.startswith("diffusers ") else "-"
        panel.errorbar(
            budgets,
            values,
            yerr=list(zip(*ends, strict=True)),
            fmt=marker(i) + style,
            color=colour(i),
            label=entry(i, setting),
            zorder=2 if i < MOST else 1,
            markersize=5,
            linewidth=1.5,
        )
    _finish(panel, table, network, "network evaluations per image (NFE)")
    budgets = sorted({point.nfe for point in table.points})
    panel.set_xticks(budgets, [str(nfe) for nfe in budgets])
    panel.set_xticks([], minor=True)


def _order_settings(
    table: QualityTable, settings: Mapping[str, Mapping[int, QualityPoint]]
) -> list[str]:
    """Returns settings with those first that stand best at their budgets, on average."""
    places: dict[str, list[float]] = {name: [] for name in settings}
    for nfe in {nfe for points in settings.values() for nfe in points}:
        there = [name for name in settings if nfe in settings[name]]
        there.sort(key=lambda name: table.rank(settings[name][nfe]))
        for i, name in enumerate(there):
            places[name].append(i / len(there))
    return sorted(settings, key=lambda name: mean(places[name]))


def _error_bar(point: QualityPoint) -> tuple[float, float]:
    return point.mean - min(point.values), max(point.values) - point.mean


def _cost_panel(table: QualityTable, panel: Any) -> None:
    for i, network in enumerate(table.networks):
        points = [point for point in table.points if point.network == network]
        cost = [point.cost("flops") / 1e9 for point in points]
        values = [point.mean for point in points]
        panel.plot(cost, values, marker(i), color=colour(i), label=entry(i, network), markersize=5)
    front = table.pareto()
    cost, values = [p.cost("flops") / 1e9 for p in front], [p.mean for p in front]
    panel.plot(cost, values, "k-", drawstyle="steps-post", linewidth=0.8, label="Pareto front")
    _finish(panel, table, "all networks", "GFLOP per image")
    write_plain_numbers(panel.xaxis)


def _finish(panel: Any, table: QualityTable, title: str, cost: str) -> None:
    measure = table.measure
    if table.floor:
        floor = mean(row.value for row in table.floor)
        panel.axhline(floor, color="grey", linestyle=":", linewidth=1, label="real images")
    panel.set(xscale="log", xlabel=cost, ylabel=f"{measure.metric}, n = {measure.n}", title=title)
    if all(point.mean > 0.0 for point in table.points):
        panel.set_yscale("log")
        write_plain_numbers(panel.yaxis)
    panel.grid(alpha=0.3)
    put_legend(panel)


def _on_front(point: QualityPoint) -> list[str]:
    return [
        f"{point.cost('flops') / 1e9:.2f}",
        str(point.nfe),
        format_number(point.mean),
        point.network,
        point.setting,
    ]


def _samples(
    table: QualityTable, network: str, stores: Sequence[Path]
) -> dict[str, dict[int, str]]:
    """Returns setting -> NFE -> data URI of its first images; settings without any are left out."""
    uris = {
        setting: {nfe: uri for nfe in sorted(points) if (uri := _data_uri(points[nfe], stores))}
        for setting, points in table.of_network(network).items()
    }
    return {setting: each for setting, each in uris.items() if each}


def _data_uri(point: QualityPoint, stores: Sequence[Path]) -> str:
    paths = (picture_path(store, point.rows[0].hash) for store in stores)
    for path in (path for path in paths if path.is_file()):
        return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    return ""


def _protocol(row: ResultRow) -> tuple[str, str]:
    """Returns (title, JSON) of a row."""
    body = row.model_dump(mode="json", exclude_none=True)
    return f"{row.hash[:12]}: {row_line(row)}", json.dumps(body, indent=1)
