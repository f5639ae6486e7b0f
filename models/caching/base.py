"""Cache policies: frozen values of settings, and choices that one engine carries out.

A call of the network runs its blocks in a row. A policy skips a stretch of them: the first `lead`
and the last `tail` blocks always run, the rest only at full calls. Whether a call is full is
decided on the host, from the index of the call or from a gate that compares a tensor at the start
of the stretch with what was expected there. At a skipped call the end of the stretch is forecast.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass as plain
from typing import ClassVar, Literal, Protocol

from pydantic.dataclasses import dataclass
from torch import nn

from ..errors import SettingError
from ..registry import SettingsRegistry
from .gate import REPEAT, Gate, Reduce
from .predictors import Predictor


@plain(frozen=True, slots=True, kw_only=True)
class CacheInfo:
    """Facts about a policy, for `fewstep list caches`.

    name:    what users type.
    decides: the quantity that decides on a skip.
    keeps:   the tensors stored between calls.
    runs_on: networks it works on.
    source:  paper.
    """

    name: str
    decides: str
    keeps: str
    runs_on: str
    source: str


@plain(frozen=True, slots=True)
class CallPosition:
    """The position of a call in its run.

    index: the call's index in its run, from 0.
    since: the number of calls since the last full one, 1 for the previous call.
    calls: the number in the run; None if it is unknown.
    """

    index: int
    since: int
    calls: int | None

    def near_end(self, full: int) -> bool:
        """Tells whether it is one of the last `full` calls."""
        return self.calls is not None and self.index >= self.calls - full


@plain(frozen=True)
class Keep:
    """The tensor that is stored at full calls and forecast at skipped ones.

    what:      "state", the end of the stretch; or "residual", the end minus the start, which is
               added to the true start of the skipped call.
    predictor: of the value at a skipped call.
    """

    what: Literal["state", "residual"]
    predictor: Predictor = REPEAT


class Policy:
    """The base of cache policies: one that never skips, keeps the last state and has no gate.

    off:         true if these settings never skip.
    needs_calls: true if the number of calls in a run must be known.
    lead, tail:  blocks at the start and at the end that always run.
    keep, gate:  what is stored, and how a skip is judged, if `must` leaves it open.
    together:    whether branches called one after the other follow the first one's decision.
    by_module:   whether the outputs of sub-modules are forecast, not those of whole blocks.
    unet_branch: where a UNet is split; None for a policy that is not for UNets alone.
    """

    info: ClassVar[CacheInfo]
    together: bool = True

    @property
    def off(self) -> bool:
        return False

    @property
    def needs_calls(self) -> bool:
        return False

    @property
    def lead(self) -> int:
        return 0

    @property
    def tail(self) -> int:
        return 0

    @property
    def keep(self) -> Keep:
        return Keep("state")

    @property
    def gate(self) -> Gate | None:
        return None

    @property
    def by_module(self) -> bool:
        return False

    @property
    def unet_branch(self) -> int | None:
        return None

    def fit_to(self, root: nn.Module) -> "Policy":
        """Returns this policy with what is published for a network; raises SettingError if none."""
        return self

    def check(self, calls: int) -> None:
        """Raises SettingError if a run of so many calls cannot be cached with these settings."""

    def check_parts(self, parts: int) -> None:
        """Raises SettingError if it was made for a network with other parts to skip."""

    def must(self, now: CallPosition) -> bool | None:
        """Returns True for a full call, False for a skipped one, None where the gate decides."""
        return True

    def accepts(self, errors: Sequence[float], now: CallPosition) -> bool:
        """Tells whether to skip, by the gate's errors since the last full call, the newest last."""
        return False


def check_whole(name: str, value: int, least: int, hint: str) -> None:
    """Raises SettingError unless value >= least."""
    if value < least:
        raise SettingError(f"{name} must be at least {least}, not {value}; {hint}")


