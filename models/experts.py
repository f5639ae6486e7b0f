"""Two networks in one run, each on its side of a noise level (Wan 2.2)."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from .errors import ModelError, SettingError
from .network import Network
from .node import Node, NoiseSchedule, is_above


@dataclass(frozen=True)
class Experts:
    """The networks on both sides of a noise level.

    high:     answers where sigma is the boundary or above.
    low:      answers below.
    boundary: a sigma of the process.
    """

    high: Network
    low: Network
    boundary: float

    def choose(self, node: Node) -> Network:
        """Returns the network that answers at a node."""
        return self.high if is_above(node, self.boundary) else self.low


def join_experts(high: Network, low: Network, *, sigma: float) -> Network:
    """Makes one network of two, of which `high` answers where sigma is that or more.

    It has the shape, the conditions and the decoder of `high`. `Sampler` guides and caches each of
    them apart; whatever else takes a network takes it as one.

    Args:
        high: the network of large noise.
        low: the network of small noise, of the same process, prediction and shape.
        sigma: the boundary, of the process after its shift: 0.875 for Wan 2.2 from text, 0.9 from
            an image.

    Raises:
        ModelError: for networks that cannot answer in one run.
        SettingError: for a sigma that no time of the process has.
    """
    for fact in ("schedule", "prediction", "shape", "device"):
        one, other = getattr(high, fact), getattr(low, fact)
        if one != other:
            raise ModelError(
                f"two networks in one run need one {fact}: {high.name!r} has {one}, and"
                f" {low.name!r} {other}"
            )
    check_boundary_sigma(high.schedule, sigma)
    experts = Experts(high, low, float(sigma))

    def forward(x: Tensor, node: Node, conditions: Mapping[str, Any]) -> Tensor:
        return experts.choose(node).forward(x, node, conditions)

    name = high.name if high.name == low.name else f"{high.name} and {low.name}"
    joined = replace(high, forward=forward, module=None, hooks=None, graphs=None)
    return replace(joined, name=name, experts=experts)


def check_boundary_sigma(schedule: NoiseSchedule, sigma: float) -> None:
    """Raises SettingError for a sigma that no time of a process has, or one of its ends."""
    low, high = schedule.at(schedule.t_zero).sigma, schedule.at(schedule.t_max).sigma
    if not low < sigma < high:
        raise SettingError(
            f"sigma={sigma:g} is not a boundary of this process, whose sigma falls from {high:g} to"
            f" {low:g}"
        )
