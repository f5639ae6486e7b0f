"""Rows of the store as tables: one figure per setting and budget, of all its blocks of seeds."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from statistics import mean, stdev

from ...models.errors import UnknownNameError
from ...solvers import Schedule
from ..bench.protocol import Drawn, Measure, Real, check_alike
from ..bench.rows import ResultRow
from ..metrics import SetMetric, metric
from .fid_evaluator import metric_and_extractor

FLOOR = "real images"
BEST = "*"


@dataclass(frozen=True)
class QualityPoint:
    """One setting at one budget: a row of the store for each block of seeds.

    network: the network and its guidance; setting: solver and grid, or rival.
    """

    network: str
    setting: str
    nfe: int
    rows: Sequence[ResultRow]

    @property
    def values(self) -> list[float]:
        return [row.value for row in self.rows]

    @property
    def mean(self) -> float:
        return mean(self.values)

    @property
    def spread(self) -> float | None:
        """Standard deviation over the blocks, ddof 1; None for a single one."""
        return stdev(self.values) if len(self.rows) > 1 else None

    def cost(self, name: str) -> float:
        """Mean over the blocks of a field of `SamplingCost`."""
        return float(mean(getattr(row.cost, name) for row in self.rows))


@dataclass(frozen=True)
class QualityTable:
    """Everything that may stand side by side.

    measure: the one that all rows share; floor: the rows of real images.
    """

    measure: Measure
    better: str
    floor: Sequence[ResultRow]
    points: Sequence[QualityPoint]
    remarks: Sequence[str] = field(default=())

    @classmethod
    def of(cls, rows: Sequence[ResultRow], remarks: Sequence[str] = ()) -> "QualityTable":
        """The table of some rows; raises SettingError if their measures are not one."""
        measure = check_alike([row.protocol.measure for row in rows])
        drawn = [row for row in rows if isinstance(row.protocol.images, Drawn)]
        floor = [row for row in rows if isinstance(row.protocol.images, Real)]
        return cls(
            measure, better(measure.metric), floor, _points(drawn), [*remarks, *_mixed(rows)]
        )

    @property
    def networks(self) -> list[str]:
        return list(dict.fromkeys(point.network for point in self.points))

    @property
    def caption(self) -> str:
        """What the figures are, in one sentence."""
        blocks = sorted({len(point.rows) for point in self.points})
        many = " to ".join(map(str, dict.fromkeys([blocks[0], blocks[-1]]))) if blocks else "no"
        end = "" if many == "1" else "s"
        return (
            f"{self.measure.metric} to {self.measure.reference}, n = {self.measure.n},"
            f" {self.better}er is better; mean over {many} block{end} of seeds"
        )

    @property
    def floor_text(self) -> str:
        """The floor in one sentence."""
        if not self.floor:
            return "no floor was measured"
        values = [row.value for row in self.floor]
        source = getattr(self.floor[0].protocol.images, "source", "")
        return f"{source}, {self.measure.n} images not in the reference: {number(mean(values))}" + (
            f" ({_range(values)})" if len(values) > 1 else ""
        )

    def of_network(self, network: str) -> dict[str, dict[int, QualityPoint]]:
        """setting -> NFE -> point, the settings in the order of the store."""
        found: dict[str, dict[int, QualityPoint]] = {}
        for point in self.points:
            if point.network == network:
                found.setdefault(point.setting, {})[point.nfe] = point
        return found

    def best(self, points: Iterable[QualityPoint]) -> QualityPoint:
        """The best of some, by the mean."""
        pick = min if self.better == "low" else max
        return pick(points, key=lambda point: point.mean)

    def pareto(self) -> list[QualityPoint]:
        """Points that none is both cheaper (FLOPs per image) and better than, cheapest first."""
        front: list[QualityPoint] = []
        for point in sorted(
            self.points, key=lambda point: (point.cost("flops"), self._rank(point))
        ):
            if not front or self._rank(point) < self._rank(front[-1]):
                front.append(point)
        return front

    def _rank(self, point: QualityPoint) -> float:
        return point.mean if self.better == "low" else -point.mean


def better(label: str) -> str:
    """ "low" or "high": which values of a metric are good ones; low for one not known here."""
    try:
        found = metric(metric_and_extractor(label)[0])
    except UnknownNameError:
        return "low"
    return found.better if isinstance(found, SetMetric) else "low"


def _points(rows: Iterable[ResultRow]) -> list[QualityPoint]:
    """Rows of one setting together; blocks in the order of their seeds."""
    kept: dict[str, list[ResultRow]] = {}
    for row in rows:
        kept.setdefault(row.protocol.setting, []).append(row)
    points = []
    for group in kept.values():
        images = group[0].protocol.images
        assert isinstance(images, Drawn)
        ordered = sorted(group, key=_first_seed)
        points.append(
            QualityPoint(network_label(images), setting_label(images), _nfe(group[0]), ordered)
        )
    return _told_apart(points)


def _told_apart(points: Sequence[QualityPoint]) -> list[QualityPoint]:
    """Unlike settings of the same name and budget (schedules) get a piece of their hash."""
    seen: dict[tuple[str, str, int], int] = {}
    for point in points:
        key = (point.network, point.setting, point.nfe)
        seen[key] = seen.get(key, 0) + 1
    doubled = {key[:2] for key, count in seen.items() if count > 1}
    return [
        QualityPoint(p.network, f"{p.setting} {p.rows[0].protocol.setting[:6]}", p.nfe, p.rows)
        if (p.network, p.setting) in doubled
        else p
        for p in points
    ]


def _first_seed(row: ResultRow) -> int:
    images = row.protocol.images
    return images.run.seeds[0] if isinstance(images, Drawn) else 0


def _nfe(row: ResultRow) -> int:
    return round(row.cost.nfe) if row.cost else 0


def network_label(images: Drawn) -> str:
    """The network, and what of guidance and dtype is not as usual."""
    run = images.run
    parts = [run.model]
    if run.cfg_scale != 1.0:
        parts.append(f"CFG {run.cfg_scale:g}")
    if run.cfg_interval is not None:
        parts.append("in {:g}..{:g}".format(*run.cfg_interval))
    if run.threshold is not None:
        parts.append(f"threshold {run.threshold:g}")
    if run.dtype != "fp32":
        parts.append(run.dtype)
    return ", ".join(parts)


def setting_label(images: Drawn) -> str:
    """Solver, grid, end and policies, the schedule's name, or the rival."""
    run = images.run
    if images.rival is not None:
        return f"diffusers {images.rival}"
    end = "" if run.final == "zero" else f" {run.final}"
    how = _schedule_label(run.schedule) if run.schedule else f"{run.solver} {run.grid}{end}"
    return ", ".join([how, *(each for each in (run.guidance_spec, run.cache) if each is not None)])


