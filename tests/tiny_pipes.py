"""Tiny diffusers pipelines of every family: random networks, no text encoder, latents out.

pipe = pipeline("flux")                       # with the scheduler its checkpoints have
x = call("flux", pipe, num_inference_steps=4)  # (B, *), from the noise of a fixed seed
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import tiny
import torch

from fewstep import SolverScheduler

STABLE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
DYNAMIC = {"use_dynamic_shifting": True, "shift": 3.0}


@dataclass(frozen=True)
class Pipe:
    """cls: the pipeline. net: of `tiny`, or a function. scheduler: its class and settings.

    call: arguments of a call. parts: components; those not named are None.
    """

    cls: str
    net: str
    scheduler: tuple[str, dict[str, Any]]
    call: dict[str, Any]
    parts: Callable[[], dict[str, Any]] = dict
    config: dict[str, Any] = field(default_factory=dict)
    slot: str = "transformer"


def text(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def scheduler_of(cls: str, settings: dict[str, Any]) -> Any:
    """A scheduler as `from_pretrained` makes it: its config says its class."""
    return getattr(diffusers, cls).from_config({"_class_name": cls, **settings})


def pipeline(name: str, **parts: Any) -> Any:
    pipe = PIPES[name]
    cls = getattr(diffusers, pipe.cls)
    settings = dict.fromkeys(cls._get_signature_keys(cls)[0])
    made = scheduler_of(*pipe.scheduler)
    optional = {"requires_safety_checker"} & set(cls._get_signature_keys(cls)[1])
    net = (tiny.TINY | NETS)[pipe.net]
    given = {pipe.slot: tiny.built(net, **pipe.config), "scheduler": made, **pipe.parts()}
    built = cls(**{**settings, **dict.fromkeys(optional, False), **given, **parts})
    built.set_progress_bar_config(disable=True)
    return built


def call(name: str, pipe: Any, seed: int = 0, **own: Any) -> torch.Tensor:
    arguments = {"generator": torch.Generator().manual_seed(seed), **PIPES[name].call, **own}
    return pipe(**arguments, return_dict=False)[0]


def vae(channels: int = 2) -> dict[str, Any]:
    own = {"latent_channels": channels, "shift_factor": 0.1, "sample_size": 16}
    return {"vae": _coder("AutoencoderKL", **IMAGES, **own)}


def movq() -> dict[str, Any]:
    return {"movq": _coder("VQModel", **IMAGES, latent_channels=4, num_vq_embeddings=8)}


def wan_vae() -> dict[str, Any]:
    own = {"base_dim": 4, "z_dim": 4, "dim_mult": [1] * 4, "num_res_blocks": 1}
    scale = {"latents_mean": [0.1] * 4, "latents_std": [1.5] * 4}
    return {"vae": _coder("AutoencoderKLWan", **own, **scale)}


def ltx_vae() -> dict[str, Any]:
    own = dict.fromkeys(("block_out_channels", "decoder_block_out_channels"), (4,) * 4)
    own |= dict.fromkeys(("layers_per_block", "decoder_layers_per_block"), (1,) * 5)
    return {"vae": _coder("AutoencoderKLLTXVideo", latent_channels=4, **own)}


IMAGES = {
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": (4, 4),
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
    "norm_num_groups": 2,
}


def _coder(cls: str, **config: Any) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return getattr(diffusers, cls)(**config).eval()


def _image(size: int = 16) -> torch.Tensor:
    return torch.rand(1, 3, size, size, generator=torch.Generator().manual_seed(5))


def _texts(*masks: str, pooled: str = "") -> dict[str, Any]:
    """Embeddings of a prompt and of none, with masks and pooled ones as named."""
    found = {"prompt_embeds": text(1, 5, 12), "negative_prompt_embeds": text(1, 5, 12, seed=1)}
    found |= {name: torch.ones(1, 5, dtype=torch.long) for name in masks}
    if pooled:
        found |= {pooled: text(1, 10, seed=2), f"negative_{pooled}": text(1, 10, seed=3)}
    return found


LATENT = {"output_type": "latent"}
SIZE = {"height": 64, "width": 64} | LATENT
MASKS = ("prompt_attention_mask", "negative_prompt_attention_mask")
POOLED = "pooled_prompt_embeds"
SMALL = {"height": 16, "width": 16, "guidance_scale": 3.0} | LATENT
SD = _texts() | SMALL
LEADING = {"timestep_spacing": "leading", "steps_offset": 1}
PNDM = ("PNDMScheduler", STABLE | {"skip_prk_steps": True, "steps_offset": 1})
V = ("DDIMScheduler", STABLE | {"prediction_type": "v_prediction", "clip_sample": False})
DPM = ("DPMSolverMultistepScheduler", {"beta_schedule": "linear", "beta_end": 0.02})
SHIFTED = ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
FLUX = ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift": 3.0})
COG = (
    "CogVideoXDDIMScheduler",
    {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
    | {"snr_shift_scale": 3.0, "timestep_spacing": "trailing", "clip_sample": False},
)
UNIPC = (
    "UniPCMultistepScheduler",
    {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
)
LTX = ("FlowMatchEulerDiscreteScheduler", {"use_dynamic_shifting": True, "shift_terminal": 0.1})
FLOW_TEXT = {"prompt_embeds": text(1, 5, 12), POOLED: text(1, 10, seed=2)}
XL = {"addition_embed_type": "text_time", "addition_time_embed_dim": 8}
PIPES = {
    "sd": Pipe("StableDiffusionPipeline", "unet-condition", PNDM, SD, vae, slot="unet"),
    "sd-v": Pipe("StableDiffusionPipeline", "unet-condition", V, SD, vae, slot="unet"),
    "sd-img2img": Pipe(
        "StableDiffusionImg2ImgPipeline",
        "unet-condition",
        PNDM,
        _texts() | LATENT | {"image": _image(), "strength": 0.5},
        vae,
        slot="unet",
    ),
    "sd-inpaint": Pipe(
        "StableDiffusionInpaintPipeline",
        "unet-condition",
        PNDM,
        SD | {"image": _image(), "mask_image": (_image()[:, :1] > 0.5).float(), "strength": 1.0},
        lambda: vae(4),
        {"in_channels": 4, "out_channels": 4},
        slot="unet",
    ),
    "sdxl": Pipe(
        "StableDiffusionXLPipeline",
        "unet-condition",
        ("EulerDiscreteScheduler", STABLE),
        _texts(pooled=POOLED) | SMALL,
        vae,
        XL | {"projection_class_embeddings_input_dim": 58},
        slot="unet",
    ),
    "latent-upscale": Pipe(
        "StableDiffusionLatentUpscalePipeline",
        "unet-condition",
        ("EulerDiscreteScheduler", STABLE | {"prediction_type": "sample", **LEADING}),
        _texts(pooled=POOLED)
        | {"prompt": None, "image": text(1, 4, 4, 4, seed=6), "guidance_scale": 3.0}
        | LATENT,
        lambda: vae(4),
        {"in_channels": 8, "out_channels": 5, "time_cond_proj_dim": 138},
        slot="unet",
    ),
    "sd3": Pipe("StableDiffusion3Pipeline", "sd3", SHIFTED, _texts(pooled=POOLED) | SIZE),
    "flux": Pipe("FluxPipeline", "flux", FLUX, FLOW_TEXT | SIZE, config={"guidance_embeds": True}),
    "flux-img2img": Pipe(
        "FluxImg2ImgPipeline",
        "flux",
        FLUX,
        FLOW_TEXT | {"image": _image(16), "strength": 0.5, "height": 16, "width": 16} | LATENT,
        lambda: vae(1),
        {"guidance_embeds": True},
    ),
    "flux-fill": Pipe(
        "FluxFillPipeline",
        "flux",
        FLUX,
        FLOW_TEXT
        | {"image": _image(16), "mask_image": (_image(16)[:, :1] > 0.5).float()}
        | {"height": 16, "width": 16, "strength": 1.0}
        | LATENT,
        lambda: vae(1),
        {"guidance_embeds": True, "in_channels": 24, "out_channels": 4},
    ),
    "flux2": Pipe("Flux2Pipeline", "flux2", FLUX, {"prompt_embeds": text(1, 5, 12)} | SIZE),
    "pixart": Pipe(
        "PixArtSigmaPipeline",
        "pixart",
        DPM,
        _texts(*MASKS) | SIZE | {"negative_prompt": None, "use_resolution_binning": False},
    ),
    "sana": Pipe(
        "SanaPipeline",
        "sana",
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        _texts(*MASKS)
        | {"height": 192, "width": 192, "use_resolution_binning": False}
        | {"negative_prompt": None}
        | LATENT,
    ),
    "dit": Pipe(
        "DiTPipeline",
        "dit",
        ("DDIMScheduler", {"clip_sample": False}),
        {"class_labels": [3], "output_type": "np"},
        vae,
        {"num_embeds_ada_norm": 1000, "out_channels": 4},
    ),
    "lumina2": Pipe("Lumina2Pipeline", "lumina2", FLUX, _texts(*MASKS, pooled="") | SIZE),
    "qwen": Pipe(
        "QwenImagePipeline",
        "qwen",
        FLUX,
        _texts("prompt_embeds_mask", "negative_prompt_embeds_mask") | SIZE,
    ),
    "wan": Pipe("WanPipeline", "wan", UNIPC, _texts() | SIZE | {"num_frames": 5}),
    "ltx": Pipe(
        "LTXPipeline",
        "ltx",
        LTX,
        _texts(*MASKS) | {"height": 128, "width": 128, "num_frames": 9} | LATENT,
    ),
    "cogvideox": Pipe("CogVideoXPipeline", "cogvideox", COG, _texts() | SIZE | {"num_frames": 5}),
    "hunyuan": Pipe(
        "HunyuanVideoPipeline",
        "hunyuan",
        SHIFTED,
        FLOW_TEXT | {"prompt_attention_mask": torch.ones(1, 5)} | SIZE | {"num_frames": 5},
        config={"guidance_embeds": True},
    ),
    "aura": Pipe(
        "AuraFlowPipeline", "aura", SHIFTED, _texts(*MASKS) | SIZE | {"negative_prompt": None}
    ),
    "wan-v2v": Pipe(
        "WanVideoToVideoPipeline",
        "wan",
        UNIPC,
        _texts() | SIZE | {"video": list(text(5, 3, 64, 64).sigmoid()), "strength": 0.5},
        wan_vae,
    ),
    "ltx-condition": Pipe(
        "LTXConditionPipeline",
        "ltx",
        ("FlowMatchEulerDiscreteScheduler", {"shift": 1.0}),
        _texts(*MASKS)
        | {"height": 128, "width": 128, "num_frames": 9, "denoise_strength": 0.5}
        | {"latents": text(1, 4, 2, 4, 4, seed=5)}
        | LATENT,
        ltx_vae,
    ),
    "animatediff-v2v": Pipe(
        "AnimateDiffVideoToVideoPipeline",
        "motion",
        PNDM,
        _texts()
        | {"video": [list(text(4, 3, 16, 16).sigmoid())], "strength": 0.5, "guidance_scale": 3.0}
        | {"enforce_inference_steps": False}
        | LATENT,
        vae,
        slot="unet",
    ),
    "kandinsky-img2img": Pipe(
        "KandinskyV22Img2ImgPipeline",
        "kandinsky",
        ("DDPMScheduler", {"beta_schedule": "linear", "beta_start": 0.00085, "beta_end": 0.012}),
        {"image": _image(64), "strength": 0.5, "height": 64, "width": 64, "guidance_scale": 3.0}
        | {"image_embeds": text(1, 10), "negative_image_embeds": text(1, 10, seed=1)}
        | LATENT,
        movq,
        slot="unet",
    ),
    "ddpm": Pipe(
        "DDPMPipeline",
        "unet",
        ("DDPMScheduler", {"clip_sample": False}),
        {"batch_size": 2, "output_type": "np"},
        config={"num_class_embeds": None},
        slot="unet",
    ),
}
AURA = {**tiny.HEADS, "sample_size": 8, "patch_size": 2, "in_channels": 2, "out_channels": 2}
AURA |= {"num_mmdit_layers": 1, "num_single_dit_layers": 1, "joint_attention_dim": 12}
AURA |= {"caption_projection_dim": 16, "pos_embed_max_size": 64}
MOTION = {"sample_size": 8, "in_channels": 2, "out_channels": 2, "layers_per_block": 1}
MOTION |= {"block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": 12}
MOTION |= {"down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion")}
MOTION |= {"up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"), "num_attention_heads": 2}
MOTION |= {"motion_num_attention_heads": 2, "motion_max_seq_length": 8}
KANDINSKY = {"sample_size": 8, "in_channels": 4, "out_channels": 8, "layers_per_block": 1}
KANDINSKY |= {"block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": 12}
KANDINSKY |= {"down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D")}
KANDINSKY |= {"up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D")}
KANDINSKY |= {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn", "attention_head_dim": 8}
KANDINSKY |= {"addition_embed_type": "image", "encoder_hid_dim_type": "image_proj"}
KANDINSKY |= {"encoder_hid_dim": 10, "resnet_time_scale_shift": "scale_shift"}
NETS = {
    "aura": tiny.Tiny("AuraFlowTransformer2DModel", AURA, dict),
    "motion": tiny.Tiny("UNetMotionModel", MOTION, dict),
    "kandinsky": tiny.Tiny("UNet2DConditionModel", KANDINSKY, dict),
}


DDIM = ("DDIMScheduler", STABLE | {"clip_sample": False, "timestep_spacing": "trailing"})
SCHEDULERS = {  # of diffusers, where ours has the same solver; else SHIFTED and euler
    **dict.fromkeys(("sd", "sd-img2img", "sd-inpaint", "sdxl", "pixart", "dit", "ddpm"), DDIM),
    **dict.fromkeys(("animatediff-v2v", "kandinsky-img2img"), DDIM),
    "sd-v": (DDIM[0], DDIM[1] | {"prediction_type": "v_prediction"}),
    "cogvideox": PIPES["cogvideox"].scheduler,
    **dict.fromkeys(("wan", "wan-v2v"), SHIFTED),
}


def reference(name: str) -> Any:
    """A scheduler of diffusers whose solver is one of ours."""
    cls, settings = SCHEDULERS.get(name, PIPES[name].scheduler)
    return scheduler_of(cls, settings)


def ours_like(planned: Any) -> Any:
    """Ours with the solver of such a scheduler and the grid of its last run."""
    flow = isinstance(planned, diffusers.FlowMatchEulerDiscreteScheduler)
    own: dict[str, Any] = {"solver": "euler" if flow else "ddim"}
    listed = planned.config.get("use_dynamic_shifting") or planned.config.get("shift") == 1.0
    if not listed:  # else the pipeline lists the times itself
        own["grid"] = times_of(planned)
    return SolverScheduler.from_config(planned.config, **own)


def times_of(scheduler: Any) -> list[float]:
    """Where a reference's steps begin, as times of our schedule, and the end."""
    labels = scheduler.timesteps.double().tolist()
    if isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
        taus, k = [label / 1000 for label in labels], scheduler.config.shift
        return [*(tau / (k - (k - 1) * tau) for tau in taus), 0.0]
    return [*((label + 1) / 1000 for label in labels), 0.0]
