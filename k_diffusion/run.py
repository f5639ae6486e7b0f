"""A run of a solver whose network is a k-diffusion denoiser: `model(x, sigma, **extra_args)` -> x0.

States are those of the caller: x0 + sigma eps, or for flow models of ComfyUI (1 - sigma) x0 +
sigma eps.
"""

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..models.errors import ScheduleError, SettingError
from ..models.schedule import EDM, NoiseSchedule, RectifiedFlow, TimeGrid
from ..samplers.plan import DEFAULT_SOLVER, Plan, make_plan
from ..samplers.state import rescale, to_state
from ..solvers import SolverInfo, SolverSettings, drive, dry_run, take_solver
from ..solvers.artefact import Artefact
from .host import Host, Model, NoiseSampler, Path, Report, find_path, tell_sigma

SAME = 1e-3  # relative, of a schedule's sigmas: after float32 and the rounding of a user interface
SPLITS = "combines the branches of the network itself, and the model is guided already"


@torch.no_grad()
def sample(
    model: Model,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Report | None = None,
    disable: bool | None = None,
    *,
    solver: str | SolverSettings | Artefact = DEFAULT_SOLVER,
    noise_sampler: NoiseSampler | None = None,
    path: Path | None = None,
) -> Tensor:
    """Carries x from the first sigma to the last, as the functions of k-diffusion do.

    Args:
        model: `model(x, sigma, **extra_args)` returns x0 like x, guided already; sigma is (B,).
        x: (B, *): x0 + sigma eps at the first sigma; (1 - sigma) x0 + sigma eps on a flow path.
        sigmas: falling, one more than there are steps; they may end at 0 or above. Of an adaptive
            solver only the ends count. Those of a `Schedule` are `get_sigmas(schedule)`.
        extra_args: passed to the model. A "seed" among them also seeds the noise of stochastic
            solvers, per row, and apart from the noise that x was drawn with.
        callback: called once a step, after its first evaluation, with a dictionary of x, i, sigma,
            sigma_hat and denoised.
        disable: hides the progress bar; None hides it where nobody watches.
        solver: a name of the registry, `name:key=value,...`, settings, or a `Schedule`.
        noise_sampler: `noise_sampler(sigma, sigma_next)` returns standard normal noise like x, for
            solvers that draw once a step.
        path: "ve" or "flow"; None finds out by the class of ComfyUI's `model_sampling`, and is
            "ve" for other models.

    Returns:
        The state at the last sigma, in the dtype of x.

    Raises:
        FewstepError: for sigmas, solvers and schedules that do not fit, for an answer of another
            shape, and for a model that answers pure noise with eps, before the second evaluation.
    """
    path = path or find_path(model)
    values = sigmas.tolist()  # the one place where the host waits
    _check_sigmas(values, path)
    kept = [i for i in range(len(values)) if i == 0 or values[i] != values[i - 1]]
    if len(kept) < 2:
        return x
    known = solver if isinstance(solver, Artefact) else take_solver(solver)
    if not isinstance(known, Artefact) and (lack := find_lack(known.info)):
        raise SettingError(lack)
    plan = plan_sigmas(path, known, tuple(values[i] for i in kept))  # type: ignore[arg-type]
    _check_solver(plan, x, noise_sampler)
    host = Host(model, x, dict(extra_args or {}), path, noise_sampler, callback)
    with tqdm(total=len(values) - 1, disable=disable) as bar:
        return _run(host, plan, [i - 1 for i in kept[1:]], bar)


def get_sigmas(schedule: Artefact) -> Tensor:
    """Returns the sigmas (N + 1,) of a schedule, as `sample` takes them with it."""
    path: Path = "flow" if schedule.grid().schedule.family == "flow" else "ve"
    return torch.tensor([tell_sigma(node, path) for node in schedule.grid().nodes])


def _run(host: Host, plan: Plan, indices: Sequence[int], bar: Any) -> Tensor:
    """Runs every step of a plan; indices are those of its steps in the caller's list."""
    nodes, solver = plan.grid.nodes, plan.solver
    x, state = rescale(to_state(host.x), host.scale(nodes[0])), solver.init()
    for n, (t, s) in enumerate(pairwise(nodes)):
        index = indices[-1] if plan.adaptive and n else indices[n]
        host.begin(t, s, index)
        x, state = drive(solver.step(x, state, t, s), host.answer)
        bar.update(index + 1 - bar.n)
    return rescale(x, 1.0 / host.scale(nodes[-1])).to(host.x.dtype)


