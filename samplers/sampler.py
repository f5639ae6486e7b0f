"""`Sampler`: a network, ready to be asked for images."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Unpack

import torch
from torch import Tensor

from ..models.architectures.base import Size
from ..models.arguments import Integers, as_integer, as_integers, refuse_unknown
from ..models.caching import Policy, find_attachment
from ..models.denoiser import Network
from ..models.errors import SettingError
from ..models.ledger import Ledger
from ..models.load import load
from ..models.modules import warn_in_training
from ..models.pipeline_network import network_of
from ..models.schedule import NoiseSchedule
from ..models.speed import Speed
from ..solvers import Bound
from ..solvers.artefact import Artefact
from .brownian import FRESH, take_source
from .conditions import Conditions, check_branches, fill_conditions, make_branches
from .distilled import check_distilled, guide_recipe, resolve_choices, warn_of_untrained
from .expert_parts import LowNoise, SecondNetwork, choose_cache, list_parts
from .grid import warn_of_late_start
from .guidance import Guidance, take_guidance
from .images import Picture, to_pil, warn_of_grey
from .job import Job, JobPart
from .loop import Callback
from .noise import check_seeds
from .plan import Plan, PlanChoices, clean_choices, make_plan
from .plan_file import PlanFile, unfold_plan
from .result_file import save_result
from .schedule_choice import check_scale, choose_default_schedule
from .sheet_style import SheetStyle


@dataclass(frozen=True)
class LoadedFrom:
    """How the network of a sampler was loaded; the arguments of `models.load.load`."""

    source: Any
    dtype: str | torch.dtype | None = None
    device: str | torch.device | None = None
    speed: Speed | None = None

    @property
    def name(self) -> str | None:
        """The source, if it is one that can be written down."""
        return str(self.source) if isinstance(self.source, str | Path) else None


@dataclass(frozen=True)
class SamplerCall:
    """The arguments of a call.

    loaded:    None where the sampler was made of a network.
    noise_schedule: of the network.
    arguments: by name, as they were given; seeds and class labels as lists of integers.
    """

    loaded: LoadedFrom | None
    noise_schedule: NoiseSchedule
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Result:
    """The result of a run.

    samples: (B, *) float32 on the CPU: images in [-1, 1], decoded where the network has a VAE.
    ledger:  what it cost.
    call:    what the sampler was asked for, if one was.
    """

    samples: Tensor
    ledger: Ledger
    call: SamplerCall | None = field(default=None, repr=False, compare=False)

    @cached_property
    def images(self) -> list[Picture]:
        """The samples as PIL images, in the order of the seeds."""
        warn_of_grey(self.samples)
        return to_pil(self.samples)

    def grid(
        self, columns: int | None = None, *, zoom: int | None = None, names: Sequence[str] = ()
    ) -> Picture:
        """Returns the images as one picture on white, row by row.

        columns: None makes a square.
        zoom:    the pixels of an image become squares of so many; None makes the picture about
                 1,000 pixels wide, and 1 leaves the pixels as they are.
        names:   of the rows, for the left margin.

        Raises:
            SettingError: for columns or a zoom that are no positive numbers.
        """
        return SheetStyle(columns, zoom, names).draw(self.images)

    def save(self, path: str | Path, *, zoom: int | None = None) -> None:
        """Writes the images, or the samples as they are, with a record of the run.

        path: .png for a grid of the images, which `sample --from-png` repeats as one that `sample`
              has written; .safetensors for the tensor `samples`, with the same record.
        zoom: of the grid, as in `grid`.

        A run whose network was not loaded by name, or whose solver, grid, guidance or cache was
        neither text, nor a `Schedule`, nor `CFG`, cannot be recorded: its file is written without,
        and a warning says why.

        Raises:
            SettingError: if it cannot be written there, or the name ends in something else.
        """
        save_result(self, Path(path), zoom)


class Sampler:
    """Draws images from one network; holds no state between calls.

    Threads can share it, and other samplers of the same network: each run gives what it gives
    alone. Plain runs go side by side; runs with a cache, perturbed attention or compiled code have
    the network to themselves, and others wait for them.

    >>> sampler = Sampler.from_pretrained("fashion-dit")
    >>> result = sampler(range(16), class_labels=3, solver="unipc-3", nfe=8, guidance=CFG(2.0))
    >>> result.images[0].save("dress.png"); print(result.ledger)
    """

    def __init__(self, network: Network, loaded: LoadedFrom | None = None) -> None:
        self.network, self._loaded = network, loaded

    @property
    def source(self) -> str | None:
        """The name or folder that the network was loaded by; None if it was by neither."""
        return None if self._loaded is None else self._loaded.name

    @classmethod
    def from_pretrained(
        cls,
        source: Any,
        *,
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        speed: Speed | None = None,
    ) -> "Sampler":
        """Returns the sampler of anything that `models.load.load` takes."""
        network = load(source, dtype=dtype, device=device, speed=speed)
        return cls(network, LoadedFrom(source, dtype, device, speed))

    @classmethod
    def from_pipeline(cls, pipe: Any, size: Size | None = None) -> "Sampler":
        """Returns the sampler of a live diffusers pipeline, whatever scheduler it holds.

        size: of what is sampled, for networks that are asked with a prompt; their conditions are
            `encoded(pipe, size, prompt=...)`. None is the pipeline's own.

        Raises:
            ModelError: if the network cannot be called without its pipeline.
        """
        return cls(load(pipe) if size is None else network_of(pipe, size))

    def plan(self, **choices: Unpack[PlanChoices]) -> Plan:
        """Returns the solver and grid that a call with these choices would run."""
        refuse_unknown(choices, self.plan, PlanChoices.__annotations__)
        by_recipe = choices.get("recipe") is not None
        return self._make_plan(resolve_choices(self.network, choices), by_recipe)

    def _make_plan(self, choices: dict[str, Any], by_recipe: bool) -> Plan:
        """Returns the plan of choices that are resolved."""
        plan, network = make_plan(self.network.schedule, **choices), self.network
        check_distilled(plan.settings, network.distillation, network.name, meant=by_recipe)
        if isinstance(plan.solver, Bound):
            plan.solver.check_network(self.network)
        plan.check(self.network.prediction)
        if plan.settings is not None and not by_recipe:  # others bring the start they were made for
            warn_of_untrained(plan.settings, network.distillation, plan.grid)
            warn_of_late_start(plan.grid)
        return plan

    def __call__(
        self,
        seeds: Integers,
        *,
        class_labels: Integers | None = None,
        conditions: Conditions | None = None,
        negative: Conditions | None = None,
        guidance: Guidance | str | None = None,
        cache: Policy | str | None = None,
        low_noise: LowNoise | str | None = None,
        plan: PlanFile | str | Path | None = None,
        noise: str = FRESH,
        batch: int = 32,
        callback: Callback | None = None,
        progress: bool = False,
        **choices: Unpack[PlanChoices],
    ) -> Result:
        """Samples one image per seed.

        Whole numbers may be those of numpy or torch too. Solver, grid, guidance and cache are
        taken as texts, `name:key=value,...`, as on the command line, or as values.

        Args:
            seeds: one per image; an image depends on its own seed and on no other.
            class_labels: one for all or one per image; None is the null class where there is one.
            conditions: further keyword tensors of the network, one row per image or one for all;
                None is the network's own, where it has some.
            negative: the same for the unconditional branch.
            guidance: a policy such as `CFG(2.0)`; None evaluates the conditional branch alone.
            cache: what to skip inside the network, such as `TaylorSeer(interval=4)`, for this call;
                a cache that is on the network already (`caching`) works without being named, and
                so does that of a schedule which brings one.
            low_noise: of a network that is made of two (`join_experts`, Wan 2.2), the choices for
                the second, such as {"guidance": "cfg:scale=3"}; see `LowNoise`. Its solver and
                guidance are by default those of the first; a cache is on one network alone.
            plan: of `fewstep tune`, or its file, in place of solver, grid, guidance and cache.
            noise: of the steps of a stochastic solver: "fresh", or "brownian", that of one Brownian
                path per seed, which runs of any number of steps share (docs/brownian.md).
            batch: images sampled at once.
            callback: called after each step with (step, node, x, x0, ledger).
            progress: show a progress bar in a terminal once the run has taken a second, and
                elsewhere a line each half minute.
            choices: solver, nfe, steps, grid, final, recipe, see `PlanChoices`. With nfe alone,
                the package's own schedule for an embedded network, if it has one.

        Raises:
            FewstepError: for anything that cannot be run, before the network is called; for
                conditions of a shape that the network refuses, when it is.
            NonFiniteError: if the network returns NaN or infinity.
            MemoryLackError: if a batch does not fit on the device.
        """
        refuse_unknown(choices, self.__call__, PlanChoices.__annotations__)
        seeds = check_seeds(seeds)
        if plan is not None:
            beside = {"guidance": guidance, "cache": cache, "low_noise": low_noise, **choices}
            return self(
                seeds,
                class_labels=class_labels,
                conditions=conditions,
                negative=negative,
                noise=noise,
                batch=batch,
                callback=callback,
                progress=progress,
                **unfold_plan(plan, self.network, min(batch, len(seeds)), beside),
            )
        if class_labels is not None:
            class_labels = as_integers(class_labels, "class_labels", len(seeds))
        arguments: dict[str, Any] = {"seeds": seeds, "class_labels": class_labels}
        typed, recipe = take_guidance(guidance), choices.get("recipe")
        policy = guide_recipe(recipe, typed)
        guidance = guidance if policy is typed else None
        given = resolve_choices(self.network, clean_choices(**choices))
        arguments |= {"conditions": conditions, "negative": negative, "guidance": guidance}
        arguments |= {"cache": cache, "batch": batch, "callback": callback, **given}
        arguments |= {"recipe": recipe, "low_noise": low_noise, "noise": noise}
        second = SecondNetwork.of(self.network, low_noise)
        if second is not None:
            given = second.choose_solver(given, recipe is not None)
        made = self._plan(given, policy, recipe is not None)
        warn_in_training(self.network.forward, self.network.name)
        filled = fill_conditions(self.network, seeds, conditions, negative)
        branches = make_branches(self.network, len(seeds), class_labels, **filled)
        put = choose_cache(cache, made, find_attachment(self.network))
        parts = list_parts(JobPart(self.network, policy, put), made, second)
        for part in parts:
            guide_recipe(recipe, part.guidance)
            check_branches(part.network, branches, part.guidance, made.grid)
        size, brownian = _check_batch(batch), take_source(noise, made)
        job = Job(parts, made, given, seeds, branches, size, callback, progress, brownian)
        return Result(*job.run(), SamplerCall(self._loaded, self.network.schedule, arguments))

    def _plan(self, choices: dict[str, Any], guidance: Guidance, by_recipe: bool) -> Plan:
        """Returns the plan of resolved choices, or of the schedule that stands in for them."""
        if isinstance(choices.get("solver"), Artefact):
            check_scale(choices["solver"], guidance)
        if guidance.solver and choices.get("solver") is None:
            choices = {**choices, "solver": guidance.solver}
        default = choose_default_schedule(self.network.name, choices, guidance)
        chosen = choices if default is None else {"solver": default}
        return self._make_plan(chosen, by_recipe)


def _check_batch(given: int) -> int:
    batch = as_integer(given, "batch")
    if batch < 1:
        raise SettingError(f"batch must be at least 1, not {batch}")
    return batch
