"""CogVideoXTransformer3DModel without rotary embeddings (2B); samples (F, C, H, W) stay latents."""

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..errors import ModelError
from .base import (
    IMAGE,
    ONE_CALL,
    TEXT,
    Architecture,
    Arguments,
    BlockGroup,
    BlockStructure,
    PublishedCalibration,
    SelfAttention,
    Size,
)
from .common import BLOCKS, PLAIN_TEXT, module_of, video_shape


def _shape(pipe: Any, size: Size) -> tuple[int, int, int, int]:
    config = module_of(pipe).config
    if config.get("use_rotary_positional_embeddings") or config.get("patch_size_t") is not None:
        raise ModelError(
            "CogVideoX 5B and 1.5 have rotary embeddings, which their pipeline makes; put a"
            " SolverScheduler in it instead"
        )
    channels, frames, height, width = video_shape(pipe, size)
    return frames, channels, height, width


def _time_embedding(_: Any, arguments: Arguments) -> Tensor:
    """Returns the time embedding itself, to which the published coefficients were fitted."""
    temb: Tensor = arguments["temb"]
    return temb


COGVIDEOX = Architecture(
    classes=("CogVideoXTransformer3DModel",),
    same_blocks=("ConsisIDTransformer3DModel",),
    frames_first=True,
    blocks=BlockStructure(
        groups=(BlockGroup(BLOCKS, (IMAGE, TEXT)),),
        modules=(rf"{BLOCKS}\.\d+\.(attn1|ff)",),
        signal=_time_embedding,
    ),
    attention=SelfAttention(rf"{BLOCKS}\.\d+\.attn1", text=True),
    calibrations=(
        PublishedCalibration(
            "cogvideox-2b",
            {"num_layers": 30, "use_rotary_positional_embeddings": False},
            (-31.0658903, 25.4732368, -5.92380459, 1.75769064, -0.00361568434),
        ),
        PublishedCalibration(
            "cogvideox-5b",
            {"num_layers": 42, "patch_size_t": None},
            (-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339),
        ),
        PublishedCalibration(
            "cogvideox1.5-5b",
            {"num_layers": 42, "patch_size_t": 2, "in_channels": 16},
            (250.210439, -165.061612, 35.7804877, -0.781551492, 0.0358559703),
        ),
        PublishedCalibration(
            "cogvideox1.5-5b-i2v",
            {"num_layers": 42, "patch_size_t": 2, "in_channels": 32},
            (122.842302, -104.088754, 26.2981677, -0.306009921, 0.037121322),
        ),
    ),
    prompted=(replace(PLAIN_TEXT, shape=_shape, images=False),),
    pipelines={"CogVideoXPipeline": ONE_CALL},
)
