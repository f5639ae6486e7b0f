"""The network of a pipeline that is asked with a prompt, sampled without the pipeline.

The pipeline encodes the prompt and decodes the latent; the sampling between is ours.
"""

import inspect
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from torch import Tensor

from .adapters import decoder_of, encoder_of, make_network_time
from .architectures import architecture_of, known_classes
from .architectures.base import TEXT, Conditions, PromptAdapter, Size, fits
from .architectures.common import module_of
from .diffusers_config import class_name_of, from_scheduler_config
from .distillation import read_distillation
from .errors import ModelError, SettingError, UnknownNameError
from .experts import join_experts
from .network import Network
from .prompts import Prompts, device_of, encode
from .schedule import Node

BESIDE = ("controlnet", "adapter")  # networks that an adapter would leave out
INSTEAD = "put a SolverScheduler in the pipeline instead"
FARTHEST = 512  # pixels or frames that the next size taken lies above one that is not, at most


def prompt_adapter(pipe: Any) -> PromptAdapter | None:
    """Returns the adapter for a pipeline's network; None if there is none."""
    module = module_of(pipe)
    card = architecture_of(module, exact=True)
    adapters = () if card is None else card.prompted
    return next((each for each in adapters if fits(module, each.config)), None)


def network_of(pipe: Any, size: Size) -> Network:
    """Returns the network of a live pipeline, sampling images or videos of one size.

    Raises:
        ModelError: if there is no adapter for it, or its scheduler does not say how it was trained.
        SettingError: for a size that it does not draw.
    """
    adapter = _find_adapter(pipe)
    check_pipeline(adapter, pipe, size)
    check_size(adapter, pipe, size)
    network = _make_network(adapter, pipe, size, module_of(pipe))
    if (second := getattr(pipe, "transformer_2", None)) is None:
        return network
    low = _make_network(adapter, pipe, size, second)
    return join_experts(network, low, sigma=pipe.config.boundary_ratio)


def _make_network(adapter: PromptAdapter, pipe: Any, size: Size, module: Any) -> Network:
    """Returns one of the networks of a pipeline."""
    shape = adapter.shape(pipe, size)
    extra = adapter.extra(pipe, size)
    known = {*adapter.conditions, *extra}
    config = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
    schedule, prediction = from_scheduler_config(config, tokens=adapter.tokens(shape))

    def forward(x: Tensor, node: Node, conditions: Mapping[str, Any]) -> Tensor:
        for name in conditions.keys() - known:
            raise UnknownNameError("condition", name, known)
        kind = next(module.parameters()).dtype
        time = make_network_time(schedule, node, x, kind)
        cast = {k: v.to(kind) if v.is_floating_point() else v for k, v in conditions.items()}
        return adapter.call(module, x.to(kind), time, cast).to(x.dtype)

    return Network(
        forward=forward,
        schedule=schedule,
        prediction=prediction,
        shape=shape,
        **_find_coders(adapter, pipe),
        prompts=Prompts(adapter, pipe, size),
        needs=(*(name for name in adapter.conditions if "mask" not in name), *extra),
        device=device_of(pipe),
        name=str(getattr(pipe, "name_or_path", "") or type(pipe).__name__),
        module=module,
        distilled=read_distillation(class_name_of(config), config),
    )


def fit_shape(network: Network, shape: tuple[int, ...]) -> Network:
    """Returns the network for samples of another shape (C, H, W), where a pipeline can make it.

    Its times may be others: some pipelines shift them by the number of tokens.
    """
    if network.prompts is None or network.encode is None or shape == network.shape:
        return network
    pipe, size = network.prompts.pipe, network.prompts.size
    per = int(pipe.vae_scale_factor)
    return network_of(pipe, replace(size, height=shape[-2] * per, width=shape[-1] * per))


def default_size(pipe: Any) -> Size:
    """Returns the size that a pipeline draws by default.

    Raises:
        ModelError: if its network does not say it.
    """
    side = getattr(pipe, "default_sample_size", None) or module_of(pipe).config.get("sample_size")
    if side is None or not hasattr(pipe, "vae_scale_factor"):
        raise ModelError(
            f"{type(pipe).__name__} does not say what size it draws; give Size(height, width) to"
            " Sampler.from_pipeline"
        )
    height, width = (side, side) if isinstance(side, int) else side
    return Size(height * int(pipe.vae_scale_factor), width * int(pipe.vae_scale_factor))


