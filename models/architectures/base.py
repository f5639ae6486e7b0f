"""The parts of a card: values that describe networks of some diffusers classes.

Every field may be empty where it is unknown or does not apply; its users then raise an error.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..errors import SettingError

IMAGE = "hidden_states"
TEXT = "encoder_hidden_states"

Arguments = Mapping[str, Any]  # of one call of a block, by name
Modulate = Callable[[Any, Arguments], Tensor]
Conditions = dict[str, Tensor]
NetworkCall = Callable[[Any, Tensor, Tensor, Mapping[str, Tensor]], Tensor]


@dataclass(frozen=True)
class Size:
    """The size of the sample, in pixels and frames.

    guidance: the scale given to distilled networks; None is the default of their pipelines.
    """

    height: int
    width: int
    frames: int = 1
    guidance: float | None = None

    def __post_init__(self) -> None:
        for name in ("height", "width", "frames"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise SettingError(f"{name}={value!r} must be a positive whole number")


@dataclass(frozen=True)
class BlockGroup:
    """One ModuleList of blocks that run one after the other.

    path:    its name in the network, such as "transformer_blocks".
    returns: the streams that a block returns, in that order; of one alone it returns a tensor, of
             several a tuple. A stream has the name of the block's argument that takes it.
    joint:   where the image stream carries the text too: "" (nowhere), "first" (text rows, then
             image rows) or "last". Only where an earlier group has both apart; a network whose
             every block sees the joint rows has one stream and no text.
    image:   the stream of the image.
    text:    the stream of the text.
    """

    path: str
    returns: tuple[str, ...] = (IMAGE,)
    joint: str = ""
    image: str = IMAGE
    text: str = TEXT


@dataclass(frozen=True)
class BlockStructure:
    """The parts of a transformer, as a cache sees them.

    groups:  the block lists in the order they run; the head begins after the last one.
    modules: patterns (`re.fullmatch` on the full name) of the sub-modules whose output TaylorSeer
             caches: before the gate and the residual addition (arXiv:2503.06923).
    idle:    patterns of sub-modules whose output feeds nothing but a cached module; when that one
             is forecast they need not run. `make_blank` is what they return then.
    signal:  where TeaCache looks (arXiv:2411.19108): the name of a module that runs before the
             blocks and whose output it is, or a function of the first block and its arguments;
             None if unknown.
    chained: whether a block reads nothing of the other blocks but the state that the one before
             returns. If not (long skips, as in HunyuanDiT), no block may run after a skipped one.
    """

    groups: tuple[BlockGroup, ...]
    modules: tuple[str, ...] = ()
    idle: tuple[str, ...] = ()
    signal: str | Modulate | None = None
    chained: bool = True


@dataclass(frozen=True)
class SelfAttention:
    """Where the self-attention of a network is.

    pattern:     of the full names (`re.fullmatch`) of its modules; they are numbered from 0 in the
                 order of the network.
    first:       (a, b): by default an editor taps those from a b-th of their number on.
    text:        whether their V holds the tokens of the text beside those of the image.
    perturbable: whether the identity may stand for their maps (arXiv:2403.17377): they mix tokens
                 of the image alone.
    """

    pattern: str
    first: tuple[int, int] = (1, 2)
    text: bool = False
    perturbable: bool = False

    def default_layers(self, count: int) -> tuple[int, ...]:
        """Returns the numbers of the modules tapped by default, of so many."""
        return tuple(range(count * self.first[0] // self.first[1], count))


@dataclass(frozen=True)
class PublishedCalibration:
    """Published measurements for caches on one checkpoint.

    checkpoint: its name.
    config:     settings that tell it from other checkpoints of the class.
    polynomial: TeaCache's (arXiv:2411.19108), of degree 4 in the change of the signal, the highest
                power first; the numbers are those of the authors' code. It can be negative, so
                clamp its value at 0.
    ratios:     reads MagCache's (arXiv:2506.09045), one per step of the run they were measured on.
    """

    checkpoint: str
    config: Mapping[str, Any]
    polynomial: tuple[float, ...]
    ratios: Callable[[], Iterable[float]] | None = None


@dataclass(frozen=True, kw_only=True)
class PromptAdapter:
    """The way to call a pipeline's network without the pipeline, conditioned by its prompts.

    returns:    what `encode_prompt` of the pipeline returns, in its order.
    conditions: name of each condition and which of those it is; a negative one is called the same
                with "negative_" before it.
    shape:      (pipe, size) -> one sample without the batch axis.
    call:       (module, x (B, *shape), network time (B,), conditions) -> output like x.
    config:     settings of the networks it is for, where others of the class need another one.
    extra:      (pipe, size) -> conditions of one row that do not come from the prompt.
    tokens:     shape -> number of image tokens, for networks that shift their times by it.
    packs:      places that a patch takes on either side, where the state is packed first.
    decode:     (vae, samples) -> images in [-1, 1]; None is as `models.adapters` does it.
    encode:     the inverse, (vae, images) -> samples, given with `decode`.
    images:     whether the samples are images at all.
    """

    returns: tuple[str, ...]
    conditions: Mapping[str, str]
    shape: Callable[[Any, Size], tuple[int, ...]]
    call: NetworkCall
    config: Mapping[str, Any] = field(default_factory=dict)
    extra: Callable[[Any, Size], Conditions] = field(default=lambda pipe, size: {})
    tokens: Callable[[tuple[int, ...]], int] = field(
        default=lambda shape: shape[-2] * shape[-1] // 4
    )
    packs: int = 1
    decode: Callable[[Any, Tensor], Tensor] | None = None
    encode: Callable[[Any, Tensor], Tensor] | None = None
    images: bool = True

    @property
    def guided(self) -> bool:
        """True if the pipeline encodes a negative prompt of its own where none is given."""
        return any(name.startswith("negative_") for name in self.returns)


@dataclass(frozen=True)
class GuidanceLayout:
    """The calls by which a pipeline gets the two predictions of classifier-free guidance.

    turns:     two calls, the conditional one first; otherwise one, whose batch is [u, c].
    unit:      the divisor of timesteps for the network.
    from_data: the network is given 1 - timestep / unit.
    sign:      -1 where the pipeline negates the network's output.
    normed:    it gives the guided prediction the norm of the conditional one, along the last axis.
    """

    turns: bool
    unit: float = 1.0
    from_data: bool = False
    sign: float = 1.0
    normed: bool = False

    def timestep(self, time: float) -> float:
        """Returns the scheduler's timestep of a time that the network was given."""
        return self.unit * (1.0 - time if self.from_data else time)


