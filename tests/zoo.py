"""Tiny transformers that no family lists, for the structural guess: settings and example calls.

`tiny.built(ZOO[name])` is the network, `ZOO[name].call(Draw(step, branch, batch))` a call.
"""

from typing import Any

import torch
from tiny import HEADS, TINY, Draw, Tiny

FLUX = {**HEADS, "in_channels": 4, "num_layers": 2, "num_single_layers": 2} | {
    "joint_attention_dim": 12
}
ROPE = {"axes_dims_rope": (2, 2, 4)}
BRIA = {**FLUX, "pooled_projection_dim": None, "axes_dims_rope": [2, 2, 4]}
COGVIEW = {**HEADS, "in_channels": 2, "out_channels": 2, "num_layers": 3} | {
    "text_embed_dim": 12,
    "time_embed_dim": 8,
    "condition_dim": 4,
}


def _like(name: str, draw: Draw, without: str = "", **more: Any) -> dict[str, Any]:
    """The call of a listed network, less some arguments, plus others."""
    call = TINY[name].call(draw)
    return {key: value for key, value in call.items() if key not in without.split()} | more


def _ones(draw: Draw, rows: int = 5) -> torch.Tensor:
    return torch.ones(draw.batch, rows)


def _flux(d: Draw) -> dict[str, Any]:
    return _like("flux", d, without="pooled_projections")


def _wan(d: Draw) -> dict[str, Any]:
    return _like("wan", d)


def _aura(d: Draw) -> dict[str, Any]:
    return _like("sd3", d, without="pooled_projections", timestep=d.times())


def _hidream(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(4, 8, 8),
        "timesteps": d.times(1000),
        "encoder_hidden_states_t5": d.text(5, 8),
        "encoder_hidden_states_llama3": torch.stack([d.text(5, 4)] * 2),
        "pooled_embeds": d.text(8),
    }


def _mochi(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(4, 2, 8, 8),
        "timestep": d.times(1000),
        "encoder_hidden_states": d.text(5, 16),
        "encoder_attention_mask": _ones(d).bool(),
    }


def _allegro(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(2, 2, 8, 8),
        "timestep": d.times(1000),
        "encoder_hidden_states": d.text(5, 12).unsqueeze(1),
        "attention_mask": torch.ones(d.batch, 2, 8, 8),
        "encoder_attention_mask": _ones(d).unsqueeze(1),
    }


def _sizes(d: Draw) -> dict[str, Any]:
    return dict.fromkeys(("target_size", "crop_coords"), torch.full((d.batch, 2), 8.0))


def _cogview(d: Draw) -> dict[str, Any]:
    sizes = {**_sizes(d), "original_size": torch.full((d.batch, 2), 8.0)}
    return _like("sd3", d, without="pooled_projections", **sizes)


def _glm(d: Draw) -> dict[str, Any]:
    tokens = {"prior_token_id": torch.zeros(d.batch, 16, dtype=torch.long)}
    tokens["prior_token_drop"] = torch.zeros(d.batch, dtype=torch.bool)
    return _like("sd3", d, without="pooled_projections", **tokens, **_sizes(d))


def _hunyuan_dit(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(4, 8, 8),
        "timestep": d.times(1000),
        "encoder_hidden_states": d.text(4, 8),
        "text_embedding_mask": _ones(d, 4),
        "encoder_hidden_states_t5": d.text(4, 8),
        "text_embedding_mask_t5": _ones(d, 4),
        "image_meta_size": _ones(d, 6),
        "style": torch.zeros(d.batch, dtype=torch.long),
        "image_rotary_emb": (torch.ones(16, 8), torch.zeros(16, 8)),
    }


def _hunyuan_image(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(4, 4, 4),
        "timestep": d.times(1000),
        "encoder_hidden_states": d.text(5, 12),
        "encoder_attention_mask": _ones(d),
    }


def _hunyuan_15(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(4, 1, 4, 4),
        "timestep": d.times(1000),
        "encoder_hidden_states": d.text(5, 12),
        "encoder_attention_mask": _ones(d),
        "encoder_hidden_states_2": d.text(4, 8),
        "encoder_attention_mask_2": _ones(d, 4),
        "image_embeds": torch.zeros(d.batch, 3, 12),
    }


def _kandinsky(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(2, 8, 8, 4),
        "timestep": d.times(1000),
        "encoder_hidden_states": d.text(5, 12),
        "pooled_projections": d.text(10),
        "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)],
        "text_rope_pos": torch.arange(5),
    }


def _latte(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(4, 2, 8, 8),
        "timestep": d.times(1000),
        "encoder_hidden_states": d.text(5, 12),
    }


def _ltx_2(d: Draw) -> dict[str, Any]:
    audio = {
        "audio_hidden_states": d.sample(6, 4),
        "audio_encoder_hidden_states": d.text(5, 12),
        "audio_encoder_attention_mask": _ones(d),
        "audio_num_frames": 6,
    }
    return _like("ltx", d, **audio, encoder_attention_mask=_ones(d))


