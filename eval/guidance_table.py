"""The table and the plot of `fewstep bench guidance`."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .guidance_front import HONEST, METRIC, Panel, cost, panels
from .panels import beside, draw_panels, labelled, points
from .store import Row

BUDGETS = (12, 16, 20, 24, 32, 40)


def lines(rows: Sequence[Row], table: str = "md") -> Iterator[str]:
    """The table: of each family the best within a budget (md), or every row (csv)."""
    if table == "csv":
        yield "model,cfg_scale,guidance,nfe,rows,error,of_honest,seconds_per_image"
        for panel in panels(rows):
            yield from (_csv(panel, row) for row in sorted(panel.rows, key=cost))
        return
    for panel in panels(rows):
        yield from _markdown(panel)


def _csv(panel: Panel, row: Row) -> str:
    run: Any = row.protocol.images
    ratio = row.value / panel.honest(cost(row))
    spec = f'"{run.run.guidance_spec}"'
    seconds = row.cost.seconds if row.cost else 0.0
    facts = (panel.model, f"{panel.scale:g}", spec, run.run.nfe, f"{cost(row):g}")
    return ",".join(map(str, (*facts, f"{row.value:.5f}", f"{ratio:.4f}", f"{seconds:.4f}")))


def _markdown(panel: Panel) -> Iterator[str]:
    """One line per family, one column per budget: error, share of the honest row's, and what."""
    yield f"### {panel.title}"
    yield ""
    yield f"{METRIC}; in brackets, times the error of full guidance at that budget."
    yield ""
    yield "| guidance | " + " | ".join(f"{budget} rows" for budget in BUDGETS) + " |"
    yield "|---|" + "---|" * len(BUDGETS)
    for name in panel.families:
        cells = (_cell(panel, name, budget) for budget in BUDGETS)
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""
    yield "Best settings:"
    yield ""
    for name in panel.families:
        for budget in BUDGETS:
            if (best := _best(panel, name, budget)) is not None and name != HONEST:
                run: Any = best.protocol.images
                yield f"- {name}, {budget} rows: `{run.run.guidance_spec}`, {run.run.nfe} steps"
    yield ""


def _best(panel: Panel, name: str, budget: int) -> Row | None:
    """The least error that at most so many rows buy, and at least the budget before."""
    before = max((each for each in BUDGETS if each < budget), default=0)
    found = [row for row in panel.family(name) if before < cost(row) <= budget]
    return min(found, key=lambda row: row.value, default=None)


def _cell(panel: Panel, name: str, budget: int) -> str:
    best = _best(panel, name, budget)
    if best is None:
        return ""
    return beside(best.value, best.value / panel.honest(budget))


def draw(rows: Sequence[Row], path: Path) -> None:
    """Error against network rows, one panel for each network and scale."""
    found = panels(rows)
    names = list(dict.fromkeys(name for panel in found for name in panel.families))
    draw_panels(found, lambda axis, panel: _panel(axis, panel, names), path)


def _panel(axis: Any, panel: Panel, names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        rows = panel.family(name)
        places, errors = [cost(row) for row in rows], [row.value for row in rows]
        if name == HONEST:
            axis.plot(places, errors, "k-o", markersize=4, label="full CFG, fewer steps", zorder=3)
            continue
        points(axis, i, name, places, errors)
    labelled(axis, panel.title, "network rows per image", METRIC)