def _check_sigmas(sigmas: Sequence[float], path: Path) -> None:
    """Raises ScheduleError for sigmas that are out of range, or rise."""
    limit = 1.0 if path == "flow" else math.inf
    for sigma in sigmas:
        if not 0.0 <= sigma <= limit or sigma == math.inf:
            ends = "in [0, 1] on a flow path" if path == "flow" else "0 or positive and finite"
            raise ScheduleError(f"sigma {sigma:g} is out of range; sigmas must be {ends}")
    for i, (t, s) in enumerate(pairwise(sigmas)):
        if s > t:
            raise ScheduleError(
                f"sigmas must fall, and sigma {i + 1} rises from {t:g} to {s:g}; to go from data"
                " to noise take fewstep.invert"
            )


def make_process(path: Path, sigmas: Sequence[float]) -> NoiseSchedule:
    """Returns the process of the caller's states, whose times are the sigmas themselves."""
    if path == "flow":
        return RectifiedFlow()
    return EDM(sigma_min=min(filter(None, sigmas)), sigma_max=sigmas[0])


@lru_cache(maxsize=32)  # a host runs the same sigmas again and again
def plan_sigmas(path: Path, solver: SolverSettings | Artefact, sigmas: tuple[float, ...]) -> Plan:
    """Returns the plan of falling sigmas, each one once."""
    if isinstance(solver, Artefact):
        return _make_scheduled(path, solver, sigmas)
    process = make_process(path, sigmas)
    if not solver.info.adaptive:
        return make_plan(process, solver, grid=sigmas)
    last = min(filter(None, sigmas))
    ends = [sigmas[0], *([last] if last < sigmas[0] else []), *([0.0] if sigmas[-1] == 0.0 else [])]
    grid = TimeGrid.of(process, ends)
    return Plan(solver.on(grid), grid, adaptive=True, settings=solver)


def _make_scheduled(path: Path, schedule: Artefact, sigmas: Sequence[float]) -> Plan:
    """Returns the plan of a schedule, whose sigmas these must be."""
    check_runnable(schedule, path)
    grid = schedule.grid()
    own = get_sigmas(schedule).tolist()
    if len(own) != len(sigmas) or not all(
        math.isclose(a, b, rel_tol=SAME, abs_tol=SAME * own[-2])
        for a, b in zip(own, sigmas, strict=True)
    ):
        raise ScheduleError(
            "a schedule brings its own sigmas, and these are others; take"
            " fewstep.k_diffusion.get_sigmas(schedule), and start from noise at the first of them"
        )
    return make_plan(grid.schedule, schedule)


def check_runnable(schedule: Artefact, path: Path) -> None:
    """Raises an error for a schedule of another path, or one that needs the network itself."""
    family = schedule.process.family
    if (family == "flow") != (path == "flow"):
        raise ScheduleError(
            f"this schedule is for {family} networks, and the model's path is {path}; take one that"
            " was made for such models"
        )
    if schedule.guided:
        raise SettingError(f"this schedule {SPLITS}; take a schedule without guidance")
    if schedule.cache_policy is not None:
        raise SettingError(
            "this schedule brings a cache for the inside of the network, which only a Sampler puts"
            " there; take a schedule without a cache"
        )


def find_lack(info: SolverInfo) -> str:
    """Returns why a solver cannot run where x0 is all that is known of a network; empty if it can.

    The updates of distilled networks that are of one process alone read that process, or a second
    time, of the network itself.
    """
    if info.guided:
        return f"{info.name} {SPLITS}; take another one, such as {DEFAULT_SOLVER}"
    if info.distilled and info.families:
        return (
            f"{info.name} reads more of its network than x0, which is all that is known of one"
            " here; take renoise, which is ComfyUI's lcm, or a Sampler"
        )
    return ""


def _check_solver(plan: Plan, x: Tensor, noise_sampler: NoiseSampler | None) -> None:
    """Raises SettingError for a solver that cannot run so."""
    if getattr(plan.settings, "inner", None) == "channel" and x.ndim < 4:
        raise SettingError(
            f"this solver treats every channel (axis 1) by itself, and x is {tuple(x.shape)}; set"
            " inner=sample"
        )
    if plan.adaptive:
        return
    draws = _count_draws(plan)
    if draws > 1 and noise_sampler is not None:
        raise SettingError(
            f"this solver draws noise {draws} times a step, and a noise_sampler knows one interval;"
            " leave it out and give extra_args a seed"
        )


@lru_cache(maxsize=32)
def _count_draws(plan: Plan) -> int:
    """Returns how often a step draws noise at most."""
    return max(step.count(None) for step in dry_run(plan.solver, plan.grid.nodes))
