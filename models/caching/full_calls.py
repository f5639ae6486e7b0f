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
    predictor, gate = policy.keep.predictor, policy.gate
    if policy.off:
        return
    if predictor.needs_probe and (gate is None or policy.lead < 1):
        raise SettingError(
            f"{predictor.info.name} looks at what the leading blocks add at a skipped call, and"
            f" {policy.info.name} runs none there; take first-block:predictor={predictor.info.name}"
        )
    predictor.check(list_full_calls(policy, calls), calls)
