"""HunyuanVideoTransformer3DModel: text to video; samples stay latents."""

from typing import Any

from torch import Tensor

from .base import (
    IMAGE,
    TEXT,
    TWO_CALLS,
    Architecture,
    Arguments,
    PromptAdapter,
    PublishedCalibration,
    SelfAttention,
)
from .common import (
    SINGLE,
    adaptive_norm,
    call_transformer,
    distilled_guidance,
    double_and_single_blocks,
    video_shape,
)


def _first_frame_norm(block: Any, arguments: Arguments) -> Tensor:
    """Modulates the tokens of the first frame apart, as image-to-video blocks do."""
    extra = [arguments[name] for name in ("token_replace_emb", "num_tokens") if name in arguments]
    if not extra:
        return adaptive_norm(block, arguments)
    out: Tensor = block.norm1(arguments[IMAGE], arguments["temb"], *extra)[0]
    return out


HUNYUAN_VIDEO = Architecture(
    classes=("HunyuanVideoTransformer3DModel",),
    same_blocks=("HunyuanImageTransformer2DModel",),
    blocks=double_and_single_blocks((IMAGE, TEXT), _first_frame_norm),
    attention=SelfAttention(rf"{SINGLE}\.\d+\.attn", (21, 40), text=True),
    calibrations=(
        PublishedCalibration(
            "hunyuan-video",
            {"num_layers": 20, "num_single_layers": 40, "in_channels": 16},
            (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896),
        ),
    ),
    prompted=(
        PromptAdapter(
            returns=("prompt_embeds", "pooled_prompt_embeds", "prompt_attention_mask"),
            conditions={
                TEXT: "prompt_embeds",
                "encoder_attention_mask": "prompt_attention_mask",
                "pooled_projections": "pooled_prompt_embeds",
            },
            shape=video_shape,
            call=call_transformer,
            extra=distilled_guidance(6.0, unit=1000.0),
            images=False,
        ),
    ),
    pipelines={"HunyuanVideoPipeline": TWO_CALLS},
)
