"""The engine: carries a policy out on a live network, call by call.

One `Engine` sits on one network. It finds out where a call belongs, decides whether it is full,
lets the blocks run or forecasts them, and writes the ledger. The parts to skip and the tensors to
keep for them are in `stack_engine.py` (a stretch of blocks) and `engines.py` (sub-modules inside
them, the deep part of a UNet). All decisions are taken on the host.
"""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import SettingError
from ..ledger import CacheCall, CacheLedger
from ..modules import hold
from .base import CallPosition, Policy
from .calls import Announced, CallCounter, CallState, Part, Place, Track, Verdict
from .cost import FlopCount, measure
from .full_calls import check_probe, check_run
from .gate import make_memory
from .judge import SkipJudge
from .memory import Memory
from .run_facts import RunFacts


class Engine(ABC):
    """The base of all kinds of caches.

    root:   the network, without its compiled shell.
    policy: the settings of the cache.
    ledger: the record of its work.
    run:    what is known of a run before it ends.
    judge:  decides by the gate, if the policy has one.
    sample: the arguments of one call, from which its cost is counted.
    """

    def __init__(self, root: nn.Module, policy: Policy, ledger: CacheLedger) -> None:
        self.root, self.policy, self.ledger = root, policy, ledger
        check_probe(policy)
        self.predictor = policy.keep.predictor
        self.judge = SkipJudge(policy, ledger)
        self.run = RunFacts()
        self.tracks: dict[tuple[int, str], Track] = {}
        self.verdicts: dict[int, Verdict] = {}
        self.clock = CallCounter()
        self.announced: Announced | None = None
        self.context: str | None = None
        self.active = True
        self._lengths: dict[int, int | None] = {}
        self._levels: dict[int, Sequence[float]] = {}
        self.sample: tuple[Any, Any] | None = None
        self._cost: FlopCount | None = None
        self._time = _find_argument(root, ("timestep", "timesteps", "t"))

    # Runs

    def reset(self) -> None:
        """Forgets the run: the next call is the first of another."""
        self.tracks.clear()
        self.verdicts.clear()
        self._lengths.clear()
        self._levels.clear()
        self.clock, self.announced = CallCounter(), None

    def _weigh(self) -> None:
        memories = [each for track in self.tracks.values() for each in track.memories()]
        size = sum(each.nbytes for each in memories)
        expected = sum(each.expected_bytes for each in memories)
        self.ledger.bytes_held = max(self.ledger.bytes_held, size)
        self.ledger.bytes_predicted = max(self.ledger.bytes_predicted, expected)

    def find_length(self, stage: int) -> int | None:
        """Returns the calls of that stage in a run; checks them by the policy once per run."""
        if stage not in self._lengths:
            calls = self._lengths[stage] = self.run.count(stage, self.clock.time)
            if calls is not None and stage == 0:  # a rare further stage may well be all full
                check_run(self.policy, calls)
            elif calls is None and (self.policy.needs_calls or self.predictor.needs_calls):
                raise SettingError(
                    f"{self.policy.info.name} must know how many calls a run has;"
                    " use caching(network, policy, calls=STEPS)"
                )
        return self._lengths[stage]

    def make_memory(self) -> Memory:
        """Makes the memory of a tensor that is forecast at skipped calls."""
        return make_memory(self.predictor, self.judge.by_row, self.state.length)

    # Calls

    def enter(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        """Begins a call of the network."""
        if self.active:
            try:
                self.begin(args, kwargs)
            except BaseException:
                self.fail()
                raise

    def fail(self) -> None:
        """Drops all that is stored of the run, as a call failed."""
        if self.active:
            self.reset()

    def leave(self, out: Any) -> None:
        """Ends a call of the network, which returned this."""
        if self.active:
            if self.state.track.gate is not None and not self.state.follows:
                self.state.track.gate.hear(_find_tensor(out), self.state)
            self.finish(self.state)

    def begin(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> CallState:
        self._check_mode()
        level = None if self.announced is None else self.announced.level
        place = self._find_place(args, kwargs)
        x = args[0] if args else next(iter(kwargs.values()))
        call = self.state = CallState(place, self._find_track(place, x), len(x), (args, kwargs))
        call.length, call.level = self.find_length(place.stage), level
        call.full = True if self.policy.off else self.decide_early(call)
        if self.judge.reads("input") and not call.follows and not self.policy.off:
            call.level = self._find_level(place) if level is None else level
            self.judge.look(call, x)
        if self.sample is None:
            self.sample = (tuple(args), dict(kwargs))
        return call

    def _find_level(self, place: Place) -> float | None:
        """Returns sigma / alpha of a call that nobody announced, where its run knows it."""
        if place.stage not in self._levels:
            self._levels[place.stage] = self.run.levels(place.stage, self.clock.time)
        levels = self._levels[place.stage]
        return levels[place.index] if place.index < len(levels) else None

    def finish(self, call: CallState) -> None:
        """Writes the ledger; after a full call, all rows count from it."""
        full = call.full is not False
        record = CacheCall(
            branch=call.place.label,
            stage=call.place.stage,
            index=call.place.index,
            kind="full" if full else "partial" if call.rows else "skip",
            error=call.error,
            rows=call.batch,
            computed=1.0 if full else len(call.rows) / call.batch,
            skipped=() if full else self.list_skipped(call),
        )
        self.ledger.calls.append(record)
        if full:
            call.track.errors.clear()
            if call.track.stores:
                call.track.last = [call.place.index] * (call.batch if self.judge.by_row else 1)
            self._weigh()

    def _check_mode(self) -> None:
        name = type(self.root).__name__
        if self.root.training:
            raise SettingError(f"{name} is in training mode; call .eval() on it, or drop the cache")
        if torch.is_grad_enabled():
            raise SettingError(
                f"{name} was called with gradients enabled, which a cache would break; call it"
                " under torch.no_grad() or torch.inference_mode()"
            )

    def _find_place(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Place:
        if self.announced is not None:
            announced, self.announced = self.announced, None
            return self.clock.count_announced(announced.branches, announced.stage)
        name, time = self.context, self._time_of(args, kwargs)
        if self.clock.is_new_run(name, time):
            self.reset()
        return self.clock.count_heard(name, time)

    def _time_of(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> float | None:
        if self._time is None:
            return None
        place, name = self._time
        time = args[place] if place < len(args) else kwargs.get(name)
        if isinstance(time, Tensor):
            return float(time.flatten()[0]) if time.numel() else None
        return float(time) if isinstance(time, int | float) else None

    def _find_track(self, place: Place, x: Tensor) -> Track:
        facts = (x.shape[1:], x.dtype, x.device, len(x) // len(place.branches))
        track = self.tracks.get(place.key)
        if track is not None and track.facts == facts:
            if track.branches == place.branches:
                return track
            if set(place.branches) < set(track.branches):
                track.keep(place.branches)
                return track
        self.ledger.restarts += track is not None
        self.tracks[place.key] = Track(facts, place.branches)
        return self.tracks[place.key]

    def decide_early(self, call: CallState) -> bool | None:
        """Decides on a full or a skipped call, where that is known before its blocks run."""
        place, track = call.place, call.track
        decided = self.verdicts.get(place.stage)
        same_step = decided is not None and decided.index == place.index
        call.follows = same_step and self.policy.together
        if not track.last:
            return True
        if decided is not None and call.follows:
            call.rows = decided.rows
            return decided.full
        nows = {CallPosition(place.index, place.index - last, call.length) for last in track.last}
        decisions = {self.policy.must(now) for now in nows}
        alike = len(decisions) == 1  # else the gate looks at each row
        return decisions.pop() if alike else None

    def settle(self, call: CallState) -> None:
        """Lets the other branches of this step follow."""
        if not call.follows:
            verdict = Verdict(call.place.index, call.full is not False, call.rows)
            self.verdicts[call.place.stage] = verdict

    # The parts in which kinds of caches differ

    @abstractmethod
    def list_skipped(self, call: CallState) -> tuple[str, ...]:
        """Returns the parts that a call did not run, for the rows that were not computed."""

    @abstractmethod
    def list_parts(self) -> dict[str, nn.Module]:
        """Returns the parts that may be skipped, by name."""

    @abstractmethod
    def list_hooked(self) -> list[Part]:
        """Returns the modules below the root that are not simply run."""

    def cost(self, forward: Callable[..., Any] | None = None) -> FlopCount | None:
        """Counts the FLOPs of a full call and of its parts; None before the first call."""
        if self._cost is None and self.sample is not None:
            with hold(self.root, alone=True), self.pause():
                self._cost = measure(self.root, self.list_parts(), *self.sample, forward)
        return self._cost

    @property
    def may_save_little(self) -> bool:
        """True if the parts that are skipped may be a small share of the network."""
        parts = self.list_parts()
        skippable = sum(_count_parameters(parts[name]) for name in self.list_skippable())
        return skippable < 0.5 * _count_parameters(self.root)

    def list_skippable(self) -> tuple[str, ...]:
        """Returns the parts that a skipped call leaves out at most."""
        return tuple(self.list_parts())

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Lets the network run as if there were no cache on it."""
        self.active = False
        try:
            yield
        finally:
            self.active = True


def _find_tensor(out: Any) -> Tensor:
    """Returns the tensor in what a network returned, or the first of several."""
    while not isinstance(out, Tensor):
        out = next(iter(out.values() if isinstance(out, Mapping) else out))
    return out


def _count_parameters(module: nn.Module) -> int:
    return sum(each.numel() for each in module.parameters())


def _find_argument(root: nn.Module, names: Sequence[str]) -> tuple[int, str] | None:
    """Finds the first argument of one of these names in the forward of a network."""
    parameters = list(inspect.signature(type(root).forward).parameters)[1:]
    return next(((parameters.index(n), n) for n in names if n in parameters), None)
