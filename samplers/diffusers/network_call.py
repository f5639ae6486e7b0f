"""A call of its network by a pipeline, which can be evaluated for some rows of the batch alone."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...models.errors import SettingError

SHARED = ("image_rotary_emb", "img_ids", "txt_ids")  # of all rows, whatever their first axis


@dataclass(frozen=True)
class NetworkCall:
    """A call of the network by a pipeline of that name."""

    pipe: str
    forward: Callable[..., Any]
    args: tuple[Any, ...]
    named: Mapping[str, Any]

    @property
    def x(self) -> Tensor:
        """The input of the network (rows, *)."""
        found = self.args[0] if self.args else self.named.get("hidden_states")
        if not isinstance(found, Tensor):
            raise SettingError(f"{self.pipe} calls its network in a way that is not known here")
        return found

    @property
    def label(self) -> float:
        """The time that the network is told."""
        value = self.named["timestep"] if "timestep" in self.named else self.args[1]
        return float(torch.as_tensor(value).max())

    def evaluate(self, index: Tensor | None = None) -> Tensor:
        """Returns the network's output for all rows, or for some."""
        args, named = self.args, dict(self.named)
        if index is not None:
            rows = len(self.x)
            args = tuple(_take_rows(value, rows, index) for value in args)
            named |= {
                key: _take_rows(value, rows, index)
                for key, value in named.items()
                if key not in SHARED
            }
        out = self.forward(*args, **named)
        if not isinstance(out, tuple) or not isinstance(out[0], Tensor):
            raise SettingError(
                f"the network of {self.pipe} answers with {type(out).__name__}, not with a tuple,"
                " and so it cannot be guided here"
            )
        return out[0]


def _take_rows(value: Any, rows: int, index: Tensor) -> Any:
    """Returns the rows of every tensor of a batch; tensors that are of no batch stay."""
    if isinstance(value, Tensor):
        whole = value.ndim == 0 or len(value) != rows
        return value if whole else value.index_select(0, index.to(value.device))
    if isinstance(value, Mapping):
        return {key: _take_rows(each, rows, index) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_take_rows(each, rows, index) for each in value)
    return value
