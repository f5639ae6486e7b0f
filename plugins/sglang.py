"""Our solvers as a scheduler of sglang-diffusion, which builds one from `scheduler_config.json`.

The plug-in is found by its entry point. A model runs our scheduler if one is saved in its folder:

>>> ours = SolverScheduler.from_config(config, solver="unipc-3")
>>> ours.save_pretrained("MODEL/scheduler")
"""

import logging
from collections.abc import Mapping
from typing import Any

from ..models.diffusers_config import shift_key_of
from ..samplers.diffusers.config import read_choices
from ..samplers.diffusers.scheduler import SolverScheduler

TESTED = "0.5.23"
NAMES = ("FewstepScheduler", "SolverScheduler")
PATH = "fewstep.plugins.sglang:FewstepScheduler"


class FewstepScheduler(SolverScheduler):
    """`SolverScheduler`, made as sglang makes its schedulers: from the config as keywords."""

    __module__ = "fewstep.plugins.sglang"

    def __init__(self, base: Mapping[str, Any] | None = None, **config: Any) -> None:
        if base is None:
            known = config.pop("base_class", None) or "FlowMatchEulerDiscreteScheduler"
            base, config = read_choices({**config, "_class_name": known}, {})
        super().__init__(base, **config)

    @property
    def num_train_timesteps(self) -> int:
        """The number of timesteps that the network was trained with."""
        return len(self)

    def set_shift(self, shift: float) -> None:
        """Shifts the times of a flow network by this factor, and no more by the size of images."""
        fixed = {"use_dynamic_shifting": False} if self.config.get("use_dynamic_shifting") else {}
        self._change({shift_key_of(self.config): float(shift), **fixed})


def register() -> None:
    """Makes the scheduler known to sglang, which calls this once per process."""
    from sglang.multimodal_gen.runtime.models.registry import ModelRegistry
    from sglang.multimodal_gen.runtime.models.schedulers.base import BaseScheduler
    from sglang.version import __version__

    BaseScheduler.register(FewstepScheduler)
    for name in NAMES:  # "_class_name" of a config
        ModelRegistry.register_model(name, PATH)
    log = logging.getLogger(__name__)
    log.info("fewstep: %s are registered", " and ".join(NAMES))
    if __version__ != TESTED:
        log.warning("fewstep is tested with sglang %s, and this is %s", TESTED, __version__)
