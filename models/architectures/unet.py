"""UNet2DModel: images with or without classes."""

from .base import Architecture, SelfAttention

UNET = Architecture(
    classes=("UNet2DModel",),
    unet=True,
    attention=SelfAttention(r".*attentions\.\d+", perturbable=True),
)
