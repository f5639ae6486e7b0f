"""A network in a file: images of 3x32x32, drawn by a UNet. See docs/your-own-network.md.

fewstep tune own_unet.py:unet --nfe 5 --budget 3m --out unet.json
sample own_unet.py:unet --plan unet.json --seeds 0-15 --out unet.png
fewstep bench fid-nfe --model own_unet.py:unet --plan unet.json --solver unipc-2 --nfe 5 \\
    --metric fd-emoji --n 200 --store unet.jsonl
"""

from pathlib import Path

from diffusers import UNet2DModel
from safetensors.torch import load_file

import fewstep
from fewstep import RectifiedFlow, from_module

# Your checkpoint comes in here; this one draws emoji and lies in the package.
FOLDER = Path(fewstep.__file__).parent / "models/embedded/emoji"


def unet():
    """Emoji in nine classes, trained by flow matching and told 1000 t; t = 1 is noise."""
    model = UNet2DModel(
        sample_size=32,
        in_channels=3,
        out_channels=3,
        block_out_channels=(32, 64, 96),
        down_block_types=("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        layers_per_block=1,
        attention_head_dim=16,
        norm_num_groups=8,
        num_class_embeds=10,
    )
    model.load_state_dict(load_file(FOLDER / "diffusion_pytorch_model.safetensors"))
    return from_module(
        model,
        schedule=RectifiedFlow(time_scale=1000),
        prediction="flow",
        shape=(3, 32, 32),
        num_classes=9,
        null_class=9,  # the label of "no class", which guidance asks for
    )
