"""The recipes: of the networks that come with the package, and of a zoo of small ones."""

import math
from dataclasses import replace
from typing import Any

from .recipe import Recipe, Times

Fields = dict[str, Any]

# Data.

DIGITS = tuple("0123456789")
GARMENTS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag")
GROUPS = ("activities", "animals", "flags", "food", "objects", "people", "smileys", "symbols")
FASHION: Fields = {
    "data": "fashion-mnist-32",
    "shape": (1, 32, 32),
    "classes": (*GARMENTS, "ankle boot"),
    "unmirrored": ("sandal", "sneaker", "ankle boot"),
}
MNIST: Fields = {"data": "mnist", "shape": (1, 28, 28), "classes": DIGITS, "unmirrored": DIGITS}
EMOJI: Fields = {
    "data": {"emoji": 1.0, "emoji:tones": 0.35},
    "balance": 0.5,
    "shape": (3, 32, 32),
    "classes": (*GROUPS, "travel"),
    "unmirrored": ("flags", "symbols"),
}

# Networks.


def unet(*channels: int) -> Fields:
    """A UNet of three levels, with attention at the last."""
    config = {
        "block_out_channels": list(channels),
        "layers_per_block": 1,
        "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
        "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
        "attention_head_dim": 16,
        "norm_num_groups": 8,
    }
    return {"model": "UNet2DModel", "config": config}


def dit(layers: int, heads: int) -> Fields:
    """A transformer on patches of 4x4 pixels, 32 wide for each head."""
    config = {"num_layers": layers, "num_attention_heads": heads, "attention_head_dim": 32}
    return {"model": "DiTTransformer2DModel", "config": config | {"patch_size": 4}}


TINY_UNET, SMALL_DIT = unet(16, 32, 64), dit(layers=4, heads=3)

# Processes, what is predicted, and when.


def process(family: str, prediction: str, *times: Times, **params: Any) -> Fields:
    schedule = {"family": family, "params": params}
    return {"schedule": schedule, "prediction": prediction, "times": times}


UNIFORM = Times("uniform")
# A logit-normal law alone almost never asks near the data, and the samples stay grainy.
TO_THE_DATA = (
    Times("logit-normal", share=0.5),
    Times("uniform", share=0.3),
    Times("log-uniform", (0.002, 0.5), share=0.2),
)
STRAIGHT: Fields = {"shift": 1.0, "time_scale": 1000.0}
FLOW = process("flow", "flow", *TO_THE_DATA, **STRAIGHT)
FLOW_UNIFORM = process("flow", "flow", UNIFORM, **STRAIGHT)
LINEAR_BETAS: Fields = {"beta_schedule": "linear", "beta_start": 0.0001, "beta_end": 0.02}
EPS = process("vp", "eps", Times("steps"), **LINEAR_BETAS, num_train_timesteps=1000)
EPS_CONTINUOUS = process("vp-linear", "eps", UNIFORM, time_scale=999.0)
COSINE_BETAS: Fields = {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 1000}
V = process("vp", "v", Times("steps"), **COSINE_BETAS)
V_CONTINUOUS = process("vp-cosine", "v", UNIFORM, time_scale=1000.0)
SIGMAS: Fields = {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}
LN_SIGMA: Fields = {"time_label": "c_noise", "time_scale": 1000.0}  # 250 ln(sigma)
EDM = process("edm", "edm", Times("log-normal", (-1.0, 1.3)), **SIGMAS, **LN_SIGMA)

NEAR = (0.01, 0.5)  # sigma / alpha where a tint is seen

# The recipes. Those of the zoo take ten minutes of one core, where small layers gain nothing from
# bf16.

EMBEDDED = (
    Recipe(name="fashion-dit", **FASHION, **dit(layers=6, heads=4), **FLOW),
    Recipe(name="fashion-unet", **FASHION, **unet(32, 64, 64), **EPS, rate=1.5e-3),
    Recipe(name="fashion-edm", **FASHION, **unet(32, 64, 64), **EDM, rate=1.2e-3),
    Recipe(name="emoji", **EMOJI, **unet(32, 64, 96), **FLOW, rate=1.5e-3, warmup=300),
)
SHORT: Fields = {"batch": 32, "rate": 1.5e-3, "bf16": False}
ZOO = (
    Recipe(name="zoo-mnist-flow", **MNIST, **TINY_UNET, **FLOW_UNIFORM, **SHORT, conditional=False),
    Recipe(name="zoo-mnist-v", **MNIST, **SMALL_DIT, **V, **SHORT),
    Recipe(
        name="zoo-mnist-eps", **MNIST, **TINY_UNET, **EPS_CONTINUOUS, **SHORT, conditional=False
    ),
    Recipe(name="zoo-fashion-flow", **FASHION, **SMALL_DIT, **FLOW, **SHORT),
    Recipe(
        name="zoo-emoji-v", **EMOJI, **unet(32, 64, 96), **V_CONTINUOUS, **SHORT | {"rate": 5e-4}
    ),
    Recipe(name="zoo-fashion-edm", **FASHION, **TINY_UNET, **EDM, **SHORT),
)


def finish(recipe: Recipe) -> Recipe:
    """Returns how a trained network is trained on, so that it leaves no tint on a background.

    Half of the times are near the data, and the noise has a tint.
    """
    low, high = (recipe.process.at_lam(-math.log(ratio)).t for ratio in NEAR)
    near = Times("log-uniform", (low, high), share=sum(law.share for law in recipe.times))
    times, ema = (*recipe.times, near), min(recipe.ema, 0.99)
    return replace(recipe, times=times, tint=0.03, rate=3e-4, warmup=50, ema=ema)


RECIPES = {recipe.name: recipe for recipe in (*EMBEDDED, *ZOO)}
