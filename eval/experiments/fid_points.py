"""Rows of the store as points: one figure per setting and budget, of all its blocks of seeds."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean, stdev

from ...models.errors import UnknownNameError
from ...samplers.grid import FEW
from ...samplers.run_record import Run
from ...solvers import Schedule
from ..bench.protocol import Drawn, Measure, Real, check_alike
from ..bench.rows import ResultRow
from ..bench.table import format_number, format_range
from ..metrics import SetMetric, metric
from .fid_evaluator import split_label
from .fid_joint import check_joint

FLOOR = "real images"
SEARCHED = "searched"  # schedules of the package that were searched for the network


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
    def blocks(self) -> list[int]:
        """The first seed of each block."""
        return [_first_seed(row) for row in self.rows]

    @property
    def converged(self) -> bool:
        """True for the run that others are compared with."""
        return self.rows[0].target == self.rows[0].protocol.setting

    @property
    def spread(self) -> float | None:
        """Standard deviation over the blocks, ddof 1; None for a single one."""
        return stdev(self.values) if len(self.rows) > 1 else None

    def cost(self, name: str) -> float:
        """Returns mean over the blocks of a field of `SamplingCost`."""
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
        """Returns the table of some rows; raises SettingError if their measures are not one."""
        measure = check_alike([row.protocol.measure for row in rows])
        check_joint(rows)
        drawn = [row for row in rows if isinstance(row.protocol.images, Drawn)]
        floor = [row for row in rows if isinstance(row.protocol.images, Real)]
        return cls(
            measure,
            better(measure.metric),
            floor,
            _points(drawn),
            remarks,
        )

    @property
    def networks(self) -> list[str]:
        return list(dict.fromkeys(point.network for point in self.points))

    @property
    def caption(self) -> str:
        """The meaning of the figures, in one sentence."""
        blocks = sorted({len(point.rows) for point in self.points})
        many = " to ".join(map(str, dict.fromkeys([blocks[0], blocks[-1]]))) if blocks else "no"
        end, reference = "" if many == "1" else "s", self.measure.reference
        return (
            f"{self.measure.metric}{'' if reference == 'none' else f' to {reference}'},"
            f" n = {self.measure.n},"
            f" {self.better}er is better; mean over {many} block{end} of seeds"
        )

    def table(self) -> str:
        """Returns all figures in Markdown."""
        from .fid_report import markdown

        return markdown(self)

    @property
    def floor_text(self) -> str:
        """The floor in one sentence."""
        if not self.floor:
            return "no floor was measured"
        values = [row.value for row in self.floor]
        source = getattr(self.floor[0].protocol.images, "source", "")
        return (
            f"{source}, {self.measure.n} images not in the reference: {format_number(mean(values))}"
            + (f" ({format_range(values)})" if len(values) > 1 else "")
        )

    def of_network(self, network: str) -> dict[str, dict[int, QualityPoint]]:
        """Returns setting -> NFE -> point, the settings in the order of the store."""
        settings: dict[str, dict[int, QualityPoint]] = {}
        for point in self.points:
            if point.network == network:
                settings.setdefault(point.setting, {})[point.nfe] = point
        return settings

    def best(self, points: Iterable[QualityPoint]) -> QualityPoint:
        """Returns the best of some, by the mean."""
        pick = min if self.better == "low" else max
        return pick(points, key=lambda point: point.mean)

    def pareto(self) -> list[QualityPoint]:
        """Returns the points that none is cheaper (in FLOPs) and better than, cheapest first."""
        front: list[QualityPoint] = []
        for point in sorted(self.points, key=lambda point: (point.cost("flops"), self.rank(point))):
            if not front or self.rank(point) < self.rank(front[-1]):
                front.append(point)
        return front

    def rank(self, point: QualityPoint) -> float:
        """Returns a number that is lower for a better mean."""
        return point.mean if self.better == "low" else -point.mean


def better(label: str) -> str:
    """Returns "low" or "high", whichever is good of a metric; low for one not known here."""
    try:
        entry = metric(split_label(label)[0])
    except UnknownNameError:
        return "low"
    return entry.better if isinstance(entry, SetMetric) else "low"


def _points(rows: Iterable[ResultRow]) -> list[QualityPoint]:
    """Returns rows of one setting together; blocks in the order of their seeds."""
    groups: dict[str, list[ResultRow]] = {}
    for row in rows:
        groups.setdefault(row.protocol.setting, []).append(row)
    points = []
    for group in groups.values():
        images = group[0].protocol.images
        assert isinstance(images, Drawn)
        ordered = sorted(group, key=_first_seed)
        point = QualityPoint(network_label(images), setting_label(images), _nfe(group[0]), ordered)
        named = f"converged, {point.setting}" if point.converged else point.setting
        points.append(replace(point, setting=named))
    return _tell_apart(points)


def _tell_apart(points: Sequence[QualityPoint]) -> list[QualityPoint]:
    """Gives unlike settings of the same name and budget (schedules) a piece of their hash."""
    seen = Counter((point.network, point.setting, point.nfe) for point in points)
    return [
        replace(p, setting=f"{p.setting} {p.rows[0].protocol.setting[:6]}")
        if seen[p.network, p.setting, p.nfe] > 1
        else p
        for p in points
    ]


def _first_seed(row: ResultRow) -> int:
    images = row.protocol.images
    return images.run.seeds[0] if isinstance(images, Drawn) else 0


def _nfe(row: ResultRow) -> int:
    return round(row.cost.nfe) if row.cost else 0


def network_label(images: Drawn) -> str:
    """Returns the network, and what of guidance and dtype is not as usual."""
    run = images.run
    parts = [run.model]
    if (scale := images.scale) != 1.0:
        parts.append(f"CFG {scale:g}")
    if run.cfg_interval is not None:
        parts.append("in {:g}..{:g}".format(*run.cfg_interval))
    if run.threshold is not None:
        parts.append(f"threshold {run.threshold:g}")
    if run.dtype != "fp32":
        parts.append(run.dtype)
    return ", ".join(parts)


def setting_label(images: Drawn) -> str:
    """Returns solver, grid, end and policies, the schedule's name, or the rival."""
    run = images.run
    if images.rival is not None:
        return f"diffusers {images.rival}"
    end = "" if run.final == "zero" else f" {run.final}"
    if run.schedule is None:
        how = f"{run.solver} {_grid_label(run)}{end}"
    else:
        how = _name_series(run.schedule, run.model)
    return ", ".join([how, *(each for each in (run.guidance_spec, run.cache) if each is not None)])


