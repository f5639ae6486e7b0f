"""Our guidance policies inside diffusers pipelines.

>>> with guided(pipe, AdaptiveGuidance(7.5)) as ledger:
...     image = pipe("a cat", guidance_scale=7.5).images[0]
>>> print(ledger)

A pipeline combines two predictions as u + w (c - u), and few can be told to stop. But whatever w
is, G + w (G - G) = G. So the network is answered for: of a doubled batch only the rows that the
policy asks for are evaluated, the second of two calls is left out, and both halves that the
pipeline gets are G, the prediction as the policy guides it. The scheduler, where a step ends, is
watched: if it is handed anything but G, the run ends with an error instead of another guidance.
"""

import functools
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ...models.architectures import PIPELINES
from ...models.architectures.base import GuidanceLayout
from ...models.caching import Attachment, find_attachment
from ...models.denoiser import Ask
from ...models.errors import SettingError
from ...models.ledger import Ledger
from ...models.modules import STAND_IN, hold
from ..guidance.base import Guidance, iterate_nested
from ..guidance.nested import warn_of_no_savings
from .policy_run import (
    NetworkCall,
    PlannedRun,
    PolicyRun,
    find_nearest,
    read_scheduler,
    take_policy,
)

SLOTS = ("unet", "transformer", "transformer_2")
FAR = 0.02  # of the first label: what a label rounded to bfloat16 may be off


@contextmanager
def guided(pipe: Any, policy: Guidance | str) -> Iterator[Ledger]:
    """Runs of a pipeline inside this context are guided by a policy of ours.

    The pipeline's own scale only has to switch its guidance on (guidance_scale or true_cfg_scale
    above 1, with a negative prompt where it wants one); the scale that counts is the policy's. A
    warning says so where the pipeline's can be read and is another one.

    Args:
        pipe: a pipeline of diffusers that an architecture's card lists, with any scheduler whose
            config says how the network was trained, `SolverScheduler` too.
        policy: any that needs no solver, second network or gradient of ours; not with
            rewrite_history. A text, such as "adaptive:scale=7.5", is taken too.

    Yields:
        The ledger: the rows that the network really evaluated.

    Raises:
        SettingError: for a pipeline or a policy that this cannot be done for, and, while the
            pipeline runs or at the end, if its guidance was not the policy's.
    """
    policy = take_policy(policy)
    run = GuidedPipeline(pipe, policy, _find_layout(pipe))
    with ExitStack() as undo:
        for module in _find_networks(pipe):
            undo.enter_context(_replace_method(module, "forward", run.network))
        undo.enter_context(_replace_method(pipe.scheduler, "set_timesteps", run.plan))
        undo.enter_context(_replace_method(pipe.scheduler, "step", run.step))
        yield run.ledger
    if not run.ledger.calls:
        raise SettingError(
            f"{run.name} was not run inside this context with the scheduler and network it had at"
            " its start, so nothing was guided; call pipe(...) within it"
        )
    warn_of_no_savings(policy, run.ledger)


