"""Times a step through the functions of k-diffusion beside one of our own loop.

    python recipes/time_k_diffusion.py [--repeats 60]

Both run 50 steps of one 4x64x64 image with the same solver, sigmas and network, which multiplies
its input by .1, in turns on one thread; the medians are printed, and the median of the ratios.
"""

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from fewstep.k_diffusion import sample
from fewstep.models.adapters import from_module
from fewstep.models.denoiser import Denoiser
from fewstep.models.schedule import EDM
from fewstep.samplers.conditions import make_branches
from fewstep.samplers.guidance import take_guidance
from fewstep.samplers.loop import integrate
from fewstep.samplers.plan import make_plan

STEPS, SHAPE = 50, (4, 64, 64)


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("--repeats", type=int, default=60)
    repeats = asked.parse_args().repeats
    torch.set_num_threads(1)
    for solver in ("dpmpp-2m", "unipc-2", "heun"):
        ours, theirs = make_runs(solver)
        ours(), theirs()
        pairs = [(measure(ours), measure(theirs)) for _ in range(repeats)]
        loop, function = (median(each) for each in zip(*pairs, strict=True))
        ratio = median(b / a for a, b in pairs)
        print(f"{solver}: loop {loop:.1f} us a step, k-diffusion {function:.1f} us, {ratio:.2f}")


def make_runs(solver: str) -> tuple[Callable[[], Tensor], Callable[[], Tensor]]:
    """Returns a run of our loop, and one through the function of k-diffusion."""
    sigmas = torch.cat([torch.logspace(1.9, -2.7, STEPS), torch.zeros(1)])
    process = EDM(time_label="sigma")
    network = from_module(shrink, schedule=process, prediction="x0", shape=SHAPE)
    branches = make_branches(network, 1, None, None, None)
    plan = make_plan(process, solver, grid=sigmas.tolist())
    x = sigmas[0] * torch.randn(1, *SHAPE, generator=torch.Generator().manual_seed(0))

    @torch.inference_mode()
    def ours() -> Tensor:
        return integrate(
            Denoiser(network, branches), plan.solver, plan.grid, x, take_guidance(None)
        )

    return ours, lambda: sample(shrink, x, sigmas, disable=True, solver=solver)


def shrink(x: Tensor, sigma: Tensor) -> Tensor:
    """Stands for a network."""
    return 0.1 * x


def measure(run: Callable[[], Tensor]) -> float:
    """Returns the microseconds of a step."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / STEPS * 1e6


if __name__ == "__main__":
    main()
