"""A model of k-diffusion, or of ComfyUI, as the one who answers a solver's questions."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from ..models.devices import send
from ..models.errors import SettingError
from ..models.schedule import Node
from ..samplers.noise import Noise
from ..samplers.state import rescale
from ..solvers.base import Asked
from ..solvers.choice import Choice

Path = Literal["ve", "flow"]
Model = Callable[..., Tensor]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]
Report = Callable[[dict[str, Any]], object]

NOISY = 5.0  # from this sigma on, eps and x0 of a variance-exploding state cannot be mistaken


def find_path(model: Model) -> Path:
    """Returns the path of a model, by ComfyUI's `model_sampling` where it has one."""
    return read_path(_find_sampling(model))


def read_path(sampling: object) -> Path:
    """Returns the path of a `model_sampling`: "flow" with a class `CONST` among its bases."""
    return "flow" if any(each.__name__ == "CONST" for each in type(sampling).__mro__) else "ve"


def tell_sigma(node: Node, path: Path) -> float:
    """Returns the sigma of a node in the caller's states."""
    return node.sigma / node.alpha if path == "ve" else node.sigma


def _find_sampling(model: Model) -> Any:
    """Returns ComfyUI's `model_sampling` of a wrapped model; None for other models."""
    inner = getattr(getattr(model, "inner_model", None), "inner_model", None)
    return getattr(inner, "model_sampling", None)


def _hash_seed(text: str) -> int:
    """Returns a seed of 63 bits."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


@dataclass
class Host:
    """Answers the questions of a solver in the states of the process.

    x:     the state that the run began with; its dtype and device are those of the model.
    ends:  the nodes of the step; index: its number in the caller's list, None once reported.
    """

    model: Model
    x: Tensor
    extra_args: dict[str, Any]
    path: Path
    noise_sampler: NoiseSampler | None = None
    callback: Report | None = None
    ends: tuple[Node, ...] = field(init=False, default=())
    index: int | None = field(init=False, default=None)
    _noise: Noise | None = field(init=False, default=None)
    _checked: bool = field(init=False, default=False)

    def __post_init__(self) -> None:
        seed, (rows, *shape) = self.extra_args.get("seed"), self.x.shape
        if seed is not None:  # the caller drew x with it, so noise of that seed would be x again
            seeds = [_hash_seed(f"fewstep noise {seed} {row}") for row in range(rows)]
            self._noise = Noise(seeds, tuple(shape))

    def scale(self, node: Node) -> float:
        """Returns the factor of the caller's state that is the state of the process."""
        return node.alpha if self.path == "ve" else 1.0

    def begin(self, t: Node, s: Node, index: int) -> None:
        """Notes the step that the next questions belong to."""
        self.ends, self.index = (t, s), index

    def answer(self, state: Tensor, node: Asked) -> Tensor:
        """Returns noise, a choice, or x0 like the state."""
        if node is None:
            return self._draw(state)
        if isinstance(node, Choice):
            return node.pick(state, None)
        assert isinstance(node, Node)
        sigma = tell_sigma(node, self.path)
        x = rescale(state, 1.0 / self.scale(node)).to(self.x.dtype)
        x0 = self.model(x, self._fill(sigma, len(x)), **self.extra_args)
        self._check(x, sigma, x0)
        if self.callback is not None and self.index is not None:
            self.callback(self._describe(x, sigma, x0))
            self.index = None
        return x0.to(state.dtype)

    def _describe(self, x: Tensor, sigma: float, x0: Tensor) -> dict[str, Any]:
        first, here = self._fill(tell_sigma(self.ends[0], self.path)), self._fill(sigma)
        return {"x": x, "i": self.index, "sigma": first, "sigma_hat": here, "denoised": x0}

    def _fill(self, value: float, *shape: int) -> Tensor:
        return self.x.new_full(shape, value)

    def _check(self, x: Tensor, sigma: float, x0: Tensor) -> None:
        """Raises SettingError for a model that returns another shape, or eps for pure noise."""
        if not isinstance(x0, Tensor) or x0.shape != x.shape:
            got = tuple(x0.shape) if isinstance(x0, Tensor) else type(x0).__name__
            raise SettingError(f"the model must return x0 of shape {tuple(x.shape)}, not {got}")
        if not self._checked and sigma >= (NOISY if self.path == "ve" else 1.0):
            eps = x / sigma
            if bool((x0 - eps).norm() < 0.1 * eps.norm()):
                raise SettingError(
                    "the model answers pure noise with that noise, so it returns eps; wrap it so"
                    " that it returns x0 = x - sigma eps, as k_diffusion.external does"
                )
        self._checked = True

    def _draw(self, state: Tensor) -> Tensor:
        """Returns standard normal noise, times the scale that newer flow models of ComfyUI have."""
        if self.noise_sampler is not None:
            sigmas = (self._fill(tell_sigma(node, self.path)) for node in self.ends)
            return self.noise_sampler(*sigmas).to(state.dtype)
        if self._noise is None:
            noise = torch.randn_like(state)
        else:
            noise = send(self._noise.draw(), state.device, state.dtype)
        scale = getattr(_find_sampling(self.model), "noise_scale", 1.0)
        return rescale(noise, float(scale) if self.path == "flow" else 1.0)
