"""Searches the schedules of the embedded networks that come with the package.

    python recipes/searched_schedules.py [NAME ...] [--budget 10m]

NAME is such as fashion-dit-nfe5, emoji-nfe10-cfg2 or fashion-dit-rows16-cfg3; none is all of
them. Each is searched in results/search, goes on there when it was stopped, and is written among
the presets. A schedule that does not come nearer to the teacher than the best hand-made solver is
written too: nothing takes it by default, and `fewstep list schedules` shows both figures.

The order matters: a search also starts from what the same folder has of fewer evaluations.
"""

import argparse
import sys
from pathlib import Path

from fewstep.eval.requests import SearchRequest
from fewstep.eval.search.command import run_search, summarize
from fewstep.eval.search.size import SearchSize

ROOT = Path(__file__).parents[1]
OUT = ROOT / "solvers" / "presets"
LOGS = ROOT / "results" / "search"
MODELS = ("fashion-dit", "fashion-unet", "fashion-edm", "emoji")
NFES = {1.0: (4, 5, 6, 8, 10), 2.0: (5, 8)}  # guidance scale -> evaluations
SHOWN = 2.0, 10  # also of emoji, at the guidance scale that `sample` draws it with
ROWS = 3.0, (12, 16, 20)  # guidance scale, network rows


def jobs() -> dict[str, tuple[str, float, SearchSize]]:
    """Name -> network, guidance scale, size."""
    searches = [
        (model, scale, SearchSize(nfe))
        for scale, nfes in NFES.items()
        for model in MODELS
        for nfe in nfes
    ]
    searches += [("emoji", SHOWN[0], SearchSize(SHOWN[1]))]
    scale, sizes = ROWS
    searches += [(model, scale, SearchSize(rows, "rows")) for model in MODELS for rows in sizes]
    return {_name(*each): each for each in searches}


def _name(model: str, scale: float, size: SearchSize) -> str:
    return f"{model}-{size.mark}" + ("" if scale == 1.0 else f"-cfg{scale:g}")


def request(name: str, budget: str) -> SearchRequest:
    """The search of a name; those of one network and guidance share their teacher's ends."""
    model, scale, size = jobs()[name]
    rows = size.unit == "rows"
    return SearchRequest(
        network=model,
        nfe=None if rows else size.amount,
        rows=size.amount if rows else None,
        strategy="grid,fit,refine" if rows else "grid,fit,grow,refine",
        objective="terminal",
        budget=budget,
        out=OUT / f"{name}.json",
        log=LOGS / f"{model}-cfg{scale:g}",
        cfg_scale=scale,
        teacher_nfe=60,
        noises="1024,128,256" if scale == 1.0 else f"512,{256 if rows else 128},256",
        scored=256 if rows else 128,
    )


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("names", nargs="*", metavar="NAME", help="such as fashion-dit-nfe5")
    asked.add_argument("--budget", default="10m", help="of each")
    options = asked.parse_args()
    for name in options.names or jobs():
        what = request(name, options.budget)
        for path, result in run_search(what, progress=True):
            sys.stdout.write("\n".join(summarize(path, result, what)) + "\n")


if __name__ == "__main__":
    main()
