"""Our guidance policies as a guider of diffusers' modular pipelines.

>>> pipe.update_components(guider=PolicyGuider(AdaptiveGuidance(7.5), pipe.scheduler))
>>> pipe.guider.save_pretrained("a-folder")
>>> guider = PolicyGuider.from_pretrained("a-folder", scheduler=pipe.scheduler)

A modular pipeline asks its guider, before every step, how many predictions to make. What it does
not tell is the state that they were made at; that is read where the network is called.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from diffusers.guiders.guider_utils import BaseGuidance, GuiderOutput
from torch import Tensor, nn

from ...models.architectures import architecture_of, known_classes
from ...models.denoiser import Ask
from ...models.errors import SettingError
from ...models.ledger import Ledger
from ..guidance.base import BOTH, Guidance, format_guidance
from ..guidance.unbound import check_whole_batches
from .policy_run import PlannedRun, PolicyRun, find_nearest, read_scheduler, take_policy

SAME = 0.51  # labels this near are one; some pipelines round them


class PolicyGuider(BaseGuidance):  # type: ignore[misc]
    """Guides by a policy; `ledger` counts the rows that the network evaluates.

    Args:
        policy: as for `guided`, but for all images of a batch together. The config keeps its text.
        scheduler: the pipeline's own, whose timesteps say where a run is. It is not kept in the
            config, and may be set later as `guider.scheduler`.

    Raises:
        SettingError: for a policy, a scheduler or a network that this cannot be done for.
    """

    _input_predictions: ClassVar[list[str]] = ["pred_cond", "pred_uncond"]

    def __init__(self, policy: Guidance | str, scheduler: Any = None) -> None:
        policy = take_policy(policy)
        check_whole_batches(policy, "modular pipelines ask for")
        super().__init__()
        self.register_to_config(policy=format_guidance(policy))
        self.policy, self.scheduler = policy, scheduler
        self.ledger = Ledger()
        self.policy_run: PolicyRun | None = None
        self.asks: tuple[Ask, ...] = BOTH
        self.x = torch.empty(0)
        self.hook: Any = None

    def new(self, **changes: Any) -> "PolicyGuider":
        """Returns a guider with the same settings, or others, and a ledger of its own."""
        return PolicyGuider(**{"policy": self.policy, "scheduler": self.scheduler} | changes)

    @classmethod
    def from_config(cls, config: Mapping[str, Any], *args: Any, **other: Any) -> Any:
        """Returns the guider of a config; raises SettingError if it is of another guider."""
        if "policy" not in {**config, **other}:
            raise SettingError(
                f"this is the config of {config.get('_class_name', 'no guider')}, which names no"
                " policy; make PolicyGuider(policy, pipe.scheduler)"
            )
        return super().from_config(config, *args, **other)

    def set_state(self, step: int, num_inference_steps: int, timestep: Tensor) -> None:
        super().set_state(step, num_inference_steps, timestep)
        self.asks = BOTH
        if step == 0:
            self.policy_run = None

    @property
    def is_conditional(self) -> bool:
        return bool(self._count_prepared == 1)

    @property
    def num_conditions(self) -> int:
        """Of the present step; between steps 2, as the text encoder asks whether to encode both."""
        return len(self.asks) if self._enabled else 1

    def prepare_inputs(self, data: Mapping[str, tuple[Tensor, Tensor]]) -> list[Any]:
        self._ask(next(pair[0] for pair in data.values() if _is_batch(pair)))
        names = self._input_predictions[: self.num_conditions]
        return [self._prepare_batch(data, n, name) for n, name in enumerate(names)]

    def prepare_inputs_from_block_state(self, data: Any, input_fields: Mapping[str, Any]) -> Any:
        self._ask(data.latents)
        names = self._input_predictions[: self.num_conditions]
        prepare = self._prepare_batch_from_block_state
        return [prepare(input_fields, data, n, name) for n, name in enumerate(names)]

    def prepare_models(self, denoiser: nn.Module) -> None:
        super().prepare_models(denoiser)
        self.cleanup_models(denoiser)
        card = architecture_of(denoiser, exact=True)
        if card is None or not card.modular:
            names = ", ".join(known_classes(lambda each: each.modular))
            raise SettingError(
                f"what modular pipelines do with the output of {type(denoiser).__name__} is not"
                f" known here; known: {names}"
            )
        self.hook = denoiser.register_forward_pre_hook(self._look, with_kwargs=True)

    def cleanup_models(self, denoiser: nn.Module) -> None:
        if self.hook is not None:
            self.hook.remove()

    def forward(self, pred_cond: Tensor, pred_uncond: Tensor | None = None) -> GuiderOutput:
        pred, raws = pred_cond, [pred_cond] if pred_uncond is None else [pred_uncond, pred_cond]
        if self._enabled and self.policy_run is not None:
            pred = self.policy_run.combine(raws, self.x[:, : pred_cond.shape[1]])
            self.asks = BOTH
        return GuiderOutput(pred=pred, pred_cond=pred_cond, pred_uncond=pred_uncond)

    def _look(self, module: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        """Reads the input of the network, whose rows are what it costs."""
        self.x = args[0] if args else named["hidden_states"]
        self.ledger.count(len(self.x) if self._count_prepared == 1 else 0, len(self.x))
        self.ledger.count_step(self._step, len(self.x))

    def _ask(self, batch: Tensor) -> None:
        """Decides which predictions this step is made of."""
        if not self._enabled:
            return
        label, step = float(self._timestep), self._step
        if self.scheduler is None:
            raise SettingError(
                "this guider was made without a scheduler and cannot tell where a run is; set"
                " pipe.guider.scheduler = pipe.scheduler"
            )
        if self.policy_run is None:
            process, labels = read_scheduler(self.scheduler)
            start = find_nearest(label, labels)  # later than the first where an image is the start
            self.labels = labels[start:]
            self.policy_run = PolicyRun(self.policy, PlannedRun(process, self.labels, len(batch)))
            self.ledger.images += len(batch)
        if step >= len(self.labels) or abs(self.labels[step] - label) > SAME:
            raise SettingError(
                f"step {step} of this pipeline is at timestep {label:g}, where its guider's"
                " scheduler is not; make it with the one that runs: PolicyGuider(policy,"
                " pipe.scheduler)"
            )
        self.asks = self.policy_run.ask(step)


def _is_batch(pair: Any) -> bool:
    return isinstance(pair, tuple) and isinstance(pair[0], Tensor)
