"""SiT networks (arXiv:2401.08740): told 1 - t, they answer the velocity towards data."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from torch import Tensor, nn

from .adapters import Module, from_module
from .errors import UnknownNameError
from .network import Network
from .node import Node, NoiseSchedule
from .prediction import Prediction
from .schedule import RectifiedFlow, Trigonometric, VPLinear


class SiTPath(NamedTuple):
    """A path of SiT: factor times -dx/dt at a node is what `prediction` names."""

    schedule: NoiseSchedule
    prediction: Prediction
    factor: Callable[[Node], float]


def _divide_by_angle(node: Node) -> float:
    """Returns sigma / alpha', by which -dx/dt is v where alpha^2 + sigma^2 = 1."""
    return node.sigma / VPLinear().slope(node.t)[0]


PATHS = {
    "linear": SiTPath(RectifiedFlow(time_scale=1.0), Prediction.FLOW_TO_DATA, lambda node: 1.0),
    "gvp": SiTPath(Trigonometric(time_scale=1.0), Prediction.V, lambda node: -2.0 / math.pi),
    "vp": SiTPath(VPLinear(time_scale=1.0), Prediction.V, _divide_by_angle),
}


class TimeReversed(nn.Module):
    """A module or function f(x, time, labels) that is told 1 - time."""

    def __init__(self, module: Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor, time: Tensor, class_labels: Tensor) -> Tensor:
        answer: Tensor = self.module(x, 1.0 - time, class_labels)
        return answer


def from_sit(
    module: Module, *, path: str = "linear", shape: tuple[int, ...] = (4, 32, 32), **facts: Any
) -> Network:
    """Makes a network of a SiT, or of any f(x, time, labels) with its conventions.

    The time that it is told runs from noise at 0 to data at 1, and it answers the derivative of the
    state in that time. With our t = 1 - time this is x0 - eps on the linear path, -(pi / 2) v on
    the trigonometric one and v alpha' / sigma on "vp" (beta from 0.1 to 20).

    Args:
        module: called with x (B, *shape), times (B,) and int64 labels (B,).
        path: "linear", "gvp" (the trigonometric one) or "vp", as it was trained.
        shape: one sample without the batch axis.
        facts: as `from_module` takes them; the defaults are the 1000 classes of ImageNet and null
            class 1000. Samples are latents unless `decode` is given.

    Raises:
        UnknownNameError: for another path.
        FewstepError: as `from_module`.
    """
    if path not in PATHS:
        raise UnknownNameError("path of SiT", path, PATHS)
    schedule, prediction, factor = PATHS[path]
    known = {"num_classes": 1000, "null_class": 1000, "name": type(module).__name__}
    network = from_module(
        TimeReversed(module),
        schedule=schedule,
        prediction=prediction,
        shape=shape,
        **{**known, **facts},
    )

    def forward(x: Tensor, node: Node, conditions: Mapping[str, Any]) -> Tensor:
        return network.forward(x, node, conditions) * factor(node)

    return replace(network, forward=forward)
