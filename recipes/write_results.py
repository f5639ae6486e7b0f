"""Writes docs/results.md of the stores in results/: claims first, then every table.

    python recipes/write_results.py > docs/results.md

A claim stands with what was measured, its spread, the command, the day, the machine and the
versions; what was not found, where rivals win, stands beside what was, and what is not measured
yet below it.
"""

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

from fewstep.eval.bench.rows import MeasuredRow, ResultRow, ResultStore
from fewstep.eval.bench.stamp import find_facts, format_stamp
from fewstep.eval.bench.store import RowStore
from fewstep.eval.bench.table import markdown_table
from fewstep.eval.experiments import scaling_table, speed
from fewstep.eval.experiments.fid_claims import Claim, list_claims
from fewstep.eval.experiments.fid_missing import list_missing
from fewstep.eval.experiments.fid_points import QualityTable
from fewstep.eval.experiments.fid_report import markdown
from fewstep.eval.experiments.fid_sweep import Sweep
from fewstep.eval.experiments.scaling import AXES, ScalingRow
from fewstep.eval.experiments.speed import NETWORKS, PARTS, SpeedBench, SpeedRow
from fewstep.models.load import load

ROOT = Path(__file__).parents[1]
QUALITY, SPEED, SCALING = (
    ROOT / "results" / f"{name}.jsonl" for name in ("quality", "speed", "scaling")
)
SWEEPS = [ROOT / "results" / f"sweep-{name}.json" for name in ("fashion", "emoji", "fid")]
CIFAR = ROOT / "results" / "cifar.json"
NEAR = {6: 0.45, 10: 0.4}  # up to so many evaluations: the claimed ratio of distances
GAP = 5, 0.3  # evaluations, and the claimed gap ratio
HEADER = ("claim", "of", "measured", "verdict")


def split_measures(rows: Iterable[ResultRow]) -> list[QualityTable]:
    """Returns a table of each measure in a store."""
    groups: dict[str, list[ResultRow]] = {}
    for row in rows:
        groups.setdefault(row.protocol.measure.model_dump_json(), []).append(row)
    return [QualityTable.of(group) for group in groups.values()]


def list_verdicts(tables: Sequence[QualityTable], races: Sequence[SpeedRow]) -> Iterator[list[str]]:
    """Yields claim, its subject, the figure with its interval, and whether it holds."""
    for table in tables:
        for claim in list_claims(table):
            yield from _judge(claim, table.measure.metric)
    for race in (race for race in races if race.asked is not None):
        low, middle, high = race.ratios[race.rival]
        figure = f"{middle:.2f} ({low:.2f}..{high:.2f})"
        what = f"{race.part}: the time of {race.rival} over ours is at least {race.asked:g}"
        yield [what, race.name, figure, _word(race.met)]


def _judge(claim: Claim, metric: str) -> Iterator[list[str]]:
    blocks = len(claim.ours.rows)
    where = f"{claim.network}, {claim.rows} rows, {blocks} block{'s' if blocks > 1 else ''}"
    most = next((ratio for rows, ratio in NEAR.items() if claim.rows <= rows), None)
    if most is not None and claim.ours.nfe == claim.rows:
        what = f"searched is at most {most:g} as far as the best hand-made run"
        yield [what, where, str(claim.distance), _word(claim.distance.value <= most)]
    what = f"its {metric} is not worse beyond the interval"
    yield [what, where, str(claim.difference), _word(claim.difference.low <= 0.0)]
    if claim.gap is not None and claim.rows == GAP[0]:
        what = f"the gap ratio of its {metric} to diffusers' best is at most {GAP[1]:g}"
        yield [what, where, str(claim.gap), _word(claim.gap.value <= GAP[1])]


def _judge_shares(curves: Sequence[ScalingRow]) -> Iterator[list[str]]:
    digests = [row.digest for row in curves if row.digest is not None]
    if digests:
        what = "samples of two processes are those of one to the bit"
        shown = " and ".join(digest[:8] for digest in digests)
        yield [what, "processes", shown, _word(len(set(digests)) == 1)]


def _judge_cifar() -> Iterator[list[str]]:
    if CIFAR.exists():
        facts = json.loads(CIFAR.read_text(encoding="utf-8"))
        low, high = facts["published"]
        what = f"training against test images is {low} to {high}, as published (`make cifar`)"
        shown = f"{facts['fid']:.3f}, statistics {facts['sha256'][:12]}"
        yield [what, "FID of CIFAR-10", shown, _word(low <= facts["fid"] <= high)]


def _word(held: bool) -> str:
    return "found" if held else "NOT FOUND"


