"""A network whose attention is changed in places, for guidance away from it.

In the chosen self-attention layers the map softmax(q k / sqrt(d)) is replaced by the identity, so
that every token keeps its own value: the output of `to_v` goes into `to_out` unmixed. Or the
queries are blurred over the tokens, which smooths the map. The rest of the layer (norms, biases,
the residual) stays. It is the same module, hooked for one call and restored after it, so it needs
no memory of its own; meanwhile no other thread can run it.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad
from torch.utils.hooks import RemovableHandle

from .architectures import Architecture, architecture_of, known_classes
from .attention import (
    Projection,
    check_layers,
    find_projection,
    find_query_projection,
    find_self_attention,
)
from .errors import ModelError
from .modules import hold, is_compiled, remove_hooks, unwrap_compiled
from .network import Network
from .schedule import Node


def perturb_attention(
    network: Network, layers: Sequence[int] | None = None, blur: float | None = None
) -> Network:
    """Changes the attention of some layers of a network.

    layers: numbers of its self-attention layers, from 0 in the order of the module; None takes
            those of a UNet's middle block, as published (arXiv:2403.17377), and of a transformer,
            or a UNet without attention there, the layer number n // 2 of n.
    blur:   None puts the identity in place of their maps; a number blurs their queries by a
            Gaussian of so many tokens, where these are a square, and infinity takes their mean
            (arXiv:2408.00760).

    The result has no module of its own on which a cache could be put.

    Raises:
        ModelError: for a network whose attention cannot be reached so: a plain function, one that
            is compiled, one of an unknown class, or one whose layers attend to text.
        SettingError: for layers that it does not have.
    """
    spots = _find_spots(network.module, layers)

    def forward(x: Tensor, node: Node, conditions: Mapping[str, Any]) -> Tensor:
        changes = [Swap(each) if blur is None else Smoothing(each, blur) for each in spots]
        with hold(network.module, alone=True), _apply(changes):
            return network.forward(x, node, conditions)

    return replace(
        network,
        forward=forward,
        module=None,
        hooks=network.module,
        name=f"perturbed {network.name}",
    )


@dataclass(frozen=True)
class Spot:
    """One layer: the projections of its V, of its queries and of its result."""

    name: str
    value: Projection
    query: Projection
    out: nn.Module


class LayerChange(ABC):
    """The change of one layer in one call; `reached` once the layer was called."""

    def __init__(self, spot: Spot) -> None:
        self.spot, self.reached = spot, False

    @abstractmethod
    def hook(self) -> Sequence[RemovableHandle]:
        """Hooks the modules of the layer."""


class Swap(LayerChange):
    """Carries V past the attention."""

    value: Tensor | None = None

    def hook(self) -> Sequence[RemovableHandle]:
        return (
            self.spot.value.module.register_forward_hook(self.keep),
            self.spot.out.register_forward_pre_hook(self.give),
        )

    def keep(self, module: nn.Module, args: Any, out: Tensor) -> None:
        """Keeps V after its projection."""
        self.value = out[..., -self.spot.value.width :]

    def give(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Hands V to the projection of the result, in the place of the mixed values."""
        mixed, *rest = args
        value, self.value, self.reached = self.value, None, True
        if value is None or value.shape != mixed.shape:
            raise ModelError(
                f"the attention {self.spot.name} returns something else than a mix of its own"
                " tokens, so it cannot be perturbed; give other layers"
            )
        return (value.to(mixed.dtype), *rest)


class Smoothing(LayerChange):
    """Blurs the queries."""

    def __init__(self, spot: Spot, blur: float) -> None:
        super().__init__(spot)
        self.blur = blur

    def hook(self) -> Sequence[RemovableHandle]:
        return (self.spot.query.module.register_forward_hook(self.smooth),)

    def smooth(self, module: nn.Module, args: Any, out: Tensor) -> Tensor:
        """Returns the output of the projection of the queries with these blurred."""
        width, self.reached = self.spot.query.width, True
        blurred = blur_tokens(out[..., :width], self.blur)
        return torch.cat([blurred, out[..., width:]], dim=-1)


