"""The table and the plot of `fewstep bench cache`."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from .cache_figures import UNCACHED, Figure, Panel, panels
from .cache_front import TO_EXACT
from .panels import beside, draw_panels, labelled, points

BUDGETS = (8, 10, 12, 14, 18, 25)
REACH = 1.08  # a budget is taken for the figures up to so much above it: costs are no whole numbers
NEAR = 0.75  # and down to this share of it


def lines(figures: Sequence[Figure], table: str = "md") -> Iterator[str]:
    """The table: of each policy the best within a budget (md), or every figure (csv)."""
    if table == "csv":
        yield "model,solver,nfe,cache,effective,error,of_honest,change,seconds,of_uncached"
        for panel in panels(figures):
            yield from (_csv(panel, each) for each in sorted(panel.figures, key=_by_cost))
        return
    for panel in panels(figures):
        yield from _markdown(panel)
        yield from _timed(panel)


def _by_cost(figure: Figure) -> float:
    return figure.effective


def _csv(panel: Panel, each: Figure) -> str:
    cell = each.cell
    spec = f'"{cell.policy}"' if cell.policy else UNCACHED
    shown = [each.error, share(panel, each), each.change, each.seconds, each.ratio]
    numbers = ["" if value is None or math.isnan(value) else f"{value:.5g}" for value in shown]
    facts = (cell.model, cell.solver, cell.nfe, spec, f"{each.effective:.3f}")
    return ",".join(map(str, (*facts, *numbers)))


def share(panel: Panel, figure: Figure) -> float:
    """The error over that of the honest row at the same effective evaluations; nan if unknown."""
    return math.nan if figure.error is None else figure.error / panel.honest(figure.effective)


def _markdown(panel: Panel) -> Iterator[str]:
    """One line per policy, one column per budget: error, share of the honest row's, and what."""
    yield f"### {panel.model}"
    yield ""
    yield (
        f"{TO_EXACT}, the best setting at about so many effective evaluations; in brackets, times"
        " the error of the best solver without a cache at the same evaluations."
    )
    yield ""
    yield "| cache | " + " | ".join(f"{budget}" for budget in BUDGETS) + " |"
    yield "|---|" + "---|" * len(BUDGETS)
    for name in panel.families:
        cells = (_cell(panel, best(panel, name, budget)) for budget in BUDGETS)
        yield f"| {name} | " + " | ".join(cells) + " |"
    yield ""
    yield "Best settings:"
    yield ""
    for name in panel.families:
        for budget in BUDGETS:
            if (found := best(panel, name, budget)) is not None:
                yield _setting(name, budget, found)
    yield ""


def _setting(name: str, budget: int, figure: Figure) -> str:
    cell, change = figure.cell, ""
    if cell.policy and figure.change is not None:
        change = f", {figure.change:.3f} from the uncached images"
    what = f"`{cell.policy}`" if cell.policy else "without a cache"
    return (
        f"- {name} at {budget}: {cell.solver}, {cell.nfe} steps, {what}:"
        f" {figure.effective:.2f} effective{change}"
    )


def best(panel: Panel, name: str, budget: float) -> Figure | None:
    """The least error at about so many effective evaluations."""
    found = [
        each
        for each in panel.family(name)
        if each.error is not None and NEAR * budget < each.effective <= REACH * budget
    ]
    return min(found, key=lambda each: each.error or 0.0, default=None)


def _cell(panel: Panel, found: Figure | None) -> str:
    if found is None or found.error is None:
        return ""
    return beside(found.error, share(panel, found))


def _timed(panel: Panel) -> Iterator[str]:
    """What was timed, fastest first."""
    found = [each for each in panel.figures if each.ratio is not None]
    if not found:
        return
    yield f"Wall time on {panel.model}, in turns with the uncached run, medians:"
    yield ""
    yield "| cache | solver | steps | effective | times as fast | ms per image |"
    yield "|---|---|---|---|---|---|"
    for each in sorted(found, key=lambda each: each.ratio or 0.0):
        cell, ratio, seconds = each.cell, each.ratio or 1.0, each.seconds or 0.0
        yield (
            f"| `{cell.policy}` | {cell.solver} | {cell.nfe} | {each.effective:.2f} |"
            f" {1.0 / ratio:.2f} | {1000.0 * seconds:.1f} |"
        )
    yield ""


def draw(figures: Sequence[Figure], path: Path) -> None:
    """Error against effective evaluations, one panel for each network."""
    found = panels(figures)
    names = list(dict.fromkeys(name for panel in found for name in panel.families))
    draw_panels(found, lambda axis, panel: _panel(axis, panel, names), path)


def _panel(axis: Any, panel: Panel, names: Sequence[str]) -> None:
    for i, name in enumerate(names):
        shown = [each for each in panel.family(name) if each.error]
        if name == UNCACHED or not shown:
            continue
        places = [each.effective for each in shown]
        errors = [each.error or math.nan for each in shown]
        points(axis, i, name, places, errors)
    honest = [(each.effective, panel.honest(each.effective)) for each in panel.family(UNCACHED)]
    if honest:
        axis.plot(*zip(*honest, strict=True), "k-o", markersize=4, label="fewer steps, best solver")
    labelled(axis, panel.model, "effective evaluations", TO_EXACT)
