"""Rivals: diffusers' schedulers by name, made for the noise schedule of a network.

A scheduler is made with as many steps as spend the budget exactly. Settings of a rival that are not
its own are arguments of the class.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from ...models.denoiser import Network
from ...models.errors import SettingError, UnknownNameError
from ...models.prediction import Prediction
from ...models.registry import parse_spec
from ...models.schedule import (
    EDM,
    Cosine,
    Node,
    NoiseSchedule,
    RectifiedFlow,
    VPDiscrete,
    VPLinear,
)

Settings = dict[str, Any]


@dataclass(frozen=True)
class Rival:
    """A scheduler of diffusers by class and arguments, on each process it can run on.

    vp, flow, edm: the class for variance-preserving, flow and EDM networks; None where it has none.
    settings: its arguments beside those of the noise schedule.
    ends:     on flow, sigmas 1 to 1/N are given to it, as the Flux pipeline does.
    """

    vp: str | None
    flow: str | None = None
    settings: Settings = field(default_factory=dict)
    ends: bool = False
    edm: str | None = None

    def find_class(self, schedule: NoiseSchedule) -> str | None:
        """Returns the name of the class for a process, if it has one."""
        return {"flow": self.flow, "edm": self.edm}.get(schedule.family, self.vp)


DPM, UNIPC, DEIS = (f"{name}MultistepScheduler" for name in ("DPMSolver", "UniPC", "DEIS"))
EULER, HEUN = "EulerDiscreteScheduler", "HeunDiscreteScheduler"
EDM_EULER, EDM_DPM = "EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"
FLOW_EULER, FLOW_HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
KARRAS, LU = {"use_karras_sigmas": True}, {"use_lu_lambdas": True}
RIVALS = {
    "euler": Rival(EULER, FLOW_EULER, edm=EDM_EULER),
    "euler-flux": Rival(None, FLOW_EULER, ends=True),
    "euler-karras": Rival(EULER, None, KARRAS),
    "heun": Rival(HEUN, FLOW_HEUN),
    "heun-karras": Rival(HEUN, None, KARRAS),
    "dpmpp-2m": Rival(DPM, DPM, edm=EDM_DPM),
    "dpmpp-2m-karras": Rival(DPM, None, KARRAS),
    "dpmpp-2m-lu": Rival(DPM, None, LU),
    "dpmpp-3m": Rival(DPM, DPM, {"solver_order": 3}, edm=EDM_DPM),
    "dpmpp-3m-karras": Rival(DPM, None, {"solver_order": 3} | KARRAS),
    "dpmpp-3m-lu": Rival(DPM, None, {"solver_order": 3} | LU),
    "unipc": Rival(UNIPC, UNIPC),
    "unipc-karras": Rival(UNIPC, None, KARRAS),
    "unipc-3": Rival(UNIPC, UNIPC, {"solver_order": 3}),
    "deis": Rival(DEIS),  # with flow sigmas it ends at its last noisy one
    "deis-karras": Rival(DEIS, None, KARRAS),
}
FLOW_SIGMAS = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
TIMES = 1000  # at which a scheduler knows a continuous process
NOISE_LEFT = 0.05  # a run that ends above this sigma / alpha has not ended
NAMES = {"flow": "a flow", "edm": "an EDM"}  # of processes, in errors


def rival_of(spec: str) -> tuple[Rival, Settings]:
    """Returns the rival of `name:argument=value,...` and its arguments; raises UnknownNameError."""
    name, extra = parse_spec(spec)
    if name not in RIVALS:
        raise UnknownNameError("rival", name, RIVALS)
    return RIVALS[name], extra


def find_maker(network: Network, spec: str) -> Callable[[int], Any]:
    """Returns a function that makes the scheduler ready for a number of steps."""
    import diffusers

    rival, extra = rival_of(spec)
    schedule = network.schedule
    name = rival.find_class(schedule)
    if name is None:
        kind = NAMES.get(schedule.family, "a variance-preserving")
        raise SettingError(f"rival {spec!r} does not run on {kind} network such as {network.name}")
    scheduler = getattr(diffusers, name)
    known = inspect.signature(scheduler.__init__).parameters.keys() - {"self"}
    for key in extra:
        if key not in known:
            raise UnknownNameError(f"argument of {name}", key, known)
    arguments = {**_process(network, known), **rival.settings, **extra}

    def make(steps: int) -> Any:
        with quieten():
            made = scheduler(**arguments)
            if rival.ends:
                made.set_timesteps(sigmas=[1.0 - i / steps for i in range(steps)])
            else:
                made.set_timesteps(steps)
            made.set_begin_index(0)
        return made

    return make


def _process(network: Network, known: set[str]) -> Settings:
    """Returns the arguments that give a scheduler the network's noise schedule and prediction."""
    schedule = network.schedule
    if isinstance(schedule, RectifiedFlow):
        if schedule.terminal is not None:
            raise SettingError("rivals run on flow networks without a terminal time")
        if "use_flow_sigmas" in known:
            return {**FLOW_SIGMAS, "flow_shift": schedule.shift}
        return {"shift": schedule.shift}
    if isinstance(schedule, EDM):
        ends = {"sigma_min": schedule.sigma_min, "sigma_max": schedule.sigma_max}
        return {**ends, "sigma_data": schedule.sigma_data}
    if isinstance(schedule, VPDiscrete | VPLinear | Cosine):
        predicts = "v_prediction" if network.prediction is Prediction.V else "epsilon"
        return _variance_preserving(_discrete(schedule), known, predicts)
    raise SettingError(
        f"rivals run on variance-preserving processes, EDM and rectified flow; {network.name} is of"
        f" {schedule.family}"
    )


