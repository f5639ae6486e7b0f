"""Every solver as a function of the k-diffusion library, which ComfyUI and its relatives call.

>>> from fewstep.k_diffusion import sample_unipc_3
>>> x = sample_unipc_3(model, torch.randn(4, 4, 64, 64) * sigmas[0], sigmas)

There is one function `sample_NAME(model, x, sigmas, extra_args=None, callback=None, disable=None,
*, noise_sampler=None, **settings)` per name of a solver, those of k-diffusion and ComfyUI among
them (`solvers.aliases`), its hyphens written as underscores and its settings as keywords; `sample`
takes the solver as text, or a `Schedule`. The rest is what a program that calls them needs beside:
sigmas on a network, and guidance by a policy.
"""

from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter, signature
from typing import Any

from torch import Tensor

from ..models.registry import is_needed, parse_spec, settings_of
from ..solvers.base import SOLVERS
from .guided_run import GuidedRun, list_moments, take_policy
from .network_sigmas import check_schedule, place_sigmas
from .run import get_sigmas, sample

Function = Callable[..., Tensor]


def _make_function(name: str) -> Function:
    """Returns the sampling function of a solver, with a signature that lists its settings."""

    def function(*args: Any, **keywords: Any) -> Tensor:
        given = {key: keywords.pop(key) for key in COMMON & keywords.keys()}
        return sample(*args, **given, solver=SOLVERS.make(name, **keywords))

    ours, meant = parse_spec(SOLVERS.aliases.get(name, name))
    function.__name__ = function.__qualname__ = _spell(name)
    source = SOLVERS.get(ours).info.source
    function.__doc__ = f"Samples with {SOLVERS.spell(name)} ({source}); see `sample`."
    parameters = list(_list_parameters(ours, meant))
    vars(function)["__signature__"] = signature(sample).replace(parameters=parameters)
    return function


def _list_parameters(name: str, meant: Mapping[str, Any]) -> Iterator[Parameter]:
    """Yields the parameters of `sample`, with the settings of a solver in the place of its name.

    meant: those that an alias has set.
    """
    for parameter in signature(sample).parameters.values():
        if parameter.name != "solver":
            yield parameter
    for field in settings_of(SOLVERS.get(name)):
        default = meant.get(field.name, Parameter.empty if is_needed(field) else field.default)
        yield Parameter(field.name, Parameter.KEYWORD_ONLY, default=default)


def _spell(name: str) -> str:
    return "sample_" + name.replace("-", "_")


COMMON = signature(sample).parameters.keys() - {"solver"}
FUNCTIONS = {_spell(name): _make_function(name) for name in (*SOLVERS, *SOLVERS.aliases)}
globals().update(FUNCTIONS)

__all__ = [
    "GuidedRun",
    "check_schedule",
    "get_sigmas",
    "list_moments",
    "place_sigmas",
    "sample",
    "take_policy",
    *FUNCTIONS,
]
