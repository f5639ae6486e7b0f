"""Architectures that are known by name: one card each, one file each.

The cards are data, read off diffusers 0.42.1 and tested by running its networks.
"""

from collections.abc import Callable

from torch import nn

from ..modules import unwrap_compiled
from .aura import AURA_FLOW
from .base import Architecture, GuidanceLayout, PublishedCalibration, fits
from .cogvideox import COGVIDEOX
from .dit import DIT
from .flux import FLUX
from .flux2 import FLUX_2
from .hunyuan import HUNYUAN_VIDEO
from .ltx import LTX
from .lumina2 import LUMINA_2
from .pixart import PIXART
from .qwen import QWEN_IMAGE
from .sana import SANA
from .sd3 import SD3
from .unet import UNET
from .unet_condition import UNET_CONDITION
from .wan import WAN

__all__ = [
    "ARCHITECTURES",
    "BY_CLASS",
    "PIPELINES",
    "Architecture",
    "architecture_of",
    "known_classes",
    "published_calibrations",
]

ARCHITECTURES = (
    UNET,
    UNET_CONDITION,
    DIT,
    SD3,
    FLUX,
    FLUX_2,
    PIXART,
    SANA,
    QWEN_IMAGE,
    WAN,
    LUMINA_2,
    AURA_FLOW,
    LTX,
    COGVIDEOX,
    HUNYUAN_VIDEO,
)


def _index_classes() -> dict[str, Architecture]:
    whole = {name: card for card in ARCHITECTURES for name in card.classes}
    parts = {
        name: Architecture(classes=(name,), blocks=card.blocks)
        for card in ARCHITECTURES
        for name in card.same_blocks
    }
    return parts | whole


BY_CLASS = _index_classes()
PIPELINES: dict[str, GuidanceLayout] = {
    name: layout for card in ARCHITECTURES for name, layout in card.pipelines.items()
}


def architecture_of(module: nn.Module, *, exact: bool = False) -> Architecture | None:
    """Returns the card of a network's class or of the nearest of its bases; None if none has one.

    exact: only the class itself counts: a subclass has the same parts, but it may be called in
        another way, and its checkpoints are others.
    """
    cls = type(unwrap_compiled(module))
    names = [base.__name__ for base in ([cls] if exact else cls.__mro__)]
    return next((BY_CLASS[name] for name in names if name in BY_CLASS), None)


def published_calibrations(module: nn.Module) -> tuple[PublishedCalibration, ...]:
    """Returns the published calibrations that fit a network's class and settings."""
    card = architecture_of(module, exact=True)
    known = () if card is None else card.calibrations
    return tuple(each for each in known if fits(unwrap_compiled(module), each.config))


def known_classes(part: Callable[[Architecture], object]) -> list[str]:
    """Returns the names of the classes whose card has some part, sorted."""
    return sorted(name for name, card in BY_CLASS.items() if part(card))