def _lumina_next(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(4, 8, 8),
        "timestep": d.times(),
        "encoder_hidden_states": d.text(5, 12),
        "encoder_mask": _ones(d),
        "image_rotary_emb": torch.ones(384, 384, 4),
        "cross_attention_kwargs": {},
    }


def _prx(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(4, 8, 8),
        "timestep": d.times(),
        "encoder_hidden_states": d.text(5, 12),
    }


def _audio(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(4, 8),
        "timestep": d.times(),
        "encoder_hidden_states": d.text(5, 12),
        "global_hidden_states": d.text(1, 10),
        "rotary_embedding": (torch.ones(9, 4), torch.zeros(9, 4)),
    }


def _vace(d: Draw) -> dict[str, Any]:
    return _like("wan", d, control_hidden_states=d.rows((6, 2, 8, 8), 9))


def _z_image(d: Draw) -> dict[str, Any]:
    return {"x": list(d.sample(4, 1, 8, 8)), "t": 1 - d.times(), "cap_feats": list(d.text(5, 12))}


def _ernie(d: Draw) -> dict[str, Any]:
    lengths = torch.full((d.batch,), 5)
    text = {"text_bth": d.text(5, 12), "text_lens": lengths}
    return {"hidden_states": d.sample(4, 4, 4), "timestep": d.times(1000), **text}


def _prior(d: Draw) -> dict[str, Any]:
    text = {"proj_embedding": d.text(8), "encoder_hidden_states": d.text(5, 8)}
    return {"hidden_states": d.sample(8), "timestep": d.times(1000), **text}


def _fibo(d: Draw) -> dict[str, Any]:
    return {**_flux(d), "text_encoder_layers": [d.text(5, 6)] * 4}


def _sana_video(d: Draw) -> dict[str, Any]:
    return {**_wan(d), "encoder_attention_mask": _ones(d)}