@cache
def _discrete(schedule: VPDiscrete | VPLinear | Cosine) -> VPDiscrete:
    """Returns the discrete process that a scheduler gets: a continuous one at even times."""
    if isinstance(schedule, VPDiscrete):
        return schedule
    first, span = schedule.t_min, schedule.t_max - schedule.t_min
    times = [first + span * i / (TIMES - 1) for i in range(TIMES - 1)] + [schedule.t_max]
    return VPDiscrete.from_alphas_cumprod([schedule.at(t).alpha ** 2 for t in times])


def _variance_preserving(schedule: VPDiscrete, known: set[str], predicts: str) -> Settings:
    if schedule.zero_snr and "rescale_betas_zero_snr" not in known:
        raise SettingError("this rival cannot rescale its betas to zero SNR, as the network needs")
    zero = {"rescale_betas_zero_snr": True} if schedule.zero_snr else {}
    if schedule.trained_betas is not None:
        betas: Settings = {"trained_betas": list(schedule.trained_betas)}
    else:
        names = ("beta_schedule", "beta_start", "beta_end")
        betas = {name: getattr(schedule, name) for name in names}
    steps = {"num_train_timesteps": schedule.num_train_timesteps}
    return {**betas, **steps, **zero, "prediction_type": predicts}


def count_steps(make: Callable[[int], Any], spec: str, nfe: int) -> int:
    """Returns num_inference_steps that call the network N times: N, or (N + 1) / 2 (Heun)."""
    if nfe < 1:
        raise SettingError(f"nfe must be at least 1, not {nfe}")
    spent = {}
    for steps in sorted({nfe, nfe // 2, nfe // 2 + 1} - {0}):
        try:
            spent[steps] = len(make(steps).timesteps)
        except (ValueError, IndexError, ZeroDivisionError):
            continue  # some cannot take one step
    for steps, calls in spent.items():
        if calls == nfe:
            return steps
    near = " or ".join(map(str, sorted(spent.values(), key=lambda calls: abs(calls - nfe))[:2]))
    raise SettingError(f"rival {spec} cannot spend exactly {nfe} evaluations; {near} it can")


def find_node(schedule: NoiseSchedule, label: float) -> Node:
    """Returns the node whose network label is the timestep that a scheduler passes on."""
    if isinstance(schedule, VPDiscrete):
        return schedule.at(min((label + 1.0) / schedule.num_train_timesteps, 1.0))
    if isinstance(schedule, VPLinear | Cosine):
        if not 0.0 < label < TIMES - 1:
            return schedule.at(schedule.t_min if label <= 0.0 else schedule.t_max)
        return schedule.at_lam(find_node(_discrete(schedule), label).lam)
    if isinstance(schedule, EDM):
        return schedule.at(min(math.exp(4.0 * label), schedule.t_max))
    tau = label / 1000.0
    if tau >= 1.0:
        return schedule.at(schedule.t_max)
    return schedule.at_lam(math.log1p(-tau) - math.log(tau))


def check_ends(schedule: NoiseSchedule, scheduler: Any, spec: str) -> None:
    """Refuses sigmas that do not lead from the noise of this process to its data."""
    first, last = float(scheduler.sigmas[0]), float(scheduler.sigmas[-1])
    starts = 0.9 < first <= 1.0 if isinstance(schedule, RectifiedFlow) else first > 1.0
    if last > NOISE_LEFT or not starts:
        raise SettingError(
            f"rival {spec} runs from sigma {first:.3g} to {last:.3g} here, which is not the way"
            f" from noise to data of {schedule.family}; drop its arguments"
        )


@contextmanager
def quieten() -> Iterator[None]:
    """Silences that some settings of some schedulers are deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
