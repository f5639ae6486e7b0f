"""`Recipe`: everything that decides a training, as one value, and the network it builds."""

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
Above0 = Annotated[float, Field(gt=0.0)]
NotNegative = Annotated[float, Field(ge=0.0)]
Share = Annotated[float, Field(ge=0.0, lt=1.0)]
STRICT = ConfigDict(extra="forbid", allow_inf_nan=False)


@dataclass(frozen=True)
class Times:
    """How the times of training are spread, or a share of them; always within the schedule's range.

    law:   "steps", the training steps of a discrete VP schedule, all equally likely; "uniform" and
           "log-uniform", between two ends; "logit-normal", t = sigmoid(N(mean, std))
           (arXiv:2403.03206, sec. 3.1); "log-normal", t = exp(N(mean, std)) (arXiv:2206.00364,
           table 1).
    at:    the two ends, or mean and standard deviation.
    share: the weight among the recipe's laws.
    """

    __pydantic_config__ = STRICT

    law: Literal["steps", "uniform", "log-uniform", "logit-normal", "log-normal"]
    at: tuple[float, float] = (0.0, 1.0)
    share: Above0 = 1.0


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One network and how it is trained.

    model, config: a class of diffusers and its settings, without those that the shape and the
                   classes decide.
    schedule:      {"family": name, "params": fields}, as in a card.
    prediction:    what the network is trained to return.
    times:         the laws of the times, by their shares.
    data, shape:   labelled images as `images_of` takes them, or several such sets with the weight
                   of each of their images, and their (C, H, W).
    classes:       the names of labels 0, 1, ...; the label after the last is the null class.
    conditional:   whether the network is told the class.
    unmirrored:    the classes that are never flipped; all others are half of the time.
    balance:       an image is drawn with weight (images of its class)^-balance.
    rate, warmup:  the peak of the learning rate, reached after so many steps; then a half cosine to
                   1 % of it over the budget.
    ema:           decay of the average of weights that is stored; it begins lower.
    label_dropout: share of the images whose class is replaced by the null class.
    clip:          the largest norm of a gradient.
    tint:          deviation, in the image's range, of a tint that the noise has besides, even over
                   the image or slowly changing, at most as strong as the noise itself. The network
                   learns to remove what little of a tint its own errors leave; noise that has one
                   in proportion to itself is known as offset noise.
    bf16:          whether all but the borders of the network computes in bf16.
    """

    __pydantic_config__ = STRICT

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]*$")]
    model: str
    config: Mapping[str, Any]
    schedule: Mapping[str, Any]
    prediction: str
    times: Annotated[tuple[Times, ...], Field(min_length=1)]
    data: str | Mapping[str, Above0]
    shape: tuple[Positive, Positive, Positive]
    classes: Annotated[tuple[str, ...], Field(min_length=1)]
    conditional: bool = True
    unmirrored: tuple[str, ...] = ()
    balance: float = 0.0
    batch: Positive = 64
    rate: Above0 = 1e-3
    warmup: Positive = 200
    ema: Share = 0.9995
    label_dropout: Share = 0.1
    clip: Above0 = 1.0
    tint: NotNegative = 0.0
    bf16: bool = True
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
    def sources(self) -> Mapping[str, float]:
        """The sets of images, and the weight of an image of each."""
        return {self.data: 1.0} if isinstance(self.data, str) else self.data

    @property
    def class_names(self) -> tuple[str, ...]:
        """The classes that the network knows."""
        return self.classes if self.conditional else ()

    @property
    def null_class(self) -> int | None:
        return len(self.classes) if self.conditional else None


RECIPE = TypeAdapter(Recipe)


def recipe_of(source: str, known: Mapping[str, Recipe]) -> Recipe:
    """Returns a recipe by its name, or from a .json file that holds its fields.

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


def write_recipe(recipe: Recipe) -> str:
    """Returns the recipe as JSON, which `recipe_of` reads; equal recipes, equal text."""
    return RECIPE.dump_json(recipe).decode()


def build(recipe: Recipe) -> nn.Module:
    """Returns the network before training, the same from the same seed; in float32 on the CPU.

    Raises:
        UnknownNameError: if its class cannot be trained here.
        SettingError: if diffusers refuses its settings.
    """
    import diffusers

    if recipe.model not in MODELS:
        raise UnknownNameError("class of network", recipe.model, MODELS)
    channels, side, _ = recipe.shape
    sizes = {"in_channels": channels, "out_channels": channels, "sample_size": side}
    if recipe.conditional:
        setting, extra = MODELS[recipe.model]
        sizes[setting] = len(recipe.classes) + extra
    seed_everything(recipe.seed)
    try:
        network: nn.Module = getattr(diffusers, recipe.model)(**recipe.config, **sizes)
    except (TypeError, ValueError, NotImplementedError, AttributeError) as error:
        raise SettingError(f"{recipe.model} cannot be built for {recipe.name}: {error}") from error
    for module in network.modules():
        if type(module).__name__ == "LabelEmbedding":
            module.dropout_prob = 0.0  # every block would draw for itself; the recipe's is one
    return network


def parameters_of(recipe: Recipe) -> int:
    """Counts the parameters of the network; nothing is allocated."""
    with torch.device("meta"):
        return sum(each.numel() for each in build(recipe).parameters())
