"""Adapters: diffusers models, pipelines, modules and plain functions as a `Network`."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from .architectures import architecture_of
from .architectures.common import module_of
from .arguments import refuse_unknown
from .diffusers_config import class_name_of, from_scheduler_config
from .distillation import read_distillation, take_distillation
from .errors import ModelError, SettingError
from .network import Forward, Network
from .prediction import Prediction, check_terminal
from .schedule import EDM, Node, NoiseSchedule, TargetNode, take_schedule

Module = nn.Module | Callable[..., Tensor]
INDEX = re.compile(r"ind(ex|ices)\b.*(type|must be)|type.* ind(ex|ices)")  # torch, of a float index


def from_module(
    module: Module,
    *,
    schedule: NoiseSchedule | str,
    prediction: Prediction | str,
    shape: tuple[int, ...],
    **facts: Any,
) -> Network:
    """Makes a network of any module or function `f(x, time, **conditions) -> output`.

    Args:
        module: called with x (B, *shape) and a float32 tensor (B,) of network times. A diffusers
            model is recognised; so are outputs with twice the channels, whose second half (a
            learned sigma) is split off.
        schedule: the noise schedule it was trained on, with the units of the time it receives:
            `RectifiedFlow(time_scale=1)` for t in [0, 1], 1000 for networks of diffusers. `EDM()`
            with prediction "edm" is the EDM preconditioning, `EDM(time_label="sigma")` with "x0" a
            network preconditioned already. Text such as "edm:aug_dim=128" will do.
        prediction: the type of its output.
        shape: one sample without the batch axis.
        facts: further fields of `Network`, such as num_classes, null_class, decode and name. With
            distilled="flow-map" the network is called with a second tensor of times after the first
            (diffusers: r_timestep), where the step goes.

    Raises:
        SettingError: if the schedule does not say in which units the network gets its time.
        UnknownNameError: for a prediction or a fact that does not exist.
        ModelError: for eps on a schedule whose last timestep is pure noise.
    """
    refuse_unknown(facts, from_module, Network.__dataclass_fields__)
    schedule = take_schedule(schedule)
    if not callable(module) or not isinstance(schedule, NoiseSchedule):
        raise SettingError(
            "from_module takes something to call and a noise schedule, such as EDM(), not"
            f" {type(module).__name__} and {type(schedule).__name__}"
        )
    module = module.eval() if isinstance(module, nn.Module) else module
    kind = Prediction.named(prediction)
    _check_time(schedule, kind)
    check_terminal(kind, schedule)
    return Network(
        forward=_make_forward(module, schedule),
        schedule=schedule,
        prediction=kind,
        shape=shape,
        device=_read_property(module, "device", torch.device("cpu")),
        needs=_find_needs(module, _takes_target(facts)),
        module=module if isinstance(module, nn.Module) else None,
        **{"name": type(module).__name__, **facts},
    )


def _takes_target(facts: Mapping[str, Any]) -> bool:
    """Tells whether a network with these facts is told two times."""
    distilled = take_distillation(facts.get("distilled"))
    return distilled is not None and distilled.flow_map


def _check_time(schedule: NoiseSchedule, prediction: Prediction) -> None:
    """Raises SettingError if a schedule leaves open in which units a network gets its time."""
    schedule.label(schedule.at(schedule.t_max))
    if not prediction.preconditioned and isinstance(schedule, EDM) and not schedule.time_label:
        raise SettingError(
            f"EDM does not say how a network that predicts {prediction} is told the time: write"
            ' EDM(time_label="sigma") for sigma itself, time_label="c_noise" for ln(sigma) / 4'
        )


def from_pipeline(pipe: Any) -> Network:
    """Makes a network of a live diffusers pipeline, with its schedule and its VAE."""
    module = module_of(pipe)
    vae = getattr(pipe, "vae", None) or getattr(pipe, "vqvae", None)
    return from_checkpoint(
        module,
        {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__},
        decode=decoder_of(vae),
        encode=encoder_of(vae),
        name=str(getattr(pipe, "name_or_path", "") or type(pipe).__name__),
    )


def from_checkpoint(module: Any, scheduler_config: Mapping[str, Any], **facts: Any) -> Network:
    """Makes a network of a diffusers model whose scheduler config says how it was trained."""
    shape = _read_shape(module)
    schedule, prediction = from_scheduler_config(
        scheduler_config, tokens=_count_tokens(module, shape)
    )
    distilled = read_distillation(class_name_of(scheduler_config), scheduler_config)
    return from_module(
        module,
        schedule=schedule,
        prediction=prediction,
        shape=shape,
        **{**_read_classes(module), "distilled": distilled, **facts},
    )


def _read_classes(module: Any) -> dict[str, int | None]:
    """Returns num_classes and null_class as far as a diffusers model's config has them."""
    config, card = module.config, architecture_of(module)
    if config.get("num_class_embeds"):
        return {"num_classes": int(config["num_class_embeds"]), "null_class": None}
    if card is not None and card.class_labels:
        classes = int(config[card.class_labels])
        return {"num_classes": classes, "null_class": classes}
    return {"num_classes": 0, "null_class": None}


