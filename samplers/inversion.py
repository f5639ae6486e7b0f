"""Inversion: from an image to the noise that it comes from, and back on the same grid.

`samplers.inversion_plan` says what walks the grid in each direction. The image stands at the clean
end of the grid as alpha x0, which on rectified flow is the image itself to six digits.
"""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Never

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.arguments import Integers, Numbers, refuse_unknown
from ..models.caching import find_attachment
from ..models.denoiser import Branch, Denoiser, Network
from ..models.errors import SettingError
from ..models.files import write_bytes
from ..models.ledger import Ledger
from ..models.modules import hold
from ..models.pipeline_network import fit_shape
from ..models.reading import read_tensors
from ..models.registry import format_spec
from ..models.schedule import Node, NoiseSchedule, TimeGrid
from ..models.weights import check_weights, hash_weights
from ..solvers import SolverSettings, drive, take_solver
from ..solvers.base import Asked
from .conditions import Branches, Conditions, Negative, check_branches, make_user_branches
from .guidance import Guidance, Setup, take_guidance
from .images import Given, place_images
from .inversion_plan import (
    DEFAULT_SOLVER,
    InversionPlan,
    choose_state_dtype,
    make_inversion_plan,
    plan_inversion,
)
from .loop import integrate
from .sampler import Result, Sampler

NOISE, CHUNK = "noise", "fewstep"


@dataclass(frozen=True)
class Inversion:
    """The result of an inversion, and all that is needed to go back.

    noise:      (B, *) float64, the state at the first node of the grid.
    route:      the solvers and the grid.
    labels:     the class of each image, or None.
    prompt:     the prompt of all images, or one each; None if there was none.
    source, weights: what the network was loaded by, and `hash_weights` of it; None if unknown.
    trajectory: (steps + 1, B, *) from data to noise, if asked for.
    ledger:     what it cost.
    """

    noise: Tensor
    route: InversionPlan
    labels: tuple[int, ...] | None
    trajectory: Tensor | None
    ledger: Ledger
    prompt: str | tuple[str, ...] | None = None
    source: str | None = None
    weights: str | None = None

    def for_any(self) -> "Inversion":
        """Returns it without the network it is of, so that another may lead back."""
        return replace(self, source=None, weights=None)

    def check_sampler(self, sampler: Sampler) -> None:
        """Raises SettingError if the sampler's network has other weights than found the noise."""
        if sampler.source is None or (self.weights is None and self.source != sampler.source):
            return
        remedy = "take inversion.for_any() to go back with those here"
        check_weights(sampler.source, self.weights, "this noise was found", remedy)

    def save(self, path: Path, **further: Any) -> None:
        """Writes the noise as float32 .safetensors, with the way back and further facts."""
        from safetensors.torch import save

        facts = {
            "solver": format_spec(self.route.settings),
            "labels": self.labels,
            "prompt": self.prompt,
            "times": [node.t for node in self.route.grid],
            "model": self.source,
            "weights": self.weights,
            **further,
        }
        noise = self.noise.float().contiguous().cpu()
        body = save({NOISE: noise}, {CHUNK: json.dumps(facts)})
        write_bytes(path, body)

    @classmethod
    def load(cls, path: Path, schedule: NoiseSchedule) -> "Inversion":
        """Returns the inversion of a saved file; raises SettingError if it is not such a file."""
        try:
            tensors, metadata = read_tensors(path)
            facts, noise = json.loads(metadata[CHUNK]), tensors[NOISE].double()
            settings, labels = take_solver(facts["solver"]), facts["labels"]
            prompt, *network = (facts.get(name) for name in ("prompt", "model", "weights"))
            if not all(each is None or isinstance(each, str) for each in network):
                raise ValueError("model and weights must be text")
            route = make_inversion_plan(settings, TimeGrid.of(schedule, facts["times"]))
        except (KeyError, TypeError, ValueError) as error:
            raise SettingError(
                f"{str(path)!r} holds no inversion that can be read ({error}); make one with"
                " fewstep invert"
            ) from error
        prompt = tuple(prompt) if isinstance(prompt, list) else prompt
        labels, ledger = labels and tuple(labels), Ledger(images=len(noise))
        return cls(noise, route, labels, None, ledger, prompt, *network)


