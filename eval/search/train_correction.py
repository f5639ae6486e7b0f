"""A learned correction, trained through the run of a table on its end.

The table is run once over the training noises, and its predictions are kept. Up to the first
corrected step nothing that the correction adds can change them, so they stand for the network; the
evaluations after it, if any, are differentiated, with the network frozen. What is lowered is the
mean square between the end of the run and that of the converged sampler from the same noise.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ...models.denoiser import Denoiser
from ...models.schedule import Node
from ...samplers.guidance import Moment
from ...samplers.noise import make_generator
from ...solvers import Schedule, drive
from ...solvers.corrected_steps import CorrectedSteps
from ...solvers.correction import Correction
from .problem import Block, Problem

BATCH = 32
RATE, FLOOR = 2e-3, 0.01  # of learning at first, and what is left of it at the end
WARM = 0.05  # of the training, in which the rate rises
AVERAGED = 0.99  # of the running average of the weights, which is what is kept


@dataclass(frozen=True)
class RecordedRuns:
    """The predictions (n, N, *) of the runs of a table over a block."""

    problem: Problem
    schedule: Schedule
    block: Block
    predictions: Tensor

    @classmethod
    def of(cls, problem: Problem, schedule: Schedule, block: Block) -> "RecordedRuns":
        """Runs the table, batch by batch."""
        parts = []
        for rows in _cut(len(block), problem.batch):
            predictions: list[Tensor] = []
            _record(problem, schedule, block.pick(rows), predictions)
            parts.append(torch.stack(predictions, 1))
        return cls(problem, schedule, block, torch.cat(parts))

    def train(self, empty: Correction, progress: Callable[[int], float], seed: int) -> Schedule:
        """Returns the schedule with a correction that was trained on these runs.

        Args:
            empty: its description.
            progress: returns how much of the training is done after so many batches, up to 1.
            seed: of its first weights and of the order of the noises.
        """
        with torch.random.fork_rng(devices=[]):
            torch.set_rng_state(make_generator(seed).get_state())
            steps = CorrectedSteps(self.schedule, empty.with_net(empty.make_net()))
        net = steps.net_on(self.problem.network.device).requires_grad_(True)
        average = [each.detach().clone() for each in net.parameters()]
        generator = make_generator(seed)
        optimizer = torch.optim.AdamW(net.parameters(), weight_decay=0.0)
        done, batches = 0, self._draw_batches(generator)
        while (share := progress(done)) < 1.0:
            for group in optimizer.param_groups:
                group["lr"] = find_rate(share)
            weights = list(net.parameters())
            lost = torch.autograd.grad(self._measure(steps, next(batches)), weights)
            for weight, slope in zip(weights, lost, strict=True):
                weight.grad = slope
            optimizer.step()
            done += 1
            _move_average(average, net, done)
        with torch.no_grad():
            for mean, parameter in zip(average, net.parameters(), strict=True):
                parameter.copy_(mean)
        return self.schedule.with_correction(empty.with_net(net))

    def _draw_batches(self, generator: torch.Generator) -> Iterator[Sequence[int]]:
        """Yields the rows of batches without end, all noises in turn in an order of chance."""
        while True:
            order = torch.randperm(len(self.block), generator=generator).tolist()
            for rows in _cut(len(order), min(BATCH, len(order))):
                yield [order[i] for i in rows]

    def _measure(self, steps: CorrectedSteps, rows: Sequence[int]) -> Tensor:
        """Returns the mean square of the ends of some rows less those of the block."""
        problem, device = self.problem, self.problem.network.device
        block, known = self.block.pick(rows), self.predictions[torch.tensor(rows)].to(device)
        denoiser, first = problem.denoiser(block), steps.correction.steps[0]
        grid, state = self.schedule.grid(), steps.init()
        x = block.noise.to(device) * grid.schedule.noise_scale(grid.nodes[0])
        with torch.enable_grad():
            for n in range(grid.steps):
                t, s = grid.nodes[n : n + 2]

                def answer(x: Tensor, node: Node, n: int = n) -> Tensor:
                    return known[:, n] if n <= first else _ask(problem, denoiser, x, node)

                x, state = drive(steps.step(x, state, t, s), answer)
        return (x - block.ends.to(device)).square().mean()


def _record(problem: Problem, schedule: Schedule, block: Block, predictions: list[Tensor]) -> None:
    """Adds the predictions (n, *) of a run of a block, step by step."""
    grid, solver = schedule.grid(), schedule.make_solver()
    denoiser, state = problem.denoiser(block), solver.init()
    x = block.noise.to(problem.network.device) * grid.schedule.noise_scale(grid.nodes[0])

    def answer(x: Tensor, node: Node) -> Tensor:
        predictions.append(_ask(problem, denoiser, x, node))
        return predictions[-1]

    with torch.no_grad():
        for t, s in zip(grid.nodes, grid.nodes[1:], strict=False):
            x, state = drive(solver.step(x, state, t, s), answer)
    denoiser.check()


def _ask(problem: Problem, denoiser: Denoiser, x: Tensor, node: Node) -> Tensor:
    """Returns the guided x0 (n, *)."""
    guide, moment = problem.guidance.stateless(), Moment(node)
    return guide.combine(denoiser.x0(x, node, guide.ask(moment)), x, moment)


def find_rate(share: float) -> float:
    """Returns the rate of learning when a share of the training is done."""
    falling = 0.5 * (1.0 + math.cos(math.pi * share))
    return RATE * min(share / WARM, 1.0) * max(falling, FLOOR) if share else RATE * FLOOR


def _move_average(average: Sequence[Tensor], net: nn.Module, done: int) -> None:
    """Moves the average to the weights; at first it is over few."""
    weight = 1.0 - min(AVERAGED, (done + 1) / (done + 10))
    with torch.no_grad():
        for mean, parameter in zip(average, net.parameters(), strict=True):
            mean.lerp_(parameter, weight)


def _cut(count: int, size: int) -> list[range]:
    """Returns the rows of batches."""
    return [range(i, min(i + size, count)) for i in range(0, count, size)]
