"""Everything that has a name, as rows of text: the tables of `fewstep list`."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, Field, fields
from typing import Any

from ..eval.metrics import listing as list_metrics
from ..eval.options import DEFAULT_MODEL, GREY_MODEL
from ..models.caching import names as cache_names
from ..models.caching import policy_class
from ..models.caching.predictors import predictor_class, predictor_names
from ..models.load import embedded_names, read_card
from ..models.registry import parse_spec, settings_of
from ..samplers.editing import list_editors
from ..samplers.guidance import names as guidance_names
from ..samplers.guidance import policy_class as guidance_class
from ..samplers.guidance.inverse import METHODS, OPERATORS
from ..samplers.placement import list_grids
from ..samplers.ramps import AYS, FORMULAS, place_ays
from ..samplers.recipes import list_recipes, read_recipe
from ..samplers.spacing import SPACINGS
from ..solvers import SolverSettings, names, solver
from ..solvers.base import SOLVERS
from ..solvers.prediction_functions import FUNCTIONS
from ..solvers.presets import is_default, preset, preset_names

Rows = list[tuple[str, ...]]


def _read_first_line(thing: object) -> str:
    return (thing.__doc__ or "").strip().splitlines()[0]


def _list_solvers() -> Rows:
    rows: Rows = [
        ("solver", "other names", "order", "calls/step", "kind", "runs on", "settings", "source")
    ]
    settings = [solver(name) for name in names()]
    for each in settings:
        info = each.info
        if info.same_as:
            continue
        rows.append(
            (
                info.name,
                ", ".join(_list_other_names(each, settings)),
                str(info.order),
                "any" if info.adaptive else str(info.calls_per_step),
                info.kind,
                ", ".join(info.families) or "all",
                " ".join(_list_defaults(each)),
                info.source,
            )
        )
    return rows


def _list_other_names(method: SolverSettings, known: Sequence[SolverSettings]) -> list[str]:
    """Returns the names of a method in other places, ours first."""
    others = [other for other in known if other.info.same_as == method.info.name]
    meant = {name: parse_spec(spec)[0] for name, spec in SOLVERS.aliases.items()}
    aliases = [name for name in meant if meant[name] == method.info.name]
    return [*(_format_name(other, method) for other in others), *map(_spell, aliases)]


def _spell(alias: str) -> str:
    """Returns an alias as other libraries write it, with the settings that it stands for."""
    _, bar, settings = SOLVERS.aliases[alias].partition(":")
    return alias.replace("-", "_") + (f" ({settings})" if bar else "")


def _format_name(alias: SolverSettings, method: SolverSettings) -> str:
    """Returns another name of a method, with settings and schedules that the method has not."""
    info, options = alias.info, _list_defaults(alias)
    runs_on = f" ({', '.join(info.families)} only)" if info.families else ""
    if options and options != _list_defaults(method):
        return f"{info.name}:{','.join(options)}{runs_on}"
    return f"{info.name}{runs_on}"


def _list_defaults(settings: SolverSettings) -> list[str]:
    """Returns every setting of a solver as `name=default`."""
    return [f"{f.name}={getattr(settings, f.name)}" for f in fields(settings)]  # type: ignore[arg-type]


def _list_grids() -> Rows:
    places: dict[str, object] = dict.fromkeys(AYS, place_ays)
    places |= {name: formula.place for name, formula in FORMULAS.items()}
    places |= {name: spacing.place for name, spacing in SPACINGS.items()}
    lines = {name: _read_first_line(places[name]) for name in list_grids()}
    return [("grid", "nodes"), *((name, lines[name].removeprefix("Returns ")) for name in lines)]


def _list_models() -> Rows:
    rows: Rows = [("model", "class", "parameters", "predicts", "process", "classes", "data")]
    for name in embedded_names():
        facts = read_card(name)
        parameters = f"{facts['parameters'] / 1e6:.2f} M"
        process = facts["schedule"]["family"]
        classes = str(facts["num_classes"])
        data = facts["data"].split(" (")[0]
        rows.append((name, facts["class"], parameters, facts["prediction"], process, classes, data))
    return rows


def _list_schedules() -> Rows:
    header = "schedule,process,NFE,network,CFG,weighs too,distance,features,hand-made,made by"
    rows: Rows = [tuple(header.split(","))]
    for name in preset_names():
        schedule = preset(name)
        facts = schedule.provenance
        columns = facts.get("columns") or {}
        mine, rival = columns.get("searched") or {}, columns.get("hand_made") or {}
        rows.append(
            (
                name,
                schedule.process.family,
                str(schedule.nfe),
                str(facts.get("model", "any")),
                f"{facts.get('cfg_scale', 1.0):g}",
                " ".join(schedule.functions),
                _format_column(mine, "distance"),
                _format_column(mine, "features"),
                f"{_format_column(rival, 'distance')} {rival['name']}" if rival else "",
                str(facts.get("source") or f"fewstep search, {facts.get('strategy')}"),
            )
        )
    return rows


def _format_column(columns: Mapping[str, Any], name: str) -> str:
    """Returns the figure of a column of a schedule's provenance, if there is one."""
    return f"{columns[name]['value']:.4f}" if columns.get(name) else ""


