"""Compares what goes beyond linear tables with the best linear table, network by network.

    python recipes/beyond_linear.py [NAME ...] [--nfe 3-6] [--budget 10m] [--cfg-scale 1]

For each network and number of evaluations a search goes on in the folder of `searched_schedules`,
from what that found. Then the best linear table and the best of each strategy beyond them are
chosen on validation noises, their last steps too. Both columns on test noises are printed, the
error on test over that on training noises, and the milliseconds of an image, measured in turns.
What was measured is kept in results/beyond.
"""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from searched_schedules import LOGS, ROOT

from fewstep.eval.bench.table import markdown_table
from fewstep.eval.requests import SearchRequest
from fewstep.eval.search.columns import judge_ends
from fewstep.eval.search.command import start_searches
from fewstep.eval.search.last_row import choose_last_row, judge_last_rows
from fewstep.eval.search.log import Log, Trial
from fewstep.eval.search.objective import rmse
from fewstep.eval.search.prepare import TEACHER, prepare_searches
from fewstep.eval.search.run import run
from fewstep.eval.search.search import Search
from fewstep.eval.search.strategies import HAND_MADE, ROWS
from fewstep.eval.tune.costs import RunTimer
from fewstep.models.arguments import parse_ranges
from fewstep.models.files import make_folder, write_bytes
from fewstep.samplers.run_settings import RunSettings
from fewstep.solvers import Schedule

OUT = ROOT / "results" / "beyond"
NETWORKS = ("fashion-dit", "fashion-unet", "fashion-edm")
STRATEGIES = ",".join(["grid", "fit", "grow", "refine", *(row.name for row in ROWS if row.beyond)])
SECONDS = 10.0  # of the times, about
FINALISTS = 3  # of each kind, by the score on training noises, that validation chooses among
HEADER = ("schedule", "distance", "of linear", "features", "of linear", "test / train", "ms")
Row = dict[str, Any]


def request(name: str, nfe: int, options: argparse.Namespace) -> SearchRequest:
    """The search of a network, on the noises of the shipped schedules."""
    return SearchRequest(
        network=name,
        nfe=nfe,
        strategy=options.strategy,
        budget=options.budget,
        cfg_scale=options.cfg_scale,
        log=options.logs / f"{name}-cfg{options.cfg_scale:g}",
        teacher_nfe=60,
        noises="1024,128,256",
        scored=128,
    )


def measure(what: SearchRequest) -> dict[str, Row]:
    """Runs a search and measures the best of each kind."""
    searches = prepare_searches(what)
    make_folder(what.folder / TEACHER)
    (search,) = start_searches(searches, what)
    run(search)
    log = Log(search.folder)
    try:
        trials = [trial for trial in log.best(search.size) if trial.score is not None]
    finally:
        log.close()
    by_kind: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.strategy not in HAND_MADE:
            by_kind.setdefault("linear" if trial.linear else trial.strategy, []).append(trial)
    tables = {kind: choose_table(search, each) for kind, each in by_kind.items()}
    rows = {kind: judge(search, table) for kind, table in tables.items()}
    scale = what.cfg_scale
    runs = {k: RunSettings(schedule=table, cfg_scale=scale) for k, table in tables.items()}
    for kind, spread in RunTimer(search.problem, 1).time_all(runs, SECONDS).items():
        rows[kind]["ms"] = spread.model_dump()
    return rows


def choose_table(search: Search, trials: Sequence[Trial]) -> Schedule:
    """Returns the best of a kind on validation noises, with its best last step."""
    ranked = sorted(trials, key=lambda each: each.schedule.provenance.get("wide", each.score))
    block, problem = search.problem.block("validation"), search.problem
    tables = [each.schedule for each in ranked[:FINALISTS] if isinstance(each.schedule, Schedule)]
    best = min(tables, key=lambda each: rmse(problem.ends(each, block), block))
    return choose_last_row(judge_last_rows(problem, best, block, search.features)).schedule


def judge(search: Search, table: Schedule) -> Row:
    """Returns what is said of a table."""
    problem = search.problem
    train, test = problem.block("train"), problem.block("test")
    columns = judge_ends(problem.ends(table, test), test, search.features)
    return {
        "schedule": table.model_dump(mode="json"),
        "functions": table.functions,
        "columns": columns.model_dump(mode="json"),
        "train": rmse(problem.ends(table, train), train),
    }


def tabulate(name: str, nfe: int, rows: dict[str, Row]) -> list[tuple[str, ...]]:
    """Returns the lines of the table, one for each kind."""
    lines, linear = [], rows["linear"]["columns"]
    for kind, row in rows.items():
        cells = [f"`{name}`, {nfe}, {kind}"]
        for column in ("distance", "features"):
            seen, plain = row["columns"][column], linear[column]
            cells.append(f"{seen['value']:.4f} [{seen['low']:.4f}, {seen['high']:.4f}]")
            cells.append(f"{seen['value'] / plain['value']:.3f}")
        cells.append(f"{row['columns']['distance']['value'] / row['train']:.2f}")
        ms = row["ms"]
        cells.append(f"{ms['median']:.1f} ({ms['low']:.1f} to {ms['high']:.1f})")
        lines.append(tuple(cells))
    return lines


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("names", nargs="*", metavar="NAME", default=NETWORKS, help="a network")
    asked.add_argument("--nfe", default="3-6", help="numbers of evaluations")
    asked.add_argument("--strategy", default=STRATEGIES, help="of each search")
    asked.add_argument("--budget", default="10m", help="of each search, shipped ones included")
    asked.add_argument("--cfg-scale", type=float, default=1.0, help="guidance scale")
    asked.add_argument("--logs", type=Path, default=LOGS, help="folder of the searches")
    options, lines = asked.parse_args(), [HEADER]
    make_folder(OUT)
    for name in options.names or NETWORKS:
        for nfe in parse_ranges(options.nfe):
            path = OUT / f"{name}-nfe{nfe}-cfg{options.cfg_scale:g}.json"
            if not path.exists():
                rows = measure(request(name, nfe, options))
                write_bytes(path, json.dumps(rows).encode())
            lines += tabulate(name, nfe, json.loads(path.read_bytes()))
    sys.stdout.write("\n".join(markdown_table(lines)) + "\n")


if __name__ == "__main__":
    main()