def list_defeats(tables: Sequence[QualityTable], races: Sequence[SpeedRow]) -> Iterator[str]:
    """Yields where rivals win: the best figure of a column is diffusers', or a rival is faster."""
    for table in tables:
        for network in table.networks:
            settings = table.of_network(network)
            for nfe in sorted({nfe for points in settings.values() for nfe in points}):
                best = table.best(points[nfe] for points in settings.values() if nfe in points)
                if best.setting.startswith("diffusers "):
                    metric = table.measure.metric
                    yield f"{network}, NFE {nfe}: {best.setting} has the best {metric}"
    for race in races:
        middle = race.ratios[race.rival][1]
        if middle < 1.0:
            yield f"{race.part}, {race.name}: {race.rival} takes {middle:.2f} of our time"


def describe_origin(name: str, command: str, rows: Sequence[MeasuredRow]) -> str:
    """Returns which command made rows, when, where and with what."""
    days = sorted({row.finished.date().isoformat() for row in rows})
    machines = " and ".join(sorted({row.machine for row in rows}))
    versions = ", ".join(f"{key} {value}" for key, value in rows[-1].versions.items())
    when = " to ".join(dict.fromkeys((days[0], days[-1])))
    return f"- {name}: `{command}`, {when}, {machines}, {versions}"


def list_missing_times(races: Sequence[SpeedRow], curves: Sequence[ScalingRow]) -> Iterator[str]:
    """Yields the races and the axes of growth that were not measured."""
    bench = SpeedBench(RowStore(SPEED, SpeedRow), PARTS, NETWORKS, range(1), 1)
    for missing in {bench.identify(cell) for cell in bench.cells()} - {race.key for race in races}:
        yield f"speed: {missing}"
    for axis in AXES.values():
        if any(f"{axis.name} {value}" not in {row.key for row in curves} for value in axis.values):
            yield f"scaling: {axis.name}"


def write_page(
    quality: Sequence[ResultRow],
    races: Sequence[SpeedRow],
    curves: Sequence[ScalingRow],
    missing: Sequence[str] = (),
) -> Iterator[str]:
    """Yields the page, line by line; missing: what was asked for and is not there."""
    tables = split_measures(quality)
    yield "# Results"
    yield ""
    yield "Written by `make results`; [evaluation.md](evaluation.md) says what a figure is, and"
    yield "`eval/experiments/fid_claims.py` what an interval is. Whether a further run gives the"
    yield "same: `python recipes/compare_results.py results/quality.jsonl AGAIN.jsonl`, row by row."
    if not (quality or races or curves):
        yield ""
        yield "Nothing has been measured yet on the networks of today."
        return
    yield format_stamp(find_facts(quality) or {"fewstep": (*races, *curves)[0].versions["fewstep"]})
    yield ""
    for name, rows in (("quality", quality), ("speed", races), ("scaling", curves)):
        if rows:
            yield describe_origin(name, "make results", rows)
    yield from _write_claims(tables, races, curves)
    if missing:
        yield "\n## What is missing\n"
        yield "`make results` goes on where it was stopped. It has not measured yet:\n"
        yield from (f"- {each}" for each in missing)
    for table in tables:
        yield f"\n## {table.measure.metric}\n"
        yield markdown(table)
    if races:
        yield "\n## Speed\n"
        yield from speed.write_table(races)
    if curves:
        yield "\n## Scaling\n\n![scaling](scaling.png)\n"
        yield from scaling_table.write_table(curves)


def _write_claims(
    tables: Sequence[QualityTable], races: Sequence[SpeedRow], curves: Sequence[ScalingRow]
) -> Iterator[str]:
    yield "\n## Claims\n"
    verdicts = [*list_verdicts(tables, races), *_judge_shares(curves), *_judge_cifar()]
    yield from markdown_table([HEADER, *verdicts], rule="---")
    yield "\n## What was not found\n"
    defeats = list(list_defeats(tables, races))
    yield from (f"- {defeat}" for defeat in defeats)
    if not defeats:
        yield "No rival wins in any of these rows."


def main() -> None:
    quality = list(ResultStore(QUALITY).rows.values()) if QUALITY.exists() else []
    races = list(RowStore(SPEED, SpeedRow).rows.values()) if SPEED.exists() else []
    curves = list(RowStore(SCALING, ScalingRow).rows.values()) if SCALING.exists() else []
    sweeps = map(Sweep.load, SWEEPS)
    networks = lru_cache(load)
    missing = [line for sweep in sweeps for line in list_missing(sweep, quality, networks)]
    missing += sorted(list_missing_times(races, curves))
    sys.stdout.writelines(f"{line}\n" for line in write_page(quality, races, curves, missing))


if __name__ == "__main__":
    main()
