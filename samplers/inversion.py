"""Inversion: from an image to the noise that it comes from, and back on the same grid.

`samplers.route` says what walks the grid in each direction. The image stands at the clean end of
the grid as alpha x0, which on rectified flow is the image itself to six digits.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.caching import attached
from ..models.denoiser import Branch, Denoiser, Network
from ..models.errors import SettingError
from ..models.ledger import Ledger
from ..models.schedule import Node, NoiseSchedule, TimeGrid
from ..solvers import SolverSettings, drive, solver
from ..solvers.base import Asked
from .conditions import Conditions, branches_of, check_branches
from .guidance import Guidance, Setup, Unguided
from .images import write_whole
from .loop import integrate
from .plan import named_solver
from .route import DEFAULT_SOLVER, Route, route, route_of, state_dtype
from .sampler import Result, Sampler

NOISE, CHUNK = "noise", "fewstep"


@dataclass(frozen=True)
class Inversion:
    """What inverting gave, and all that is needed to go back.

    noise:      (B, *) float64, the state at the first node of the grid.
    route:      the solvers and the grid.
    labels:     the class of each image, or None.
    trajectory: (steps + 1, B, *) from data to noise, if asked for.
    ledger:     what it cost.
    """

    noise: Tensor
    route: Route
    labels: tuple[int, ...] | None
    trajectory: Tensor | None
    ledger: Ledger

    def save(self, path: Path, **told: Any) -> None:
        """Writes the noise as float32 .safetensors, whose metadata say how to go back.

        told: further facts to keep there, such as the model's name.
        """
        from safetensors.torch import save

        times = [node.t for node in self.route.grid]
        solver, labels = _spec(self.route.settings), self.labels
        facts = {"solver": solver, "labels": labels, "times": times, **told}
        noise = self.noise.float().contiguous().cpu()
        body = save({NOISE: noise}, {CHUNK: json.dumps(facts)})

        def write(file: IO[bytes]) -> None:
            file.write(body)

        write_whole(path, write)

    @classmethod
    def load(cls, path: Path, schedule: NoiseSchedule) -> "Inversion":
        """What `save` wrote; raises SettingError if it is not such a file."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(str(path), "pt") as file:
                facts = json.loads((file.metadata() or {})[CHUNK])
                noise = file.get_tensor(NOISE).double()
            settings, labels = named_solver(facts["solver"]), facts["labels"]
            route = route_of(settings, TimeGrid.of(schedule, facts["times"]))
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise SettingError(
                f"{str(path)!r} holds no inversion that can be read ({error}); make one with"
                " fewstep invert"
            ) from error
        return cls(noise, route, labels and tuple(labels), None, Ledger(images=len(noise)))


def invert(
    sampler: Sampler,
    image: Tensor,
    *,
    solver: str | SolverSettings = DEFAULT_SOLVER,
    class_labels: int | Sequence[int] | None = None,
    conditions: Conditions | None = None,
    trajectory: bool = False,
    progress: bool = False,
    **choices: Any,
) -> Inversion:
    """The noise that an image comes from, under its own condition and without guidance.

    Args:
        image: (B, *) in the network's own space, finite: pictures in [-1, 1], or latents.
        solver: one of `invertible`, with settings.
        class_labels: of the images; None is the null class where there is one.
        conditions: further keyword tensors of the network.
        trajectory: keep the states at all nodes.
        progress: show a bar in a terminal once the run has taken a second.
        choices: nfe or steps, grid and t_min, as `route` takes them.

    Raises:
        SettingError: for an image of another shape or with NaN, and for all that `route` refuses.
    """
    network = sampler.network
    x, way = checked_image(network, image), route(network, solver, **choices)
    branches = branches_of(network, len(x), class_labels, conditions, None)
    denoiser = Denoiser(network, branches, Ledger(images=len(x)))
    states = [x * way.rising[0].alpha]

    bar = tqdm(total=way.grid.steps, disable=None if progress else True, delay=1, leave=False)

    def step_done(n: int, x: Tensor) -> None:
        bar.update()
        if trajectory:
            states.append(x)

    with torch.no_grad(), _timed(denoiser.ledger), bar:
        noise = walk(denoiser, way, states[0], step_done)
    labels = branches[Branch.COND].get("class_labels")
    told = None if labels is None else tuple(labels.tolist())
    kept = torch.stack(states).cpu() if trajectory else None
    return Inversion(noise.cpu(), way, told, kept, denoiser.ledger)


