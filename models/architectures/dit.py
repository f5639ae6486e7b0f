"""DiTTransformer2DModel: images of classes."""

from typing import Any

from torch import Tensor

from .base import IMAGE, Architecture, Arguments, BlockGroup, BlockStructure, SelfAttention
from .common import BLOCKS


def _norm_of_labels(block: Any, arguments: Arguments) -> Tensor:
    """Modulates the first norm by time and class, which every block embeds itself."""
    image = arguments[IMAGE]
    labels, dtype = arguments["class_labels"], image.dtype
    out: Tensor = block.norm1(image, arguments["timestep"], labels, hidden_dtype=dtype)[0]
    return out


DIT = Architecture(
    classes=("DiTTransformer2DModel",),
    blocks=BlockStructure(
        groups=(BlockGroup(BLOCKS),),
        modules=(rf"{BLOCKS}\.\d+\.(attn1|ff)",),
        signal=_norm_of_labels,
    ),
    attention=SelfAttention(rf"{BLOCKS}\.\d+\.attn1", perturbable=True),
    class_labels="num_embeds_ada_norm",
)
