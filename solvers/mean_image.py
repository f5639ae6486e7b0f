"""A tensor inside the JSON of a schedule."""

import base64
import binascii
import hashlib
import math
import struct
from collections.abc import Sequence
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from ..models.reading import StrictModel


class MeanImage(StrictModel):
    """A tensor that stands for the first prediction, carried inside the JSON.

    It is one sample, or what broadcasts to one (a value per channel, say), so that a schedule stays
    one file, and travels in a picture, whatever happens to the folder it was made in.

    mean:  sha256 of its bytes, checked.
    shape: of one sample, without the batch axis.
    data:  its float32 values, little-endian, in base64.
    """

    mean: str
    shape: tuple[Annotated[int, Field(ge=1)], ...]
    data: str

    @classmethod
    def of(cls, values: Sequence[float], shape: Sequence[int]) -> "MeanImage":
        """Makes one of the values in row-major order; they are rounded to float32."""
        body = struct.pack(f"<{len(values)}f", *values)
        data = base64.b64encode(body).decode()
        return cls(mean=hashlib.sha256(body).hexdigest(), shape=tuple(shape), data=data)

    def values(self) -> list[float]:
        """Returns the values in row-major order."""
        body = base64.b64decode(self.data, validate=True)
        return list(struct.unpack(f"<{len(body) // 4}f", body))

    def tensor(self) -> Tensor:
        """Returns the values as float32 in the shape of a sample."""
        return torch.tensor(self.values(), dtype=torch.float32).reshape(self.shape)

    @model_validator(mode="after")
    def _whole(self) -> Self:
        try:
            body = base64.b64decode(self.data, validate=True)
        except binascii.Error as error:
            raise ValueError(f"data is no base64: {error}") from error
        if hashlib.sha256(body).hexdigest() != self.mean:
            raise ValueError("data is not the tensor that mean names (sha256)")
        if len(body) != 4 * math.prod(self.shape):
            raise ValueError(f"data holds {len(body)} bytes, not float32 of shape {self.shape}")
        if not all(math.isfinite(value) for value in self.values()):
            raise ValueError("the mean holds NaN or infinity")
        return self
