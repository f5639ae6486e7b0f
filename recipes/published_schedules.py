"""Writes the published schedules among the package's presets.

AYS (arXiv:2404.14507): ten-step tables of times, run with DPM-Solver++(2M) as its authors advise.
USF (arXiv:2312.07243): the searched schedules that need neither the tables of DPM-Solver-v3, nor a
mean image, nor changed skip connections of the network; those three need parts that were never
published as numbers. The step notation is that of the file of plain numbers they are kept as:
prediction (n noise, d data), order, points of the derivatives after a slash, factor c of a linear
relaxation in brackets, and a star for the corrector.
"""

import re
from pathlib import Path

from fewstep.models.files import write_bytes
from fewstep.models.schedule import EDM, NoiseSchedule, process_of
from fewstep.models.vp import VPDiscrete, VPLinear
from fewstep.samplers.grid import time_grid
from fewstep.solvers import Schedule, StepSchedule
from fewstep.solvers.exponential import StepSpec
from fewstep.solvers.multistep import DPMpp2M
from fewstep.solvers.schedule_parts import Process

OUT = Path(__file__).parent.parent / "solvers" / "presets"
STABLE = VPDiscrete(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
AYS: dict[str, NoiseSchedule] = {
    "ays-sd15": STABLE,
    "ays-sdxl": STABLE,
    "ays-svd": EDM(sigma_min=0.002, sigma_max=700.0),
}
LSUN = VPDiscrete(beta_start=0.0015, beta_end=0.0195, beta_schedule="scaled_linear")
USF: dict[str, tuple[NoiseSchedule, str, str]] = {
    "usf-cifar10-nfe9": (
        VPLinear(),
        "1.0 0.74803 0.58851 0.44064 0.32572 0.30183 0.15584 0.08406 0.03678 0.02331 0.00063",
        "d1* n1* d3(-0.1667)* d2(+0.3333)* d3/1* d3/1(+0.5000) n3/1(-0.3333)* d2(+0.5000)* n3*"
        " n3/1",
    ),
    "usf-lsun-nfe6": (
        LSUN,
        "1.0 0.85729 0.63862 0.57186 0.49252 0.28643 0.14371 0.0013",
        "n1 d2(-0.1667)* d3 n2(+0.1667)* d3/1(+0.0470) n2(-0.1667) n2",
    ),
    "usf-lsun-nfe9": (
        LSUN,
        "1.0 0.97447 0.72832 0.62593 0.5367 0.48766 0.47121 0.34937 0.14253 0.06817 0.00103",
        "n1* n1 d1 d3* d2* n2(-0.1667) d3* d2(-0.1918)* n2 n1",
    ),
}
STEP = re.compile(r"(?P<pred>[nd])(?P<order>\d)(?:/(?P<est>\d))?(?:\((?P<c>[^)]*)\))?(?P<corr>\*?)")


def step(text: str) -> StepSpec:
    """One step of the notation."""
    match = STEP.fullmatch(text)
    assert match is not None, text
    order, est = int(match["order"]), match["est"]
    return StepSpec(
        pred="noise" if match["pred"] == "n" else "data",
        order=order,
        est=tuple(max(k, int(est)) for k in range(1, order)) if est else (),
        relax="linear" if match["c"] else "none",
        c=float(match["c"] or 0.0),
        corr={"on": bool(match["corr"])},
    )


def ays(name: str) -> Schedule:
    """DPM-Solver++(2M) over a table of AYS."""
    grid = time_grid(name, AYS[name], 10)
    facts = {"source": "arXiv:2404.14507, ten-step table, with dpmpp-2m"}
    return DPMpp2M().encode(grid).model_copy(update={"provenance": facts})


def usf(name: str) -> Schedule:
    """A searched schedule with the zero image as its first prediction."""
    process, times, steps = USF[name]
    specs = tuple(step(text) for text in steps.split())
    made = StepSchedule(
        process=Process.model_validate(process_of(process)),
        t=tuple(float(t) for t in times.split()),
        afs="zero",
        steps=specs,
        nfe=len(specs) - 1,
        provenance={"source": "arXiv:2312.07243, published search result"},
    )
    return Schedule.of_steps(made)


if __name__ == "__main__":
    made = {f"{name}-nfe10": ays(name) for name in AYS} | {name: usf(name) for name in USF}
    for name, schedule in made.items():
        write_bytes(OUT / f"{name}.json", schedule.dump().encode() + b"\n")