def invert(
    sampler: Sampler,
    image: Given,
    *,
    solver: str | SolverSettings = DEFAULT_SOLVER,
    nfe: int | None = None,
    steps: int | None = None,
    grid: str | Numbers | None = None,
    t_min: float | None = None,
    class_labels: Integers | None = None,
    prompt: str | Sequence[str] | None = None,
    conditions: Conditions | None = None,
    trajectory: bool = False,
    progress: bool = False,
    **unknown: Never,
) -> Inversion:
    """Returns the noise that an image comes from, under its own condition and without guidance.

    Args:
        image: a PIL picture or a list of them, or (B, *), finite: pictures in [-1, 1], or latents.
        solver: one of `list_invertible`, with settings.
        nfe: evaluations per image; 30 if steps is not given either.
        steps: number of steps, instead of a budget.
        grid: a name or falling times.
        t_min: the time of the clean end; `plan_inversion` says more.
        class_labels: of the images; None is the null class where there is one.
        prompt: one for all images or one each, where the network has a pipeline around it; None is
            the empty prompt. A network distilled for guidance is told 1.
        conditions: further keyword tensors of the network, instead of a prompt.
        trajectory: keep the states at all nodes.
        progress: show a bar in a terminal once the run has taken a second.

    Raises:
        SettingError: for an image of another shape or with NaN, and for all that
            `plan_inversion` refuses.
    """
    refuse_unknown(unknown, invert)
    network, image = place_images(sampler.network, image)
    x = check_image(network, image)
    way = plan_inversion(network, solver, nfe=nfe, steps=steps, grid=grid, t_min=t_min)
    branches = _make_branches(network, len(x), class_labels, conditions, prompt=prompt)
    denoiser = Denoiser(network, branches, Ledger(images=len(x)))
    states = [x * way.rising[0].alpha]

    bar = tqdm(total=way.grid.steps, disable=None if progress else True, delay=1, leave=False)

    def step_done(n: int, x: Tensor) -> None:
        bar.update()
        if trajectory:
            states.append(x)

    with torch.no_grad(), hold(network.module), _timed(denoiser.ledger), bar:
        noise = walk(denoiser, way, states[0], step_done)
    labels = branches[Branch.COND].get("class_labels")
    classes = None if labels is None else tuple(labels.tolist())
    path = torch.stack(states).cpu() if trajectory else None
    text = prompt if prompt is None or isinstance(prompt, str) else tuple(prompt)
    source = sampler.source
    weights = None if source is None else hash_weights(source)
    return Inversion(noise.cpu(), way, classes, path, denoiser.ledger, text, source, weights)


def reconstruct(
    sampler: Sampler,
    inversion: Inversion,
    *,
    class_labels: Integers | None = None,
    prompt: str | Sequence[str] | None = None,
    conditions: Conditions | None = None,
    negative: Negative = None,
    guidance: Guidance | str | None = None,
) -> Result:
    """Returns the image that a noise leads to on the grid it was found on.

    class_labels, prompt: None for those of the inversion; another is a plain edit.
    conditions: further keyword tensors; those of the inversion lead back to its image.
    negative:   prompts or tensors of the unconditional branch, as `Editor` takes them.

    Raises:
        SettingError: if other weights found it, where that is known; see `Inversion.for_any`.
    """
    inversion.check_sampler(sampler)
    way, noise = inversion.route, inversion.noise
    network = fit_shape(sampler.network, tuple(noise.shape[1:]))
    classes = inversion.labels  # of images without a class it holds the label of that
    classes = None if set(classes or ()) == {network.null_class} else classes
    labels = classes if class_labels is None else class_labels
    prompt = inversion.prompt if prompt is None and conditions is None else prompt
    n = len(noise)
    branches = _make_branches(network, n, labels, conditions, prompt=prompt, negative=negative)
    guidance = take_guidance(guidance)
    check_branches(network, branches, guidance, way.grid)
    back = way.back.on(way.grid)
    guidance.check(Setup(network, back, way.grid, len(noise), False, False))
    denoiser = Denoiser(network, branches, Ledger(images=len(noise)))
    with torch.no_grad(), hold(network.module), _timed(denoiser.ledger):
        x = integrate(denoiser, back, way.grid, to_device(network, noise), guidance)
    return Result(decode(network, x / way.grid.nodes[-1].alpha), denoiser.ledger)


def _make_branches(
    network: Network,
    n: int,
    labels: Integers | None,
    conditions: Conditions | None,
    *,
    prompt: str | Sequence[str] | None,
    negative: Negative = None,
) -> Branches:
    """Returns the conditions of n images: a prompt, or a class and tensors."""
    if prompt is not None and (labels is not None or conditions is not None):
        raise SettingError("a prompt stands alone; drop class_labels and conditions")
    if conditions is None:
        return make_user_branches(network, n, labels if prompt is None else prompt, negative)
    return make_user_branches(network, n, conditions, negative, labels=labels)


def walk(
    denoiser: Denoiser, way: InversionPlan, x: Tensor, step_done: Callable[[int, Tensor], Any]
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


def check_image(network: Network, image: Tensor) -> Tensor:
    """Returns the image as a state; raises SettingError if it is no sample of the network."""
    with hold(network.module):  # a run in another thread takes its own cache off again
        cached = find_attachment(network) is not None
    if cached:
        raise SettingError("take the cache off the network first: disable_cache(network)")
    if tuple(image.shape[1:]) != network.shape or not len(image):
        raise SettingError(
            f"an image of shape {tuple(image.shape)} is none of {network.name}; give (B, *) with"
            f" samples of shape {network.shape}"
        )
    if not image.is_floating_point() or not bool(image.isfinite().all()):
        raise SettingError("the image holds NaN, infinity or integers; give floats in [-1, 1]")
    return to_device(network, image)


def to_device(network: Network, x: Tensor) -> Tensor:
    """Returns a state on the network's device, in float64 where that has it."""
    return x.to(network.device, choose_state_dtype(network))


@torch.no_grad()
def decode(network: Network, x: Tensor) -> Tensor:
    """Returns float32 samples on the CPU, decoded where the network has a VAE."""
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