def _make_forward(module: Module, schedule: NoiseSchedule) -> Forward:
    name = _find_state_name(module)

    def forward(x: Tensor, node: Node, conditions: Mapping[str, Any]) -> Tensor:
        dtype = _read_property(module, "dtype", x.dtype)
        times = [make_network_time(schedule, node, x, dtype)]
        if isinstance(node, TargetNode):
            times.append(make_network_time(schedule, node.target, x, dtype))
        cast = {key: _as_dtype(value, dtype) for key, value in conditions.items()}
        try:
            if name is None:
                out = module(x.to(dtype), *times, **cast)
            else:
                told = dict(zip(("timestep", "r_timestep"), times, strict=False))
                out = module(**{name: x.to(dtype)}, **told, **cast, return_dict=False)[0]
        except (RuntimeError, IndexError) as error:
            _explain(error, times[0])
            raise
        if not isinstance(out, Tensor):
            raise ModelError(
                f"the network answered a {type(out).__name__}; wrap it so that it returns a tensor"
            )
        if out.shape[:1] + out.shape[2:] == x.shape[:1] + x.shape[2:]:
            if out.shape[1] == 2 * x.shape[1]:
                out = out[:, : x.shape[1]]
            if out.shape == x.shape:
                return out.to(x.dtype)
        raise ModelError(
            f"the network answered {tuple(out.shape)} to a state of shape {tuple(x.shape)};"
            " they must be equal, or the answer may have twice the channels (learned sigma)"
        )

    return forward


def make_network_time(
    schedule: NoiseSchedule, node: Node, x: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Returns the network's time at a node, one number for each row of x (B, *).

    The dtype is float64 for a network in float64, integers for one that takes nothing else, and
    otherwise float32, as bfloat16 cannot tell timesteps apart.
    """
    kind = dtype if dtype == torch.float64 else torch.float32
    kind = torch.long if getattr(schedule, "whole_times", False) else kind
    return torch.full((len(x),), schedule.label(node), dtype=kind, device=x.device)


def _explain(error: Exception, time: Tensor) -> None:
    """Raises ModelError in place of a network's own error where it looked a float up in a table."""
    text = str(error).partition("\n")[0]
    if time.is_floating_point() and INDEX.search(text):
        raise ModelError(
            "the network seems to look its timestep up in a table, which takes whole numbers"
            f" ({text}); pass schedule=VPDiscrete(..., whole_times=True)"
        ) from error


def _find_state_name(module: Any) -> str | None:
    """Returns what a diffusers model calls the state (sample, hidden_states); else None."""
    if not (hasattr(module, "config") and hasattr(module, "save_pretrained")):
        return None
    return next(iter(inspect.signature(module.forward).parameters))


def _as_dtype(value: Any, dtype: torch.dtype) -> Any:
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


def _read_property(module: Module, fact: str, default: Any) -> Any:
    """Returns the dtype or device of a module's first parameter; the default if it has none."""
    if isinstance(module, nn.Module):
        for parameter in module.parameters():
            return getattr(parameter, fact)
    return default


def _find_needs(module: Module, two_times: bool = False) -> tuple[str, ...]:
    """Returns the conditions without a default: the parameters after x and its times."""
    function = module.forward if isinstance(module, nn.Module) else module
    parameters = list(inspect.signature(function).parameters.values())
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    free = [p.name for p in named[1:] if p.default is p.empty]
    if hasattr(module, "save_pretrained"):
        return tuple(name for name in free if name not in ("timestep", "r_timestep"))
    return tuple(free[1 + two_times :])


def _read_shape(module: Any) -> tuple[int, ...]:
    size, channels = module.config.get("sample_size"), module.config.get("in_channels")
    if size is None or channels is None:
        raise ModelError(
            f"{type(module).__name__} does not say the shape of its samples; use"
            " from_module(module, schedule=..., prediction=..., shape=...)"
        )
    height, width = (size, size) if isinstance(size, int) else size
    return int(channels), int(height), int(width)


def _count_tokens(module: Any, shape: tuple[int, ...]) -> int:
    patch = module.config.get("patch_size") or 1
    return (shape[-2] // patch) * (shape[-1] // patch)


def decoder_of(vae: Any) -> Callable[[Tensor], Tensor] | None:
    """Returns the function from latents to images in [-1, 1]; None without a VAE."""
    if vae is None:
        return None
    scale = vae.config.get("scaling_factor") or 1.0
    offset = vae.config.get("shift_factor") or 0.0

    def decode(latents: Tensor) -> Tensor:
        dtype = _read_property(vae, "dtype", latents.dtype)
        image: Tensor = vae.decode((latents / scale + offset).to(dtype), return_dict=False)[0]
        return image.float()

    return decode


def encoder_of(vae: Any) -> Callable[[Tensor], Tensor] | None:
    """Returns the function from images in [-1, 1] to latents, by the posterior's mode, if any."""
    if vae is None:
        return None
    scale = vae.config.get("scaling_factor") or 1.0
    offset = vae.config.get("shift_factor") or 0.0

    def encode(images: Tensor) -> Tensor:
        posterior = vae.encode(
            images.to(_read_property(vae, "dtype", images.dtype)), return_dict=False
        )[0]
        latents: Tensor = posterior if isinstance(posterior, Tensor) else posterior.mode()
        return (latents.float() - offset) * scale

    return encode
