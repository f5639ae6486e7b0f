"""A learned correction of a table: a small convolution network that adds to the state after steps.

A table is linear in the noise and the predictions. With z the state that a run starts from, y_n the
state that step n of the table gives, m_j the prediction x0 of step j and s = sqrt(alpha^2 +
sigma^2) of a node, a corrected step gives

    x_{n+1} = y_n + s_{n+1} R(z / s_0, y_n / s_{n+1}, m_0, .., m_n, 0, .., e_n),

with zeros for predictions that are still to come and one plane for each corrected step, 1 in that
of this step, where there are several. R is convolutions with SiLU between them; the last one starts
at zero, and so the corrected run at that of the table. The form is that of arXiv:2606.08672, as
far as its abstract tells; layers and training are ours.

The description is part of a schedule; the weights are a safetensors file beside it, known by its
hash. R sees one sample at a time, so samples stay independent of their batch.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Self

import torch
from pydantic import Field, PrivateAttr, ValidationInfo, model_validator
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from ..models.denoiser import Network
from ..models.errors import FewstepError, ScheduleError, reason_of
from ..models.files import write_bytes
from ..models.reading import FOLDER, StrictModel, read_bytes
from ..models.schedule import Node
from .table import Table

MOST_PARAMETERS = 50_000
LARGEST = 2**19  # bytes of a file of weights
NAMED = "correction-{}.safetensors"  # by the first digits of the hash
Count = Annotated[int, Field(ge=1)]


class CorrectionNet(nn.Module):
    """Convolutions over images (B, inputs, H, W), SiLU between them; the last starts at zero."""

    def __init__(
        self, sizes: Sequence[int], kernel: tuple[int, int], dilations: Sequence[int]
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for (before, after), dilation in zip(pairwise(sizes), dilations, strict=True):
            layers += [
                nn.Conv2d(before, after, kernel, padding="same", dilation=dilation),
                nn.SiLU(),
            ]
        self.layers = nn.Sequential(*layers[:-1])
        for parameter in layers[-2].parameters():
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


class Correction(StrictModel):
    """The description of a correction, as a schedule holds it.

    sha256: of the file of its weights; its name begins with the first 16 digits.
    shape:  of the samples that it was trained on: (channels, height, width), (channels, length) or
            (numbers,), on which it is a network of 1x1 convolutions.
    steps:  that it corrects, from 0, rising.
    width:  channels between its layers. dilations: of its layers, one each.
    """

    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] = "0" * 64
    shape: Annotated[tuple[Count, ...], Field(min_length=1, max_length=3)]
    steps: Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]
    width: Count = 24
    dilations: Annotated[tuple[Count, ...], Field(min_length=2, max_length=16)] = (1, 1, 1, 1)
    _body: bytes | None = PrivateAttr(default=None)

    @property
    def file(self) -> str:
        """The name of the file of the weights."""
        return NAMED.format(self.sha256[:16])

    @property
    def image(self) -> tuple[int, int, int]:
        """The shape of a sample as channels, height and width."""
        channels, *sides = self.shape
        height, width = (1, *sides)[-2:] if sides else (1, 1)
        return channels, height, width

    @property
    def inputs(self) -> int:
        """The channels that the network is given."""
        planes = len(self.steps) if len(self.steps) > 1 else 0
        return self.image[0] * (2 + self.steps[-1] + 1) + planes

    @property
    def parameters(self) -> int:
        """The number of its weights."""
        sizes, kernel = self._sizes, math.prod(self._kernel)
        return sum(after * (before * kernel + 1) for before, after in pairwise(sizes))

    @property
    def multiplications(self) -> int:
        """The multiply-adds of one sample and step."""
        _, height, width = self.image
        kernel = math.prod(self._kernel)
        return height * width * sum(a * b * kernel for a, b in pairwise(self._sizes))

    @property
    def _sizes(self) -> list[int]:
        return [self.inputs, *[self.width] * (len(self.dilations) - 1), self.image[0]]

    @property
    def _kernel(self) -> tuple[int, int]:
        _, height, width = self.image
        return 3 if height > 1 else 1, 3 if width > 1 else 1

    def make_net(self) -> CorrectionNet:
        """Returns an untrained network, which adds nothing."""
        return CorrectionNet(self._sizes, self._kernel, self.dilations)

    def gather(self, n: int, start: Tensor, state: Tensor, predictions: Sequence[Tensor]) -> Tensor:
        """Returns what the network is given at step n, (B, inputs, H, W).

        start, state: (B, *) of about unit size. predictions: x0 (B, *) of the steps up to n.
        """
        images = [each.reshape(len(each), *self.image) for each in (start, state, *predictions)]
        missing = self.inputs - sum(each.shape[1] for each in images)
        rest = images[0].new_zeros(len(start), missing, *self.image[1:])
        if len(self.steps) > 1:
            rest[:, missing - len(self.steps) + self.steps.index(n)] = 1.0
        return torch.cat([*images, rest], dim=1)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if list(self.steps) != sorted(set(self.steps)):
            raise ValueError("steps must rise")
        if math.prod(self.shape) < 2:
            raise ValueError("samples of one number are not corrected")
        if self.parameters > MOST_PARAMETERS:
            raise ValueError(
                f"it has {self.parameters:,} parameters; {MOST_PARAMETERS:,} are the most"
            )
        return self

    def with_net(self, net: CorrectionNet) -> "Correction":
        """Returns it with the weights of a network."""
        named = {name: each.detach().cpu().contiguous() for name, each in net.state_dict().items()}
        body = save(named)
        made = self.model_copy(update={"sha256": hashlib.sha256(body).hexdigest()})
        made._body = body
        return made

    def write(self, folder: Path) -> None:
        """Writes the file of the weights into a folder; raises SettingError if it cannot."""
        write_bytes(folder / self.file, self._need_body())

    @model_validator(mode="after")
    def _read_weights(self, info: ValidationInfo) -> Self:
        """Reads the weights where the folder of the file that is read is known.

        Raises:
            ValueError: if they are missing or changed, or are no weights of such a network.
        """
        folder = (info.context or {}).get(FOLDER)
        if folder is None or self._body is not None:
            return self
        try:
            self._body = read_bytes(folder / self.file, "the weights", LARGEST)
            if hashlib.sha256(self._body).hexdigest() != self.sha256:
                raise ScheduleError(f"the weights in {self.file} have changed (sha256)")
            self.load_net()
        except FewstepError as error:
            raise ValueError(
                f"{error}; put back the file that was written with it, or make both again with"
                " fewstep search"
            ) from error
        return self

    def load_net(self) -> CorrectionNet:
        """Returns the network with its weights; raises ScheduleError if they are none of its."""
        net = self.make_net()
        try:
            tensors = load(self._need_body())
        except SafetensorError as error:
            raise ScheduleError(
                f"{self.file} is not a file of weights: {reason_of(error)}"
            ) from error
        expected = {name: tuple(each.shape) for name, each in net.state_dict().items()}
        if {name: tuple(each.shape) for name, each in tensors.items()} != expected:
            raise ScheduleError(f"{self.file} holds other tensors than its correction has")
        _check_numbers(tensors, self.file)
        net.load_state_dict(tensors)
        return net.requires_grad_(False)

    def check_table(self, table: Table, cached: bool) -> None:
        """Raises ScheduleError for a table that it cannot correct."""
        if cached or table.guided or None in table.evaluations:
            raise ScheduleError(
                "a correction needs a table without a cache that asks for one prediction in every"
                " step"
            )
        if any(kind == "z" for combo in table.steps for kind, _ in combo):
            raise ScheduleError("a correction needs a table that adds no noise")
        if self.steps[-1] >= len(table.steps):
            raise ScheduleError(
                f"the correction is for step {self.steps[-1]}, and there are {len(table.steps)}"
            )

    def check_network(self, network: Network) -> None:
        """Raises ScheduleError for a network with samples of another shape."""
        if tuple(network.shape) != self.shape:
            raise ScheduleError(
                f"the correction in this schedule is for samples of shape {self.shape}, and those"
                f" of {network.name} have {tuple(network.shape)}; run `fewstep search"
                f" {network.name} --strategy grid,fit,refine,correction`"
            )

    def _need_body(self) -> bytes:
        if self._body is None:
            raise ScheduleError(
                "this schedule has a learned correction, and its weights did not come with it; load"
                f" it from a file with {self.file} beside it"
            )
        return self._body


def _check_numbers(tensors: Mapping[str, Tensor], file: str) -> None:
    """Raises ScheduleError for weights that are not finite float32 numbers."""
    for name, each in tensors.items():
        if each.dtype != torch.float32 or not bool(torch.isfinite(each).all()):
            raise ScheduleError(f"{name} in {file} is not of finite float32 numbers")


def find_scale(node: Node) -> float:
    """Returns sqrt(alpha^2 + sigma^2), about the size of a state."""
    return math.hypot(node.alpha, node.sigma)
