"""Attaches a cache to a network and takes it off again."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from ..architectures.stack import Stack
from ..arguments import as_integer
from ..errors import ModelError, SettingError
from ..ledger import CacheCall, CacheLedger
from ..modules import hold, is_answered_for, unwrap_compiled
from ..node import Node
from .advice import warn_of_zero_hits
from .base import BringsCache, Policy, take_cache
from .calls import Announced
from .engine import Engine
from .engines import Unobserved, make_engine, make_stack_engine
from .run_facts import RunFacts, facts_of, run_of

Given = Policy | BringsCache | str | None
OTHERS = (  # what marks a cache of another library on a module, whose it is, what takes it off
    ("is_cache_enabled", "diffusers", "network.disable_cache()"),
    ("_is_cached", "cache-dit", "cache_dit.disable_cache(pipe)"),
)


@dataclass(frozen=True)
class Record:
    """The work of a cache in a run: its calls, its bytes, and the networks' arguments."""

    calls: list[CacheCall]
    bytes_held: int
    bytes_predicted: int
    samples: list[Any]


@dataclass
class Attachment:
    """A cache on a network, or on both of a pipeline with two.

    policy: the settings of the cache.
    ledger: the record of its work.
    """

    policy: Policy
    ledger: CacheLedger
    engines: list[Engine]
    _undo: list[Callable[[], None]] = field(default_factory=list)

    def begin(self, calls: Mapping[int, int]) -> None:
        """Begins a run of so many calls per stage, for pipelines that cannot say it themselves."""
        self._begin(RunFacts(lambda stage, time: calls.get(stage)))

    def begin_at(self, nodes: Sequence[Node]) -> None:
        """Begins a run that evaluates at these nodes in turn, for programs that name branches."""
        self._begin(facts_of(nodes))

    def _begin(self, run: RunFacts) -> None:
        for engine in self.engines:
            engine.reset()
            engine.run = run

    def name_branch(self, name: str) -> None:
        """Names the branch of the calls from now on, as `cache_context` of diffusers does."""
        for engine in self.engines:
            engine.context = name

    def reset(self) -> None:
        """Forgets all stored tensors; the next call is the first of a run."""
        for engine in self.engines:
            engine.reset()

    def announce(self, branches: Sequence[str], stage: int = 0, level: float | None = None) -> None:
        """Announces that the next call carries these branches as one batch, in this order.

        level: sigma / alpha there, for gates that depend on it.
        """
        for engine in self.engines:
            engine.announced = Announced(tuple(branches), stage, level)

    def record(self, start: int) -> "Record":
        """Takes the calls from the start-th on out of the ledger."""
        calls = self.ledger.calls[start:]
        del self.ledger.calls[start:]
        samples = [engine.sample for engine in self.engines]
        return Record(calls, self.ledger.bytes_held, self.ledger.bytes_predicted, samples)

    def add_record(self, record: "Record") -> None:
        """Adds a record to the ledger: a CUDA graph ran its calls without calling anything here."""
        self.ledger.calls.extend(record.calls)
        self.ledger.bytes_held = max(self.ledger.bytes_held, record.bytes_held)
        self.ledger.bytes_predicted = max(self.ledger.bytes_predicted, record.bytes_predicted)
        for engine, sample in zip(self.engines, record.samples, strict=True):
            engine.sample = engine.sample or sample

    def detach(self) -> None:
        """Takes every hook off and leaves the network as it was; the ledger stays readable."""
        with hold(*(engine.root for engine in self.engines), alone=True):
            while self._undo:
                self._undo.pop()()
            self.reset()
        warn_of_zero_hits(self.ledger, self.policy)

    def _share(self, call: CacheCall) -> float:
        cost = self.engines[0].cost() if call.skipped else None
        return 1.0 if cost is None else cost.share(call.skipped, call.computed)


@contextmanager
def caching(
    target: Any, policy: Given = None, *, calls: int | None = None, group: Any = None
) -> Iterator[CacheLedger]:
    """Puts a cache on a network while the context lasts, and yields its ledger.

    As in `with caching(pipe, CGTaylor(threshold=0.05)) as ledger: pipe(prompt)`; for the arguments
    see `enable_cache`.
    """
    attachment = enable_cache(target, policy, calls=calls, group=group)
    try:
        yield attachment.ledger
    finally:
        attachment.detach()


def enable_cache(
    target: Any, policy: Given = None, *, calls: int | None = None, group: Any = None
) -> Attachment:
    """Puts a cache on a network until `disable_cache`, for all runs of it in any thread.

    It waits for the runs of samplers in other threads. While a cache is on the network, samplers
    run one at a time; two runs of a pipeline are not kept apart.

    Args:
        target: a `Network`, a `Sampler`, a module of diffusers, or a pipeline with such modules.
        policy: the cache, such as `TaylorSeer(interval=4)` or "taylorseer:interval=4"; or a
            schedule that brings one. None is that of the schedule in a pipeline's scheduler.
        calls: the number of calls of each branch in a run. Our sampler knows it; for a pipeline it
            follows from its scheduler's timesteps; a loop of your own must give it for policies
            that need it.
        group: the process group whose processes hold shards of one call (context parallel): gates
            are summed over it, so that all take the same branch. None: this process decides alone.

    Raises:
        SettingError: if a cache is attached already, or the network is split over processes
            (context parallel) and no group is given; if the cache of a schedule is for another
            network, or the pipeline runs something else.
        ModelError: if the network is of a kind that this policy cannot skip; of a transformer whose
            blocks no card describes, at its first call, which shows what it is made of (`observe`).
    """
    roots, policy = _find_networks(target), _choose_policy(target, policy)
    calls = None if calls is None else as_integer(calls, "calls")
    with hold(*roots, alone=True):
        for root in roots:
            _check_free(root, group)
        attachment = _make_attachment(roots, policy)
        for engine in attachment.engines:
            engine.run, engine.judge.group = run_of(target, calls, engine.root), group
            _hook(engine, attachment)
    return attachment


