"""The families that are known by name: data, read off diffusers 0.42.1 and tested by running it."""

from functools import cache
from typing import Any

from torch import Tensor

from .family import IMAGE, TEXT, BlockGroup, Call, Family

BLOCKS = "transformer_blocks"
SINGLE = "single_transformer_blocks"


@cache
def families() -> tuple[Family, ...]:
    """All of them."""
    return (DIT, PIXART, SD3, FLUX, FLUX_2, SANA, QWEN, LUMINA_2, WAN, LTX, COGVIDEOX, HUNYUAN)


def _adaptive_norm(block: Any, call: Call) -> Tensor:
    """adaLN-zero with a time embedding: shift and scale of block 0's first norm."""
    out: Tensor = block.norm1(call[IMAGE], emb=call["temb"])[0]
    return out


def _adaptive_norm_of_labels(block: Any, call: Call) -> Tensor:
    """DiT: every block embeds time and class itself."""
    image = call[IMAGE]
    labels, dtype = call["class_labels"], image.dtype
    out: Tensor = block.norm1(image, call["timestep"], labels, hidden_dtype=dtype)[0]
    return out


def _time_embedding(_: Any, call: Call) -> Tensor:
    """CogVideoX, whose published coefficients were fitted to the time embedding itself."""
    temb: Tensor = call["temb"]
    return temb


def _rms_norm(block: Any, call: Call) -> Tensor:
    out: Tensor = block.norm1(call[IMAGE], call["temb"])[0]
    return out


def _first_frame_norm(block: Any, call: Call) -> Tensor:
    """HunyuanVideo; its image-to-video blocks modulate the tokens of the first frame apart."""
    extra = [call[name] for name in ("token_replace_emb", "num_tokens") if name in call]
    if not extra:
        return _adaptive_norm(block, call)
    out: Tensor = block.norm1(call[IMAGE], call["temb"], *extra)[0]
    return out


def _table(block: Any, call: Call) -> Tensor:
    """PixArt and Sana: one embedding for all blocks plus a table of six rows in each."""
    image = call[IMAGE]
    rows = block.scale_shift_table[None] + call["timestep"].reshape(len(image), 6, -1)
    shift, scale = rows[:, :1], rows[:, 1:2]
    out: Tensor = block.norm1(image) * (1 + scale) + shift
    return out


def _table_per_token(block: Any, call: Call) -> Tensor:
    """LTX: as PixArt, and the time may differ from token to token."""
    image, temb = call[IMAGE], call["temb"]
    rows = block.scale_shift_table + temb.reshape(len(image), temb.shape[1], 6, -1)
    out: Tensor = block.norm1(image) * (1 + rows[:, :, 1]) + rows[:, :, 0]
    return out


def _image_modulation(block: Any, call: Call) -> Tensor:
    """Qwen-Image; with `zero_cond_t` a reference image has a time of its own."""
    first, _ = block.img_mod(call["temb"]).chunk(2, dim=-1)
    normed = block.img_norm1(call[IMAGE])
    out: Tensor = block._modulate(normed, first, call.get("modulate_index"))[0]
    return out


def _shared_modulation(block: Any, call: Call) -> Tensor:
    """Flux2: the modulation is computed once for all blocks, (B, 6 d) or (B, L, 6 d)."""
    rows = call["temb_mod_img"]
    shift, scale = (rows.unsqueeze(1) if rows.ndim == 2 else rows).chunk(6, dim=-1)[:2]
    out: Tensor = (1 + scale) * block.norm1(call[IMAGE]) + shift
    return out


DIT = Family(
    classes=("DiTTransformer2DModel",),
    groups=(BlockGroup(BLOCKS),),
    modules=(rf"{BLOCKS}\.\d+\.(attn1|ff)",),
    signal=_adaptive_norm_of_labels,
)
PIXART = Family(
    classes=("PixArtTransformer2DModel",),
    groups=(BlockGroup(BLOCKS),),
    modules=(rf"{BLOCKS}\.\d+\.(attn1|attn2|ff)",),
    signal=_table,
)
SD3 = Family(
    classes=("SD3Transformer2DModel",),
    groups=(BlockGroup(BLOCKS, (TEXT, IMAGE)),),
    modules=(rf"{BLOCKS}\.\d+\.(attn|attn2|ff|ff_context)",),
    signal=_adaptive_norm,
)
FLUX = Family(
    classes=(
        "FluxTransformer2DModel",
        "BriaTransformer2DModel",
        "LongCatImageTransformer2DModel",
    ),
    groups=(BlockGroup(BLOCKS, (TEXT, IMAGE)), BlockGroup(SINGLE, (TEXT, IMAGE))),
    modules=(rf"{BLOCKS}\.\d+\.(attn|ff|ff_context)", rf"{SINGLE}\.\d+\.proj_out"),
    idle=(rf"{SINGLE}\.\d+\.(attn|proj_mlp)",),
    signal=_adaptive_norm,
)
FLUX_2 = Family(
    classes=("Flux2Transformer2DModel",),
    groups=(BlockGroup(BLOCKS, (TEXT, IMAGE)), BlockGroup(SINGLE, joint="first")),
    modules=(rf"{BLOCKS}\.\d+\.(attn|ff|ff_context)", rf"{SINGLE}\.\d+\.attn"),
    signal=_shared_modulation,
)
SANA = Family(
    classes=("SanaTransformer2DModel", "SanaVideoTransformer3DModel"),
    groups=(BlockGroup(BLOCKS),),
    modules=(rf"{BLOCKS}\.\d+\.(attn1|attn2|ff)",),
    signal=_table,
)
QWEN = Family(
    classes=("QwenImageTransformer2DModel",),
    groups=(BlockGroup(BLOCKS, (TEXT, IMAGE)),),
    modules=(rf"{BLOCKS}\.\d+\.(attn|img_mlp|txt_mlp)",),
    signal=_image_modulation,
)
LUMINA_2 = Family(
    classes=("Lumina2Transformer2DModel",),
    groups=(BlockGroup("layers"),),
    modules=(r"layers\.\d+\.(attn|feed_forward)",),
    signal=_rms_norm,
)
WAN = Family(
    classes=(
        "WanTransformer3DModel",
        "ChronoEditTransformer3DModel",
        "SkyReelsV2Transformer3DModel",
    ),
    groups=(BlockGroup("blocks"),),
    modules=(r"blocks\.\d+\.(attn1|attn2|ffn)",),
    signal="condition_embedder.time_embedder",
)
LTX = Family(
    classes=("LTXVideoTransformer3DModel",),
    groups=(BlockGroup(BLOCKS),),
    modules=(rf"{BLOCKS}\.\d+\.(attn1|attn2|ff)",),
    signal=_table_per_token,
)
COGVIDEOX = Family(
    classes=("CogVideoXTransformer3DModel", "ConsisIDTransformer3DModel"),
    groups=(BlockGroup(BLOCKS, (IMAGE, TEXT)),),
    modules=(rf"{BLOCKS}\.\d+\.(attn1|ff)",),
    signal=_time_embedding,
)
HUNYUAN = Family(
    classes=("HunyuanVideoTransformer3DModel", "HunyuanImageTransformer2DModel"),
    groups=(BlockGroup(BLOCKS, (IMAGE, TEXT)), BlockGroup(SINGLE, (IMAGE, TEXT))),
    modules=(rf"{BLOCKS}\.\d+\.(attn|ff|ff_context)", rf"{SINGLE}\.\d+\.proj_out"),
    idle=(rf"{SINGLE}\.\d+\.(attn|proj_mlp)",),
    signal=_first_frame_norm,
)
