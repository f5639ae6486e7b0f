"""What is refused before a network is sampled without its pipeline."""

import inspect
from typing import Any

from ..errors import ModelError, SettingError
from .base import Family, Size, module_of

BESIDE = ("controlnet", "adapter", "transformer_2")  # networks that an adapter would leave out
INSTEAD = "put a SolverScheduler in the pipeline instead"


def check_pipeline(family: Family, pipe: Any, size: Size) -> None:
    """Raises FewstepError if the pipeline does more than the family says, or less than the size."""
    name, config = type(pipe).__name__, module_of(pipe).config
    if not isinstance(size, Size):
        raise SettingError(f"size={size!r} must be a Size, as in Size(height=1024, width=1024)")
    for part in BESIDE:
        if getattr(pipe, part, None) is not None:
            raise ModelError(f"{name} calls its {part} too, which no adapter does; {INSTEAD}")
    reads, answers = config.get("in_channels"), config.get("out_channels")
    if answers is not None and answers not in (reads, 2 * reads, reads // 4):
        raise ModelError(
            f"the network of {name} reads {reads} channels and answers {answers}: it is shown a"
            f" picture beside the state, which no adapter does; {INSTEAD}"
        )
    if size.frames > 1 and family.images:
        raise SettingError(f"{name} draws pictures, not {size.frames} frames; drop frames")
    if size.guidance is not None and "guidance" not in family.extra(pipe, size):
        raise SettingError(
            f"the network of {name} is not told a guidance scale; drop it from Size, and pass"
            f" guidance=CFG({size.guidance:g}) to the sampler"
        )


def asks_for_text(pipe: Any) -> bool:
    """Whether the network of a pipeline reads an encoded prompt."""
    return "encoder_hidden_states" in inspect.signature(module_of(pipe).forward).parameters


def no_adapter(pipe: Any, families: tuple[Family, ...]) -> ModelError:
    """The error for a network of no family."""
    module = type(module_of(pipe)).__name__
    if not asks_for_text(pipe):
        return ModelError(f"{module} is not asked with a prompt; use Sampler.from_pipeline(pipe)")
    classes = sorted({name for each in families for name in each.classes})
    return ModelError(f"there is no adapter for {module}, only for {', '.join(classes)}; {INSTEAD}")
