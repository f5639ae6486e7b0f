"""The recipes of the networks that come with the package."""

from functools import partial

from .recipe import Recipe, Times

GARMENTS = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag")
GARMENTS = (*GARMENTS, "ankle boot")
THINGS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

VP = {
    "family": "vp",
    "params": {
        "beta_schedule": "linear",
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "num_train_timesteps": 1000,
    },
}
FLOW = {"family": "flow", "params": {"shift": 1.0, "time_scale": 1000.0}}
EDM = {"family": "edm", "params": {"sigma_min": 0.002, "sigma_max": 80.0, "sigma_data": 0.5}}

UNET = {
    "block_out_channels": [64, 128, 128],
    "layers_per_block": 2,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 32,
    "norm_num_groups": 8,
}
SMALL_UNET = {
    "block_out_channels": [32, 64, 64],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"],
    "attention_head_dim": 16,
    "norm_num_groups": 8,
}
DIT = {"num_attention_heads": 3, "attention_head_dim": 64, "num_layers": 10, "patch_size": 2}
SMALL_DIT = {"num_attention_heads": 4, "attention_head_dim": 32, "num_layers": 6, "patch_size": 4}

UNET_ZEROS = ("conv_out", "*.conv2", "*.to_out.0")
DIT_ZEROS = ("proj_out_2", "*.norm1.linear")  # adaLN-Zero (arXiv:2212.09748, sec. 3.2)

colour = partial(Recipe, data="cifar10", shape=(3, 32, 32), classes=THINGS)
grey = partial(
    Recipe,
    data="fashion-mnist-32",
    shape=(1, 32, 32),
    classes=GARMENTS,
    unmirrored=("sandal", "sneaker", "ankle boot"),
)

ALL = (
    colour(
        name="cifar-unet",
        model="UNet2DModel",
        config=UNET,
        schedule=VP,
        prediction="eps",
        times=Times("steps"),
        zeroed=UNET_ZEROS,
    ),
    colour(
        name="cifar-dit",
        model="DiTTransformer2DModel",
        config=DIT,
        schedule=FLOW,
        prediction="flow",
        times=Times("logit-normal"),
        zeroed=DIT_ZEROS,
    ),
    colour(
        name="cifar-edm",
        model="UNet2DModel",
        config=UNET | {"resnet_time_scale_shift": "scale_shift"},
        schedule=EDM,
        prediction="edm",
        times=Times("log-normal", mean=-1.2, std=1.2),
        zeroed=UNET_ZEROS,
    ),
    grey(
        name="fashion-unet",
        model="UNet2DModel",
        config=SMALL_UNET,
        schedule=VP,
        prediction="eps",
        times=Times("steps"),
        zeroed=UNET_ZEROS,
        rate=1.5e-3,
    ),
    grey(
        name="fashion-dit",
        model="DiTTransformer2DModel",
        config=SMALL_DIT,
        schedule=FLOW,
        prediction="flow",
        times=Times("logit-normal"),
        zeroed=DIT_ZEROS,
    ),
)
RECIPES = {recipe.name: recipe for recipe in ALL}
