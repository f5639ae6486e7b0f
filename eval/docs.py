"""The pages of docs/solvers, written from docstrings: `python -m fewstep.eval.docs docs/solvers`.

One page per module of solvers/ that registers any, and an index. A test says when they are stale.
"""

import inspect
import re
import sys
from collections import defaultdict
from dataclasses import fields
from pathlib import Path
from typing import Any

from ..models.files import make_folder, write_bytes
from ..solvers import SolverInfo, SolverSettings, names, solver
from ..solvers.base import SOLVERS
from .formulas import to_markdown

NOTE = "<!-- Written from the docstrings by `make docs`; do not edit. -->\n"
CONVENTIONS = (
    "A step goes from node $t$ to node $s$. A state is $x_t = \\alpha_t x_0 + \\sigma_t \\epsilon$;"
    " $\\lambda = \\log(\\alpha / \\sigma)$, $\\kappa = \\sigma / \\alpha$,"
    " $\\tau = \\sigma / (\\alpha + \\sigma)$; $x_0$ in a formula is what the network predicts."
)
TITLES = {
    "adams": "Adams-Bashforth methods",
    "adaptive": "Adaptive Runge-Kutta methods",
    "ancestral": "Ancestral samplers",
    "cab": "CAB",
    "cfg_pp": "CFG++ samplers",
    "distilled": "Updates of distilled networks",
    "dpm_adaptive": "Adaptive DPM-Solver",
    "dpm_solver_v3": "DPM-Solver-v3",
    "er_sde": "ER-SDE-Solver",
    "evodiff": "EVODiff",
    "exponential_rk": "Exponential Runge-Kutta methods",
    "flow_sde": "Flow-SDE and Flow-CPS",
    "heun_variants": "Variants of Heun's method",
    "multistep": "DDIM, DPM-Solver++, DEIS and UniPC",
    "runge_kutta": "Runge-Kutta methods",
    "sa_solver": "SA-Solver",
    "seeds": "SEEDS",
    "si_euler": "Stochastic interpolants",
    "singlestep": "DPM-Solver singlestep",
    "slope_reuse": "FireFlow and Uni-Inv",
    "stochastic": "SDE-DPM-Solver++ and DDPM",
    "stork": "STORK",
    "switch": "Two solvers in one run",
}
ARXIV = re.compile(r"arXiv:(\d{4}\.\d{5})")


def pages() -> dict[str, str]:
    """Returns file name -> text."""
    families: dict[str, list[SolverSettings]] = defaultdict(list)
    for name in names():
        settings = solver(name)
        families[type(settings).__module__.rpartition(".")[2]].append(settings)
    texts = {f"{family}.md": _page(family, members) for family, members in families.items()}
    return {"README.md": _index(families), **texts}


def write(folder: Path) -> None:
    """Writes all pages into a folder and removes those of modules that are gone."""
    make_folder(folder)
    written = pages()
    for name, text in written.items():
        write_bytes(folder / name, text.encode())
    for old in folder.glob("*.md"):
        if old.name not in written:
            old.unlink()


def _index(families: dict[str, list[SolverSettings]]) -> str:
    rows = []
    for family, members in sorted(families.items()):
        for each in members:
            info, page = each.info, f"[{TITLES.get(family, family)}]({family}.md)"
            same = f" = `{info.same_as}`" if info.same_as else ""
            cells = (f"`{info.name}`{same}", info.order, _calls(info), info.kind, page)
            rows.append(f"| {' | '.join(map(str, cells))} |")
    head = "| solver | order | calls per step | kind | page |\n|---|---|---|---|---|\n"
    table = head + "\n".join(rows) + "\n"
    return f"# Solvers\n\n{NOTE}\n{CONVENTIONS}\n\n{table}{_list_aliases()}"


def _list_aliases() -> str:
    """Returns the section of the names that solvers have elsewhere."""
    rows = (f"| `{name.replace('-', '_')}` | `{spec}` |" for name, spec in SOLVERS.aliases.items())
    return (
        "\n## Names in k-diffusion and ComfyUI\n\nIn every name `_` may stand for `-`: `dpmpp_2m`"
        " is `dpmpp-2m`. These are understood too, and further settings after them.\n\n"
        "| name | here |\n|---|---|\n" + "\n".join(rows) + "\n"
    )


def _page(family: str, members: list[SolverSettings]) -> str:
    module = inspect.getmodule(type(members[0]))
    text = inspect.cleandoc(module.__doc__ or "") if module else ""
    title = TITLES.get(family, family)
    parts, said = [f"# {title}\n\n{NOTE}\n{_link(to_markdown(text))}"], ""
    for settings in members:
        settings_text = _class_text(type(settings))
        parts.append(_facts(settings))
        if settings_text != said:
            parts.append(_link(to_markdown(settings_text)))
        parts.append(_options(settings))
        said = settings_text
    return "\n\n".join(parts) + "\n"


def _link(text: str) -> str:
    """Returns the text with links to the papers that it cites."""
    return ARXIV.sub(r"[arXiv:\1](https://arxiv.org/abs/\1)", text)


def _facts(settings: SolverSettings) -> str:
    info = settings.info
    runs_on = f" Runs on {', '.join(info.families)} schedules." if info.families else ""
    same = f" `{info.same_as}` by another name." if info.same_as else ""
    facts = f"Order {info.order}, {_calls(info)} per step, {info.kind}.{same}{runs_on}"
    return f"## `{info.name}`\n\n{facts} Source: {_link(info.source)}."


def _class_text(cls: type[Any]) -> str:
    """Returns the docstring of the class, or of the one that it takes its settings from."""
    texts = [base.__doc__ for base in cls.__mro__ if base.__doc__ and base is not object]
    plain = [text for text in texts if not text.startswith(f"{cls.__name__}(")]
    return inspect.cleandoc(plain[0]) if plain else ""


def _options(settings: SolverSettings) -> str:
    known = fields(settings)  # type: ignore[arg-type]
    if not known:
        return "No settings."
    pairs = (f"`{field.name}={getattr(settings, field.name)}`" for field in known)
    return "Settings and their defaults: " + ", ".join(pairs) + "."


def _calls(info: SolverInfo) -> str:
    if info.adaptive:
        return "as many calls as needed"
    return f"{info.calls_per_step} call" + ("s" if info.calls_per_step > 1 else "")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
