"""The settings over which diffusers' schedulers are tried: those that a competent user knows.

First every scheduler on every placement of its steps: spacings of timesteps, sigmas by name, shifts
on rectified flow, ends on EDM. Then those that came nearest with one more setting each, twice.
"""

import math
from collections.abc import Callable, Iterable
from itertools import product

from ...models.schedule import NoiseSchedule, RectifiedFlow

SPACINGS = ("linspace", "leading,steps_offset=1", "trailing")
SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
DPM = ("dpmpp-2m", "dpmpp-3m")
SHIFTS = (1.0, 1.5, 2.0, 3.0, 5.0)  # of the shift of the process
VARIED, ROUNDS = 3, 2  # how many are varied, and how often
FINALISTS = 6  # that are tried on all noises
FINAL = "final_sigmas_type=sigma_min"
OF_EDM = ("sigma_max=40", *(f"sigma_min={end}" for end in (0.02, 0.05, 0.1)))
VARIATIONS = {  # by the first part of the name
    "dpmpp": ("solver_type=heun", "euler_at_final=true", "lower_order_final=false"),
    "unipc": ("solver_type=bh1",),
    "deis": ("solver_order=3", "lower_order_final=false"),
}
OF_PURE_NOISE = "lambda_min_clipped=-5.1"  # what diffusers advises for cosine schedules


def choose_rivals(
    schedule: NoiseSchedule,
    judge: Callable[[str], float],
    has_time: Callable[[], bool] = lambda: True,
) -> list[str]:
    """Returns the specs that came nearest on a process, at most FINALISTS, best first.

    judge:    returns the error of a spec on a few noises, infinite where it cannot run.
    has_time: for another spec; the likeliest are tried first, until one runs whatever it says.
    """
    errors: dict[str, float] = {}

    def try_all(specs: Iterable[str]) -> None:
        for spec in specs:
            runs = min(errors.values(), default=math.inf) < math.inf
            if spec not in errors and (has_time() or not runs):
                errors[spec] = judge(spec)

    try_all(reversed(list_rivals(schedule)))
    for _ in range(ROUNDS):
        for best in _rank(errors)[:VARIED]:
            try_all(vary_rival(best, schedule))
    return _rank(errors)[:FINALISTS]


def _rank(errors: dict[str, float]) -> list[str]:
    return sorted((spec for spec in errors if errors[spec] < math.inf), key=errors.__getitem__)


def list_rivals(schedule: NoiseSchedule) -> list[str]:
    """Returns every scheduler on every placement, those of high order last."""
    if isinstance(schedule, RectifiedFlow):
        return _list_on_flow(schedule)
    if schedule.family == "edm":
        placed = ("rho=7", "rho=5", "rho=3", "sigma_schedule=exponential")
        return [f"{name}:{each}" for name, each in product(("euler", *DPM), placed)]
    spaced = (*(f"timestep_spacing={each}" for each in SPACINGS), *(f"{s}=true" for s in SIGMAS))
    names = ("euler", "heun", "deis", *DPM, "unipc", "unipc-3")
    pairs = [f"{name}:{each}" for name, each in product(names, spaced)]
    return [*pairs, *(f"{name}:use_lu_lambdas=true" for name in DPM)]


def _list_on_flow(schedule: RectifiedFlow) -> list[str]:
    shifts = [f"{schedule.shift * k:g}" for k in SHIFTS]
    multistep = product((*DPM, "unipc", "unipc-3"), shifts)
    return [
        *(f"{name}:shift={k}" for name, k in product(("euler", "euler-flux", "heun"), shifts)),
        *(f"euler:{each}=true" for each in SIGMAS),
        *(f"{name}:flow_shift={k}" for name, k in multistep),
        *(f"{name}:use_karras_sigmas=true" for name in ("unipc", "unipc-3")),
    ]


def vary_rival(spec: str, schedule: NoiseSchedule) -> list[str]:
    """Returns a spec with one more setting, each that its scheduler has."""
    settings = {part.partition("=")[0] for part in spec.partition(":")[2].split(",")}
    kind = spec.partition(":")[0].partition("-")[0]
    further = [*VARIATIONS.get(kind, ())]
    if schedule.family == "edm":
        further += OF_EDM
    if kind in ("dpmpp", "unipc") or (kind == "euler" and schedule.family != "flow"):
        further.append(FINAL)
    if kind == "dpmpp" and schedule.family.startswith("vp"):
        further.append(OF_PURE_NOISE)
    return [f"{spec},{each}" for each in further if each.partition("=")[0] not in settings]
