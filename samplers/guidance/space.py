"""The space in which a statistic of two predictions is taken: x0, eps or v.

At one state the three are affine in each other, so the difference of two predictions is the same
tensor in all of them, times a number of the node. Cosines and norms of the predictions themselves
are not the same at all: near pure noise two predictions of eps are mostly that noise.
"""

import math
from typing import Literal

from torch import Tensor

from ...models.prediction import Prediction, convert, eps_from, x0_from
from ...models.schedule import Node, NoiseSchedule

Space = Literal["x0", "v", "eps"]


def choose_prediction(space: Space, schedule: NoiseSchedule) -> Prediction:
    """Returns the prediction of a space; v is eps - x0 on rectified flow."""
    if space == "v" and schedule.family == "flow":
        return Prediction.FLOW
    return Prediction(space)


def convert_from_x0(x0: Tensor, x: Tensor, node: Node, kind: Prediction) -> Tensor:
    """Returns x0 (B, *) at the state x as another prediction."""
    return convert(x0, x, node, Prediction.X0, kind)


def convert_to_x0(value: Tensor, x: Tensor, node: Node, kind: Prediction) -> Tensor:
    """Returns the x0 of another prediction at the state x."""
    return convert(value, x, node, kind, Prediction.X0)


def compute_factor(node: Node, kind: Prediction) -> float:
    """Returns the factor from a difference of x0 to one of another prediction.

    It is infinite at sigma = 0, where x0 is the state, and 0 for eps at alpha = 0, where eps is.
    """
    if kind is Prediction.X0:
        return 1.0
    if node.sigma == 0.0:
        return math.inf
    if kind is Prediction.EPS:
        return eps_from(Prediction.X0, node)[1]
    return 1.0 / x0_from(kind, node)[1]


def compute_flow_time(node: Node) -> float:
    """Returns sigma / (alpha + sigma): any process is rectified flow of that time, scaled."""
    return node.sigma / (node.alpha + node.sigma)


def compute_similarity(a: Tensor, b: Tensor) -> Tensor:
    """Returns the cosine (B,) of each pair of rows, in float32 at least, within [-1, 1]."""
    a, b = widen_rows(a), widen_rows(b)
    sizes = a.norm(dim=1) * b.norm(dim=1)
    cosine: Tensor = (a * b).sum(1) / sizes.clamp_min(1e-30)
    return cosine.clamp(-1.0, 1.0)


def widen_rows(value: Tensor) -> Tensor:
    """Returns (B, n), one row per image, in float32 at least."""
    flat = value.flatten(1)
    return flat if flat.element_size() >= 4 else flat.float()


def shape_per_row(numbers: Tensor, like: Tensor) -> Tensor:
    """Returns (B,) as (B, 1, ..), in the dtype of a tensor (B, *) that it shall multiply."""
    return numbers.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))
