"""Tiny networks of every family, with random weights: milliseconds a call, and nothing is zero.

net = network("flux")            # in eval mode, the same weights each time
net(**inputs("flux", step=3))    # a call of step 3 of STEPS, noise at 0; branches as they say
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn

STEPS = 10
BRANCHES = ("cond", "uncond")
HEADS = {"num_attention_heads": 2, "attention_head_dim": 8}


@dataclass(frozen=True)
class Tiny:
    """cls: name in diffusers. config: its settings. call: (step, branch, batch) -> arguments."""

    cls: str
    config: dict[str, Any]
    call: Callable[["Draw"], dict[str, Any]]
    stacked: bool = True


@dataclass(frozen=True)
class Draw:
    """What the inputs of one call are drawn from: they move smoothly from step to step."""

    step: int
    branch: str
    batch: int

    @property
    def time(self) -> float:
        """From 1 (noise) down to 1 / STEPS."""
        return 1.0 - self.step / STEPS

    def times(self, scale: float = 1.0) -> Tensor:
        return torch.full((self.batch,), scale * self.time)

    def labels(self, null: int) -> Tensor:
        return (
            torch.full((self.batch,), null) if self.branch == "uncond" else torch.arange(self.batch)
        )

    def sample(self, *shape: int) -> Tensor:
        """(B, *shape) between noise and data, each row from a seed of its own."""
        data, noise = (self.rows(shape, seed) for seed in (1000, 2000))
        return (1 - self.time) * data + self.time * noise

    def text(self, *shape: int) -> Tensor:
        """(B, *shape), other for the other branch."""
        return self.rows(shape, 3000 + 500 * BRANCHES.index(self.branch))

    def rows(self, shape: tuple[int, ...], seed: int) -> Tensor:
        made = [torch.Generator().manual_seed(seed + row) for row in range(self.batch)]
        return torch.stack([torch.randn(shape, generator=each) for each in made])


def network(name: str, **config: Any) -> nn.Module:
    """The tiny network, or a variant of it with other settings."""
    return built(TINY[name], **config)


def built(tiny: Tiny, **config: Any) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(7)
        module = getattr(diffusers, tiny.cls)(**{**tiny.config, **config})
        for parameter in module.parameters():  # many start at zero, gates and last layers
            wide = parameter.shape[1:].numel() if parameter.ndim > 1 else 10
            nn.init.normal_(parameter, std=wide**-0.5)
    return module.eval().requires_grad_(False)


def inputs(name: str, step: int = 0, branch: str = "cond", batch: int = 2) -> dict[str, Any]:
    """The keyword arguments of one call; `return_dict` is False, so the output is a tuple."""
    return {**TINY[name].call(Draw(step, branch, batch)), "return_dict": False}


def _dit(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(2, 8, 8),
        "timestep": d.times(999).long(),
        "class_labels": d.labels(10),
    }


def _unet(d: Draw) -> dict[str, Any]:
    return {"sample": d.sample(2, 8, 8), "timestep": d.times(999), "class_labels": d.labels(10)}


def _unet_condition(d: Draw) -> dict[str, Any]:
    text = d.text(5, 12)
    return {"sample": d.sample(2, 8, 8), "timestep": d.times(999), "encoder_hidden_states": text}


def _pixart(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(2, 8, 8),
        "timestep": d.times(999),
        "encoder_hidden_states": d.text(5, 12),
        "encoder_attention_mask": torch.ones(d.batch, 5),
    }


def _sd3(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(2, 8, 8),
        "timestep": d.times(1000),
        "encoder_hidden_states": d.text(5, 12),
        "pooled_projections": d.text(10),
    }


def _flux(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(16, 4),
        "timestep": d.times(),
        "encoder_hidden_states": d.text(5, 12),
        "pooled_projections": d.text(10),
        "img_ids": _grid(4, 4, axes=3),
        "txt_ids": torch.zeros(5, 3),
    }


def _flux_2(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(16, 4),
        "timestep": d.times(),
        "encoder_hidden_states": d.text(5, 12),
        "guidance": torch.full((d.batch,), 3.5),
        "img_ids": _grid(4, 4, axes=4),
        "txt_ids": torch.zeros(5, 4),
    }


def _sana(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(4, 6, 6),
        "timestep": d.times(1000),
        "encoder_hidden_states": d.text(5, 12),
        "encoder_attention_mask": torch.ones(d.batch, 5),
    }


def _qwen(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(16, 4),
        "timestep": d.times(),
        "encoder_hidden_states": d.text(5, 12),
        "encoder_hidden_states_mask": torch.ones(d.batch, 5, dtype=torch.long),
        "img_shapes": [[(1, 4, 4)]] * d.batch,
    }


def _lumina_2(d: Draw) -> dict[str, Any]:
    mask = torch.ones(d.batch, 5, dtype=torch.bool)
    mask[0, 4:] = False  # rows of different length
    return {
        "hidden_states": d.sample(4, 8, 8),
        "timestep": 1 - d.times(),
        "encoder_hidden_states": d.text(5, 12),
        "encoder_attention_mask": mask,
    }


def _wan(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(4, 2, 8, 8),
        "timestep": d.times(1000),
        "encoder_hidden_states": d.text(5, 12),
    }


def _ltx(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(32, 4),
        "timestep": d.times(1000),
        "encoder_hidden_states": d.text(5, 12),
        "encoder_attention_mask": torch.ones(d.batch, 5, dtype=torch.bool),
        "num_frames": 2,
        "height": 4,
        "width": 4,
    }


def _cogvideox(d: Draw) -> dict[str, Any]:
    return {
        "hidden_states": d.sample(2, 4, 8, 8),
        "timestep": d.times(999).long(),
        "encoder_hidden_states": d.text(5, 12),
    }


def _hunyuan(d: Draw) -> dict[str, Any]:
    mask = torch.ones(d.batch, 5, dtype=torch.bool)
    mask[0, 4:] = False
    return {
        "hidden_states": d.sample(4, 2, 8, 8),
        "timestep": d.times(1000),
        "encoder_hidden_states": d.text(5, 12),
        "encoder_attention_mask": mask,
        "pooled_projections": d.text(10),
        "guidance": torch.full((d.batch,), 6000.0),
    }


def _grid(height: int, width: int, axes: int) -> Tensor:
    """(height * width, axes): position ids, (0, row, column, 0...)."""
    ids = torch.zeros(height, width, axes)
    ids[..., 1] = torch.arange(height)[:, None]
    ids[..., 2] = torch.arange(width)[None]
    return ids.reshape(-1, axes)


IMAGE = {"sample_size": 8, "patch_size": 2}
TINY = {
    "dit": Tiny(
        "DiTTransformer2DModel",
        {**HEADS, **IMAGE, "in_channels": 2, "num_layers": 4, "num_embeds_ada_norm": 10},
        _dit,
    ),
    "pixart": Tiny(
        "PixArtTransformer2DModel",
        {**HEADS, **IMAGE, "in_channels": 2, "out_channels": 4, "num_layers": 3}
        | {"cross_attention_dim": 16, "caption_channels": 12},
        _pixart,
    ),
    "sd3": Tiny(
        "SD3Transformer2DModel",
        {**HEADS, **IMAGE, "in_channels": 2, "out_channels": 2, "num_layers": 3}
        | {"joint_attention_dim": 12, "caption_projection_dim": 16, "pooled_projection_dim": 10}
        | {"pos_embed_max_size": 8, "dual_attention_layers": (0,), "qk_norm": "rms_norm"},
        _sd3,
    ),
    "flux": Tiny(
        "FluxTransformer2DModel",
        {**HEADS, "in_channels": 4, "num_layers": 2, "num_single_layers": 2}
        | {"joint_attention_dim": 12, "pooled_projection_dim": 10, "axes_dims_rope": (2, 2, 4)},
        _flux,
    ),
    "flux2": Tiny(
        "Flux2Transformer2DModel",
        {**HEADS, "in_channels": 4, "num_layers": 2, "num_single_layers": 2}
        | {"joint_attention_dim": 12, "axes_dims_rope": (2, 2, 2, 2)},
        _flux_2,
    ),
    "sana": Tiny(
        "SanaTransformer2DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 3, "sample_size": 6}
        | {"num_cross_attention_heads": 2, "cross_attention_head_dim": 8}
        | {"cross_attention_dim": 16, "caption_channels": 12},
        _sana,
    ),
    "qwen": Tiny(
        "QwenImageTransformer2DModel",
        {**HEADS, "in_channels": 4, "out_channels": 1, "num_layers": 3}
        | {"joint_attention_dim": 12, "axes_dims_rope": (2, 2, 4)},
        _qwen,
    ),
    "lumina2": Tiny(
        "Lumina2Transformer2DModel",
        {"sample_size": 8, "in_channels": 4, "hidden_size": 16, "num_layers": 3}
        | {"num_refiner_layers": 1, "num_attention_heads": 2, "num_kv_heads": 1}
        | {"multiple_of": 8, "axes_dim_rope": (4, 2, 2), "axes_lens": (8, 8, 8)}
        | {"cap_feat_dim": 12},
        _lumina_2,
    ),
    "wan": Tiny(
        "WanTransformer3DModel",
        {**HEADS, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4, "text_dim": 12}
        | {"freq_dim": 16, "ffn_dim": 32, "num_layers": 3, "rope_max_seq_len": 16},
        _wan,
    ),
    "ltx": Tiny(
        "LTXVideoTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 3}
        | {"cross_attention_dim": 16, "caption_channels": 12},
        _ltx,
    ),
    "cogvideox": Tiny(
        "CogVideoXTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 3, "time_embed_dim": 8}
        | {"text_embed_dim": 12, "sample_width": 8, "sample_height": 8, "sample_frames": 5}
        | {"max_text_seq_length": 5},
        _cogvideox,
    ),
    "hunyuan": Tiny(
        "HunyuanVideoTransformer3DModel",
        {**HEADS, "in_channels": 4, "out_channels": 4, "num_layers": 2, "num_single_layers": 2}
        | {"num_refiner_layers": 1, "text_embed_dim": 12, "pooled_projection_dim": 10}
        | {"rope_axes_dim": (2, 2, 4)},
        _hunyuan,
    ),
    "unet": Tiny(
        "UNet2DModel",
        {"sample_size": 8, "in_channels": 2, "out_channels": 2, "layers_per_block": 2}
        | {"block_out_channels": (8, 16, 16), "norm_num_groups": 4, "attention_head_dim": 8}
        | {"down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D")}
        | {"up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D")}
        | {"num_class_embeds": 11},
        _unet,
        stacked=False,
    ),
    "unet-condition": Tiny(
        "UNet2DConditionModel",
        {"sample_size": 8, "in_channels": 2, "out_channels": 2, "layers_per_block": 2}
        | {"block_out_channels": (8, 16, 16), "norm_num_groups": 4, "attention_head_dim": 8}
        | {"down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D")}
        | {"up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")}
        | {"cross_attention_dim": 12},
        _unet_condition,
        stacked=False,
    ),
}
STACKED = tuple(name for name, tiny in TINY.items() if tiny.stacked)
UNETS = tuple(name for name, tiny in TINY.items() if not tiny.stacked)


@contextmanager
def fused(network: Any, scale: float = 1.2) -> Iterator[None]:
    """Scales one layer of a network with `to_q`, as a fused LoRA changes it, and undoes that."""
    layer = next(m for name, m in network.module.named_modules() if name.endswith("to_q"))
    known = layer.weight.detach().clone()
    with torch.no_grad():
        layer.weight.mul_(scale)
        try:
            yield
        finally:
            layer.weight.copy_(known)
