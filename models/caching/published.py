"""Calibrations that were published with a cache, for the checkpoints they were made on.

TeaCache (arXiv:2411.19108) maps the change d of its signal to the change of the output by a
polynomial of degree 4, fitted once per checkpoint: the numbers are those of the authors' code.
MagCache (arXiv:2506.09045) holds one ratio per step; those of FLUX.1 are read from diffusers.
A checkpoint is recognised by its class and the settings that tell it from its siblings. Others are
calibrated, not guessed.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from ..errors import SettingError
from ..modules import uncompiled


@dataclass(frozen=True)
class Polynomial:
    """What TeaCache was calibrated to for one checkpoint.

    name:         the checkpoint.
    cls:          its diffusers class.
    coefficients: highest degree first; it can be negative, so clamp its value at 0.
    thresholds:   published ones, from careful to fast; () where we know of none.
    config:       settings that tell it from other checkpoints of the class.
    """

    name: str
    cls: str
    coefficients: tuple[float, ...]
    thresholds: tuple[float, ...]
    config: Mapping[str, Any] = field(default_factory=dict)

    def fits(self, module: nn.Module) -> bool:
        """Whether class and settings of a network are those of the checkpoint."""
        config = getattr(module, "config", {})
        same = all(config.get(key) == value for key, value in self.config.items())
        return type(module).__name__ == self.cls and same


WAN = "WanTransformer3DModel"
COG = "CogVideoXTransformer3DModel"
POLYNOMIALS = (
    Polynomial(
        "flux.1",
        "FluxTransformer2DModel",
        (498.651651, -283.781631, 55.8554382, -3.82021401, 0.264230861),
        (0.25, 0.4, 0.6, 0.8),
        {"num_layers": 19, "num_single_layers": 38, "in_channels": 64},
    ),
    Polynomial(
        "hunyuan-video",
        "HunyuanVideoTransformer3DModel",
        (733.226126, -401.131952, 67.5869174, -3.149878, 0.0961237896),
        (0.1, 0.15),
        {"num_layers": 20, "num_single_layers": 40, "in_channels": 16},
    ),
    Polynomial(
        "ltx-video",
        "LTXVideoTransformer3DModel",
        (21.4700694, -12.8016453, 2.31279151, 0.792487521, 0.00969274326),
        (),
        {"num_layers": 28},
    ),
    Polynomial(
        "wan2.1-t2v-1.3b",
        WAN,
        (2396.76752, -1311.10545, 201.331979, -8.29855975, 0.137887774),
        (0.05, 0.08),
        {"num_layers": 30, "in_channels": 16},
    ),
    Polynomial(
        "wan2.1-t2v-14b",
        WAN,
        (-5784.54975374, 5449.50911966, -1811.16591783, 256.27178429, -13.02252404),
        (0.14, 0.2),
        {"num_layers": 40, "in_channels": 16},
    ),
    Polynomial(
        "wan2.1-i2v-14b-480p",
        WAN,
        (-302.33167, 223.948934, -52.546397, 5.8734844, -0.201973289),
        (),
        {"num_layers": 40, "in_channels": 36},
    ),
    Polynomial(
        "wan2.1-i2v-14b-720p",
        WAN,
        (-114.36346466, 65.26524496, -18.82220707, 4.91518089, -0.23412683),
        (),
        {"num_layers": 40, "in_channels": 36},
    ),
    Polynomial(
        "cogvideox-2b",
        COG,
        (-31.0658903, 25.4732368, -5.92380459, 1.75769064, -0.00361568434),
        (),
        {"num_layers": 30, "use_rotary_positional_embeddings": False},
    ),
    Polynomial(
        "cogvideox-5b",
        COG,
        (-1538.80483, 843.202495, -134.363087, 7.97131516, -0.0523162339),
        (),
        {"num_layers": 42, "patch_size_t": None},
    ),
    Polynomial(
        "cogvideox1.5-5b",
        COG,
        (250.210439, -165.061612, 35.7804877, -0.781551492, 0.0358559703),
        (),
        {"num_layers": 42, "patch_size_t": 2, "in_channels": 16},
    ),
    Polynomial(
        "cogvideox1.5-5b-i2v",
        COG,
        (122.842302, -104.088754, 26.2981677, -0.306009921, 0.037121322),
        (),
        {"num_layers": 42, "patch_size_t": 2, "in_channels": 32},
    ),
)


def teacache_coefficients(module: nn.Module) -> tuple[float, ...] | None:
    """TeaCache's polynomial for a network, highest degree first; None if none is published.

    Raises:
        SettingError: if its class and settings fit several checkpoints.
    """
    root = uncompiled(module)
    fitting = [each for each in POLYNOMIALS if each.fits(root)]
    if len(fitting) > 1:
        choices = "; ".join(f"{each.name} {list(each.coefficients)}" for each in fitting)
        raise SettingError(
            f"{type(root).__name__} with these settings may be any of {len(fitting)} checkpoints;"
            f" give the coefficients of yours: {choices}"
        )
    return fitting[0].coefficients if fitting else None


def mag_ratios(module: nn.Module) -> tuple[float, ...]:
    """MagCache's ratios for a network, one per step of the run they were measured on.

    Raises:
        SettingError: if none are published for it.
    """
    root = uncompiled(module)
    if not POLYNOMIALS[0].fits(root):  # the same checkpoints: FLUX.1, 28 steps
        raise SettingError(
            f"magcache has no ratios for this {type(root).__name__}; measure them with "
            "fewstep calibrate: they depend on the checkpoint, the scheduler and the steps"
        )
    from diffusers.hooks.mag_cache import FLUX_MAG_RATIOS

    return tuple(float(ratio) for ratio in FLUX_MAG_RATIOS)
