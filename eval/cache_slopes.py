"""Calibration of sencache for a network: how its answer changes with its input and its time."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..models.caching.sencache import Slopes
from ..models.denoiser import Branch, Network
from ..models.schedule import Node
from ..samplers.conditions import make_branches
from ..samplers.noise import Noise, draw_start
from ..samplers.sampler import Sampler

HIGH = 0.9  # the quantile over noises, of each call


def measure_slopes(
    network: Network, seeds: Sequence[int], class_labels: Any = None, **call: Any
) -> tuple[Slopes, ...]:
    """Returns J_x, J_t and t of each call of a run, with one call a step; see `SenCache`.

    Each J is between the state, or the time, of a call and that of the next one; the last call has
    those of the one before. Of a guided run it is the conditional branch that is looked at.
    """
    sampler, states, nodes = Sampler(network), list[Tensor](), list[Node]()

    def note(n: int, node: Node, x: Tensor, x0: Tensor, ledger: object) -> None:
        states.append(x.clone())
        nodes.append(node)

    plan = {name: call[name] for name in ("solver", "nfe", "grid") if call.get(name) is not None}
    first = sampler.plan(**plan).grid.nodes[0]
    states.append(draw_start(Noise(seeds, network.shape), network.schedule, first))
    nodes.append(first)
    sampler(seeds, batch=len(seeds), class_labels=class_labels, callback=note, **call)
    given = make_branches(network, len(seeds), class_labels, None, None)[Branch.COND]

    def answer(x: Tensor, node: Node) -> Tensor:
        with torch.no_grad():
            return network.forward(x, node, given)

    def enter(x: Tensor, node: Node) -> Tensor:
        return x * network.prediction.input_scale(node, network.sigma_data)

    rows = list[Slopes]()
    for (x, t), (y, s) in pairwise(zip(states[:-1], nodes[:-1], strict=True)):
        here, moved = enter(x, t), enter(y, s)
        out = answer(here, t)
        by_state = _norm(answer(moved, t) - out) / _norm(moved - here)
        by_time = _norm(answer(here, s) - out) / out[0].numel() ** 0.5 / abs(s.t - t.t)
        rows.append((_find_high(by_state), _find_high(by_time), t.t))
    return (*rows, (*rows[-1][:2], nodes[-2].t))


def _norm(x: Tensor) -> Tensor:
    """Returns the length of each row."""
    lengths: Tensor = torch.linalg.vector_norm(x.double().flatten(1), dim=1)
    return lengths


def _find_high(values: Tensor) -> float:
    return float(f"{float(torch.quantile(values, HIGH)):.5g}")