def check_threshold(value: float) -> None:
    """Raises SettingError for a threshold below which no error lies."""
    if not (value >= 0.0 and math.isfinite(value)):
        raise SettingError(
            f"no error is ever judged by a threshold of {value:g}; give a number above 0, such as"
            " 0.05, or 0 for off"
        )


def check_room(calls: int, full: int, why: str) -> None:
    """Raises SettingError if the calls that must be full are all of them."""
    if calls <= full:
        raise SettingError(
            f"a run of {calls} calls leaves none to skip: {why} need {full} full ones;"
            " lower them or take more steps"
        )


@dataclass(frozen=True)
class Gated(Policy):
    """The settings that policies with a gate share.

    threshold:       skipped where the gate's error is below it; 0 is off.
    warmup:          full calls at the start, at least 1.
    final:           full calls at the end.
    max_consecutive: skips in a row at most.
    reduce:          "max": the worst image decides; "mean": the batch (published); "per-sample":
                     only the images that fail are computed.
    together:        branches called one after the other follow the first one's decision.
    """

    threshold: float
    warmup: int = 3
    final: int = 1
    max_consecutive: int = 6
    reduce: Reduce = "max"
    together: bool = True

    def __post_init__(self) -> None:
        check_threshold(self.threshold)
        check_whole("warmup", self.warmup, 1, "the first call has nothing to be forecast from")
        check_whole("final", self.final, 0, "1 is usual")
        check_whole("max_consecutive", self.max_consecutive, 1, "for no skips set threshold=0")

    @property
    def off(self) -> bool:
        return self.threshold == 0.0

    @property
    def needs_calls(self) -> bool:
        return self.final > 0 and not self.off

    def check(self, calls: int) -> None:
        if not self.off:
            check_room(calls, self.warmup + self.final, "warmup and final")

    def must(self, now: CallPosition) -> bool | None:
        if self.off or now.index < self.warmup or now.since > self.max_consecutive:
            return True
        return True if now.near_end(self.final) else None

    def accepts(self, errors: Sequence[float], now: CallPosition) -> bool:
        return errors[-1] < self.threshold


@dataclass(frozen=True)
class Accumulated(Gated):
    """The settings of policies whose errors since the last full call add up to the threshold."""

    warmup: int = 3
    max_consecutive: int = 50

    def accepts(self, errors: Sequence[float], now: CallPosition) -> bool:
        return sum(errors) < self.threshold


@dataclass(frozen=True)
class Periodic(Policy):
    """The settings that policies with a full call at fixed intervals share.

    Full calls are 0 .. first-1 and then every `interval`-th one.

    interval: 1 is off: every call is full.
    """

    interval: int = 3

    def __post_init__(self) -> None:
        check_whole("interval", self.interval, 1, "1 is off, 3 or 4 is usual")
        check_whole("first", self.first, 1, "the first call has nothing to be forecast from")

    @property
    def first(self) -> int:
        return 1

    @property
    def off(self) -> bool:
        return self.interval == 1

    def check(self, calls: int) -> None:
        if not self.off:
            check_room(calls, self.first, "the first calls")

    def must(self, now: CallPosition) -> bool | None:
        return now.index < self.first or (now.index - self.first + 1) % self.interval == 0


CACHES: SettingsRegistry[Policy] = SettingsRegistry("cache", CacheInfo)

register, names, policy_class, cache = CACHES.register, CACHES.names, CACHES.get, CACHES.make


class BringsCache(Protocol):
    """A schedule with a cache of its own, or a scheduler that runs one."""

    @property
    def cache_policy(self) -> Policy | None: ...


def take_cache(given: "Policy | BringsCache | str") -> Policy:
    """Returns a policy given as such, as `name:key=value,...`, or by a schedule.

    Raises:
        UnknownNameError, SettingError: for a name, a setting or a schedule without a cache.
    """
    if not hasattr(given, "cache_policy"):
        return CACHES.take(given)
    if given.cache_policy is None:
        raise SettingError(
            "this schedule brings no cache; name one, such as cg-taylor:threshold=.1"
        )
    return given.cache_policy
