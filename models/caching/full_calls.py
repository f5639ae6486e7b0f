"""Full calls of a run, where they are known before it, and whether a run can be cached at all."""

from ..errors import SettingError
from .base import CallPosition, Policy


def list_full_calls(policy: Policy, calls: int) -> tuple[int, ...] | None:
    """Returns the full calls of a run, where their index alone decides; None where a gate does."""
    full = [0]
    for index in range(1, calls):
        must = policy.must(CallPosition(index, index - full[-1], calls))
        if must is None:
            return None
        full += [index] if must else []
    return tuple(full)


def check_run(policy: Policy, calls: int) -> None:
    """Raises SettingError if a run of so many calls cannot be cached, or not by its predictor."""
    policy.check(calls)
    if not policy.off:
        policy.keep.predictor.check(list_full_calls(policy, calls), calls)


def check_probe(policy: Policy) -> None:
    """Raises SettingError if its predictor looks at leading blocks and skipped calls run none."""
    name = policy.keep.predictor.info.name
    if policy.keep.predictor.needs_probe and (policy.gate is None or policy.lead < 1):
        raise SettingError(
            f"{name} looks at what leading blocks add at a skipped call, and {policy.info.name}"
            f" runs none there; take first-block:predictor={name}, or another predictor"
        )
