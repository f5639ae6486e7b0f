"""Networks of published sizes with random weights, made on the device itself: for timing alone."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...models.adapters import from_module
from ...models.denoiser import Network
from ...models.prediction import Prediction
from ...models.schedule import Node, RectifiedFlow, VPDiscrete

CLASSES = 1000


@dataclass(frozen=True)
class Sized:
    """A transformer by its size.

    name:   what it is as large as.
    layers: blocks, or (double, single) blocks of Flux.
    heads, width: attention heads and the channels of each.
    side:   latent pixels along an edge, in patches of 2 x 2: (side / 2)^2 tokens.
    text:   text tokens beside them.
    """

    name: str
    layers: tuple[int, ...]
    heads: int
    width: int
    side: int
    text: int = 0

    @property
    def tokens(self) -> int:
        return (self.side // 2) ** 2 + self.text

    def __str__(self) -> str:
        return f"{self.name}, {self.heads * self.width} channels, {self.tokens} tokens"


DIT = Sized("DiT-XL/2-sized", (28,), 16, 72, 64)
FLUX = Sized("Flux-sized", (19, 38), 24, 128, 128, 512)
TINY_DIT = Sized("tiny DiT", (6,), 2, 16, 16)
TINY_FLUX = Sized("tiny Flux", (2, 4), 2, 32, 16, 8)


def dit(size: Sized, device: torch.device, dtype: torch.dtype) -> Network:
    """Returns a class-conditional DiT that predicts eps."""
    from diffusers import DiTTransformer2DModel

    made: Any = DiTTransformer2DModel
    with make_on(device, dtype):
        module = made(
            num_attention_heads=size.heads,
            attention_head_dim=size.width,
            in_channels=4,
            out_channels=4,
            num_layers=size.layers[0],
            sample_size=size.side,
            patch_size=2,
            num_embeds_ada_norm=CLASSES,
        )
    return from_module(
        module.eval().requires_grad_(False),
        schedule=VPDiscrete(),
        prediction="eps",
        shape=(4, size.side, size.side),
        num_classes=CLASSES,
        null_class=CLASSES,
        name=size.name,
    )


def flux(size: Sized, device: torch.device, dtype: torch.dtype) -> Network:
    """Returns a Flux transformer on packed latents, with a random prompt."""
    from diffusers import FluxTransformer2DModel

    made: Any = FluxTransformer2DModel
    with make_on(device, dtype):
        module = made(
            in_channels=64,
            num_layers=size.layers[0],
            num_single_layers=size.layers[1],
            attention_head_dim=size.width,
            num_attention_heads=size.heads,
            joint_attention_dim=4096,
            pooled_projection_dim=768,
            guidance_embeds=True,
            axes_dims_rope=(size.width // 8, size.width * 7 // 16, size.width * 7 // 16),
        )
        module = module.eval().requires_grad_(False)
        prompt = {
            "encoder_hidden_states": torch.randn(1, size.text, 4096),
            "pooled_projections": torch.randn(1, 768),
            "guidance": torch.full((1,), 3.5),
            "img_ids": _places(size.side // 2),
            "txt_ids": torch.zeros(size.text, 3),
        }
    schedule = RectifiedFlow(time_scale=1)

    def forward(x: Tensor, node: Node, conditions: Mapping[str, Any]) -> Tensor:
        time = torch.full((len(x),), schedule.label(node), device=x.device)
        out = module(hidden_states=x.to(dtype), timestep=time, **prompt, return_dict=False)[0]
        return out.to(x.dtype)  # type: ignore[no-any-return]

    return Network(
        forward=forward,
        schedule=schedule,
        prediction=Prediction.FLOW,
        shape=((size.side // 2) ** 2, 64),
        device=device,
        name=size.name,
        module=module,
    )


def _places(side: int) -> Tensor:
    """Returns (side^2, 3): 0, row and column."""
    place = torch.cartesian_prod(torch.arange(side), torch.arange(side))
    return torch.cat([torch.zeros_like(place[:, :1]), place], dim=1).float()


@contextmanager
def make_on(device: torch.device, dtype: torch.dtype) -> Iterator[None]:
    """Has what is made inside on the device and in the dtype at once, the same each time."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), device:
            torch.manual_seed(0)
            yield
    finally:
        torch.set_default_dtype(before)
