"""The tensors that pass between a pipeline and a run: states, the network's answers, noise."""

from typing import Any

import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Generator, Tensor

from ...models.errors import NonFiniteError, SettingError
from .stepper import Draw

Generators = Generator | list[Generator] | None


def to_state(sample: Tensor) -> Tensor:
    """Returns a sample as the state is held: float32, or float64 if it is that."""
    return sample.to(torch.promote_types(sample.dtype, torch.float32))


def rescale(x: Tensor, factor: float) -> Tensor:
    """Returns factor x, and x itself where the factor is 1."""
    return x if factor == 1.0 else factor * x


def check_answer(output: Any, x: Tensor) -> Tensor:
    """Returns the network's output in the state's dtype and shape, without a learned sigma.

    Raises:
        SettingError: if it is no tensor, or none of this shape.
    """
    if not isinstance(output, Tensor):
        raise SettingError(
            f"step takes the network's output as a tensor, not a {type(output).__name__}; pass its"
            " .sample, or call the network with return_dict=False"
        )
    if output.shape != x.shape and output.ndim > 1 and output.shape[1] == 2 * x.shape[1]:
        output = output[:, : x.shape[1]]
    if output.shape != x.shape:
        raise SettingError(
            f"the network answered {tuple(output.shape)} to a state of {tuple(x.shape)}; they must"
            " be equal, or the answer may have twice the channels (learned sigma)"
        )
    answer: Tensor = output.to(x.dtype)
    return answer


def refuse_nonfinite(x0: Tensor, timestep: float) -> None:
    """Raises NonFiniteError for an x0 (B, *) with NaN or infinity; the host waits for it."""
    if not bool(x0.isfinite().all()):
        raise NonFiniteError(
            f"the network returned NaN or infinity at timestep {timestep:g}; try another dtype, or"
            " check that the config is that of its own scheduler"
        )


def read_version(tensor: Tensor) -> int:
    """Tells whether a tensor was changed in place; inference tensors do not, and count as not."""
    return 0 if tensor.is_inference() else tensor._version


def make_draw(generator: Generators) -> Draw:
    """Returns what draws standard normal noise from the generators handed to `step`."""

    def draw(x: Tensor) -> Tensor:
        each = generator if isinstance(generator, list) else [generator]
        if not all(one is None or isinstance(one, Generator) for one in each):
            raise SettingError(
                f"generator={generator!r} must be a torch.Generator or a list of them"
            )
        if isinstance(generator, list) and len(generator) != len(x):
            raise SettingError(
                f"{len(generator)} generators for {len(x)} images; give one for each"
            )
        noise: Tensor = randn_tensor(x.shape, generator, x.device, x.dtype)
        return noise

    return draw