ONE_CALL = GuidanceLayout(turns=False)
TWO_CALLS = GuidanceLayout(turns=True)


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """A card: all that is known about networks of some diffusers classes.

    classes:      their names; subclasses are meant too, unless they have a card of their own.
    same_blocks:  names of classes with the same blocks about which nothing else is known.
    blocks:       the blocks of a transformer.
    frames_first: whether a video is (B, F, C, H, W), not (B, C, F, H, W).
    unet:         whether it is a UNet of down, mid and up blocks, which the UNet caches split.
    attention:    where its self-attention is.
    calibrations: published measurements for caches on its checkpoints.
    prompted:     how it is sampled without its pipeline; the first whose `config` fits counts.
    class_labels: the setting with the number of its class labels, after which comes the null label.
    pipelines:    how its pipelines, by class name, ask for the two predictions of guidance.
    modular:      whether its modular pipelines combine the network's outputs themselves as they
                  are, so that a `PolicyGuider` can.
    """

    classes: tuple[str, ...]
    same_blocks: tuple[str, ...] = ()
    blocks: BlockStructure | None = None
    frames_first: bool = False
    unet: bool = False
    attention: SelfAttention | None = None
    calibrations: tuple[PublishedCalibration, ...] = ()
    prompted: tuple[PromptAdapter, ...] = ()
    class_labels: str = ""
    pipelines: Mapping[str, GuidanceLayout] = field(default_factory=dict)
    modular: bool = False


def fits(module: Any, config: Mapping[str, Any]) -> bool:
    """Tells whether a network has these settings in its config."""
    settings = getattr(module, "config", {})
    return all(settings.get(key) == value for key, value in config.items())
