"""Rows of a batch: the errors of each, and those of some images picked out and put back."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..transfer import send
from .call_state import CallState

POSITIONS = ("rotary", "rope", "freqs", "pos", "ids", "cos", "sin", "grid")  # in argument names


def sum_errors(expected: Tensor, x: Tensor, relative_to: str) -> Tensor:
    """Returns (2, B): sum |expected - x| and the sum it is measured by, in single precision."""
    reference = x if relative_to == "true" else expected
    size = _sum_magnitudes(reference)
    wide = expected.float() if expected.dtype.itemsize < 4 else expected
    return torch.stack([_sum_magnitudes(wide.sub_(x)), size])


def _sum_magnitudes(x: Tensor) -> Tensor:
    wide = torch.promote_types(x.dtype, torch.float32)
    sums: Tensor = torch.linalg.vector_norm(x.flatten(1), ord=1, dim=1, dtype=wide)
    return sums


def find_worst(errors: Sequence[float]) -> float:
    """Returns the largest error; NaN if one of them is NaN."""
    return float("nan") if any(e != e for e in errors) else max(errors)


def select_rows(x: Tensor, rows: Sequence[int]) -> Tensor:
    return x.index_select(0, send(torch.tensor(rows), x.device))


def scatter_rows(whole: Any, part: Any, rows: Sequence[int]) -> Any:
    if whole is None or part is None:
        return None
    return whole.index_copy(0, send(torch.tensor(rows), whole.device), part)


def select_argument(name: str, value: Any, call: CallState) -> Any:
    """Returns some rows of an argument with one per image; positions (L, d) are shared by all."""
    if isinstance(value, tuple | list):
        return type(value)(select_argument(name, each, call) for each in value)
    if not isinstance(value, Tensor) or value.ndim == 0 or len(value) != call.batch:
        return value
    shared = value.ndim < 3 and any(part in name for part in POSITIONS)
    return value if shared else select_rows(value, call.rows)
