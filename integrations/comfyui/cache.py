"""A cache of fewstep on the network of a MODEL, there while a run lasts.

The MODEL is cloned and the clone given two wrappers. The network itself, which all clones share, is
hooked from the first call of a run to its last, so that runs of the plain MODEL are as they were.
"""

import logging
from typing import Any

from comfy.patcher_extension import WrappersMP

from fewstep.k_diffusion import list_moments
from fewstep.k_diffusion.host import read_path
from fewstep.models.caching import Policy, enable_cache
from fewstep.models.errors import SettingError

from .logged import log_warnings
from .solver_of import find_solver

KEY = "fewstep"


def add_cache(model: Any, policy: Policy) -> Any:
    """Returns a clone of a MODEL with a cache.

    Raises:
        SettingError: if it has one already.
    """
    if model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        raise SettingError("this model has a FewstepCache already; take one of the two nodes out")
    clone, cache = model.clone(), _CachedModel(policy)
    clone.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, cache.run)
    clone.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, cache.call)
    return clone


class _CachedModel:
    """The two wrappers of one clone."""

    def __init__(self, policy: Policy) -> None:
        self.policy = policy
        self.attachment: Any = None

    def run(self, executor: Any, *args: Any, **named: Any) -> Any:
        """Runs a sampler with the cache on the network.

        Raises:
            FewstepError: if the cache fits neither the network nor the run, or the run never
                called the network.
        """
        _, _, sampler, sigmas, *_ = args
        find = executor.class_obj.model_patcher.get_model_object
        path = read_path(find("model_sampling"))
        moments = list_moments(sigmas.tolist(), path, find_solver(sampler))
        self.attachment = enable_cache(find("diffusion_model"), self.policy)
        try:
            self.attachment.begin_at([moment.node for moment in moments])
            result = executor(*args, **named)
        finally:
            with log_warnings():
                self.attachment.detach()
        self._report()
        return result

    def call(self, executor: Any, *args: Any, **named: Any) -> Any:
        """Calls the network, with a memory for the branches that ComfyUI put into one batch."""
        transformer_options = args[5]
        self.attachment.name_branch("+".join(map(str, transformer_options["uuids"])))
        return executor(*args, **named)

    def _report(self) -> None:
        ledger = self.attachment.ledger
        if not ledger.calls:
            raise SettingError(
                "the run never called the network that FewstepCache is on; another node has put"
                " something in its place, so take FewstepCache out"
            )
        logging.info(
            "fewstep: %s skipped %d of %d calls", ledger.policy, ledger.hits, len(ledger.calls)
        )