def disable_cache(target: Any) -> CacheLedger:
    """Takes the cache off and returns its ledger; raises SettingError if there is none."""
    attachment = find_attachment(target)
    if attachment is None:
        raise SettingError(
            "the network has no cache to take off; enable_cache(network, policy) puts one"
        )
    attachment.detach()
    return attachment.ledger


def find_attachment(target: Any) -> Attachment | None:
    """Returns the cache on a network; None if there is none."""
    module = target if isinstance(target, nn.Module) else getattr(target, "module", None)
    if module is None and not hasattr(target, "components"):
        return None
    root = _find_networks(target)[0]
    if "_diffusers_hook" not in vars(root):
        return None
    from . import hooks

    hook = hooks.find_listener(root)
    return None if hook is None else hook.attachment


def _choose_policy(target: Any, given: Given) -> Policy:
    """Returns the policy to put on a target; raises SettingError where its scheduler disagrees."""
    scheduler = getattr(target, "scheduler", None)
    brought: Policy | None = getattr(scheduler, "cache_policy", None)
    if given is None and brought is None:
        raise SettingError(
            "no schedule brings a cache here; name one, as in caching(network,"
            ' "taylorseer:interval=4")'
        )
    policy = take_cache(scheduler if given is None else given)  # type: ignore[arg-type]
    if brought is not None and policy != brought:
        raise SettingError(
            "the pipeline's scheduler runs a schedule with a cache of its own; write"
            " `with caching(pipe):`"
        )
    if scheduler is not None and brought is None and hasattr(given, "cache_policy"):
        raise SettingError(
            "the cache of a schedule is for its own steps, and the pipeline runs others; give it"
            " SolverScheduler.from_config(pipe.scheduler.config, schedule=...) first"
        )
    return policy


def _check_free(root: nn.Module, group: Any) -> None:
    """Raises SettingError if no cache can be put on a network now."""
    from . import hooks

    name = type(root).__name__
    if hooks.find_listener(root) is not None:
        raise SettingError(
            f"{name} has a cache already; take it off first with disable_cache(network)"
        )
    for flag, owner, remedy in OTHERS:
        if getattr(root, flag, False):
            raise SettingError(f"{name} has a cache of {owner} already; take it off with {remedy}")
    if is_answered_for(root):
        raise SettingError(
            f"{name} is guided already, and a cache on it would see rows that the guidance leaves"
            " out; put the cache on first: with caching(pipe, ...), guided(pipe, ...): pipe(...)"
        )
    if group is None and getattr(root, "_parallel_config", None) is not None:
        raise SettingError(
            f"{name} is split over processes, which must all decide alike; give"
            " caching(..., group=) their process group"
        )


def _make_attachment(roots: Sequence[nn.Module], policy: Policy) -> Attachment:
    """Makes a cache for networks; it is not on them yet."""
    ledger = CacheLedger(policy.info.name)
    engines = [make_engine(root, policy, ledger) for root in roots]
    attachment = Attachment(policy, ledger, engines)
    ledger.share, ledger.parts = attachment._share, len(engines[0].list_parts())
    return attachment


def _hook(engine: Engine, attachment: Attachment) -> None:
    from . import hooks

    undo, root = attachment._undo, hooks.Root(engine)
    try:
        for part in engine.list_hooked():
            undo.append(hooks.put(part.module, hooks.Around(part)))
        undo.append(hooks.put(engine.root, root))
        undo.append(hooks.listen(engine, attachment))
        if isinstance(engine, Unobserved):
            engine.give_way = partial(_replace_unobserved, attachment, engine, root)
    except BaseException:
        while undo:
            undo.pop()()
        raise
    hooks.forget_contexts(engine.root)


def _replace_unobserved(
    attachment: Attachment, waiting: Unobserved, root: Any, stack: Stack
) -> Engine:
    """Puts the engine for the blocks of the first call in the place of the one that waited."""
    from . import hooks

    engine = make_stack_engine(stack, waiting.policy, waiting.ledger)
    engine.run, engine.judge.group = waiting.run, waiting.judge.group
    engine.announced, engine.context = waiting.announced, waiting.context
    for part in engine.list_hooked():
        attachment._undo.append(hooks.put(part.module, hooks.Around(part)))
    hooks.replace_engine(root, engine)
    hooks.forget_contexts(engine.root)
    attachment.engines[attachment.engines.index(waiting)] = engine
    attachment.ledger.parts = len(attachment.engines[0].list_parts())
    return engine


def _find_networks(target: Any) -> list[nn.Module]:
    """Returns the networks in the target that a user gave."""
    target = getattr(target, "network", target)
    if isinstance(target, nn.Module):
        return [unwrap_compiled(target)]
    names = ("module", "transformer", "transformer_2", "unet")
    parts = [getattr(target, name, None) for name in names]
    modules = [unwrap_compiled(each) for each in parts if isinstance(each, nn.Module)]
    if not modules:
        raise ModelError(
            f"{type(target).__name__} holds no network of torch to cache; give a pipeline, a module"
            " or a Network that was made from one"
        )
    return modules
