"""The table and the plot of `fewstep bench cache`."""

import math
from collections.abc import Iterator

from ..bench.front_table import FrontPanel, FrontPoint, FrontTable
from ..bench.table import markdown_table
from .cache import TO_EXACT, UNCACHED

REACH = 1.08  # a budget is taken for the runs up to so much above it: costs are no whole numbers
NEAR = 0.75  # and down to this share of it


class CacheTable(FrontTable):
    """Errors to the converged run against effective evaluations, and wall times."""

    baseline, line = UNCACHED, "fewer steps, best solver"
    head, column, budgets = "cache", "{}", (6, 8, 10, 12, 16, 20)
    intro = (
        f"The table gives the {TO_EXACT}, for the best setting at about this number of effective"
        " evaluations. In brackets is its ratio to the error of the best solver without a cache at"
        " the same cost."
    )
    xlabel, ylabel = "effective evaluations", TO_EXACT
    header = "model,solver,nfe,cache,effective,error,of_baseline,change,seconds,of_uncached"

    def window(self, budget: int) -> tuple[float, float]:
        return NEAR * budget, REACH * budget

    def list_best(self, panel: FrontPanel) -> Iterator[str]:
        head = (
            "cache",
            "solver",
            "steps",
            "effective",
            "error",
            "ratio to the baseline",
            "over blocks",
        )
        rows: list[tuple[str, ...]] = [(*head, "drift")]
        for name in panel.families:
            best = (self.best(panel, name, budget) for budget in self.budgets)
            for point in dict.fromkeys(best):
                rows += [] if point is None else [self._write_row(panel, point)]
        yield from markdown_table(rows, "---")

    def _write_row(self, panel: FrontPanel, point: FrontPoint) -> tuple[str, ...]:
        """Returns one run; drift is its distance from the uncached one."""
        run, share, spread = point.run, panel.share(point), panel.spread(point)
        name = f"`{run.policy}`" if run.policy else "none"
        drift = "" if point.change is None or not run.policy else f"{point.change:.4f}"
        return (
            name,
            run.schedule or run.solver,
            str(run.nfe),
            f"{point.cost:.2f}",
            f"{point.error:.4f}",
            "" if math.isnan(share) else f"{share:.2f}",
            "" if spread is None else f"{spread[0]:.2f} to {spread[1]:.2f}",
            drift,
        )

    def csv_line(self, panel: FrontPanel, point: FrontPoint) -> str:
        run = point.run
        spec = f'"{run.policy}"' if run.policy else UNCACHED
        shown = [point.error, panel.share(point), point.change, point.seconds, point.ratio]
        numbers = ["" if value is None or math.isnan(value) else f"{value:.5g}" for value in shown]
        facts = (run.model, run.solver, run.nfe, spec, f"{point.cost:.3f}")
        return ",".join(map(str, (*facts, *numbers)))

    def append(self, panel: FrontPanel) -> Iterator[str]:
        """Yields what was timed, fastest first."""
        timed = [point for point in panel.points if point.ratio is not None]
        if not timed:
            return
        yield (
            f"Wall time on {panel.title}, in turns with the uncached run, medians, in brackets"
            " quartiles over the turns:"
        )
        yield ""
        yield "The FLOPs ratio is how many times fewer FLOPs a run takes than the uncached one."
        yield ""
        head = ("cache", "solver", "steps", "effective", "times as fast", "of the FLOPs ratio")
        rows = [(*head, "ms per image")]
        for point in sorted(timed, key=lambda each: each.ratio or 0.0):
            run, ratio, seconds = point.run, point.ratio or 1.0, point.seconds or 0.0
            speed, time = f"{1.0 / ratio:.2f}", f"{1000.0 * seconds:.1f}"
            name, steps = f"`{run.policy}`", str(run.nfe)
            reached = f"{point.cost / (ratio * run.nfe):.2f}"
            if point.quartiles is not None:
                ends = (point.cost / (each * run.nfe) for each in reversed(point.quartiles))
                reached += " [{:.2f}, {:.2f}]".format(*ends)
            rows.append((name, run.solver, steps, f"{point.cost:.2f}", speed, reached, time))
        yield from markdown_table(rows, "---")
        yield ""
