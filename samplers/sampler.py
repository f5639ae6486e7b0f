"""`Sampler`: a network, ready to be asked for images."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.denoiser import Branch, Denoiser, Network
from ..models.errors import ModelError, SettingError
from ..models.ledger import Ledger
from ..models.load import load
from ..models.schedule import Node
from .guidance import Guidance, Unguided
from .images import Picture, to_pil
from .loop import Callback, integrate
from .noise import noise
from .plan import Plan, make_plan

Conditions = Mapping[str, Tensor]


@dataclass(frozen=True)
class Result:
    """What a run gave.

    samples: (B, *) float32 on the CPU: images in [-1, 1], decoded where the network has a VAE.
    ledger:  what it cost.
    """

    samples: Tensor
    ledger: Ledger

    @cached_property
    def images(self) -> list[Picture]:
        """The samples as PIL images, in the order of the seeds."""
        return to_pil(self.samples)


class Sampler:
    """Draws images from one network; holds no state between calls.

    >>> sampler = Sampler.from_pretrained("fashion-dit")
    >>> result = sampler(range(16), class_labels=3, solver="unipc-3", nfe=8, guidance=CFG(2.0))
    >>> result.images[0].save("dress.png"); print(result.ledger)
    """

    def __init__(self, network: Network) -> None:
        self.network = network

    @classmethod
    def from_pretrained(
        cls, source: Any, *, dtype: str = "fp32", device: str | torch.device = "cpu"
    ) -> "Sampler":
        """The sampler of anything `models.load.load` takes."""
        return cls(load(source, dtype=dtype, device=device))

    def plan(self, **choices: Any) -> Plan:
        """The solver and grid that a call with these choices would run; see `make_plan`."""
        return make_plan(self.network.schedule, **choices)

    def __call__(
        self,
        seeds: Sequence[int],
        *,
        class_labels: int | Sequence[int] | None = None,
        conditions: Conditions | None = None,
        negative: Conditions | None = None,
        guidance: Guidance | None = None,
        batch: int = 64,
        callback: Callback | None = None,
        progress: bool = False,
        **choices: Any,
    ) -> Result:
        """Samples one image per seed.

        Args:
            seeds: one per image; an image depends on its own seed and on no other.
            class_labels: one for all or one per image; None is the null class where there is one.
            conditions: further keyword tensors of the network, one row per image or one for all.
            negative: the same for the unconditional branch.
            guidance: a policy such as `CFG(2.0)`; None evaluates the conditional branch alone.
            batch: images sampled at once.
            callback: called after each step with (step, node, x, x0, ledger).
            progress: show a progress bar once the run has taken a second.
            choices: solver, nfe or steps, grid and final, as `make_plan` takes them.

        Raises:
            FewstepError: for anything that cannot be run, before the network is called.
            NonFiniteError: if the network returns NaN or infinity.
        """
        plan, guidance = self.plan(**choices), guidance or Unguided()
        seeds = _checked_seeds(seeds, batch)
        branches = self._branches(len(seeds), class_labels, conditions or {}, negative)
        self._check_branches(branches, guidance, plan)
        ledger = Ledger(images=len(seeds))
        start, parts = time.perf_counter(), []
        with (
            _bar(progress, plan.grid.steps * -(-len(seeds) // batch)) as bar,
            torch.inference_mode(),
        ):

            def step_done(n: int, node: Node, x: Tensor, x0: Tensor, ledger: Ledger) -> None:
                bar.update()
                if callback is not None:
                    callback(n, node, x, x0, ledger)

            for rows in _chunks(len(seeds), batch):
                denoiser = Denoiser(self.network, _rows(branches, rows), ledger)
                x = self._start(seeds[rows], plan)
                x = integrate(
                    denoiser, plan.solver, plan.grid, x, guidance=guidance, callback=step_done
                )
                parts.append((self.network.decode(x) if self.network.decode else x).cpu())
        ledger.seconds = time.perf_counter() - start
        return Result(torch.cat(parts).clone(), ledger)

    def _start(self, seeds: Sequence[int], plan: Plan) -> Tensor:
        scale = self.network.schedule.noise_scale(plan.grid.nodes[0])
        return noise(seeds, self.network.shape).to(self.network.device) * scale

    def _branches(
        self,
        n: int,
        class_labels: int | Sequence[int] | None,
        conditions: Conditions,
        negative: Conditions | None,
    ) -> dict[Branch, Conditions]:
        """The conditions of both branches, n rows each; no UNCOND where there is none."""
        found = {Branch.COND: {**_expanded(conditions, n), **self._labels(n, class_labels)}}
        null = self.network.null_class
        if negative is not None or (self.network.num_classes and null is not None):
            labels = self._labels(n, None) if null is not None else {}
            found[Branch.UNCOND] = {**found[Branch.COND], **_expanded(negative or {}, n), **labels}
        return {
            branch: {name: value.to(self.network.device) for name, value in each.items()}
            for branch, each in found.items()
        }

    def _labels(self, n: int, class_labels: int | Sequence[int] | None) -> dict[str, Tensor]:
        network = self.network
        if not network.num_classes:
            if class_labels is not None:
                raise SettingError(f"{network.name} has no classes; drop class_labels")
            return {}
        if class_labels is None:
            class_labels = network.null_class
        if class_labels is None:
            raise SettingError(
                f"{network.name} has {network.num_classes} classes and no null class;"
                f" give class_labels from 0 to {network.num_classes - 1}"
            )
        labels = [class_labels] * n if isinstance(class_labels, int) else list(class_labels)
        if len(labels) != n:
            raise SettingError(f"{len(labels)} class labels for {n} seeds; give one for each")
        for label in labels:
            if not (0 <= label < network.num_classes or label == network.null_class):
                raise SettingError(
                    f"class {label} does not exist; {network.name} has classes 0 to"
                    f" {network.num_classes - 1}"
                )
        return {"class_labels": torch.tensor(labels, dtype=torch.long)}

    def _check_branches(
        self, branches: Mapping[Branch, Conditions], guidance: Guidance, plan: Plan
    ) -> None:
        asked = {branch for node in plan.grid.nodes for branch in guidance.branches(node)}
        if asked - branches.keys():
            raise SettingError(
                f"{self.network.name} has no unconditional branch (no null class and no negative"
                " conditions), so it cannot be guided; use a guidance scale of 1"
            )
        missing = [name for name in self.network.needs if name not in branches[Branch.COND]]
        if missing:
            raise ModelError(
                f"{self.network.name} needs {', '.join(missing)}; pass conditions="
                "{name: tensor} with one row per image"
            )


def _checked_seeds(seeds: Sequence[int], batch: int) -> list[int]:
    if batch < 1:
        raise SettingError(f"batch must be at least 1, not {batch}")
    if len(seeds) == 0:
        raise SettingError("no seeds; give one per image, such as range(64)")
    for seed in seeds:
        if not 0 <= seed < 2**63:
            raise SettingError(f"seed {seed} must lie between 0 and 2^63 - 1")
    return list(seeds)


def _chunks(n: int, batch: int) -> Iterator[slice]:
    return (slice(i, min(i + batch, n)) for i in range(0, n, batch))


def _rows(branches: Mapping[Branch, Conditions], rows: slice) -> dict[Branch, Conditions]:
    return {
        branch: {name: value[rows] for name, value in each.items()}
        for branch, each in branches.items()
    }


def _expanded(conditions: Conditions, n: int) -> dict[str, Tensor]:
    """Conditions with n rows; a single row serves all images."""
    for name, value in conditions.items():
        if len(value) not in (1, n):
            raise SettingError(f"condition {name!r} has {len(value)} rows for {n} images")
    return {
        name: value.expand(n, *value.shape[1:]) if len(value) == 1 else value
        for name, value in conditions.items()
    }


def _bar(progress: bool, steps: int) -> "tqdm[Any]":
    return tqdm(total=steps, unit="step", disable=not progress, delay=1.0, leave=False)
