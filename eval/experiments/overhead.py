"""The cost of a solver step beside the network: ours and diffusers' schedulers, in one run.

The network is a stored tensor, so that only solver arithmetic is measured: CPU time of one thread,
float32, the median over runs that alternate between the two sides. Making the coefficients ready
(`on`, `set_timesteps`) is not timed. Of RUNS runs in a row the quickest counts: after the machine
has done something else in between, its caches are cold, and 20 steps of `dpmpp-2m` took 20 us each
in place of 7, those of diffusers 108 in place of 85. `bench speed` times steps by this code too.
Operations are the kernels that torch dispatches, views left out: full ones are as large as the
state, tiny ones smaller.
"""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ...models.schedule import Node, RectifiedFlow, TimeGrid, VPDiscrete
from ...samplers.grid import time_grid
from ...solvers import Solver, drive, solver
from ..bench.timing import measure_in_turns

RUNS = 3
SHAPES = ((1, 3, 32, 32), (64, 3, 32, 32))
VIEWS = {"alias", "detach", "expand", "select", "slice", "squeeze", "unsqueeze", "view"}

Solve = Callable[[Tensor, Tensor], Tensor]  # (start, stored network output) -> sample


@dataclass(frozen=True)
class Pair:
    """A solver of ours and the diffusers scheduler that does the same, if there is one."""

    name: str
    rival: str | None = None
    arguments: dict[str, Any] = field(default_factory=dict)
    flow: bool = False


Make = Callable[[Pair, int], Solve]  # of a side, for a number of steps
MULTISTEP, SINGLESTEP = "DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler"
PAIRS = (
    Pair("ddim", "DDIMScheduler"),
    Pair("euler", "FlowMatchEulerDiscreteScheduler", flow=True),
    Pair("dpmpp-2m", MULTISTEP, {"solver_order": 2}),
    Pair("dpmpp-3m", MULTISTEP, {"solver_order": 3}),
    Pair("dpm-2m", MULTISTEP, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    Pair("unipc-2", "UniPCMultistepScheduler", {"solver_order": 2}),
    Pair("unipc-3", "UniPCMultistepScheduler", {"solver_order": 3}),
    Pair("deis-2", "DEISMultistepScheduler", {"solver_order": 2}),
    Pair("deis-3", "DEISMultistepScheduler", {"solver_order": 3}),
    Pair("deis-tab3"),
    Pair("ipndm-4"),
    Pair("lms", "LMSDiscreteScheduler"),
    Pair("dpmpp-2s", SINGLESTEP, {"solver_order": 2, "lower_order_final": True}),
    Pair("dpmpp-3s", SINGLESTEP, {"solver_order": 3, "lower_order_final": True}),
    Pair("evodiff"),
    Pair("heun", "HeunDiscreteScheduler"),
    Pair("dpm2", "KDPM2DiscreteScheduler"),
    Pair("rf-solver", flow=True),
    Pair("ddpm", "DDPMScheduler"),
    Pair("sde-dpmpp-2", MULTISTEP, {"algorithm_type": "sde-dpmsolver++"}),
    Pair("sa-solver", "SASolverScheduler"),
    Pair("er-sde-3"),
)


class CountOps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts dispatched kernels: those at least as large as the state, and smaller ones."""

    def __init__(self, size: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size, self.full, self.tiny = size, 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if func.overloadpacket.__name__ not in VIEWS:
            full = isinstance(out, Tensor) and out.numel() >= self.size
            self.full, self.tiny = self.full + full, self.tiny + (not full)
        return out


def make_ours(pair: Pair, steps: int) -> Solve:
    """Returns our solver with its coefficients ready."""
    schedule = RectifiedFlow() if pair.flow else VPDiscrete()
    grid = time_grid("uniform", schedule, steps)
    return make_stepping(solver(pair.name).on(grid), grid)


def make_stepping(ready: Solver[Any], grid: TimeGrid) -> Solve:
    """Returns the run of a solver over a grid, with a stored network output."""
    nodes = list(pairwise(grid.nodes))

    def run(x: Tensor, out: Tensor) -> Tensor:
        def answer(query: Tensor, node: Node | None) -> Tensor:
            return torch.randn_like(query) if node is None else out

        state = ready.init()
        for t, s in nodes:
            x, state = drive(ready.step(x, state, t, s), answer)
        return x

    return run


def make_theirs(pair: Pair, steps: int) -> Solve:
    """Returns the diffusers scheduler with its timesteps set."""
    import diffusers

    with warnings.catch_warnings(action="ignore"):  # some of its settings are deprecated
        scheduler = getattr(diffusers, str(pair.rival))(**pair.arguments)
        scheduler.set_timesteps(steps)

    def run(x: Tensor, out: Tensor) -> Tensor:
        with warnings.catch_warnings(action="ignore"):
            for t in scheduler.timesteps:
                x = scheduler.step(out, t, x).prev_sample
        return x

    return run


@torch.inference_mode()
def time_step(make: Make, pair: Pair, shape: tuple[int, ...], steps: int) -> float:
    """Returns the CPU time of the quickest run of a side in microseconds per step."""
    runs = [make(pair, steps) for _ in range(RUNS)]
    x, out = torch.ones(shape), torch.full(shape, 0.5)
    return min(time_thread(partial(run, x, out)) for run in runs) / steps * 1e6


def time_thread(work: Callable[[], object]) -> float:
    """Returns the CPU time of this thread in a call, in seconds."""
    start = time.thread_time()
    work()
    return time.thread_time() - start


def count_operations(run: Solve, steps: int) -> tuple[float, float]:
    """Returns (full, tiny) operations per step of a run with batch 1."""
    x, out = torch.ones(SHAPES[0]), torch.full(SHAPES[0], 0.5)
    with CountOps(x.numel()) as count:
        run(x, out)
    return count.full / steps, count.tiny / steps


def make_row(pair: Pair, shape: tuple[int, ...], steps: int, repeats: int) -> str:
    """Returns one line of the table."""
    sides = (make_ours, make_theirs) if pair.rival else (make_ours,)
    works = {side: partial(time_step, side, pair, shape, steps) for side in sides}
    mine, *other = measure_in_turns(works, repeats).values()
    line = f"{pair.name:12} {shape[0]:5} {mine:8.1f} {_count(make_ours(pair, steps), steps)}"
    if not other:
        return line
    rival = _count(make_theirs(pair, steps), steps)
    return f"{line} {other[0]:10.1f} {rival} {other[0] / mine:7.1f}x"


def _count(run: Solve, steps: int) -> str:
    full, tiny = count_operations(run, steps)
    return f"{full:6.1f} /{tiny:6.1f}"


def report(steps: int = 20, repeats: int = 40) -> str:
    """Returns the table: microseconds and operations per step on both sides, and the ratio."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [make_row(pair, shape, steps, repeats) for shape in SHAPES for pair in PAIRS]
    finally:
        torch.set_num_threads(threads)
    header = (
        f"CPU time per step, one thread, float32, {steps} steps, median of {repeats} runs\n"
        f"{'':12} batch     ours    ops full/tiny diffusers    ops full/tiny    ratio"
    )
    return "\n".join([header, *rows])
