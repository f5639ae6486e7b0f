"""`Run`: a network in training, and what one step does to it."""

import hashlib
import math
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from fewstep.models.checkpoint import WEIGHTS
from fewstep.models.errors import NonFiniteError, SettingError
from fewstep.samplers.noise import spread_noise

from .pixels import pixels_of
from .recipe import Recipe, build
from .task import Asked, make_nodes

WINDOW = 100  # steps that the reported loss is a mean over
TOO_MANY = 20  # steps in a row without a finite gradient
BETAS = (0.9, 0.99)
SLOW = 4  # places along a side of a tint that changes slowly

# bf16 rounds away what little noise there is near the data, so these compute in float32.
BORDERS = {
    "UNet2DModel": ("conv_in", "conv_out"),
    "DiTTransformer2DModel": ("pos_embed", "proj_out_1", "proj_out_2"),
}


@dataclass
class Progress:
    """How far a training is.

    steps, seconds: what was used of the budget so far.
    skipped:        steps whose gradient was not finite and that changed nothing.
    in_a_row:       how many of them came last.
    losses:         of the last steps that did.
    """

    steps: int = 0
    seconds: float = 0.0
    skipped: int = 0
    in_a_row: int = 0
    losses: deque[float] = field(default_factory=lambda: deque(maxlen=WINDOW))

    @property
    def loss(self) -> float:
        return sum(self.losses) / len(self.losses) if self.losses else math.nan

    def add(self, loss: float, finite: bool) -> None:
        """Counts one step."""
        self.steps += 1
        self.skipped += not finite
        self.in_a_row = 0 if finite else self.in_a_row + 1
        if finite:
            self.losses.append(loss)
        if self.in_a_row >= TOO_MANY:
            raise NonFiniteError(
                f"no gradient was finite for {TOO_MANY} steps, up to step {self.steps};"
                " lower the rate of the recipe, or begin again with another seed"
            )


class Run:
    """A training.

    Step k draws everything random from a seed made of the recipe's seed and k, so that a resumed
    training needs no state of generators and repeats what it would have done.
    """

    def __init__(self, recipe: Recipe, start: Path | None = None) -> None:
        self.recipe, self.progress = recipe, Progress()
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = build(recipe)
        self.start = "" if start is None else load_weights(self.network, start)
        for name in BORDERS[recipe.model]:
            _compute_in_float32(self.network.get_submodule(name), self.device.type)
        unet = recipe.model == "UNet2DModel"  # convolutions are faster with channels last
        self.layout = torch.channels_last if unet else torch.contiguous_format
        self.network.train().to(self.device).to(memory_format=self.layout)
        self.asked = make_nodes(recipe).to(self.device)
        self.pixels = pixels_of(recipe).to(self.device)
        self.parameters = list(self.network.parameters())
        self.average = [each.detach().clone() for each in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.rate, betas=BETAS, weight_decay=0.0, fused=True
        )

    def step(self, rate: float) -> None:
        """One step of AdamW, then of the average; a gradient that is not finite changes nothing."""
        loss = self.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        finite = bool(torch.isfinite(norm + loss))
        if finite:
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.parameters, 1.0 - self.decay)
        self.optimizer.zero_grad()
        self.progress.add(float(loss), finite)

    def backward(self) -> Tensor:
        """Returns the loss of the batch of this step, its gradients left at the parameters."""
        recipe = self.recipe
        torch.manual_seed(_seed(recipe.seed, self.progress.steps))
        x0, labels = self.pixels.draw(recipe.batch)
        if recipe.null_class is not None:
            dropped = torch.rand(recipe.batch, device=self.device) < recipe.label_dropout
            labels = torch.where(dropped, recipe.null_class, labels)
        at, eps = self.asked.draw(recipe.batch), torch.randn_like(x0)
        eps = spread_noise(eps, recipe.process, [None] * len(eps))
        if recipe.tint > 0.0:
            eps += draw_tint(x0) * (recipe.tint / at.sigma).clamp(max=1.0)
        loss = self.loss(x0, labels, at, eps)
        loss.backward()
        return loss.detach()

    def loss(self, x0: Tensor, labels: Tensor, at: Asked, eps: Tensor) -> Tensor:
        """Returns the mean squared error of the answers at x_t = alpha x0 + sigma eps."""
        x_in = (at.scale * (at.alpha * x0 + at.sigma * eps)).contiguous(memory_format=self.layout)
        cond = {"class_labels": labels} if self.recipe.conditional else {}
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.recipe.bf16):
            out = self.network(x_in, timestep=at.label.flatten(), return_dict=False, **cond)[0]
        return (out.float() - (at.p * x0 + at.q * eps)).square().mean()

    @property
    def decay(self) -> float:
        """Of the average: lower at first, when what it remembers is worth little."""
        steps = self.progress.steps
        first = 1.0 - 1.0 / (steps + 50) if self.start else (1.0 + steps) / (10.0 + steps)
        return min(self.recipe.ema, first)

    def averaged(self) -> dict[str, Tensor]:
        """Returns the average of the weights by the names of the parameters, on the CPU."""
        names = (name for name, _ in self.network.named_parameters())
        return {name: each.cpu() for name, each in zip(names, self.average, strict=True)}


def load_weights(network: nn.Module, folder: Path) -> str:
    """Puts the weights of a checkpoint folder into a network; returns the sha256 of their file.

    Raises:
        SettingError: if there are none, or they are of another architecture.
    """
    path = folder / WEIGHTS
    try:
        network.load_state_dict(load_file(path))
        return hashlib.sha256(path.read_bytes()).hexdigest()
    except Exception as error:  # safetensors has errors of its own
        reason = " ".join(str(error).split())[:200]
        raise SettingError(f"cannot start from {str(path)!r}: {reason}") from error


def draw_tint(images: Tensor) -> Tensor:
    """Returns noise that is even over each image, plus noise that changes slowly over it."""
    even, slow = (torch.randn_like(images[:, :, :side, :side]) for side in (1, SLOW))
    return even + F.interpolate(slow, images.shape[2:], mode="bilinear")


def _compute_in_float32(module: nn.Module, device: str) -> None:
    """Lets a module's forward run outside of autocast."""
    forward = module.forward

    def exact(*args: Any, **names: Any) -> Any:
        with torch.autocast(device, enabled=False):
            return forward(*map(_float, args), **{key: _float(each) for key, each in names.items()})

    module.forward = exact


def _float(value: Any) -> Any:
    return value.float() if torch.is_tensor(value) and value.is_floating_point() else value


def _seed(*parts: int) -> int:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
