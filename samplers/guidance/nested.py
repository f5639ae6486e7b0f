"""Facts of a policy together with those inside it: gradients that it takes, rows that it saves."""

import warnings

from ...models.errors import SettingError
from ...models.ledger import Ledger
from ...models.modules import is_compiled
from .base import Guidance, Setup, iterate_nested


def takes_gradient(policy: Guidance) -> bool:
    """Returns whether a policy, or one inside it, differentiates the network."""
    return any(each.gradient for each in iterate_nested(policy))


def check_gradient(policy: Guidance, setup: Setup) -> None:
    """Raises SettingError if a policy needs a gradient that this run cannot give."""
    if not takes_gradient(policy):
        return
    name = next(each.name for each in iterate_nested(policy) if each.gradient)
    module = setup.network.module
    if setup.cached:
        raise SettingError(
            f"{name} differentiates the network, and a cache answers without it; drop the cache"
        )
    if setup.network.graphs is not None or (module is not None and is_compiled(module)):
        raise SettingError(
            f"{name} differentiates the network, which compiled code and CUDA graphs do not record;"
            " drop --compile and --cuda-graph"
        )


def warn_of_no_savings(policy: Guidance, ledger: Ledger) -> None:
    """Warns of a policy that is there to leave evaluations out and left out none."""
    idle = [each.name for each in iterate_nested(policy) if each.saves]
    if idle and ledger.rows == 2 * ledger.evaluations > 0:
        warnings.warn(
            f"{idle[0]} guidance left out none of {ledger.evaluations} unconditional evaluations;"
            " lower its threshold, or take cfg",
            stacklevel=3,
        )
