"""Rivals: diffusers' schedulers, driven through the same network, noise, labels and ledger.

A scheduler is stepped as a diffusers pipeline steps it: it scales the state, the network gets the
timestep that the scheduler passes on (some round it to a whole number), and the scheduler gets the
network's own output and works in float32. Image k starts from the noise of seed k, as ours does.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor

from ...models.denoiser import Asks, Denoiser, Network
from ...models.errors import SettingError
from ...models.ledger import Ledger
from ...models.prediction import Prediction, convert
from ...models.schedule import EDM, Node, RectifiedFlow, TimeGrid
from ...samplers.conditions import (
    Conditions,
    check_branches,
    fill_conditions,
    make_branches,
    take_rows,
)
from ...samplers.guidance import Guidance, Moment, Thresholded, Unguided
from ...samplers.noise import Noise
from ...samplers.sampler import Result
from .rival_schedulers import check_ends, count_steps, find_maker, find_node, quieten


class RivalSampler:
    """Draws images with a diffusers scheduler; called as `Sampler` is, its budget fixed.

    Args:
        network: of a variance-preserving process, EDM or rectified flow, whatever it predicts.
        spec: a name of `RIVALS`, or `name:argument=value,...` with arguments of the scheduler.
        nfe: network evaluations per image.

    Raises:
        UnknownNameError: for a name or an argument that does not exist.
        SettingError: if it cannot run on this network, or cannot spend exactly that budget.
    """

    def __init__(self, network: Network, spec: str, nfe: int) -> None:
        self.network, self.spec = network, spec
        self.make = find_maker(network, spec)
        self.steps = count_steps(self.make, spec, nfe)
        scheduler = self.make(self.steps)
        check_ends(network.schedule, scheduler, spec)
        self.nodes = [find_node(network.schedule, float(t)) for t in scheduler.timesteps]

    def __call__(
        self,
        seeds: Sequence[int],
        *,
        class_labels: int | Sequence[int] | None = None,
        conditions: Conditions | None = None,
        negative: Conditions | None = None,
        guidance: Guidance | None = None,
        batch: int = 32,
    ) -> Result:
        """Returns one image per seed; see `Sampler`."""
        guidance = guidance or Unguided()
        if isinstance(guidance, Thresholded):
            raise SettingError("a rival has thresholding of its own; drop the threshold")
        filled = fill_conditions(self.network, seeds, conditions, negative)
        branches = make_branches(self.network, len(seeds), class_labels, **filled)
        check_branches(self.network, branches, guidance, self.grid)
        ledger, parts = Ledger(images=len(seeds)), []
        start = time.perf_counter()
        for i in range(0, len(seeds), batch):
            rows = slice(i, i + batch)
            denoiser = Denoiser(self.network, take_rows(branches, rows), ledger)
            parts.append(self._draw(denoiser, seeds[rows], guidance))
        ledger.seconds = time.perf_counter() - start
        return Result(torch.cat(parts), ledger)

    @property
    def grid(self) -> TimeGrid:
        """The nodes the network is asked at, each one once, and the end."""
        times = [*dict.fromkeys(node.t for node in self.nodes), self.network.schedule.t_zero]
        return TimeGrid.of(self.network.schedule, times)

    def _draw(self, denoiser: Denoiser, seeds: Sequence[int], guidance: Guidance) -> Tensor:
        scheduler, noise = self.make(self.steps), Noise(seeds, self.network.shape).draw()
        scaled, guide = getattr(scheduler, "scale_model_input", _keep_input), guidance.stateless()
        conditioned = isinstance(self.network.schedule, EDM)  # there the network scales its input
        with torch.inference_mode(), quieten():
            x = noise.to(self.network.device) * float(getattr(scheduler, "init_noise_sigma", 1.0))
            for t, node in zip(scheduler.timesteps, self.nodes, strict=True):
                x_in, moment = scaled(x, t), Moment(node)
                x_in = x if conditioned else x_in
                outputs = _outputs(denoiser, x_in, node, guide.ask(moment))
                out = guide.combine(outputs, x_in, moment)
                x = scheduler.step(out, t, x, return_dict=False)[0]
            denoiser.check()
            return (x if self.network.decode is None else self.network.decode(x)).float().cpu()


def _keep_input(x: Tensor, t: Tensor) -> Tensor:
    return x


def _outputs(denoiser: Denoiser, x: Tensor, node: Node, branches: Asks) -> tuple[Tensor, ...]:
    """Returns what the scheduler expects, one per branch, read through the denoiser that counts."""
    schedule = denoiser.network.schedule
    if isinstance(schedule, RectifiedFlow):
        _, rate = schedule.slope(node.t)
        return tuple(out / rate for out in denoiser.velocity(x, node, branches))
    if isinstance(schedule, EDM):
        form = Prediction.EDM, schedule.sigma_data
    elif denoiser.network.prediction is Prediction.V:
        form = Prediction.V, denoiser.network.sigma_data
    else:
        return denoiser.eps(x, node, branches)
    predictions = denoiser.x0(x, node, branches)
    return tuple(convert(x0, x, node, Prediction.X0, *form) for x0 in predictions)
