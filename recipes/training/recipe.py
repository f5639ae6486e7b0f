"""`Recipe`: everything that decides a training, as one value, and the networks it builds."""

import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from torch import nn

from fewstep.models.errors import SettingError, UnknownNameError
from fewstep.models.prediction import Prediction
from fewstep.models.schedule import NoiseSchedule, noise_schedule
from fewstep.samplers.noise import seed_everything

# Of each class that can be trained: the setting that takes the number of classes, and how many
# labels it wants to be told there. The UNet has no null class of its own, the DiT adds one.
MODELS = {
    "UNet2DModel": ("num_class_embeds", 1),
    "DiTTransformer2DModel": ("num_embeds_ada_norm", 0),
}

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Times:
    """The law of the times at which a network is trained.

    law:  "steps", the training steps of a discrete VP schedule, all equally likely; "uniform", from
          t_min to t_max; "logit-normal", t = sigmoid(N(mean, std)) (arXiv:2403.03206, sec. 3.1);
          "log-normal", t = exp(N(mean, std)) (arXiv:2206.00364, table 1).
    """

    __pydantic_config__ = STRICT

    law: Literal["steps", "uniform", "logit-normal", "log-normal"]
    mean: float = 0.0
    std: Annotated[float, Field(gt=0.0)] = 1.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One network and how it is trained.

    model, config: a class of diffusers and its settings, without those that the shape and the
                   classes decide.
    zeroed:        patterns of modules whose weights and biases begin at 0, so that every block
                   begins as the identity and the network answers 0.
    schedule:      {"family": name, "params": fields}, as in a card.
    prediction:    what the network is trained to return.
    data, shape:   labelled images as `images_of` takes them, and their (C, H, W).
    classes:       the names of labels 0, 1, ...; the label after the last is the null class.
    unmirrored:    the classes that are never flipped; all others are half of the time.
    batch:         images a step, of all processes together.
    rate, warmup:  the peak of the learning rate, reached after so many steps; then a half cosine to
                   0 over the budget.
    ema:           decay of the average of weights that is stored; it begins lower.
    label_dropout: share of the images whose class is replaced by the null class.
    clip:          the largest norm of a gradient.
    """

    __pydantic_config__ = STRICT

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    model: str
    config: Mapping[str, Any]
    schedule: Mapping[str, Any]
    prediction: str
    times: Times
    data: str
    shape: tuple[Positive, Positive, Positive]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    unmirrored: tuple[str, ...] = ()
    zeroed: tuple[str, ...] = ()
    batch: Positive = 512
    rate: Annotated[float, Field(gt=0.0)] = 1e-3
    warmup: Positive = 300
    ema: Share = 0.999
    label_dropout: Share = 0.1
    clip: Annotated[float, Field(gt=0.0)] = 1.0
    seed: Annotated[int, Field(ge=0)] = 0

    @property
    def process(self) -> NoiseSchedule:
        """The noise schedule; raises UnknownNameError or SettingError where it is none."""
        try:
            return noise_schedule(self.schedule["family"], **self.schedule["params"])
        except (KeyError, TypeError) as error:
            raise SettingError(
                f"the schedule of {self.name} is written"
                ' {"family": name, "params": {...}}, not ' + repr(dict(self.schedule))
            ) from error

    @property
    def predicts(self) -> Prediction:
        return Prediction.named(self.prediction)

    @property
    def null_class(self) -> int:
        return len(self.classes)


RECIPE = TypeAdapter(Recipe)


def recipe_of(source: str, known: Mapping[str, Recipe]) -> Recipe:
    """A recipe by its name, or from a .json file that holds its fields.

    Raises:
        UnknownNameError: if no recipe has that name.
        SettingError: if there is no such file or it holds no recipe.
    """
    if not source.endswith(".json"):
        if source not in known:
            raise UnknownNameError("recipe", source, [*known, "FILE.json"])
        return known[source]
    try:
        return RECIPE.validate_json(Path(source).read_bytes())
    except OSError as error:
        raise SettingError(f"cannot read {source!r}: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise SettingError(f"{source!r} is no recipe: {where}: {first['msg']}") from error


def written(recipe: Recipe) -> str:
    """The recipe as JSON, which `recipe_of` reads; equal recipes, equal text."""
    return RECIPE.dump_json(recipe).decode()


def build(recipe: Recipe) -> nn.Module:
    """The network before training, the same from the same seed; in float32 on the CPU.

    Raises:
        SettingError: if diffusers refuses its settings, or a pattern of `zeroed` fits nothing.
    """
    import diffusers

    if recipe.model not in MODELS:
        raise UnknownNameError("class of network", recipe.model, MODELS)
    channels, side, _ = recipe.shape
    setting, extra = MODELS[recipe.model]
    sizes = {"in_channels": channels, "out_channels": channels, "sample_size": side}
    seed_everything(recipe.seed)
    try:
        cls = getattr(diffusers, recipe.model)
        network: nn.Module = cls(**recipe.config, **sizes, **{setting: len(recipe.classes) + extra})
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise SettingError(f"{recipe.model} cannot be built for {recipe.name}: {error}") from error
    for pattern in recipe.zeroed:
        _zero(network, pattern)
    _keep_labels(network)
    return network


@torch.no_grad()
def _zero(network: nn.Module, pattern: str) -> None:
    found = [each for name, each in network.named_modules() if fnmatch.fnmatch(name, pattern)]
    if not found:
        raise SettingError(f"the network has no module {pattern!r} that could begin at 0")
    for module in found:
        for value in module.parameters():
            value.zero_()


def _keep_labels(network: nn.Module) -> None:
    """Without the DiT's own label dropout, which every block draws for itself; ours is one."""
    for module in network.modules():
        if type(module).__name__ == "LabelEmbedding":
            module.dropout_prob = 0.0


def parameters_of(recipe: Recipe) -> int:
    """How many parameters the network has; nothing is allocated."""
    with torch.device("meta"):
        return sum(each.numel() for each in build(recipe).parameters())