def reconstruct(
    sampler: Sampler,
    inversion: Inversion,
    *,
    class_labels: int | Sequence[int] | None = None,
    conditions: Conditions | None = None,
    guidance: Guidance | None = None,
) -> Result:
    """The image that a noise leads to on the grid it was found on.

    class_labels: None for those of the inversion; another is a plain edit.
    conditions:   further keyword tensors; those of the inversion lead back to its image.
    """
    network, way, noise = sampler.network, inversion.route, inversion.noise
    labels = inversion.labels if class_labels is None else class_labels
    branches = branches_of(network, len(noise), labels, conditions, None)
    guidance = guidance or Unguided()
    check_branches(network, branches, guidance, way.grid)
    back = way.back.on(way.grid)
    guidance.check(Setup(network, back, way.grid, len(noise), False, False))
    denoiser = Denoiser(network, branches, Ledger(images=len(noise)))
    with torch.no_grad(), _timed(denoiser.ledger):
        x = integrate(denoiser, back, way.grid, on_device(network, noise), guidance)
    return Result(decoded(network, x / way.grid.nodes[-1].alpha), denoiser.ledger)


def walk(
    denoiser: Denoiser, way: Route, x: Tensor, step_done: Callable[[int, Tensor], Any]
) -> Tensor:
    """Carries x from the clean end to the noise; step_done(n, x) is called after step n."""
    there, _ = way.solvers
    state = there.init()

    def answer(x_t: Tensor, node: Asked) -> Tensor:
        assert isinstance(node, Node)
        return denoiser.x0(x_t, node)[0]

    for n, (t, s) in enumerate(pairwise(way.rising)):
        before = denoiser.ledger.rows
        x, state = drive(there.step(x, state, t, s), answer)
        denoiser.ledger.count_step(n, denoiser.ledger.rows - before)
        step_done(n, x)
    denoiser.check()
    return x


def checked_image(network: Network, image: Tensor) -> Tensor:
    """The image as a state; raises SettingError if it is no sample of the network."""
    if attached(network) is not None:
        raise SettingError("take the cache off the network first: disable_cache(network)")
    if tuple(image.shape[1:]) != network.shape or not len(image):
        raise SettingError(
            f"an image of shape {tuple(image.shape)} is none of {network.name}; give (B, *) with"
            f" samples of shape {network.shape}"
        )
    if not image.is_floating_point() or not bool(image.isfinite().all()):
        raise SettingError("the image holds NaN, infinity or integers; give floats in [-1, 1]")
    return on_device(network, image)


def on_device(network: Network, x: Tensor) -> Tensor:
    """A state on the network's device, in float64 where that has it."""
    return x.to(network.device, state_dtype(network))


def decoded(network: Network, x: Tensor) -> Tensor:
    """Float32 samples on the CPU, decoded where the network has a VAE."""
    x = x.float()
    return (x if network.decode is None else network.decode(x)).cpu()


class _timed:
    """Writes the seconds that a block took into a ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self.ledger = ledger

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self.ledger.seconds = time.perf_counter() - self.start


def _spec(settings: SolverSettings) -> str:
    """`name:key=value,...` with the settings that are not as usual."""
    usual, given = vars(solver(settings.info.name)), vars(settings)
    changed = {key: value for key, value in given.items() if value != usual[key]}
    parts = ",".join(f"{key}={json.dumps(value)}" for key, value in changed.items())
    return f"{settings.info.name}:{parts}" if parts else settings.info.name
