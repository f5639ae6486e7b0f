"""A UNet as DeepCache sees it: a shallow rim that always runs around a deep part that is kept.

Number the skip connections from the outside: skip 0 is what `conv_in` returns, skip k what the
k-th unit of the down path returns (a resnet with its attention, or a downsampler). The up path
takes them in reverse, one in each of its units, so its units have numbers too, and the last to run
is unit 0. Branch b keeps what flows into up unit b from below: a cached call runs the down units
1 to b, joins the kept feature with skip b, and runs the up units b to 0. Published as
`cache_branch_id` (DeepCache, arXiv:2312.00858), of which 0 is the fastest.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..architectures import architecture_of, known_classes
from ..errors import ModelError, SettingError
from ..modules import unwrap_compiled

PLAIN = ("", "Attn", "CrossAttn", "SimpleCrossAttn")
BLOCKS = {f"{kind}{way}Block2D" for kind in PLAIN for way in ("Down", "Up")} | {
    "ResnetDownsampleBlock2D",
    "ResnetUpsampleBlock2D",
}
EXTRA = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)


@dataclass(frozen=True)
class Unit:
    """Modules that run one after the other; the first is a resnet or a downsampler.

    channels: what the unit returns, (B, channels, H, W).
    """

    modules: dict[str, nn.Module]
    channels: int


@dataclass(frozen=True)
class UNetSplit:
    """A UNet cut at a branch.

    deep:     the modules that need not run while the kept feature stands for them, by name; in
              their place `make_hollow` answers.
    entry:    the resnet of up unit b, whose first argument is [feature, skip b] by channels; after
              hollow modules it is skip b alone.
    name:     the full name of `entry`.
    channels: the channels of skip b.
    """

    deep: dict[str, nn.Module]
    entry: nn.Module
    name: str
    channels: int

    def feature(self, x: Tensor) -> Tensor:
        """Copies the part of the entry's input that comes from below, (B, C, H, W), to be kept."""
        return x[:, : x.shape[1] - self.channels].clone(memory_format=_find_layout(x))

    def join(self, feature: Tensor, skip: Tensor) -> Tensor:
        """Returns the entry's input of a cached call: values and memory format as in a full one.

        The format decides which kernels run, and they round differently.
        """
        return torch.cat([feature, skip], dim=1).contiguous(memory_format=_find_layout(feature))


@dataclass(frozen=True)
class UNetStack:
    """A live UNet, taken apart.

    down: the units that make skips 1, 2, ..., in the order they run.
    mid:  the block between, by name; empty if there is none.
    up:   the units that take the skips, in the order they run: the last skip first.
    """

    root: nn.Module
    down: tuple[Unit, ...]
    mid: dict[str, nn.Module]
    up: tuple[Unit, ...]

    @property
    def branches(self) -> int:
        """The number of branches: they are 0 to this minus one."""
        return len(self.up) if self.mid else len(self.up) - 1

    def split(self, branch: int = 0) -> UNetSplit:
        """Cuts the UNet at a branch.

        Raises:
            SettingError: if there is no such branch.
        """
        if not 0 <= branch < self.branches:
            raise SettingError(
                f"{type(self.root).__name__} has no branch {branch}; known: 0 (the least is run on "
                f"a cached call) to {self.branches - 1} (the most)"
            )
        shallow = len(self.up) - 1 - branch  # the place of up unit b in the order they run
        deep = (*self.down[branch:], *self.up[:shallow])
        name, entry = next(iter(self.up[shallow].modules.items()))
        modules = {name: each for unit in deep for name, each in unit.modules.items()} | self.mid
        return UNetSplit(modules, entry, name, self._skip_channels(branch))

    def needs_all(self, kwargs: Mapping[str, Any]) -> bool:
        """Tells whether a call must be full: a ControlNet or an adapter adds to the skips."""
        return any(kwargs.get(name) is not None for name in EXTRA)

    def _skip_channels(self, skip: int) -> int:
        conv_in: Any = self.root.get_submodule("conv_in")
        return self.down[skip - 1].channels if skip else int(conv_in.out_channels)


def is_unet(module: nn.Module) -> bool:
    """Tells whether a network is known as a UNet of down, mid and up blocks."""
    card = architecture_of(module)
    return card is not None and card.unet


def describe_unet(module: nn.Module) -> UNetStack:
    """Returns the units of a live UNet.

    Raises:
        ModelError: if it is no UNet that is known, or has other kinds of blocks.
    """
    root: Any = unwrap_compiled(module)
    if not is_unet(root):
        known = ", ".join(known_classes(lambda card: card.unet))
        raise ModelError(f"{type(root).__name__} is not a UNet that can be split: {known}")
    kinds = {type(block).__name__ for block in (*root.down_blocks, *root.up_blocks)}
    if kinds - BLOCKS:
        known = ", ".join(sorted(BLOCKS))
        raise ModelError(f"cannot split a UNet with {', '.join(kinds - BLOCKS)}; known: {known}")
    down = [unit for k, each in enumerate(root.down_blocks) for unit in _list_down_units(each, k)]
    up = [unit for k, each in enumerate(root.up_blocks) for unit in _list_up_units(each, k)]
    mid = {"mid_block": root.mid_block} if root.mid_block is not None else {}
    if len(up) != len(down) + 1:
        raise ModelError(f"{type(root).__name__} makes {len(down) + 1} skips and takes {len(up)}")
    return UNetStack(root, tuple(down), mid, tuple(up))


def make_hollow(args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Makes the output of a deep module at a cached call: its input without channels, (B, 0, H, W).

    It costs nothing, and the concatenations with skips that diffusers makes between two modules
    still fit.
    """
    x = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return (x[:, :0],) if kwargs.get("return_dict") is False else x[:, :0]


def _find_layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _list_down_units(block: Any, k: int) -> list[Unit]:
    units = [_make_layer_unit(block, f"down_blocks.{k}", j) for j in range(len(block.resnets))]
    if block.downsamplers is not None:
        names = {f"down_blocks.{k}.downsamplers.{j}": m for j, m in enumerate(block.downsamplers)}
        units.append(Unit(names, int(block.downsamplers[-1].out_channels)))
    return units


def _list_up_units(block: Any, k: int) -> list[Unit]:
    """Returns the units of an up block; its upsampler is deep where its last layer is."""
    units = [_make_layer_unit(block, f"up_blocks.{k}", j) for j in range(len(block.resnets))]
    names = {f"up_blocks.{k}.upsamplers.{j}": m for j, m in enumerate(block.upsamplers or ())}
    return [*units[:-1], Unit(units[-1].modules | names, units[-1].channels)]


def _make_layer_unit(block: Any, path: str, j: int) -> Unit:
    modules = {f"{path}.resnets.{j}": block.resnets[j]}
    if getattr(block, "attentions", None):
        modules[f"{path}.attentions.{j}"] = block.attentions[j]
    return Unit(modules, int(block.resnets[j].out_channels))
