"""A pretrained network with the facts that sampling from it needs."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Never

import torch
from torch import Tensor, nn

from .arguments import as_integer, as_integers
from .distillation import Distillation, take_distillation
from .errors import ModelError, SettingError
from .node import Node, NoiseSchedule
from .prediction import Prediction

if TYPE_CHECKING:
    from .experts import Experts
    from .graphs import Graphs
    from .prompts import Prompts

CPU = torch.device("cpu")
LARGEST_SAMPLE = 2**34  # numbers in one sample, 64 GiB
Forward = Callable[[Tensor, Node, Mapping[str, Any]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Network:
    """A pretrained network and the facts that sampling from it needs.

    forward:     (x_t (B, *), node, conditions) -> raw output (B, *), in the dtype of x_t. The
                 conditions are keyword tensors with B rows.
    schedule:    the noise schedule it was trained on.
    prediction:  the type of the raw output.
    shape:       one sample without the batch axis, such as (1, 32, 32).
    num_classes: `class_labels` takes 0 .. num_classes - 1; 0 if there are no classes.
    null_class:  the label that stands for "no class"; None if there is none.
    class_names: names of the classes, in the order of their labels; empty if unknown.
    shown_classes, cfg_scale: the labels and the guidance scale that `sample` takes where none are
                 typed; no labels are all classes in turn.
    decode:      sample (B, *) -> image (B, C, H, W) in [-1, 1]; None if samples are images.
    encode:      the inverse of `decode`; None if samples are images, or if there is no inverse.
    distilled:   the update and times that it was distilled to, or the name of the update; None if
                 it was not, or nobody says so.
    needs:       names of the conditions it cannot be called without.
    conditions:  of images for which a call gives none: tensors (k, *) by name, such as embedded
                 prompts; the image of seed s gets row s mod k. negative: the same for the
                 unconditional branch.
    device:      the device of the network and of its samples.
    name:        its name in messages.
    module:      the torch module behind `forward`, on which a cache can be put; None for a plain
                 function.
    hooks:       the module that its calls hook and restore while they hold it alone (`hold`); None
                 if they change no module.
    prompts:     encodes prompts into conditions; None if the network takes none.
    experts:     the two networks that it is made of (`join_experts`); None if it is one.
    graphs:      CUDA graphs of its calls (`models.speed`); None if they are not recorded.
    """

    forward: Forward
    schedule: NoiseSchedule
    prediction: Prediction
    shape: tuple[int, ...]
    num_classes: int = 0
    null_class: int | None = None
    class_names: tuple[str, ...] = ()
    shown_classes: tuple[int, ...] = ()
    cfg_scale: float = 1.0
    decode: Callable[[Tensor], Tensor] | None = None
    encode: Callable[[Tensor], Tensor] | None = None
    distilled: Distillation | str | None = None
    needs: tuple[str, ...] = ()
    conditions: Mapping[str, Tensor] | None = None
    negative: Mapping[str, Tensor] | None = None
    device: torch.device = CPU
    name: str = ""
    module: nn.Module | None = None
    hooks: nn.Module | None = None
    prompts: "Prompts | None" = None
    experts: "Experts | None" = None
    graphs: "Graphs | None" = None

    def __post_init__(self) -> None:
        shape = tuple(as_integers(self.shape, "shape"))
        if not shape or min(shape) < 1 or math.prod(shape) > LARGEST_SAMPLE:
            raise SettingError(
                f"shape must hold the sizes of one sample, such as (3, 32, 32), not {self.shape!r}"
            )
        if as_integer(self.num_classes, "num_classes") < 0:
            raise SettingError(f"num_classes must be 0 or more, not {self.num_classes}")
        if self.null_class is not None:
            as_integer(self.null_class, "null_class")
        object.__setattr__(self, "shape", shape)
        take_distillation(self.distilled)

    def __reduce__(self) -> Never:
        """Refuses to be pickled or copied: `forward` would go on calling the module of this one."""
        raise ModelError(
            f"{self.name or 'this network'} cannot be pickled or copied: what calls its module is"
            " code of this process; load it anew where it is wanted, as in"
            " Sampler.from_pretrained(name)"
        )

    @property
    def distillation(self) -> Distillation | None:
        """The same as `distilled`, and never a name."""
        return take_distillation(self.distilled)

    @property
    def sigma_data(self) -> float:
        return getattr(self.schedule, "sigma_data", 0.5)
