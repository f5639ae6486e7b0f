"""All recipes of distilled networks; a new one is one row of `ROWS`."""

from functools import partial

from ..models.prediction import Prediction
from .recipe import (
    Recipe,
    place_by_grid,
    place_even_lam,
    place_labels,
    place_shifted,
    place_taus,
)


def _of_stable_diffusion(name: str, steps: tuple[int, ...], solver: str, **facts: object) -> Recipe:
    known = {"family": "vp", "predicts": (Prediction.EPS,), "place": TRAILING, "times": "trailing"}
    return Recipe(name=name, steps=steps, solver=solver, **{**known, **facts})  # type: ignore[arg-type]


TRAILING = partial(place_by_grid, "trailing")
OF_DMD2 = {1: (399,), 4: (999, 749, 499, 249)}
LTX = (1.0, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875)
SHIFT_3 = partial(place_shifted, 3.0)
ROWS = (
    _of_stable_diffusion(
        "sdxl-lightning", (2, 4, 8), "ddim", source="model card of ByteDance/SDXL-Lightning"
    ),
    _of_stable_diffusion(
        "sdxl-lightning-x0",
        (1,),
        "ddim",
        predicts=(Prediction.X0,),
        source="model card of ByteDance/SDXL-Lightning, which calls it experimental",
    ),
    _of_stable_diffusion(
        "sdxl-turbo", (1, 2, 3, 4), "ddpm", source="model card of stabilityai/sdxl-turbo"
    ),
    _of_stable_diffusion(
        "hyper-sd", (2, 4, 8), "ddim", source="model card of ByteDance/Hyper-SD, LoRAs of N steps"
    ),
    _of_stable_diffusion(
        "hyper-sd-unified",
        (1,),
        "tcd:gamma=1",
        place=partial(place_by_grid, "lcm"),
        times="the list of LCM",
        source="model card of ByteDance/Hyper-SD, one-step LoRA",
    ),
    _of_stable_diffusion(
        "hyper-sdxl-unet",
        (1,),
        "renoise",
        place=partial(place_labels, {1: (800,)}),
        times="800",
        source="model card of ByteDance/Hyper-SD, one-step UNet",
    ),
    _of_stable_diffusion(
        "lcm-lora",
        (4, 8),
        "lcm",
        place=partial(place_by_grid, "lcm"),
        times="the list of LCM",
        source="code of diffusers, LCMScheduler",
    ),
    _of_stable_diffusion(
        "dmd2-sdxl",
        (1, 4),
        "renoise",
        place=partial(place_labels, OF_DMD2),
        times="399; 999 749 499 249",
        source="model card of tianweiy/DMD2; its authors on the four timesteps",
    ),
    Recipe(
        name="wan2.2-lightning",
        steps=(4,),
        solver="euler",
        place=partial(place_shifted, 5.0),
        times="uniform, shift 5",
        source="its authors, in a discussion",
        uncertain="that it needs no guidance",
    ),
    Recipe(
        name="ltx-2",
        steps=(8,),
        solver="euler",
        place=partial(place_taus, {8: LTX}),
        times="a list of its own",
        source="code of LTX-2, distilled, stage 1",
    ),
    Recipe(
        name="ltx-2-upscaled",
        steps=(3,),
        solver="euler",
        place=partial(place_taus, {3: LTX[5:]}),
        times=".909375 .725 .421875",
        source="code of LTX-2, distilled, stage 2",
        inside="it begins with the upscaled latents of stage 1",
    ),
    Recipe(
        name="flux.1-schnell",
        steps=(4,),
        solver="euler",
        place=partial(place_shifted, 1.0),
        times="uniform",
        source="model card of black-forest-labs/FLUX.1-schnell",
        uncertain="that its times are not shifted",
    ),
    Recipe(
        name="flux.2-klein",
        steps=(4,),
        solver="euler",
        place=partial(place_by_grid, "uniform"),
        times="uniform, shifted as its pipeline does by the size of the image",
        source="code of diffusers, Flux2KleinPipeline",
        uncertain="the number of steps",
        inside="its pipeline computes the shift from the size of the image and the steps",
    ),
    Recipe(
        name="qwen-image-lightning",
        steps=(4, 8),
        solver="euler",
        place=SHIFT_3,
        times="uniform, shift 3, not stretched",
        guidance="off (true_cfg_scale=1)",
        source="code of lightx2v/Qwen-Image-Lightning",
    ),
    Recipe(
        name="z-image-turbo",
        steps=(8,),
        solver="euler",
        place=SHIFT_3,
        times="uniform, shift 3",
        source="model card of Tongyi-MAI/Z-Image-Turbo for 8 evaluations",
        uncertain="the shift",
    ),
    Recipe(
        name="ace-step-turbo",
        steps=(8,),
        solver="euler",
        place=SHIFT_3,
        times="uniform, shift 3",
        source="code of ACE-Step",
    ),
    Recipe(
        name="stable-audio-3",
        steps=(8,),
        solver="ping-pong",
        place=partial(place_even_lam, -6.2, 2.0),
        times="lam evenly from -6.2 to 2, the first time 1",
        source="code of Stable Audio 3",
    ),
    Recipe(
        name="sana-sprint",
        steps=(2,),
        solver="renoise",
        place=partial(place_by_grid, "scm"),
        times="angles pi/2 and 1.3",
        guidance="an input, 4.5",
        source="code of diffusers, SanaSprintPipeline",
    ),
    Recipe(
        name="anyflow",
        steps=(),
        solver="flow-map",
        place=partial(place_by_grid, "uniform"),
        times="uniform, shifted as the config says",
        source="code of diffusers, AnyFlowPipeline",
        uncertain="the shift",
    ),
)
