"""`Run`: a network in training, what one step does to it, and how it is kept in a file."""

import hashlib
import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from fewstep.models.errors import NonFiniteError, SettingError
from fewstep.models.files import write_whole

from .pixels import Pixels, pixels_of
from .recipe import Recipe, build, written
from .task import Asked, nodes

WINDOW = 100  # steps that the reported loss is a mean over
TOO_MANY = 20  # steps in a row without a finite gradient
BETAS = (0.9, 0.99)
VERSION = 1


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

    def add(self, loss: float) -> None:
        """Counts one step; a loss of NaN says that it was skipped."""
        finite = math.isfinite(loss)
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
    """One process's part of a training.

    The step k of process r draws everything random from a seed made of the recipe's seed, r and k,
    so that a resumed training needs no state of generators and repeats what it would have done.
    """

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        if recipe.batch % accelerator.num_processes:
            raise SettingError(
                f"a batch of {recipe.batch} cannot be shared by {accelerator.num_processes}"
                " processes; make it a multiple of that"
            )
        self.recipe, self.accelerator = recipe, accelerator
        self.share = recipe.batch // accelerator.num_processes
        self.device = accelerator.device
        self.network = self._placed(build(recipe))
        self.asked = nodes(recipe).to(self.device)
        self.pixels: Pixels = pixels_of(recipe).to(self.device)
        self.parameters = list(self.network.parameters())
        self.average = [each.detach().clone() for each in self.parameters]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=recipe.rate, betas=BETAS, weight_decay=0.0, fused=True
        )
        self.progress = Progress()
        self._unread: list[Tensor] = []
        self.call: Callable[..., Any] = self.network

    def _placed(self, network: nn.Module) -> nn.Module:
        """On its device; images last in memory for convolutions, which is faster."""
        return network.train().to(self.device).to(memory_format=self.layout)

    @property
    def layout(self) -> torch.memory_format:
        unet = self.recipe.model == "UNet2DModel"
        return torch.channels_last if unet else torch.contiguous_format

    def start(self, compiled: bool) -> str:
        """Shares the network among the processes, compiled if asked.

        Returns:
            Why it could not be compiled, or nothing.
        """
        self.call = eager = self.accelerator.prepare_model(self.network)
        if not compiled:
            return ""
        self.call = torch.compile(eager)
        try:
            self.backward()
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # the compiler raises what it likes
            self.call, reason = eager, str(error).strip().partition("\n")[0]
            return f"{type(error).__name__}: {reason}"
        finally:
            self.optimizer.zero_grad()
        return ""

    def backward(self) -> Tensor:
        """The loss of the batch of this step, its gradients left at the parameters."""
        torch.manual_seed(_seed(self.recipe.seed, self.accelerator.process_index, self.steps))
        x0, labels = self.pixels.drawn(self.share)
        dropped = torch.rand(len(labels), device=self.device) < self.recipe.label_dropout
        labels = torch.where(dropped, self.recipe.null_class, labels)
        loss = self.loss(x0, labels, self.asked.drawn(len(x0)), torch.randn_like(x0))
        self.accelerator.backward(loss)
        return loss.detach()

    def loss(self, x0: Tensor, labels: Tensor, at: Asked, eps: Tensor) -> Tensor:
        """The mean squared error of the network's answers at x_t = alpha x0 + sigma eps."""
        x_in = (at.scale * (at.alpha * x0 + at.sigma * eps)).contiguous(memory_format=self.layout)
        time = at.label.flatten()
        out = self.call(x_in, timestep=time, class_labels=labels, return_dict=False)[0]
        return (out.float() - (at.p * x0 + at.q * eps)).square().mean()

    @property
    def steps(self) -> int:
        return self.progress.steps

    def step(self, rate: float) -> None:
        """One step of AdamW, then of the average; a gradient that is not finite changes nothing.

        Nothing is read from the device, which therefore never waits for this process: whether to
        skip is decided there, by what a fused optimizer knows as `found_inf`.
        """
        loss = self.backward()
        norm = nn.utils.clip_grad_norm_(self.parameters, self.recipe.clip)
        skipped = ~torch.isfinite(norm + loss)
        if self.accelerator.num_processes > 1:  # a loss is one process's own, but all must agree
            skipped = ~torch.isfinite(norm)
        self.optimizer.found_inf = skipped.float()
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()
        decay = min(self.recipe.ema, (1.0 + self.steps) / (10.0 + self.steps))
        with torch.no_grad():
            torch._foreach_lerp_(self.average, self.parameters, 1.0 - decay)
        self._unread.append(torch.where(skipped, math.nan, loss))
        self.progress.steps += 1

    def read(self) -> None:
        """Waits for the device and counts the steps since the last time.

        Raises:
            NonFiniteError: after too many skipped steps in a row.
        """
        if self._unread:
            losses = self.accelerator.reduce(torch.stack(self._unread), "mean").tolist()
            self._unread.clear()
            for loss in losses:
                self.progress.add(loss)

    def averaged(self) -> dict[str, Tensor]:
        """The average of the weights by the names of the parameters, in float32 on the CPU."""
        names = (name for name, _ in self.network.named_parameters())
        return {name: each.cpu() for name, each in zip(names, self.average, strict=True)}

    def save(self, path: Path) -> None:
        """Keeps everything that the next step depends on; a half file is never seen."""
        facts = {**vars(self.progress), "losses": list(self.progress.losses)}
        content = {
            "version": VERSION,
            "recipe": written(self.recipe),
            "progress": facts,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        write_whole(path, lambda file: torch.save(content, file))

    def restore(self, path: Path) -> None:
        """Goes on from a file of `save`.

        Raises:
            SettingError: if it is of another recipe or cannot be read.
        """
        content = kept(path)
        check_same(content["recipe"], self.recipe, path)
        try:
            self.network.load_state_dict(content["network"])
            for mine, its in zip(self.average, content["average"], strict=True):
                mine.copy_(its)
            self.optimizer.load_state_dict(content["optimizer"])
            facts = dict(content["progress"])
            losses = deque(facts.pop("losses"), maxlen=WINDOW)
            self.progress = Progress(**facts, losses=losses)
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise _unreadable(path, error) from error


def kept(path: Path) -> dict[str, Any]:
    """What `Run.save` wrote, on the CPU; raises SettingError if it cannot be read."""
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        if content["version"] != VERSION:
            raise ValueError(f"version {content['version']}, not {VERSION}")
        content["recipe"]
    except Exception as error:  # torch.load has no error of its own for damaged files
        raise _unreadable(path, error) from error
    found: dict[str, Any] = content
    return found


def check_same(text: str, recipe: Recipe, path: Path) -> None:
    """Raises SettingError if a kept training is not of this recipe, and says what differs."""
    import json

    its, mine = json.loads(text), json.loads(written(recipe))
    if its == mine:
        return
    if its["name"] != mine["name"]:
        raise SettingError(
            f"{str(path)!r} is a training of {its['name']!r}, not of {mine['name']!r};"
            " give another --out"
        )
    field = next(name for name in mine if its.get(name) != mine[name])
    raise SettingError(
        f"{str(path)!r} was trained with {field} = {its.get(field)!r}, not {mine[field]!r};"
        " repeat that, or give another --out"
    )


def _unreadable(path: Path, error: Exception) -> SettingError:
    reason = str(error).strip().partition("\n")[0]
    return SettingError(
        f"cannot go on from {str(path)!r} ({type(error).__name__}: {reason});"
        " remove it to begin again, or give another --out"
    )


def _seed(*parts: int) -> int:
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1
