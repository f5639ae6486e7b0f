"""SD3Transformer2DModel: Stable Diffusion 3 and 3.5."""

from dataclasses import replace

from .base import IMAGE, ONE_CALL, TEXT, Architecture, BlockGroup, BlockStructure, SelfAttention
from .common import BLOCKS, PLAIN_TEXT, adaptive_norm

SD3 = Architecture(
    classes=("SD3Transformer2DModel",),
    blocks=BlockStructure(
        groups=(BlockGroup(BLOCKS, (TEXT, IMAGE)),),
        modules=(rf"{BLOCKS}\.\d+\.(attn|attn2|ff|ff_context)",),
        signal=adaptive_norm,
    ),
    attention=SelfAttention(rf"{BLOCKS}\.\d+\.attn"),
    prompted=(
        replace(
            PLAIN_TEXT,
            returns=(*PLAIN_TEXT.returns, "pooled_prompt_embeds", "negative_pooled_prompt_embeds"),
            conditions={TEXT: "prompt_embeds", "pooled_projections": "pooled_prompt_embeds"},
        ),
    ),
    pipelines={"StableDiffusion3Pipeline": ONE_CALL},
)
