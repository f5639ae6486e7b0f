"""Searches the schedules of the embedded networks that come with the package.

    python recipes/searched_schedules.py [NAME ...] [--budget 10m]

NAME is such as fashion-dit-nfe5 or fashion-unet-nfe8-cfg2; none is all of them. Each is searched in
results/search, goes on there when it was stopped, and is written among the presets. A schedule that
does not come nearer to the teacher than the best hand-made solver is written too: nothing takes it
by default, and `fewstep list schedules` shows both figures.
"""

import argparse
import sys
from pathlib import Path

from fewstep.eval.search.command import Request, searched, summary
from fewstep.eval.search.size import Size

ROOT = Path(__file__).parents[1]
OUT = ROOT / "solvers" / "presets"
LOGS = ROOT / "results" / "search"
MODELS = ("fashion-dit", "fashion-unet")
NFES = {1.0: (4, 5, 6, 8, 10), 2.0: (5, 8)}  # guidance scale -> evaluations


def jobs() -> dict[str, tuple[str, float, int]]:
    """Name -> network, guidance scale, evaluations."""
    return {
        f"{model}-nfe{nfe}" + ("" if scale == 1.0 else f"-cfg{scale:g}"): (model, scale, nfe)
        for scale, nfes in NFES.items()
        for model in MODELS
        for nfe in nfes
    }


def request(name: str, budget: str) -> Request:
    """The search of a name; those of one network and guidance share their teacher's ends."""
    model, scale, nfe = jobs()[name]
    return Request(
        model=model,
        sizes=(Size(nfe),),
        strategies="grid,fit,grow,refine",
        objective="terminal",
        budget=budget,
        out=OUT / f"{name}.json",
        log=LOGS / f"{model}-cfg{scale:g}",
        cfg_scale=scale,
        teacher_nfe=60,
        noises="1024,128,256" if scale == 1.0 else "512,128,256",
        scored=128,
    )


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("names", nargs="*", metavar="NAME", help="such as fashion-dit-nfe5")
    asked.add_argument("--budget", default="10m", help="of each")
    options = asked.parse_args()
    for name in options.names or jobs():
        what = request(name, options.budget)
        for path, found in searched(what, progress=True):
            sys.stdout.write("\n".join(summary(path, found, what.model)) + "\n")


if __name__ == "__main__":
    main()
