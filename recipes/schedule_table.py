"""The table of docs/search.md: searched schedules beside the best hand-made ones.

    python recipes/schedule_table.py [NAME ...]

Both are measured again, on the test noises of the search and against a run of 200 evaluations; the
hand-made ones are the three that were best in the search's own log. Relative is the distance as a
share of the root mean square of where that run ends.
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from searched_schedules import LOGS, jobs

from fewstep.eval.search.log import Trial, rank_trials
from fewstep.eval.search.objective import objective
from fewstep.eval.search.problem import Problem
from fewstep.eval.search.size import SearchSize
from fewstep.models.load import load
from fewstep.solvers.artefact import Artefact
from fewstep.solvers.presets import preset, preset_names

RIVALS = 3
HEADER = (
    "| schedule | distance | relative | best hand-made | its distance | ratio | network rows"
    " | minutes |\n"
    "|---|---:|---:|---|---:|---:|---:|---:|\n"
)


def measured(name: str) -> str:
    """A row of the table."""
    model, scale, size = jobs()[name]
    folder, schedule = LOGS / f"{model}-cfg{scale:g}", preset(name)
    facts = schedule.provenance
    problem = _problem(model, scale, facts, folder)
    distance = _distance(problem, schedule)
    rivals = {rival: _distance(problem, made) for rival, made in _rivals(folder, size)}
    best, least = min(rivals.items(), key=lambda rival: rival[1])
    rows, minutes = facts["budget"]["model_evals"], facts["budget"]["seconds"] / 60
    size = float(problem.block("test").ends.square().mean().sqrt())
    return (
        f"| `{name}` | {distance:.4f} | {distance / size:.4f} | {best} | {least:.4f} |"
        f" {distance / least:.2f} | {rows:,} | {minutes:.0f} |\n"
    )


def _problem(model: str, scale: float, facts: dict[str, Any], folder: Path) -> Problem:
    """The search's test noises, and the usual teacher of 200 evaluations."""
    seeds = {
        block: range(facts[f"{short}_seeds"][0], facts[f"{short}_seeds"][1] + 1)
        for block, short in (("train", "train"), ("validation", "val"), ("test", "test"))
    }
    network, labels = load(model), tuple(facts["labels"])
    return Problem(network, **seeds, labels=labels, cfg_scale=scale, cache=folder / "teacher")


def _distance(problem: Problem, schedule: Artefact) -> float:
    aim = objective("terminal", problem.network)
    return aim(problem, schedule, problem.block("test"))


def _rivals(folder: Path, size: SearchSize) -> Iterator[tuple[str, Artefact]]:
    lines = (line for path in folder.glob("worker-*.jsonl") for line in path.open())
    trials = rank_trials(Trial.model_validate_json(line) for line in lines)
    named = [t for t in trials if t.strategy == "grid" and size.fits(t.schedule)]
    for trial in named[:RIVALS]:
        yield str(trial.schedule.provenance["label"]), trial.schedule


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("names", nargs="*", metavar="NAME", help="such as fashion-dit-nfe5")
    options = asked.parse_args()
    sys.stdout.write(HEADER)
    for name in options.names or [name for name in jobs() if name in preset_names()]:
        sys.stdout.write(measured(name))
        sys.stdout.flush()


if __name__ == "__main__":
    main()
