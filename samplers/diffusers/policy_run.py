"""A guidance policy followed outside our own loop: where diffusers calls the network.

There the evaluations are what the scheduler's labels say, and the network's outputs are its raw
ones. This is the one place where both are read as a policy's `Guide` wants them.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from ...models.denoiser import Ask, Branch
from ...models.errors import SettingError
from ...models.prediction import Prediction
from ...models.schedule import Node
from ..guidance.base import Guidance, Moment
from ..guidance.space import convert_from_x0, convert_to_x0
from ..guidance.unbound import begin_unbound, take_unbound
from .timesteps import make_grid_at_labels
from .trained_process import TrainedProcess


@dataclass(frozen=True)
class PlannedRun:
    """The facts of a run that are known before its first evaluation.

    process: what the scheduler's config says of the network.
    labels:  of the network, one per evaluation from the first on; one that repeats is a further
             evaluation of the same step.
    images:  of the batch.
    """

    process: TrainedProcess
    labels: Sequence[float]
    images: int


class PolicyRun:
    """One run of a policy.

    Raises:
        SettingError: if the policy cannot guide this run.
        ScheduleError: if the labels do not fall.
    """

    def __init__(self, policy: Guidance, plan: PlannedRun) -> None:
        self.kind = plan.process.prediction
        grid = make_grid_at_labels(plan.process.fixed, [label for label, _ in groupby(plan.labels)])
        self.guide = begin_unbound(policy, grid, plan.images, self.kind, "the pipeline's network")
        self.moments = list(_list_moments(plan.labels, grid.nodes))
        self.asks: tuple[Ask, ...] = ()

    def ask(self, n: int) -> tuple[Ask, ...]:
        """Returns the branches that the policy asks of evaluation n."""
        if n >= len(self.moments):
            raise SettingError(
                f"this run has {len(self.moments)} evaluations by its scheduler's timesteps, and"
                f" the pipeline asks for number {n + 1}; its guidance cannot know where it is in"
                " the run"
            )
        self.moment = self.moments[n]
        self.asks = self.guide.ask(self.moment)
        if self.asks[-1].branch is not Branch.COND:
            raise SettingError(
                "a scale of 0 is the unconditional prediction alone; pass the negative prompt as"
                " the prompt instead"
            )
        return self.asks

    def combine(self, raws: Sequence[Tensor], x: Tensor) -> Tensor:
        """Returns the guided raw output (B, *) from one output per ask, at the state x (B, *).

        In between it is float64 where the device has that, so that the way to x0 and back leaves no
        trace; where the policy returns the conditional prediction, it is that output itself.
        """
        node, wide = self.moment.node, _widen(x)
        states = [wide if ask.rows is None else wide[ask.rows] for ask in self.asks]
        x0s = [_to_x0(raw, state, node, self.kind) for raw, state in zip(raws, states, strict=True)]
        guided = self.guide.combine(x0s, wide, self.moment)
        if guided is x0s[-1]:
            return raws[-1]
        return convert_from_x0(guided, wide, node, self.kind).to(raws[-1].dtype)


def read_scheduler(scheduler: Any) -> tuple[TrainedProcess, list[float]]:
    """Returns what a diffusers scheduler, or ours, says of the network, and the labels of its plan.

    Raises:
        ModelError: if its config does not say enough.
        SettingError: if the network is preconditioned.
    """
    process = getattr(scheduler, "process", None) or TrainedProcess.of(scheduler.config)
    if process.prediction.preconditioned:
        raise SettingError(
            "the outputs of a preconditioned network (EDM) cannot be guided here; sample with"
            " Sampler.from_pipeline"
        )
    return process, torch.as_tensor(scheduler.timesteps).tolist()


def find_nearest(label: float, labels: Sequence[float]) -> int:
    """Returns the first of the labels that is nearest to one."""
    if not labels:
        raise SettingError("this scheduler has no timesteps yet; call set_timesteps before")
    return min(range(len(labels)), key=lambda n: abs(labels[n] - label))


def take_policy(given: Guidance | str) -> Guidance:
    """Returns a policy given as such or as a text.

    Raises:
        FewstepError: for texts that name none, and for what cannot be done without driving the
            solver or another network.
    """
    return take_unbound(given, "pipeline", "sample with Sampler.from_pipeline")


def _list_moments(labels: Sequence[float], nodes: Sequence[Node]) -> Iterator[Moment]:
    for step, (_, same) in enumerate(groupby(labels)):
        for stage, _ in enumerate(same):
            yield Moment(nodes[step], step, stage)


def _widen(value: Tensor) -> Tensor:
    return value.to(torch.float32 if value.device.type == "mps" else torch.float64)


def _to_x0(raw: Tensor, state: Tensor, node: Node, kind: Prediction) -> Tensor:
    return convert_to_x0(_widen(raw), state, node, kind)


SHARED = ("image_rotary_emb", "img_ids", "txt_ids")  # of all rows, whatever their first axis


@dataclass(frozen=True)
class NetworkCall:
    """A call of the network by a pipeline of that name."""

    pipe: str
    forward: Callable[..., Any]
    args: tuple[Any, ...]
    named: Mapping[str, Any]

    @property
    def x(self) -> Tensor:
        """The input of the network (rows, *)."""
        x = self.args[0] if self.args else self.named.get("hidden_states")
        if not isinstance(x, Tensor):
            raise SettingError(f"{self.pipe} calls its network in a way that is not known here")
        return x

    @property
    def label(self) -> float:
        """The time that the network is told."""
        value = self.named["timestep"] if "timestep" in self.named else self.args[1]
        return float(torch.as_tensor(value).max())

    def evaluate(self, index: Tensor | None = None) -> Tensor:
        """Returns the network's output for all rows, or for some."""
        args, named = self.args, dict(self.named)
        if index is not None:
            rows = len(self.x)
            args = tuple(_take_rows(value, rows, index) for value in args)
            named |= {
                key: _take_rows(value, rows, index)
                for key, value in named.items()
                if key not in SHARED
            }
        out = self.forward(*args, **named)
        if not isinstance(out, tuple) or not isinstance(out[0], Tensor):
            raise SettingError(
                f"the network of {self.pipe} answers with {type(out).__name__}, not with a tuple,"
                " and so it cannot be guided here"
            )
        return out[0]


def _take_rows(value: Any, rows: int, index: Tensor) -> Any:
    """Returns the rows of every tensor of a batch; tensors that are of no batch stay."""
    if isinstance(value, Tensor):
        whole = value.ndim == 0 or len(value) != rows
        return value if whole else value.index_select(0, index.to(value.device))
    if isinstance(value, Mapping):
        return {key: _take_rows(each, rows, index) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_take_rows(each, rows, index) for each in value)
    return value
