"""Holds plans for several times of a batch against a brute-force grid of settings.

    python recipes/brute_force_grid.py NETWORK [--ms 30,60,100,200,300] [--cfg-scale 3]

For each time `fewstep tune` makes a plan, all of them in one log, so that they share their costs,
their reference and their noises. Then the plans are timed in turns with the default without a
cache: asked, predicted and measured milliseconds stand beside each other. Last, settings of solver
x grid x evaluations x cache x guidance are judged on the first test noises as tune judges; for each
plan the table says how many of them fit into its time, as tune predicts it, and which are better:
nearer in one column beyond the interval and not worse in the other beyond it. What was judged is
kept in the log, so a run that was stopped goes on.
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

from fewstep.eval.bench.table import markdown_table
from fewstep.eval.tune.choice import compare_columns, is_better, rank
from fewstep.eval.tune.command import open_judge, run_tune
from fewstep.eval.tune.costs import RunTimer, predict_ms
from fewstep.eval.tune.judge import PointChoice, PointJudge, PointRow
from fewstep.eval.tune.points import list_plain
from fewstep.eval.tune.sizes import PlanSizes
from fewstep.eval.tune_request import TuneRequest
from fewstep.models.files import make_folder
from fewstep.samplers.grid import choose_default_grid
from fewstep.samplers.plan_file import Asked, PlanFile
from fewstep.samplers.run_settings import RunSettings

FOLDER = Path(__file__).parents[1] / "results" / "search" / "in-time"
SOLVERS = ("unipc-2", "ddim", "dpmpp-2m", "dpmpp-3m", "unipc-3", "deis-2", "ipndm-3")
GRIDS = ("logsnr", "uniform", "karras:rho=3", "beta:alpha=0.8,beta=0.8")  # beside the default
SHARES = (1.0, 0.8, 0.6)  # of the evaluations that fit into a time
FEW = 24  # evaluations; with more, only the first solver is on all grids, and the first grid on all
INTERVALS, FIRSTS = (2, 3, 4), (1, 2)  # of caches: which call is full, and full ones at the start
GUIDED = (0.5, 0.75)  # of the steps of partly guided runs ask both branches, first ones or even


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("network", metavar="NETWORK")
    asked.add_argument("--ms", default="30,60,100,200,300", help="times of a batch")
    asked.add_argument("--plan", nargs="*", type=Path, default=[], help="made before in the folder")
    asked.add_argument("--cfg-scale", type=float, default=1.0)
    asked.add_argument("--batch", type=int, default=1)
    asked.add_argument("--budget", default="5m", help="of each plan")
    asked.add_argument("--noises", help="of each plan, as tune takes them")
    asked.add_argument("--judged", type=int, default=64, help="test noises of the grid")
    asked.add_argument("--folder", type=Path, default=FOLDER)
    options = asked.parse_args()
    make_folder(options.folder)
    requests = [make_request(options, float(ms)) for ms in options.ms.split(",")]
    for each in requests:
        if not each.out.exists():
            run_tune(each, progress=True)
    plans = [PlanFile.load(path) for path in [*(each.out for each in requests), *options.plan]]
    judge = open_judge(requests[0], progress=True)
    print("\n".join(markdown_table(list_times(judge, plans, options.batch))), flush=True)
    limits = [find_limit(each) for each in plans]
    settings = {describe(s): s for s in Grid(judge, options.cfg_scale).list_settings(limits)}
    print(f"\n{len(settings)} settings, on {options.judged} test noises\n", flush=True)
    choices = [PointChoice(name, "named", each) for name, each in settings.items()]
    rows = [row for _, row in judge.judge(choices, "test", options.judged)]
    print("\n".join(markdown_table(list_verdicts(judge, plans, rows, options.judged))))


def make_request(options: argparse.Namespace, ms: float) -> TuneRequest:
    """Returns the run that makes the plan for a time."""
    stem = f"{Path(options.network.partition(':')[0]).stem}-cfg{options.cfg_scale:g}"
    return TuneRequest(
        network=options.network,
        ms=ms,
        cfg_scale=options.cfg_scale,
        batch=options.batch,
        budget=options.budget,
        noises=options.noises,
        out=options.folder / f"{stem}-{ms:g}ms.json",
        log=options.folder / stem,
    )


def find_limit(plan: PlanFile) -> float:
    """Returns the milliseconds that a plan was asked for, or those that it is predicted to take."""
    if plan.asked is not None and plan.asked.unit == "ms":
        return plan.asked.amount
    return plan.point.cost.predicted or 0.0


def list_times(
    judge: PointJudge, plans: Sequence[PlanFile], batch: int
) -> Iterator[tuple[str, ...]]:
    """Yields the rows of a table of times; all runs were timed in turns."""
    runs = {plan.point.name: plan.settings for plan in plans}
    nfe = max(round(plan.point.cost.nfe) for plan in plans)
    plain = next(list_plain(judge.problem.network.schedule, nfe, judge.problem.cfg_scale))
    assert plain.settings is not None
    times = RunTimer(judge.problem, batch).time_all({**runs, plain.name: plain.settings})
    yield "plan", "asked ms", "predicted ms", "measured ms", "measured / asked"
    for plan in plans:
        limit, taken = find_limit(plan), times[plan.point.name]
        cost = plan.point.cost.predicted or 0.0
        yield (
            plan.point.name,
            f"{limit:g}",
            f"{cost:.4g}",
            str(taken),
            f"{taken.median / limit:.3f}",
        )
    yield plain.name, "-", "-", str(times[plain.name]), "-"


@dataclass(frozen=True)
class Grid:
    """The settings of a brute-force grid.

    judge: whose costs say how many evaluations fit into a time. scale: of the guidance, 1 is none.
    """

    judge: PointJudge
    scale: float

    def list_settings(self, limits: Sequence[float]) -> Iterator[RunSettings]:
        """Yields settings that fit into the times, the largest first; some are there twice."""
        guided, parts = self.scale != 1.0, self.judge.parts
        numbers = [
            PlanSizes.of(Asked(unit="ms", amount=each), parts, guided).nfe for each in limits
        ]
        for nfe in sorted({round(share * n) for share in SHARES for n in numbers} - {0}):
            yield from self._list_plain(nfe)
        for limit, nfe in zip(limits, numbers, strict=True):
            yield from self._list_cached(limit, nfe)
            if guided:
                yield from self._list_guided(nfe)

    def _list_plain(self, nfe: int) -> Iterator[RunSettings]:
        for solver, grid in product(SOLVERS, (self._name_default(nfe), *GRIDS)):
            few = solver == SOLVERS[0] or grid not in GRIDS
            if nfe <= FEW or few:
                yield RunSettings(solver=solver, grid=grid, nfe=nfe, cfg_scale=self.scale)

    def _list_cached(self, limit: float, nfe: int) -> Iterator[RunSettings]:
        """Yields runs of as many steps as fit where a cache forecasts some evaluations."""
        if not self.judge.parts.partial:
            return
        branches = 1 if self.scale == 1.0 else 2
        kinds = product(SOLVERS[: 3 if nfe <= FEW else 1], INTERVALS, FIRSTS, (0, 1))
        for solver, interval, first, order in kinds:
            for steps in range(interval * nfe, nfe, -1):
                full = first + (steps - first) // interval
                cost = predict_ms(steps, branches * steps, steps - full, self.judge.parts)
                if cost <= limit:
                    spec = f"taylorseer:interval={interval},first={first},order={order}"
                    yield RunSettings(
                        solver=solver,
                        grid=self._name_default(steps),
                        nfe=steps,
                        cfg_scale=self.scale,
                        cache=f"{spec},level=last-block",
                    )
                    break

    def _list_guided(self, nfe: int) -> Iterator[RunSettings]:
        """Yields runs that ask one branch at some steps, whose difference is held or left out."""
        for solver, share in product(SOLVERS[: 3 if nfe <= FEW else 1], GUIDED):
            steps = int(2 * nfe / (1.0 + share))
            both = round(share * steps)
            for chosen in ({*range(both)}, {i * steps // both for i in range(both)}):
                mask = "".join("1" if n in chosen else "0" for n in range(steps))
                spec = f"guidance-forecast:scale={self.scale:g},mask={mask}"
                grid = self._name_default(steps)
                yield RunSettings(solver=solver, grid=grid, nfe=steps, guidance_spec=spec)

    def _name_default(self, nfe: int) -> str:
        return choose_default_grid(self.judge.problem.network.schedule, nfe)


def describe(settings: RunSettings) -> str:
    """Returns a setting in words."""
    words = [f"{settings.solver} on {settings.grid}, {settings.nfe} evaluations"]
    words += [each for each in (settings.cache, settings.guidance_spec) if each is not None]
    return ", ".join(words)


def list_verdicts(
    judge: PointJudge, plans: Sequence[PlanFile], rows: Sequence[PointRow], count: int
) -> Iterator[tuple[str, ...]]:
    """Yields for each plan how many settings fit into its time, and which are better."""
    yield "ms", "plan", "distance", "features", "settings that fit", "better in both columns"
    for plan in plans:
        choice = PointChoice(plan.point.name, plan.point.kind, plan.settings)
        ((_, own),) = judge.judge([choice], "test", count)
        fitting = [each for each in rows if (each.point.cost.predicted or 0.0) <= find_limit(plan)]
        better = sorted((each for each in fitting if is_better(each, own)), key=rank)
        columns = own.point.columns
        assert columns is not None
        seen = "-" if columns.features is None else f"{columns.features.value:.4f}"
        said = "; ".join(f"{each.point.name}: {format_ratios(each, own)}" for each in better)
        yield (
            f"{find_limit(plan):g}",
            plan.point.name,
            f"{columns.distance.value:.4f}",
            seen,
            str(len(fitting)),
            said or "none",
        )


def format_ratios(mine: PointRow, theirs: PointRow) -> str:
    """Returns the ratio of both columns with their intervals."""
    ratios = compare_columns(mine, theirs)
    return " and ".join(f"{ratio:.2f} [{low:.2f}, {high:.2f}]" for ratio, low, high in ratios)


if __name__ == "__main__":
    main()
