"""Prints docs/recipes.md: every recipe, its source, and its run beside diffusers' own scheduler.

Both are driven by the same loop, on the exact answers for a Gaussian mixture, from the same start
and with the same noise. Where a recipe's network has no scheduler of its own in diffusers, the one
that its pipeline is given stands beside it. Updates that no recipe has follow in a second table.
"""

import importlib.metadata
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import diffusers
import torch
from torch import Tensor

from fewstep import GaussianMixture, Prediction, SolverScheduler, TimeGrid
from fewstep.models.prediction import convert, x0_from
from fewstep.models.schedule import Node, RectifiedFlow
from fewstep.samplers.diffusers.timesteps import find_node
from fewstep.samplers.diffusers.trained_process import TrainedProcess
from fewstep.samplers.recipes import list_recipes, read_recipe
from fewstep.solvers import drive, solver

SHAPE = (4, 4, 8, 8)
STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DDIM = {**STABLE, "timestep_spacing": "trailing", "clip_sample": False}
LTX = [1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875]
MEANS = torch.linspace(-1.0, 1.0, 3, dtype=torch.float64)[:, None]
LAW = GaussianMixture(
    means=MEANS.expand(3, math.prod(SHAPE[1:])),
    stds=torch.tensor([[0.2], [0.5], [0.3]], dtype=torch.float64),
    weights=torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64),
)


@dataclass(frozen=True)
class Rival:
    """A scheduler of diffusers, and how it is told the times of a recipe.

    given: the arguments of set_timesteps; None is the number of steps.
    step:  further arguments of step.
    """

    name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    given: Mapping[str, Any] | None = None
    step: Mapping[str, Any] = field(default_factory=dict)

    def describe(self) -> str:
        """Returns the class with what decides its times."""
        told = {k: v for k, v in self.config.items() if k not in STABLE and k != "clip_sample"}
        listed = [f"{key}={value}" for key, value in {**told, **self.step}.items()]
        given = [f"{key}=[...]" for key in self.given or {} if key != "mu"]
        return f"`{self.name.removesuffix('Scheduler')}` {' '.join(listed + given)}".strip()


def ramp(n: int) -> list[float]:
    return [1.0 - i / n for i in range(n)]


def shifted(shift: float, n: int) -> Rival:
    """Returns the flow scheduler of a pipeline that passes even sigmas."""
    return Rival("FlowMatchEulerDiscreteScheduler", {"shift": shift}, {"sigmas": ramp(n)})


def listed(sigmas: list[float]) -> Rival:
    return Rival("FlowMatchEulerDiscreteScheduler", {}, {"sigmas": sigmas})


def find_rival(name: str, steps: int) -> Rival:
    """Returns the scheduler of diffusers that runs a recipe, by the recipe's name."""
    lam = [-6.2 + 8.2 * i / 8 for i in range(1, 8)]
    audio = [1.0, *(1.0 / (1.0 + math.exp(each)) for each in lam)]
    dynamic = {"use_dynamic_shifting": True}
    return {
        "sdxl-lightning": Rival("DDIMScheduler", DDIM),
        "sdxl-lightning-x0": Rival("DDIMScheduler", {**DDIM, "prediction_type": "sample"}),
        "sdxl-turbo": Rival(
            "EulerAncestralDiscreteScheduler", {**STABLE, "timestep_spacing": "trailing"}
        ),
        "hyper-sd": Rival("DDIMScheduler", DDIM),
        "hyper-sd-unified": Rival("TCDScheduler", STABLE, step={"eta": 1.0}),
        "hyper-sdxl-unet": Rival("LCMScheduler", STABLE, {"timesteps": [800]}),
        "lcm-lora": Rival("LCMScheduler", STABLE),
        "dmd2-sdxl": Rival(
            "LCMScheduler", STABLE, {"timesteps": [399] if steps == 1 else [999, 749, 499, 249]}
        ),
        "wan2.2-lightning": shifted(5.0, steps),
        "ltx-2": listed(LTX),
        "ltx-2-upscaled": listed(LTX[5:]),
        "flux.1-schnell": shifted(1.0, steps),
        "flux.2-klein": Rival(
            "FlowMatchEulerDiscreteScheduler", dynamic, {"sigmas": ramp(4), "mu": 2.291179894}
        ),
        "qwen-image-lightning": shifted(3.0, steps),
        "z-image-turbo": shifted(3.0, steps),
        "ace-step-turbo": shifted(3.0, steps),
        "stable-audio-3": Rival("FlowMatchLCMScheduler", {}, {"sigmas": audio}),
        "anyflow": Rival("FlowMapEulerDiscreteScheduler", {"shift": 5.0}),
    }[name]


def run_loop(
    scheduler: Any, process: TrainedProcess, start: float, given: Mapping[str, Any], step: Any
) -> Tensor:
    """Returns the end of a run as a pipeline makes it.

    process: of the network; start: the size of the noise it starts from.
    """
    scheduler.set_timesteps(**given)
    schedule = process.make_schedule(given.get("mu"))
    generator = torch.manual_seed(0)  # of all draws that are given no generator of their own
    x = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    x = x * start
    for label in scheduler.timesteps:
        scale = getattr(scheduler, "scale_model_input", None)
        state = x if scale is None else scale(x, label)
        node = find_node(schedule, float(label))
        held = x if process.prediction.preconditioned else state
        out = make_output(held, node, process.prediction)
        x = scheduler.step(out, label, x, return_dict=False, **step)[0]
    return x


