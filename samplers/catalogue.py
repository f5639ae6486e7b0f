"""What can be named, as rows of text: the tables of `fewstep list`."""

from collections.abc import Callable
from dataclasses import fields

from ..models.load import card, embedded_names
from ..solvers import names, solver
from ..solvers.presets import preset, preset_names
from .grid import IN_LAM, IN_TIME, grid_names
from .guidance import CFG, Thresholded

Rows = list[tuple[str, ...]]


def _first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _solvers() -> Rows:
    rows: Rows = [("solver", "order", "calls/step", "kind", "runs on", "settings", "source")]
    for name in names():
        settings = solver(name)
        info = settings.info
        options = [f"{f.name}={getattr(settings, f.name)}" for f in fields(settings)]  # type: ignore[arg-type]
        rows.append(
            (
                name,
                str(info.order),
                "any" if info.adaptive else str(info.calls_per_step),
                info.kind,
                ", ".join(info.families) or "all",
                " ".join(options),
                info.source,
            )
        )
    return rows


def _grids() -> Rows:
    ramps = {**IN_TIME, **IN_LAM}
    return [("grid", "nodes"), *((name, _first_line(ramps[name])) for name in grid_names())]


def _models() -> Rows:
    rows: Rows = [("model", "class", "parameters", "predicts", "process", "classes", "data")]
    for name in embedded_names():
        facts = card(name)
        parameters = f"{facts['parameters'] / 1e6:.2f} M"
        process = facts["schedule"]["family"]
        classes = str(facts["num_classes"])
        data = facts["data"].split(" (")[0]
        rows.append((name, facts["class"], parameters, facts["prediction"], process, classes, data))
    return rows


def _schedules() -> Rows:
    rows: Rows = [("schedule", "process", "NFE", "network", "CFG", "error", "hand-made", "made by")]
    for name in preset_names():
        schedule = preset(name)
        facts = schedule.provenance
        scores, rival = facts.get("scores", {}), facts.get("baseline") or {}
        rows.append(
            (
                name,
                schedule.process.family,
                str(schedule.nfe),
                str(facts.get("model", "any")),
                f"{facts.get('cfg_scale', 1.0):g}",
                f"{scores['test']:.4f}" if scores else "",
                f"{rival['test']:.4f} {rival['name']}" if rival else "",
                str(facts.get("source") or f"fewstep search, {facts.get('strategy')}"),
            )
        )
    return rows


def _guidance() -> Rows:
    return [
        ("guidance", "rule", "options"),
        ("cfg", _first_line(CFG), "--cfg-scale --cfg-interval"),
        ("threshold", _first_line(Thresholded), "--threshold"),
    ]


LISTINGS: dict[str, Callable[[], Rows]] = {
    "solvers": _solvers,
    "grids": _grids,
    "schedules": _schedules,
    "models": _models,
    "guidance": _guidance,
}
