"""Inverse problems: linear operators, methods of posterior sampling, and the policy of both."""

from .linear_map import LinearMap
from .measured import Measured
from .methods import METHODS
from .operators import OPERATORS, Operator, take_operator
from .pictures import Blur, Downsample, Grey, Inpaint

__all__ = [
    "METHODS",
    "OPERATORS",
    "Blur",
    "Downsample",
    "Grey",
    "Inpaint",
    "LinearMap",
    "Measured",
    "Operator",
    "take_operator",
]