def _name_series(schedule: Schedule, model: str) -> str:
    """Returns the name that a schedule shares with those of other sizes: without its own size."""
    name = str(schedule.provenance.get("name", "schedule"))
    if name.startswith(f"{model}-"):
        return SEARCHED
    sizes = (f"-nfe{schedule.nfe}", f"-rows{schedule.rows}", f"-{schedule.nfe}")
    return name.removesuffix(next(filter(name.endswith, sizes), ""))


def row_line(row: ResultRow) -> str:
    """Returns a row in one line, as it is printed when it is finished."""
    images, clock = row.protocol.images, row.clock
    figure = f"{row.protocol.measure.metric} {format_number(row.value)}"
    if isinstance(images, Real):
        return f"{figure}  {FLOOR}, {images.source} {images.rows}"
    name = f"{network_label(images)}, {setting_label(images)}, NFE {_nfe(row)}"
    seeds = f"seeds {images.run.seeds[0]}-{images.run.seeds[-1]}"
    return f"{figure}  {name}, {seeds}  ({clock.total:.1f} s, harness {clock.overhead:.1%})"


def _grid_label(run: Run) -> str:
    """Returns the grid; those of few evaluations, which change with their number, have one name."""
    few = {grid for rows in FEW.values() for most, grid in rows if run.nfe and run.nfe <= most}
    return "default grid" if run.grid in few else str(run.grid)