def blur_tokens(tokens: Tensor, sigma: float) -> Tensor:
    """Returns tokens (B, N, C) blurred over their square; with infinite sigma, N times their mean.

    The Gaussian ends at 3 sigma, or where the square is reflected whole.

    Raises:
        ModelError: for a finite sigma where N is no square.
    """
    if math.isinf(sigma):
        return tokens.mean(1, keepdim=True).expand_as(tokens)
    side = math.isqrt(tokens.shape[1])
    if side * side != tokens.shape[1]:
        raise ModelError(
            f"{tokens.shape[1]} tokens are not a square picture to be blurred; take an infinite"
            " blur"
        )
    reach = min(math.ceil(3.0 * sigma), side - 1)
    places = torch.arange(-reach, reach + 1, device=tokens.device)
    kernel = torch.exp(-0.5 * (places / sigma) ** 2).to(tokens)
    kernel = (kernel / kernel.sum()).reshape(1, 1, 1, -1)
    planes = tokens.mT.reshape(-1, 1, side, side)
    planes = pad(planes, (reach, reach, reach, reach), mode="reflect")
    planes = conv2d(conv2d(planes, kernel), kernel.mT)
    return planes.reshape(tokens.mT.shape).mT


@contextmanager
def _apply(changes: Sequence[LayerChange]) -> Iterator[None]:
    """Hooks the layers and takes every hook off again."""
    hooks = [handle for change in changes for handle in change.hook()]
    with remove_hooks(hooks):
        yield
        if missed := [change.spot.name for change in changes if not change.reached]:
            raise ModelError(
                f"the network was called without its layer {missed[0]}, so nothing was perturbed;"
                " give other layers"
            )


def _find_spots(module: nn.Module | None, layers: Sequence[int] | None) -> list[Spot]:
    if module is None:
        raise ModelError(
            "this network is a plain function, whose attention cannot be reached; make it with"
            " from_module from a torch module, or take guidance that needs none, such as cfg"
        )
    if is_compiled(module):
        raise ModelError(
            "a compiled network does not see that its attention is perturbed; take the network as"
            " it was before torch.compile"
        )
    attentions = _find_layers(unwrap_compiled(module))
    return [_make_spot(layer, *attentions[layer]) for layer in _choose_layers(attentions, layers)]


def _find_layers(root: nn.Module) -> list[tuple[str, nn.Module]]:
    """Returns the self-attention layers by name, in their order."""
    card = architecture_of(root)
    if card is None or not _is_perturbable(card):
        known = ", ".join(known_classes(_is_perturbable))
        raise ModelError(
            f"the attention of {type(root).__name__} cannot be perturbed: it is not known, or text"
            f" and image share it; known are {known}"
        )
    attentions = [
        (name, each)
        for name, each in find_self_attention(root).items()
        if not getattr(each, "is_cross_attention", False)
    ]
    if not attentions:
        raise ModelError(f"this {type(root).__name__} has no self-attention to perturb; take cfg")
    return attentions


def _is_perturbable(card: Architecture) -> bool:
    return card.attention is not None and card.attention.perturbable


def _choose_layers(
    attentions: Sequence[tuple[str, Any]], layers: Sequence[int] | None
) -> Sequence[int]:
    names = [name for name, _ in attentions]
    if layers is not None:
        return check_layers(layers, names)
    middle = [n for n, name in enumerate(names) if name.startswith("mid_block.")]
    return middle or [len(names) // 2]


def _make_spot(layer: int, name: str, attention: Any) -> Spot:
    out = attention.to_out
    first = out[0] if isinstance(out, nn.ModuleList | nn.Sequential) else out
    queries = find_query_projection(layer, attention)
    return Spot(name, find_projection(layer, attention), queries, first)
