"""A network whose attention is switched off in places, for perturbed-attention guidance.

In the chosen self-attention layers the map softmax(q k / sqrt(d)) is replaced by the identity, so
that every token keeps its own value: the output of `to_v` goes into `to_out` unmixed. The rest of
the layer (norms, biases, the residual) stays. It is the same module, hooked for one call and
restored after it, so it needs no memory of its own; meanwhile no other thread can run it.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from .architectures import Architecture, architecture_of, known_classes
from .attention import Projection, check_layers, find_projection, find_self_attention
from .errors import ModelError
from .modules import hold, is_compiled, remove_hooks, unwrap_compiled
from .network import Network
from .schedule import Node


def perturb_attention(network: Network, layers: Sequence[int] | None = None) -> Network:
    """Puts the identity in place of the attention maps of some layers of a network.

    layers: numbers of its self-attention layers, from 0 in the order of the module; None takes
            those of a UNet's middle block, as published (arXiv:2403.17377), and of a transformer,
            or a UNet without attention there, the layer number n // 2 of n.

    The result has no module of its own on which a cache could be put.

    Raises:
        ModelError: for a network whose attention cannot be reached so: a plain function, one that
            is compiled, one of an unknown class, or one whose layers attend to text.
        SettingError: for layers that it does not have.
    """
    spots = _find_spots(network.module, layers)

    def forward(x: Tensor, node: Node, conditions: Mapping[str, Any]) -> Tensor:
        with hold(network.module, alone=True), _skip_attention(spots):
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
    """One layer: the projections of its V and of its result."""

    name: str
    value: Projection
    out: nn.Module


class Swap:
    """Carries V past the attention of one layer, in one call."""

    def __init__(self, spot: Spot) -> None:
        self.spot, self.reached = spot, False
        self.value: Tensor | None = None

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


@contextmanager
def _skip_attention(spots: Sequence[Spot]) -> Iterator[None]:
    """Hooks the layers and takes every hook off again."""
    swaps = [Swap(spot) for spot in spots]
    hooks = [swap.spot.value.module.register_forward_hook(swap.keep) for swap in swaps]
    hooks += [swap.spot.out.register_forward_pre_hook(swap.give) for swap in swaps]
    with remove_hooks(hooks):
        yield
        if missed := [swap.spot.name for swap in swaps if not swap.reached]:
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
    return Spot(name, find_projection(layer, attention), first)