def encoded(pipe: Any, size: Size, **texts: Any) -> tuple[Conditions, Conditions | None]:
    """Encodes a prompt, and of a negative one where it is given, as `Sampler` takes its conditions.

    texts: prompt, negative_prompt, or the embeddings that the pipeline's call takes in their place.
    """
    adapter = _find_adapter(pipe)
    texts = {name: value for name, value in texts.items() if value is not None}
    conditions, negative = encode(adapter, pipe, **texts)
    return {**conditions, **adapter.extra(pipe, size)}, negative


def _find_adapter(pipe: Any) -> PromptAdapter:
    adapter = prompt_adapter(pipe)
    if adapter is None:
        raise make_adapter_error(pipe)
    return adapter


def _find_coders(adapter: PromptAdapter, pipe: Any) -> dict[str, Any]:
    """Returns the decoder and the encoder of images; None without a VAE, or for videos."""
    vae = getattr(pipe, "vae", None) if adapter.images else None
    if vae is None or adapter.decode is None or adapter.encode is None:
        return {"decode": decoder_of(vae), "encode": encoder_of(vae)}
    return {"decode": partial(adapter.decode, vae), "encode": partial(adapter.encode, vae)}


def check_pipeline(adapter: PromptAdapter, pipe: Any, size: Size) -> None:
    """Raises FewstepError if the pipeline does more than the adapter, or less than the size."""
    name, config = type(pipe).__name__, module_of(pipe).config
    if not isinstance(size, Size):
        raise SettingError(f"size={size!r} must be a Size, as in Size(height=1024, width=1024)")
    for part in BESIDE:
        if getattr(pipe, part, None) is not None:
            raise ModelError(f"{name} calls its {part} too, which no adapter does; {INSTEAD}")
    second = getattr(pipe, "transformer_2", None)
    if second is not None and pipe.config.get("boundary_ratio") is None:
        raise ModelError(
            f"{name} has a transformer_2 and does not say from where it answers (boundary_ratio);"
            " remove it, or make a pipeline with boundary_ratio"
        )
    reads, answers = config.get("in_channels"), config.get("out_channels")
    if answers is not None and answers not in (reads, 2 * reads, reads // 4):
        raise ModelError(
            f"the network of {name} reads {reads} channels and answers {answers}: it is shown a"
            f" picture beside the state, which no adapter does; {INSTEAD}"
        )
    if size.frames > 1 and adapter.images:
        raise SettingError(f"{name} draws pictures, not {size.frames} frames; drop frames")
    if size.guidance is not None and "guidance" not in adapter.extra(pipe, size):
        raise SettingError(
            f"the network of {name} is not told a guidance scale; drop it from Size, and pass"
            f" guidance=CFG({size.guidance:g}) to the sampler"
        )


def check_size(adapter: PromptAdapter, pipe: Any, size: Size) -> None:
    """Raises SettingError for a side or a number of frames that the network would round down."""
    if 0 in adapter.shape(pipe, size):
        raise SettingError(f"{size.width}x{size.height} is less than one patch of this network")
    for name in ("height", "width") if adapter.images else ("height", "width", "frames"):
        given: int = getattr(size, name)
        is_whole = partial(_is_whole, adapter, pipe, size, name)
        if not is_whole(given):
            ranges = range(given, 0, -1), range(given + 1, 2 * given + FARTHEST)
            near = [value for each in ranges for value in islice(filter(is_whole, each), 1)]
            raise SettingError(
                f"{type(pipe).__name__} does not draw {name}={given}, which its network would round"
                f" down; take {name}={' or '.join(map(str, near))}"
            )


def _is_whole(adapter: PromptAdapter, pipe: Any, size: Size, name: str, value: int) -> bool:
    """Tells whether a size is the least of those with its latent, which has whole patches."""
    shape = adapter.shape(pipe, replace(size, **{name: value}))
    if name != "frames":
        patch = module_of(pipe).config.get("patch_size") or 1
        places, axis = shape[-2:], ("height", "width").index(name)
        if not places[axis] or places[axis] % (
            patch if isinstance(patch, int) else patch[-2:][axis]
        ):
            return False
    return value == 1 or shape != adapter.shape(pipe, replace(size, **{name: value - 1}))


def asks_for_text(pipe: Any) -> bool:
    """Tells whether the network of a pipeline reads an encoded prompt."""
    return TEXT in inspect.signature(module_of(pipe).forward).parameters


def make_adapter_error(pipe: Any) -> ModelError:
    """Returns the error for a network without an adapter."""
    module = type(module_of(pipe)).__name__
    if not asks_for_text(pipe):
        return ModelError(f"{module} is not asked with a prompt; use Sampler.from_pipeline(pipe)")
    known = ", ".join(known_classes(lambda card: card.prompted))
    return ModelError(f"there is no adapter for {module}, only for {known}; {INSTEAD}")
