"""The solver behind a SAMPLER."""

from typing import Any

from fewstep.k_diffusion import sample


def find_solver(sampler: Any) -> Any:
    """Returns the solver of a SAMPLER of this pack; None of any other, whose calls nobody knows."""
    ours = getattr(sampler, "sampler_function", None) is sample
    return sampler.extra_options["solver"] if ours else None
