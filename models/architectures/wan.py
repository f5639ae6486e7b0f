"""WanTransformer3DModel: text to video; samples stay latents, as there is no picture of them."""

from dataclasses import replace

from .base import (
    TWO_CALLS,
    Architecture,
    BlockGroup,
    BlockStructure,
    PublishedCalibration,
    SelfAttention,
)
from .common import PLAIN_TEXT, video_shape

WAN = Architecture(
    classes=("WanTransformer3DModel",),
    same_blocks=("ChronoEditTransformer3DModel", "SkyReelsV2Transformer3DModel"),
    blocks=BlockStructure(
        groups=(BlockGroup("blocks"),),
        modules=(r"blocks\.\d+\.(attn1|attn2|ffn)",),
        signal="condition_embedder.time_embedder",
    ),
    attention=SelfAttention(r"blocks\.\d+\.attn1", perturbable=True),
    calibrations=(
        PublishedCalibration(
            "wan2.1-t2v-1.3b",
            {"num_layers": 30, "in_channels": 16},
            (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774),
        ),
        PublishedCalibration(
            "wan2.1-t2v-14b",
            {"num_layers": 40, "in_channels": 16},
            (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
        ),
        PublishedCalibration(
            "wan2.1-i2v-14b-480p",
            {"num_layers": 40, "in_channels": 36},
            (-302.33167, 223.948934, -52.546397, 5.8734844, -0.201973289),
        ),
        PublishedCalibration(
            "wan2.1-i2v-14b-720p",
            {"num_layers": 40, "in_channels": 36},
            (-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683),
        ),
    ),
    prompted=(replace(PLAIN_TEXT, shape=video_shape, images=False),),
    pipelines={"WanPipeline": TWO_CALLS},
    modular=True,
)