class GuidedPipeline:
    """The runs of a pipeline, one after the other, and where the present one is."""

    def __init__(self, pipe: Any, policy: Guidance, layout: GuidanceLayout) -> None:
        self.pipe, self.policy, self.layout = pipe, policy, layout
        self.name = type(pipe).__name__
        self.ledger = Ledger()
        self._forget()

    def _forget(self) -> None:
        self.policy_run: PolicyRun | None = None
        self.cache: Attachment | None = None
        self.n = self.calls = 0
        self.cond = self.answer = torch.empty(0)  # the answer to the first of two calls, and a copy
        self.result: Tensor | None = None  # what the scheduler has to be handed
        self.since = time.perf_counter()

    def plan(self, original: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """Answers for `set_timesteps` of the scheduler: a new run begins."""
        self._forget()
        return original(*args, **named)

    def network(self, original: Callable[..., Any], *args: Any, **named: Any) -> tuple[Tensor]:
        """Answers for `forward` of the network."""
        call = NetworkCall(self.name, original, args, named)
        self.calls += 1
        if self.calls > (2 if self.layout.turns else 1):
            raise self._make_error(
                "calls its network more often in one step than for two predictions"
            )
        if not self.layout.turns:
            return (self._answer_doubled(call),)
        return (self._answer_first(call) if self.calls == 1 else self._answer_second(call),)

    def step(self, original: Callable[..., Any], output: Tensor, *args: Any, **named: Any) -> Any:
        """Answers for `step` of the scheduler, which must be handed what the policy made."""
        if self.result is None:
            if self.calls == 0:
                raise self._make_error(
                    "calls another network than at the start (offloading: one context a call)"
                )
            raise self._make_unguided_error()
        self._check(output, self.result * self.layout.sign)
        self.n, self.calls, self.result = self.n + 1, 0, None
        now = time.perf_counter()
        self.ledger.seconds, self.since = self.ledger.seconds + now - self.since, now
        return original(output, *args, **named)

    def _answer_doubled(self, call: NetworkCall) -> Tensor:
        """Returns the answer to a batch [u, c]: the guided prediction twice."""
        images = len(call.x) // 2
        u, c = call.x[:images], call.x[images:]
        if self.policy_run is None and (len(call.x) % 2 or not torch.equal(u, c)):
            raise self._make_unguided_error()
        asks = self._ask(call, images)
        rows = [
            torch.arange(images, device=c.device) if ask.rows is None else ask.rows for ask in asks
        ]
        index = torch.cat([*rows[:-1], rows[-1] + images])
        self._tell_cache(asks)
        raws = torch.split(
            call.evaluate(None if len(index) == len(call.x) else index), [*map(len, rows)]
        )
        self._count(images, len(index))
        self.result = self._combine(raws, c)
        return torch.cat([self.result, self.result])

    def _tell_cache(self, asks: Sequence[Ask]) -> None:
        """Says to a cache beneath which branches come next; it cannot tell rows left out."""
        assert self.policy_run is not None
        if self.cache is not None and all(ask.rows is None for ask in asks):
            moment = self.policy_run.moment
            self.cache.announce([ask.branch for ask in asks], moment.stage, moment.node.kappa)

    def _answer_first(self, call: NetworkCall) -> Tensor:
        """Returns the answer to the conditional call, the first of two."""
        asks = self._ask(call, len(call.x))
        self.cond = call.evaluate()
        self._count(len(call.x), len(call.x))
        if len(asks) == 1:
            self.result = self._combine([self.cond], call.x)
            return self.result
        self.answer = self.cond.clone()
        return self.answer

    def _answer_second(self, call: NetworkCall) -> Tensor:
        """Returns the answer to the unconditional call, and updates what the pipeline holds."""
        if self.result is None and self.policy_run is not None:
            uncond = call.evaluate(self.policy_run.asks[0].rows)
            self._count(0, len(uncond))
            self.result = self.answer.copy_(self._combine([uncond, self.cond], call.x))
        assert self.result is not None
        return self.result

    def _ask(self, call: NetworkCall, images: int) -> tuple[Ask, ...]:
        if self.policy_run is None:
            self.policy_run = self._begin(call, images)
        return self.policy_run.ask(self.n)

    def _begin(self, call: NetworkCall, images: int) -> PolicyRun:
        """Returns the run of the policy, at the first call of the network."""
        if getattr(self.pipe, "_guidance_rescale", 0.0):
            raise SettingError(
                f"{self.name} would rescale the guidance (guidance_rescale), which is the policy's"
                " here; drop it, or take the policy CFG(scale, rescale=...)"
            )
        self._warn_of_scale()
        process, labels = read_scheduler(self.pipe.scheduler)
        start = self._find_place(self.layout.timestep(call.label), labels)
        self.ledger.images += images
        self.cache = find_attachment(self.pipe)
        if self.cache is not None:
            self.cache.reset()
        return PolicyRun(self.policy, PlannedRun(process, labels[start:], images))

    def _warn_of_scale(self) -> None:
        """Warns if the pipeline's own scale can be read and is not the policy's."""
        handed = getattr(self.pipe, "_guidance_scale", None)
        scale = next(
            (each.scale for each in iterate_nested(self.policy) if hasattr(each, "scale")), 1.0
        )
        read = hasattr(type(self.pipe), "do_classifier_free_guidance")  # else it is no such scale
        if read and handed not in (None, scale) and scale > 1.0:
            warnings.warn(
                f"{self.name} is guided with the policy's scale {scale:g}, not with its own"
                f" guidance_scale={handed:g}; pass guidance_scale={scale:g}",
                stacklevel=2,
            )

    def _find_place(self, label: float, labels: Sequence[float]) -> int:
        """Returns which of the scheduler's timesteps the network got: a run may begin later on."""
        place = find_nearest(label, labels)
        if abs(labels[place] - label) > FAR * max(labels):
            raise self._make_error(
                f"tells its network a time ({label:g}) that its scheduler has not"
            )
        return place

    def _combine(self, raws: Sequence[Tensor], x: Tensor) -> Tensor:
        """Returns the guided output; a learned sigma beside it is that of the conditional one."""
        assert self.policy_run is not None
        last, width = raws[-1], min(x.shape[1], raws[-1].shape[1])
        outputs = [self.layout.sign * raw[:, :width] for raw in raws]
        made = self.layout.sign * self.policy_run.combine(outputs, x[:, :width])
        if self.layout.normed:
            made = made * (last.norm(dim=-1, keepdim=True) / made.norm(dim=-1, keepdim=True))
        return made if width == last.shape[1] else torch.cat([made, last[:, width:]], dim=1)

    def _count(self, images: int, rows: int) -> None:
        self.ledger.count(images, rows)
        self.ledger.count_step(self.n, rows)

    def _check(self, handed: Tensor, result: Tensor) -> None:
        """Raises if the scheduler is handed another result, to the bit, without a learned sigma."""
        expected = result if handed.shape == result.shape else result[:, : handed.shape[1]]
        same = handed.shape == expected.shape
        if not same or not torch.allclose(handed, expected.to(handed), 0.0, 0.0, equal_nan=True):
            raise self._make_error("hands its scheduler something else than its guided prediction")

    def _make_unguided_error(self) -> SettingError:
        return SettingError(
            f"{self.name} makes no unconditional prediction in this run, so there is nothing to"
            " guide with; pass guidance_scale (Flux, QwenImage, HunyuanVideo: true_cfg_scale) above"
            " 1, and a negative prompt where it takes one"
        )

    def _make_error(self, what: str) -> SettingError:
        return SettingError(
            f"{self.name} {what}, so a policy cannot guide it; guide it by its own scale, or sample"
            " with Sampler.from_pipeline"
        )


def _find_layout(pipe: Any) -> GuidanceLayout:
    name = type(pipe).__name__
    if name not in PIPELINES:
        raise SettingError(
            f"how {name} makes its two predictions is not known here; known:"
            f" {', '.join(PIPELINES)}. Sampler.from_pipeline takes any policy, and PolicyGuider is"
            " for modular pipelines"
        )
    return PIPELINES[name]


def _find_networks(pipe: Any) -> list[nn.Module]:
    networks = [getattr(pipe, slot, None) for slot in SLOTS]
    return [each for each in networks if isinstance(each, nn.Module)]


@contextmanager
def _replace_method(owner: Any, name: str, answer: Callable[..., Any]) -> Iterator[None]:
    """Replaces a method within a context: the answer gets the original as its first argument."""
    original, before = getattr(owner, name), vars(owner).get(name)
    if getattr(original, STAND_IN, False):
        raise SettingError("this pipeline is guided already; leave that context before another one")

    @functools.wraps(original)
    def ours(*args: Any, **named: Any) -> Any:
        return answer(original, *args, **named)

    setattr(ours, STAND_IN, True)
    module = owner if isinstance(owner, nn.Module) else None
    with hold(module, alone=True):
        setattr(owner, name, ours)
    try:
        yield
    finally:
        with hold(module, alone=True):
            if vars(owner).get(name) is ours:  # else model offloading has put its own there
                setattr(owner, name, before) if before is not None else delattr(owner, name)
