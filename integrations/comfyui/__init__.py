"""fewstep's solvers, grids, schedules, caches and guidance as nodes of ComfyUI.

This folder goes into ComfyUI's `custom_nodes`; its environment has `fewstep` installed. It is a
program of its own, under GPL-3.0-or-later as ComfyUI is.
"""

from comfy_api.latest import ComfyExtension, io

from .names import add_names, warn_of_version
from .nodes import NODES


class FewstepExtension(ComfyExtension):
    """The nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> FewstepExtension:
    """Returns the extension; ComfyUI calls this once."""
    return FewstepExtension()


warn_of_version()
add_names()
