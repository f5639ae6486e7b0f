"""Warnings of caches that save nothing, or little whatever they skip."""

import warnings
from collections.abc import Callable
from typing import Any

from ..ledger import CacheLedger
from .base import Policy
from .engine import Engine


def warn_of_share(engine: Engine, forward: Callable[..., Any]) -> None:
    """Warns if no skip can save half of a call; counts it by a further one where in doubt.

    forward: calls the network below the hook of the cache.
    """
    if engine.policy.off or not engine.may_save_little:
        return
    cost, skippable = engine.cost(forward), engine.list_skippable()
    saving = 1.0 if cost is None else 1.0 - cost.share(skippable)
    if saving < 0.5:
        warnings.warn(
            f"{engine.policy.info.name} saves at most {saving:.0%} of a call of"
            f" {type(engine.root).__name__}: what it skips is no larger a share of the FLOPs; fewer"
            " steps may save more",
            stacklevel=4,
        )


def warn_of_zero_hits(ledger: CacheLedger, policy: Policy) -> None:
    """Warns of a cache that never skipped: it cost time and saved none."""
    if ledger.calls and not ledger.hits and not policy.off:
        advice = "raise its threshold or interval, or drop it"
        if ledger.restarts > 1:
            advice = (
                f"its batch changed between them {ledger.restarts} times, which makes it start"
                " over; drop it, or the guidance that leaves rows out"
            )
        warnings.warn(
            f"{policy.info.name} skipped none of {len(ledger.calls)} calls; {advice}", stacklevel=4
        )
