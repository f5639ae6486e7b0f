"""Times `SolverScheduler.step` beside diffusers' own scheduler, in one run on one thread.

    python recipes/time_scheduler.py

DPM-Solver++(2M), 20 steps, one image of 3 x 32 x 32, the network replaced by a stored tensor; the
fastest of 40 runs, in microseconds a step.
"""

import sys
import time
from typing import Any

import torch
from diffusers import DPMSolverMultistepScheduler

from fewstep import SolverScheduler

STEPS, REPEATS, SHAPE = 20, 40, (1, 3, 32, 32)


def time_step(scheduler: Any) -> float:
    """Returns the microseconds of one step."""
    best, output = float("inf"), torch.randn(SHAPE)
    for _ in range(REPEATS):
        scheduler.set_timesteps(STEPS)
        x, start = torch.randn(SHAPE), time.perf_counter()
        for t in scheduler.timesteps:
            x = scheduler.step(output, t, x, return_dict=False)[0]
        best = min(best, time.perf_counter() - start)
    return 1e6 * best / STEPS


def main() -> None:
    torch.set_num_threads(1)
    theirs = DPMSolverMultistepScheduler()
    ours = SolverScheduler.from_config(theirs.config, solver="dpmpp-2m")
    sys.stdout.write(f"fewstep {time_step(ours):.1f} us, diffusers {time_step(theirs):.1f} us\n")


if __name__ == "__main__":
    main()