WAN = TINY["wan"].config
VIDEO = {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 3}
ZOO = {
    tiny.cls: tiny
    for tiny in (
        Tiny(
            "AuraFlowTransformer2DModel",
            {**HEADS, "sample_size": 8, "num_mmdit_layers": 2, "num_single_dit_layers": 2}
            | {"joint_attention_dim": 12, "caption_projection_dim": 16, "in_channels": 2}
            | {"out_channels": 2, "pos_embed_max_size": 64},
            _aura,
        ),
        Tiny(
            "HiDreamImageTransformer2DModel",
            {**HEADS, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2}
            | {"num_single_layers": 2, "caption_channels": [8, 4], "text_emb_dim": 8}
            | {"num_routed_experts": 2, "num_activated_experts": 2, "axes_dims_rope": (4, 2, 2)}
            | {"max_resolution": (32, 32), "llama_layers": (0, 1, 0, 1)}
            | {"force_inference_output": True},
            _hidream,
        ),
        Tiny(
            "MochiTransformer3DModel",
            {**HEADS, "num_layers": 3, "pooled_projection_dim": 16, "in_channels": 4}
            | {"text_embed_dim": 16, "time_embed_dim": 4, "max_sequence_length": 5},
            _mochi,
        ),
        Tiny(
            "AllegroTransformer3DModel",
            {**VIDEO, "attention_head_dim": 24, "in_channels": 2, "out_channels": 2}
            | {"cross_attention_dim": 48, "sample_width": 8, "sample_height": 8}
            | {"sample_frames": 2, "caption_channels": 12},
            _allegro,
        ),
        Tiny("BriaTransformer2DModel", BRIA, _flux),
        Tiny("BriaFiboTransformer2DModel", {**BRIA, "text_encoder_dim": 6}, _fibo),
        Tiny(
            "ChromaTransformer2DModel",
            {**FLUX, **ROPE, "approximator_num_channels": 8, "approximator_hidden_dim": 16}
            | {"approximator_layers": 1},
            _flux,
        ),
        Tiny("OvisImageTransformer2DModel", {**FLUX, **ROPE, "out_channels": 4}, _flux),
        Tiny("LongCatImageTransformer2DModel", {**BRIA, "pooled_projection_dim": 10}, _flux),
        Tiny(
            "CogView3PlusTransformer2DModel",
            {**COGVIEW, "condition_dim": 2, "pos_embed_max_size": 8, "sample_size": 8},
            _cogview,
        ),
        Tiny("CogView4Transformer2DModel", {**COGVIEW, "rope_axes_dim": (16, 16)}, _cogview),
        Tiny(
            "GlmImageTransformer2DModel",
            {**COGVIEW, "prior_vq_quantizer_codebook_size": 16},
            _glm,
        ),
        Tiny("ConsisIDTransformer3DModel", TINY["cogvideox"].config, TINY["cogvideox"].call),
        Tiny(
            "EasyAnimateTransformer3DModel",
            {**VIDEO, "attention_head_dim": 16, "mmdit_layers": 2, "text_embed_dim": 12}
            | {"time_embed_dim": 8, "sample_width": 8, "sample_height": 8, "patch_size": 2},
            _wan,
        ),
        Tiny(
            "HunyuanDiT2DModel",
            {**HEADS, "sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 6}
            | {"hidden_size": 16, "cross_attention_dim": 8, "cross_attention_dim_t5": 8}
            | {"pooled_projection_dim": 4, "text_len": 4, "text_len_t5": 4},
            _hunyuan_dit,
        ),
        Tiny(
            "HunyuanImageTransformer2DModel",
            {**VIDEO, "num_layers": 2, "num_single_layers": 2, "num_refiner_layers": 1}
            | {"patch_size": (1, 1), "text_embed_dim": 12, "rope_axes_dim": (4, 4)},
            _hunyuan_image,
        ),
        Tiny(
            "HunyuanVideo15Transformer3DModel",
            {**VIDEO, "num_refiner_layers": 1, "mlp_ratio": 2.0, "text_embed_dim": 12}
            | {"text_embed_2_dim": 8, "image_embed_dim": 12, "rope_axes_dim": (2, 2, 4)}
            | {"target_size": 16, "task_type": "t2v"},
            _hunyuan_15,
        ),
        Tiny(
            "Kandinsky5Transformer3DModel",
            {"in_visual_dim": 4, "in_text_dim": 12, "in_text_dim2": 10, "time_dim": 8}
            | {"out_visual_dim": 4, "model_dim": 16, "ff_dim": 32, "num_text_blocks": 2}
            | {"num_visual_blocks": 3, "axes_dims": (2, 2, 4)},
            _kandinsky,
        ),
        Tiny(
            "LatteTransformer3DModel",
            {**VIDEO, "sample_size": 8, "patch_size": 2, "num_embeds_ada_norm": 1000}
            | {"norm_type": "ada_norm_single", "norm_elementwise_affine": False}
            | {"caption_channels": 12, "cross_attention_dim": 16, "video_length": 2},
            _latte,
        ),
        Tiny(
            "LTX2VideoTransformer3DModel",
            {**VIDEO, "cross_attention_dim": 16, "audio_in_channels": 4, "audio_out_channels": 4}
            | {"audio_num_attention_heads": 2, "audio_attention_head_dim": 4}
            | {"audio_cross_attention_dim": 8, "caption_channels": 12}
            | {"rope_double_precision": False},
            _ltx_2,
        ),
        Tiny(
            "LuminaNextDiT2DModel",
            {"sample_size": 8, "in_channels": 4, "hidden_size": 24, "num_layers": 3}
            | {"num_attention_heads": 3, "num_kv_heads": 1, "multiple_of": 16}
            | {"cross_attention_dim": 12},
            _lumina_next,
        ),
        Tiny(
            "PRXTransformer2DModel",
            {"in_channels": 4, "context_in_dim": 12, "hidden_size": 16, "mlp_ratio": 2.0}
            | {"num_heads": 2, "depth": 3, "axes_dim": [4, 4]},
            _prx,
        ),
        Tiny(
            "SanaVideoTransformer3DModel",
            {**VIDEO, "attention_head_dim": 12, "num_cross_attention_heads": 2}
            | {"cross_attention_head_dim": 12, "cross_attention_dim": 24}
            | {"caption_channels": 12, "sample_size": 8, "rope_max_seq_len": 16},
            _sana_video,
        ),
        Tiny("SkyReelsV2Transformer3DModel", WAN, _wan),
        Tiny("ChronoEditTransformer3DModel", {**WAN, "rope_temporal_skip_len": 2}, _wan),
        Tiny(
            "WanVACETransformer3DModel",
            {**WAN, "vace_layers": [0, 2], "vace_in_channels": 6},
            _vace,
        ),
        Tiny(
            "StableAudioDiTModel",
            {**HEADS, "sample_size": 8, "in_channels": 4, "out_channels": 4, "num_layers": 3}
            | {"num_key_value_attention_heads": 2, "cross_attention_dim": 4}
            | {"time_proj_dim": 8, "global_states_input_dim": 10}
            | {"cross_attention_input_dim": 12},
            _audio,
        ),
        Tiny(
            "ZImageTransformer2DModel",
            {"in_channels": 4, "dim": 16, "n_layers": 3, "n_refiner_layers": 2, "n_heads": 2}
            | {"n_kv_heads": 2, "cap_feat_dim": 12, "axes_dims": [4, 2, 2]}
            | {"axes_lens": [64, 32, 32]},
            _z_image,
        ),
        Tiny(
            "ErnieImageTransformer2DModel",
            {"hidden_size": 16, "num_attention_heads": 2, "num_layers": 3, "in_channels": 4}
            | {"ffn_hidden_size": 32, "out_channels": 4, "text_in_dim": 12}
            | {"rope_axes_dim": (4, 2, 2)},
            _ernie,
        ),
        Tiny(
            "PriorTransformer",
            {**HEADS, "num_layers": 3, "embedding_dim": 8, "num_embeddings": 5},
            _prior,
        ),
    )
}
