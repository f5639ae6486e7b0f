"""Saved pipelines with our scheduler, loaded by vllm-omni.

Its entry point lets every process of vllm-omni import the package, which is what diffusers needs to
load a pipeline that names `fewstep`. A second one, `vllm_omni.schedulers`, names `SolverScheduler`
for versions that choose a scheduler by name.
"""

from importlib import import_module


def register() -> None:
    """Imports the package; vllm-omni calls this once per process, or oftener."""
    import_module("fewstep")
