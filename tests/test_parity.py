"""Our solvers against the diffusers schedulers of the same name, on the same network and nodes.

A scheduler is stepped with the network evaluated at its own sigma, not at the timestep that it
would pass on, which is rounded. It works in float32, so agreement is to a few of its digits.
"""

import math
from itertools import product
from typing import NamedTuple

import pytest
from diffusers import (
    DEISMultistepScheduler,
    DPMSolverMultistepScheduler,
    EDMDPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FlowMatchHeunDiscreteScheduler,
    HeunDiscreteScheduler,
    UniPCMultistepScheduler,
)
from laws import MIXTURE, run, unit_noise

from fewstep.models.prediction import Prediction, convert
from fewstep.models.schedule import EDM, RectifiedFlow, TimeGrid, VPDiscrete
from fewstep.solvers import solver

FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}
SPACINGS = {"plain": {}, "karras": {"use_karras_sigmas": True}, "lu": {"use_lu_lambdas": True}}


class Row(NamedTuple):
    """name: of our solver; steps: what the scheduler is told; process: how it reads its sigmas."""

    name: str
    settings: dict[str, object]
    scheduler: type
    config: dict[str, object]
    steps: int = 10
    process: str = "vp"
    tolerance: float = 2e-6

    def __str__(self):
        told = [f"{k}={v}" for k, v in self.config.items()]
        return "-".join([self.name, self.scheduler.__name__, *told])


def variance_preserving(kappa):
    schedule = VPDiscrete()
    if kappa == 0.0:
        return schedule.at(0.0)
    return schedule.at_lam(max(-math.log(kappa), schedule.at(1.0).lam))  # float32 may round it out


NODE = {
    "vp": variance_preserving,
    "ve": EDM().at,
    "edm": EDM().at,
    "flow": RectifiedFlow().at,
}
PREDICTS = {
    "vp": Prediction.EPS,
    "ve": Prediction.EPS,
    "edm": Prediction.EDM,
    "flow": Prediction.FLOW,
}
SCHEDULE = {"vp": VPDiscrete(), "ve": EDM(), "edm": EDM(), "flow": RectifiedFlow()}


def dpm():
    kinds = {"midpoint": "midpoint", "taylor": "heun"}
    for p, spacing, final in product((1, 2, 3), [*SPACINGS, "flow"], ("zero", "sigma_min")):
        for ours, theirs in list(kinds.items())[: 1 if p == 1 else 2]:
            config = {"solver_order": p, "solver_type": theirs, "final_sigmas_type": final}
            config |= FLOW if spacing == "flow" else SPACINGS[spacing]
            # karras and lu end at sigma_min already and repeat it: a step that goes nowhere, over
            # which they would lower the order of a short run
            steps = 16 if spacing in ("karras", "lu") and final == "sigma_min" else 10
            settings = {} if p == 1 else {"kind": ours}
            process = "flow" if spacing == "flow" else "vp"
            yield Row(f"dpmpp-{p}m", settings, DPMSolverMultistepScheduler, config, steps, process)
    for p in (2, 3):  # long enough for the order not to be lowered
        yield Row(f"dpmpp-{p}m", {}, DPMSolverMultistepScheduler, {"solver_order": p}, 20)


def unipc():
    pairs = [("bh1", "sigma_min"), ("bh2", "sigma_min"), ("bh2", "zero")]  # bh1 to zero gives NaN
    for p, (kind, final) in product((1, 2, 3), pairs):
        name, ours = f"unipc-{p}", {"solver_type": kind}
        config = {"solver_order": p, "solver_type": kind, "final_sigmas_type": final}
        yield Row(name, ours, UniPCMultistepScheduler, config)
        off = {"disable_corrector": [0, 3]}
        yield Row(name, ours | off, UniPCMultistepScheduler, config | off)
        full = {"lower_order_final": False}
        if final == "sigma_min":
            never = {"lower_order_final": "never"}
            yield Row(name, ours | never, UniPCMultistepScheduler, config | full)
        else:
            yield Row(name, ours, UniPCMultistepScheduler, config | FLOW, 10, "flow")
            karras = {"use_karras_sigmas": True}
            yield Row(name, ours, UniPCMultistepScheduler, config | karras)


def others():
    for p, final in product((2, 3), ("zero", "sigma_min")):
        config = {"solver_order": p, "final_sigmas_type": final}
        config["sigma_schedule"] = "karras" if p == 2 else "exponential"
        steps = 16 if final == "sigma_min" else 10
        yield Row(f"dpmpp-{p}m", {}, EDMDPMSolverMultistepScheduler, config, steps, "edm")
    for config in ({}, {"use_karras_sigmas": True}):
        yield Row("heun", {}, HeunDiscreteScheduler, config, 10, "ve")
    for name, shift in product(("euler", "ddim"), (1.0, 3.0)):
        yield Row(name, {}, FlowMatchEulerDiscreteScheduler, {"shift": shift}, 10, "flow")
    yield Row("heun", {}, FlowMatchHeunDiscreteScheduler, {"shift": 3.0}, 10, "flow")
    for p in (1, 2, 3):  # its float32 antiderivatives cancel
        row = Row(f"deis-{p}", {}, DEISMultistepScheduler, {"solver_order": p}, tolerance=2e-4)
        yield row
        yield row._replace(config=row.config | FLOW, steps=16, process="flow")


def difference(row):
    """Largest difference of the end states, relative to the largest entry."""
    scheduler = row.scheduler(**row.config)
    scheduler.set_timesteps(row.steps)
    scheduler.set_begin_index(0)
    sigmas = scheduler.sigmas.tolist()
    if math.isclose(sigmas[-1], sigmas[-2], rel_tol=1e-6):  # the step that goes nowhere
        sigmas.pop()
    nodes = tuple(map(NODE[row.process], dict.fromkeys(sigmas)))  # Heun's are listed twice
    grid = TimeGrid(SCHEDULE[row.process], nodes)
    x = start = unit_noise() * grid.schedule.noise_scale(nodes[0])
    for i, sigma in enumerate(sigmas[:-1]):
        node = NODE[row.process](sigma)
        out = convert(MIXTURE.x0(x, node), x, node, Prediction.X0, PREDICTS[row.process])
        x = scheduler.step(out, scheduler.timesteps[i], x).prev_sample
    ours = run(solver(row.name, **row.settings), grid, start, MIXTURE.x0)
    return float((x - ours).abs().max() / ours.abs().max())


@pytest.mark.parametrize("row", [*dpm(), *unipc(), *others()], ids=str)
def test_agrees_with_diffusers(row):
    assert difference(row) < row.tolerance