def _list_recipes() -> Rows:
    rows: Rows = [("recipe", "solver", "times", "process", "guidance", "not confirmed", "source")]
    for name in list_recipes():
        row = read_recipe(name)[0]
        rows.append(
            (name, row.solver, row.times, row.family, row.guidance, row.uncertain, row.source)
        )
    return rows


def _list_guidance() -> Rows:
    rows: Rows = [("guidance", "rule", "settings", "source")]
    for name in guidance_names():
        cls = guidance_class(name)
        options = [_format_setting(each) for each in settings_of(cls) if each.name != "inner"]
        rows.append((name, _read_first_line(cls), " ".join(options), cls.source))
    return rows


def _list_operators() -> Rows:
    rows: Rows = [("operator", "measures", "settings")]
    for name in OPERATORS:
        cls = OPERATORS.get(name)
        options = " ".join(map(_format_setting, settings_of(cls)))
        rows.append((name, _read_first_line(cls), options))
    return rows


def _list_methods() -> Rows:
    rows: Rows = [("method", "rule", "cost of an evaluation", "settings", "source")]
    for name in METHODS:
        cls = METHODS.get(name)
        options = " ".join(map(_format_setting, settings_of(cls)))
        rows.append((name, _read_first_line(cls), cls.cost, options, cls.source))
    return rows


def _format_setting(field: "Field[Any]") -> str:
    """Returns `name` of what must be given, `[name]` of what may be, or `name=default`."""
    name = field.name.rstrip("_")
    if field.default is MISSING:
        return name
    return f"[{name}]" if field.default is None else f"{name}={_format_value(field.default)}"


def _list_caches() -> Rows:
    rows: Rows = [("cache", "runs on", "skips by", "keeps", "settings", "source")]
    for name in cache_names():
        cls = policy_class(name)
        info = cls.info
        options = [_format_setting(each) for each in settings_of(cls)]
        rows.append((name, info.runs_on, info.decides, info.keeps, " ".join(options), info.source))
    return rows


def _list_predictors() -> Rows:
    rows: Rows = [("predictor", "weights by", "exact on", "tensors", "settings", "source")]
    for name in predictor_names():
        cls = predictor_class(name)
        info, options = cls.info, [_format_setting(each) for each in settings_of(cls)]
        rows.append((name, info.kind, info.exact_on, info.keeps, " ".join(options), info.source))
    return rows


def _list_functions() -> Rows:
    rows: Rows = [("function", "value", "operations", "settings")]
    for name in FUNCTIONS:
        cls = FUNCTIONS.get(name)
        options = " ".join(map(_format_setting, settings_of(cls)))
        rows.append((name, _read_first_line(cls), str(cls.operations), options))
    return rows


def _format_value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


LISTINGS: dict[str, Callable[[], Rows]] = {
    "solvers": _list_solvers,
    "grids": _list_grids,
    "schedules": _list_schedules,
    "models": _list_models,
    "caches": _list_caches,
    "predictors": _list_predictors,
    "guidance": _list_guidance,
    "operators": _list_operators,
    "methods": _list_methods,
    "recipes": _list_recipes,
    "functions": _list_functions,
    "editors": list_editors,
    "metrics": list_metrics,
}
# Why some are recommended; docs/choosing.md, caching.md and guidance.md have the figures.
RECOMMENDED: dict[str, dict[str, str]] = {
    "solvers": {
        "unipc-2": "the default, never far from the best",
        "unipc-3": "from 20 evaluations on, and for references",
        "sde-dpmpp-2": "for variety, from 20 evaluations on",
        "ode-dopri5": "for references, to a tolerance",
    },
    "grids": {
        "beta": "the default on rectified flow, and on VP up to 50 evaluations",
        "logsnr": "the default on EDM up to 50 evaluations",
        "karras": "the default on EDM with more",
        "quadratic": "the default on VP with more",
    },
    "models": {DEFAULT_MODEL: "the default of `sample`", GREY_MODEL: "the default of the benches"},
    "caches": {
        "easycache": "decides by a gate; `fewstep calibrate` finds what suits a network",
        "taylorseer": "skips at fixed intervals, with level=last-block",
    },
    "guidance": {
        "cfg": "the default",
        "guidance-forecast": "where fewer network rows must do; see docs/guidance.md",
    },
    "methods": {"diffpir": "the default"},
    "editors": {"rf-edit": "the default"},
    "metrics": {"fid": "as it is published", "kid": "for few images, without their bias"},
}


def recommend(kind: str) -> dict[str, str]:
    """Returns the recommended names of a list, each with the reason."""
    if kind != "schedules":
        return RECOMMENDED.get(kind, {})
    reason = "taken by `sample` for that network, NFE and CFG where no solver is named"
    return {name: reason for name in preset_names() if is_default(preset(name), name)}
