"""The FLOPs of a network and its parts, counted by running it once."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..modules import remove_hooks


@dataclass(frozen=True)
class FlopCount:
    """FLOPs of one full call.

    total: of the whole network.
    parts: of each part that a cache may skip, by name.
    """

    total: int
    parts: Mapping[str, int]

    def share(self, skipped: Sequence[str], rows: float = 0.0) -> float:
        """Returns the cost of a call that skips parts for all but a share of the rows; full: 1."""
        saved = sum(self.parts[name] for name in skipped) * (1.0 - rows)
        return 1.0 - saved / self.total if self.total else 1.0


def measure(
    root: nn.Module,
    parts: Mapping[str, nn.Module],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    forward: Callable[..., Any] | None = None,
) -> FlopCount:
    """Counts a full call with these arguments; calls of the same shapes are counted once.

    The network really runs: on tensors without data torch takes longer than on small ones with.

    forward: what to call, where hooks on the network itself must not see it.
    """
    from torch.utils._pytree import tree_map_only

    shapes = tree_map_only(torch.Tensor, lambda each: (each.shape, each.dtype), (args, kwargs))
    size = sum(1 for _ in root.modules())  # adapters may have come since
    key, known = repr((list(parts), shapes, size)), _counts.setdefault(root, {})
    if key not in known:
        known[key] = _count(forward or root, parts, args, kwargs)
    return known[key]


def _count(
    forward: Callable[..., Any], parts: Mapping[str, nn.Module], args: Any, kwargs: Any
) -> FlopCount:
    from torch.utils.flop_counter import FlopCounterMode

    flops: Counter[nn.Module] = Counter()
    counter: Any = FlopCounterMode(display=False)

    def before(module: nn.Module, *_: Any) -> None:
        flops[module] -= counter.get_total_flops()

    def after(module: nn.Module, *_: Any) -> None:
        flops[module] += counter.get_total_flops()

    hooks = [each.register_forward_pre_hook(before) for each in parts.values()]
    hooks += [each.register_forward_hook(after) for each in parts.values()]
    eager: Any = torch.compiler.set_stance  # a compiled block would hide what it does
    with counter, remove_hooks(hooks), torch.no_grad(), eager("force_eager"):
        forward(*args, **kwargs)
    return FlopCount(counter.get_total_flops(), {name: flops[each] for name, each in parts.items()})


_counts: "WeakKeyDictionary[nn.Module, dict[str, FlopCount]]" = WeakKeyDictionary()