def row_line(row: ResultRow) -> str:
    """A row in one line, as it is told when it is finished."""
    images, clock = row.protocol.images, row.clock
    figure = f"{row.protocol.measure.metric} {number(row.value)}"
    if isinstance(images, Real):
        return f"{figure}  {FLOOR}, {images.source} {images.rows}"
    name = f"{network_label(images)}, {setting_label(images)}, NFE {_nfe(row)}"
    seeds = f"seeds {images.run.seeds[0]}-{images.run.seeds[-1]}"
    return f"{figure}  {name}, {seeds}  ({clock.total:.1f} s, harness {clock.overhead:.1%})"


def _schedule_label(schedule: Schedule) -> str:
    return str(schedule.provenance.get("name", "schedule"))


def _mixed(rows: Sequence[ResultRow]) -> Iterator[str]:
    """Remarks on rows that different software made."""
    for name in ("fewstep", "torch", "diffusers"):
        found = sorted({row.versions.get(name, "?") for row in rows})
        if len(found) > 1:
            yield f"rows were made by {name} {', '.join(found)}; draw them again to compare closely"


def markdown(table: QualityTable) -> str:
    """For each network a table of means against NFE, then one of spread and cost per figure."""
    lines = [table.caption, "", f"Floor: {table.floor_text}.", ""]
    lines += [f"{BEST} is the best of its column.", ""]
    for network in table.networks:
        lines += [f"### {network}", "", *_aligned(means(table, network)), ""]
        lines += [*_aligned(details(table, network)), ""]
    lines += [f"- {remark}" for remark in table.remarks]
    return "\n".join(lines).rstrip()


def means(table: QualityTable, network: str) -> list[list[str]]:
    """Header and rows: settings by NFE, the floor first, the best of each column marked."""
    found = table.of_network(network)
    budgets = sorted({nfe for each in found.values() for nfe in each})
    best = {n: table.best(each[n] for each in found.values() if n in each) for n in budgets}
    rows = [["NFE", *map(str, budgets)]]
    if table.floor:
        floor = number(mean(row.value for row in table.floor))
        rows.append([FLOOR, *[floor] * len(budgets)])
    for setting, points in found.items():
        marks = [BEST if points.get(n) is best[n] else "" for n in budgets]
        cells = [number(points[n].mean) if n in points else "-" for n in budgets]
        rows.append([setting, *(cell + mark for cell, mark in zip(cells, marks, strict=True))])
    return rows


def details(table: QualityTable, network: str) -> list[list[str]]:
    """Header and rows: spread over the blocks (runs) and cost of each setting and NFE."""
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
    spread = "" if point.spread is None else f"±{number(point.spread)}"
    return [
        point.setting,
        str(point.nfe),
        str(len(point.rows)),
        number(point.mean) + spread,
        "-" if point.spread is None else _range(point.values),
        f"{point.cost('rows'):g}",
        f"{point.cost('effective'):.4g}",
        f"{point.cost('flops') / 1e9:.2f}",
        f"{point.cost('seconds') * 1e3:.1f}",
    ]


def _range(values: Sequence[float]) -> str:
    return f"{number(min(values))}..{number(max(values))}"


def number(value: float) -> str:
    """Three significant digits, without an exponent from 0.001 to 999999."""
    if abs(value) >= 100.0:
        return f"{value:.0f}"
    return f"{value:#.3g}" if abs(value) >= 1e-3 else f"{value:.3g}"


def _aligned(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """A Markdown table whose columns are also straight as plain text."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        first, *rest = zip(cells, widths, strict=True)
        return " | ".join([first[0].ljust(first[1]), *(cell.rjust(w) for cell, w in rest)])

    yield f"| {line(rows[0])} |"
    rules = ["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]
    yield f"|{'|'.join(rules)}|"
    yield from (f"| {line(row)} |" for row in rows[1:])


CSV = (
    *("network", "setting", "nfe", "blocks", "mean", "sd", "min", "max", "rows", "effective_nfe"),
    *("gflops", "seconds_per_image", "metric", "n", "reference", "hashes"),
)


def as_csv(table: QualityTable) -> str:
    """One line per setting and budget, all digits; the floor first."""
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
