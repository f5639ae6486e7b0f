"""SD3Transformer2DModel: Stable Diffusion 3 and 3.5."""

from .base import (
    IMAGE,
    ONE_CALL,
    TEXT,
    Architecture,
    BlockGroup,
    BlockStructure,
    PromptAdapter,
    SelfAttention,
)
from .common import BLOCKS, adaptive_norm, call_transformer, latent_shape

SD3 = Architecture(
    classes=("SD3Transformer2DModel",),
    blocks=BlockStructure(
        groups=(BlockGroup(BLOCKS, (TEXT, IMAGE)),),
        modules=(rf"{BLOCKS}\.\d+\.(attn|attn2|ff|ff_context)",),
        signal=adaptive_norm,
    ),
    attention=SelfAttention(rf"{BLOCKS}\.\d+\.attn"),
    prompted=(
        PromptAdapter(
            returns=(
                "prompt_embeds",
                "negative_prompt_embeds",
                "pooled_prompt_embeds",
                "negative_pooled_prompt_embeds",
            ),
            conditions={TEXT: "prompt_embeds", "pooled_projections": "pooled_prompt_embeds"},
            shape=latent_shape,
            call=call_transformer,
        ),
    ),
    pipelines={"StableDiffusion3Pipeline": ONE_CALL},
)
