"""Measures what searching tables, guidance and caches together gains over each of them alone.

    python recipes/joint_plans.py NETWORK ... [--effective 6,8,12] [--cfg-scale 1,3] [--folder DIR]

Each cell of the table is one run of `fewstep tune`, about two minutes of one core on an embedded
network, and twice that with guidance; it goes on where it was stopped. The figures are distances
from the converged run on test noises, which chose nothing, of the best setting of each kind: a
named solver, a shipped table, one that was searched here, a run that asks one branch at some steps,
a named solver with a cache, and a table that was fitted together with a cache. `joint / part` is
the distance of the last of these as a ratio to that of the best of the others, noise by noise, with
its interval of 95 %; `plan` is what tune recommends.
"""

import argparse
from collections.abc import Iterator
from pathlib import Path

from fewstep.eval.bench.table import markdown_table
from fewstep.eval.tune.command import run_tune
from fewstep.eval.tune.report import PartsComparison, TuneReport
from fewstep.eval.tune_request import TuneRequest
from fewstep.models.arguments import parse_ranges
from fewstep.models.files import make_folder
from fewstep.samplers.plan_file import JudgedPoint

FOLDER = Path(__file__).parents[1] / "results" / "search" / "joint"
KINDS = ("named", "preset", "searched", "guidance", "cache", "joint")
HEADER = ("network", "scale", "evaluations", *KINDS, "joint / part", "a cache", "plan")


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("networks", nargs="+", metavar="NETWORK")
    asked.add_argument("--effective", default="6,8,12", help="evaluations in units of a whole one")
    asked.add_argument("--cfg-scale", default="1,3")
    asked.add_argument("--budget", default="evals=40000", help="of each cell, as tune takes it")
    asked.add_argument("--noises", default="96,64,256")
    asked.add_argument("--teacher-nfe", type=int, default=40)
    asked.add_argument("--folder", type=Path, default=FOLDER)
    options = asked.parse_args()
    scales = [float(text) for text in options.cfg_scale.split(",")]
    make_folder(options.folder)
    rows = [HEADER]
    for network in options.networks:
        for scale in scales:
            for number in parse_ranges(options.effective):
                report = run_tune(make_request(options, network, scale, number), progress=True)
                rows.append(tuple(list_cells(report, scale, number)))
                print("\n".join(map(str, report.compared)), flush=True)
    print("\n".join(["", *markdown_table(rows)]))


def make_request(
    options: argparse.Namespace, network: str, scale: float, number: int
) -> TuneRequest:
    """Returns the run of a cell; those of one network and scale share their reference."""
    stem = f"{Path(network.partition(':')[0]).stem}-cfg{scale:g}"
    return TuneRequest(
        network=network,
        effective=number,
        cfg_scale=scale,
        budget=options.budget,
        noises=options.noises,
        teacher_nfe=options.teacher_nfe,
        out=options.folder / f"{stem}-{number}.json",
        html=options.folder / f"{stem}-{number}.html",
        log=options.folder / stem,
    )


def list_cells(report: TuneReport, scale: float, number: int) -> Iterator[str]:
    """Yields the cells of a row."""
    (written,) = report.plans
    plan = written.plan
    yield from (report.network, f"{scale:g}", f"{number}")
    judged = [each for each in (plan.point, *plan.rivals) if each.noises == "test"]
    for kind in KINDS:
        yield format_distance([each for each in judged if each.kind == kind])
    compared = {each.part: each for each in report.compared}
    yield format_ratio(compared.get("joint"))
    cache = compared.get("cache")
    yield "-" if cache is None else "pays" if cache.pays else "does not pay"
    yield plan.point.kind


def format_distance(points: list[JudgedPoint]) -> str:
    """Returns the least distance of some points."""
    values = [each.columns.distance.value for each in points if each.columns is not None]
    return f"{min(values):.4f}" if values else "-"


def format_ratio(compared: PartsComparison | None) -> str:
    """Returns the ratio of the distances and its interval."""
    if compared is None:
        return "-"
    ratio, low, high = compared.distance
    return f"{ratio:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