def make_output(x: Tensor, node: Node, prediction: Prediction) -> Tensor:
    """Returns what a network gives for a state whose exact x0 is known."""
    x0 = LAW.x0(x.flatten(1), node).reshape(x.shape)
    if prediction is Prediction.CONSISTENCY:
        skip, out = x0_from(prediction, node)
        return (x0 - skip * x) / out
    return convert(x0, x, node, Prediction.X0, prediction)


def run_both(rival: Rival, steps: int, **choices: str) -> tuple[list[float], Tensor, Tensor]:
    """Returns the timesteps of our scheduler, and the ends of its run and of the rival's.

    choices: what shall run in place of the rival, as `SolverScheduler.from_config` takes it.
    """
    theirs = getattr(diffusers, rival.name)(**rival.config)
    config = {**theirs.config, "_class_name": rival.name}
    ours = SolverScheduler.from_config(config, **choices)
    sizes = {"num_inference_steps": steps}
    given = rival.given or sizes
    mu = {key: value for key, value in given.items() if key == "mu"}
    ours.set_timesteps(**sizes, **mu)
    start = ours.init_noise_sigma
    mine = run_loop(ours, ours.process, start, {**sizes, **mu}, {})
    other = run_loop(theirs, ours.process, start, given, rival.step)
    return ours.timesteps.tolist(), mine, other


def compare(name: str) -> tuple[str, ...]:
    """Returns the row of a recipe: how it is run on both sides and how far the ends are apart."""
    recipe, number, _ = read_recipe(name)
    steps = number or 4
    rival = find_rival(recipe.name, steps)
    labels, mine, other = run_both(rival, steps, recipe=name)
    return describe(name, labels, rival.describe(), mine, other)


def describe(
    name: str, labels: Sequence[float], rival: str, mine: Tensor, other: Tensor
) -> tuple[str, ...]:
    """Returns the row of a recipe whose runs on both sides are known."""
    recipe = read_recipe(name)[0]
    unsure = f"; not confirmed: {recipe.uncertain}" * bool(recipe.uncertain)
    source, off = f"{recipe.source}{unsure}", measure_gap(mine, other)
    times = write_times(labels)
    return f"`{name}`", f"`{recipe.solver}`", times, recipe.guidance, source, rival, off


def write_times(labels: Sequence[float]) -> str:
    return " ".join(f"{label:.6g}" for label in labels)


def measure_gap(mine: Tensor, other: Tensor) -> str:
    """Returns the largest difference between both ends, relative to the largest value."""
    return f"{float((mine - other).abs().max() / other.abs().max()):.0e}"


UPDATES = {  # by solver: the schedulers of diffusers whose update no recipe has
    "consistency": Rival("CMStochasticIterativeScheduler", {"clip_denoised": False}),
    "tcd:gamma=0.3": Rival("TCDScheduler", STABLE, step={"eta": 0.3}),
}


def compare_update(spec: str) -> tuple[str, ...]:
    """Returns the row of a solver, at the times that its scheduler of diffusers has in 4 steps."""
    rival = UPDATES[spec]
    labels, mine, other = run_both(rival, 4, solver=spec)
    return f"`{spec}`", write_times(labels), rival.describe(), measure_gap(mine, other)


def compare_sprint() -> tuple[str, ...]:
    """Returns the row of SANA-Sprint, whose state and answers its pipeline converts."""
    theirs, flow = diffusers.SCMScheduler(), RectifiedFlow()
    theirs.set_timesteps(2)
    nodes = [flow.at(t) for t in (1.0, 0.78270800980505, 0.0)]
    generator = torch.manual_seed(0)
    start = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    x = 0.5 * start
    for theta, node in zip(theirs.timesteps[:-1].tolist(), nodes, strict=False):
        flowing = x / 0.5 / (math.cos(theta) + math.sin(theta))
        x0 = LAW.x0(flowing.flatten(1), node).reshape(flowing.shape)
        noise = (x / 0.5 - math.cos(theta) * x0) / math.sin(theta)
        out = 0.5 * (math.cos(theta) * noise - math.sin(theta) * x0)
        x = theirs.step(out, torch.tensor(theta), x, return_dict=False)[0]
    torch.manual_seed(0)
    mine = torch.randn(SHAPE, dtype=torch.float64)
    steps = solver("renoise").on(TimeGrid(flow, tuple(nodes)))
    state = steps.init()
    for t, s in pairwise(nodes):
        mine, state = drive(steps.step(mine, state, t, s), _answer)
    return describe("sana-sprint-2", [node.sigma for node in nodes[:-1]], "`SCM`", mine, x / 0.5)


def _answer(x: Tensor, node: Any) -> Tensor:
    """Returns noise as SCMScheduler draws it, or the exact x0."""
    if node is None:
        return torch.randn(x.shape).double()
    return LAW.x0(x.flatten(1), node).reshape(x.shape)


def main() -> None:
    """Prints the page."""
    warnings.simplefilter("ignore")
    diffusers.logging.set_verbosity_error()
    version = importlib.metadata.version("diffusers")
    head = ("recipe", "solver", "timesteps", "guidance", "source", f"diffusers {version}", "off by")
    print("# Recipes of distilled networks\n\nThe solver and timesteps of each published network,")
    print("as `sample MODEL --recipe NAME` takes them ([distilled networks](distilled.md)). Each")
    print("was run beside diffusers' own scheduler; the last column is the largest difference")
    print("between both samples, relative to the largest value. Written by `make recipes-page`.\n")
    rows = [compare_sprint() if "sprint" in name else compare(name) for name in list_recipes()]
    print_table(head, rows)
    print("\nUpdates without a recipe, at the timesteps of diffusers' scheduler in 4 steps:\n")
    print_table(("solver", "timesteps", *head[-2:]), list(map(compare_update, UPDATES)))


def print_table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    for cells in (head, ("---",) * len(head), *rows):
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
