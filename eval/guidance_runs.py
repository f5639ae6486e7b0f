"""One batch of many images, run under any guide; used to fit and to calibrate guidance."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.denoiser import Denoiser, Network
from ..models.errors import SettingError
from ..models.schedule import Node
from ..samplers.conditions import check_branches, fill_conditions, make_branches, take_rows
from ..samplers.guidance import CFG, Guidance, Guide, Setup
from ..samplers.loop import integrate
from ..samplers.noise import Noise, draw_start
from ..samplers.plan import Plan, make_plan

FIRST_SEED = 2_000_000  # people sample with 0 and up, searches learn from 1,000,000 and up


@dataclass(frozen=True)
class Images:
    """Which images a guidance is studied on.

    count: so many, of all classes in turn, from seed `first` up.
    batch: network rows at once; all images are kept in memory together.
    """

    count: int = 256
    batch: int = 32
    first: int = FIRST_SEED

    def __post_init__(self) -> None:
        if self.count < 2 or self.batch < 1:
            raise SettingError("a calibration needs at least 2 images and a batch of at least 1")


@dataclass(frozen=True)
class Scripted(Guidance):
    """A guidance that hands out a guide made elsewhere."""

    guide: Guide

    def begin(self, setup: Setup) -> Guide:
        return self.guide


def run_guided(
    network: Network,
    plan: Plan,
    images: Images,
    guide: Callable[[Setup], Guide],
    *,
    progress: bool = False,
) -> Guide:
    """Runs all images as one batch under a guide, and returns the guide.

    Raises:
        SettingError: if the network has no unconditional branch.
    """
    seeds = range(images.first, images.first + images.count)
    labels = [i % network.num_classes for i in seeds] if network.num_classes else None
    branches = make_branches(network, len(seeds), labels, **fill_conditions(network, seeds))
    check_branches(network, branches, CFG(2.0), plan.grid)
    split = replace(network, forward=in_parts(network, images.batch))
    made = guide(Setup(network, plan.solver, plan.grid, len(seeds), plan.adaptive))
    noise = Noise(seeds, network.shape)
    start = draw_start(noise, network.schedule, plan.grid.nodes[0]).to(network.device)
    off = None if progress else True
    with torch.inference_mode(), tqdm(total=plan.grid.steps, unit="step", disable=off) as bar:
        integrate(
            Denoiser(split, take_rows(branches, slice(None))),
            plan.solver,
            plan.grid,
            start,
            Scripted(made),
            lambda *step: bar.update(),
            noise.draw,
        )
    return made


def plan_of(network: Network, solver: str, nfe: int, grid: str | None) -> Plan:
    """Returns the run; raises SettingError for a solver without fixed steps."""
    plan = make_plan(network.schedule, solver, nfe=nfe, grid=grid)
    if plan.adaptive:
        raise SettingError(f"{solver} chooses its own steps; take a solver with fixed ones")
    return plan


def in_parts(network: Network, rows: int) -> Callable[[Tensor, Node, Mapping[str, Any]], Tensor]:
    """Returns the network's forward, so many rows at a time."""

    def forward(x: Tensor, node: Node, conditions: Mapping[str, Any]) -> Tensor:
        parts: Sequence[slice] = [slice(i, i + rows) for i in range(0, len(x), rows)]
        return torch.cat(
            [
                network.forward(x[part], node, {name: v[part] for name, v in conditions.items()})
                for part in parts
            ]
        )

    return forward
