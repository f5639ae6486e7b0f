"""Rivals: diffusers' schedulers, driven through the same network, noise, labels and ledger.

A scheduler is made for the noise schedule the network was trained on, with as many steps as spend
the budget exactly, and stepped as a diffusers pipeline steps it: it scales the state, the network
gets the timestep that the scheduler passes on (some round it to a whole number), and the scheduler
gets the network's own output and works in float32. Image k starts from the noise of seed k, as ours
does.
"""

import inspect
import math
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor

from ...models.denoiser import Asks, Denoiser, Network
from ...models.errors import SettingError, UnknownNameError
from ...models.ledger import Ledger
from ...models.prediction import Prediction, convert
from ...models.registry import parse_spec
from ...models.schedule import (
    Cosine,
    Node,
    NoiseSchedule,
    RectifiedFlow,
    TimeGrid,
    VPDiscrete,
    VPLinear,
)
from ...samplers.conditions import Conditions, check_branches, make_branches, take_rows
from ...samplers.guidance import Guidance, Moment, Thresholded, Unguided
from ...samplers.noise import Noise
from ...samplers.sampler import Result

Settings = dict[str, Any]


@dataclass(frozen=True)
class Rival:
    """A scheduler of diffusers by class and arguments, on each process it can run on.

    vp, flow: the class for variance-preserving and for flow networks; None where it has none.
    settings: its arguments beside those of the noise schedule.
    ends:     on flow, sigmas 1 to 1/N are given to it, as the Flux pipeline does.
    """

    vp: str | None
    flow: str | None = None
    settings: Settings = field(default_factory=dict)
    ends: bool = False


DPM, UNIPC, DEIS = (f"{name}MultistepScheduler" for name in ("DPMSolver", "UniPC", "DEIS"))
EULER, HEUN = "EulerDiscreteScheduler", "HeunDiscreteScheduler"
FLOW_EULER, FLOW_HEUN = "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"
KARRAS, LU = {"use_karras_sigmas": True}, {"use_lu_lambdas": True}
RIVALS = {
    "euler": Rival(EULER, FLOW_EULER),
    "euler-flux": Rival(None, FLOW_EULER, ends=True),
    "euler-karras": Rival(EULER, None, KARRAS),
    "heun": Rival(HEUN, FLOW_HEUN),
    "heun-karras": Rival(HEUN, None, KARRAS),
    "dpmpp-2m": Rival(DPM, DPM),
    "dpmpp-2m-karras": Rival(DPM, None, KARRAS),
    "dpmpp-2m-lu": Rival(DPM, None, LU),
    "dpmpp-3m": Rival(DPM, DPM, {"solver_order": 3}),
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


class RivalSampler:
    """Draws images with a diffusers scheduler; called as `Sampler` is, its budget fixed.

    Args:
        network: of a variance-preserving process or of rectified flow, whatever it predicts.
        spec: a name of `RIVALS`, or `name:argument=value,...` with arguments of the scheduler.
        nfe: network evaluations per image.

    Raises:
        UnknownNameError: for a name or an argument that does not exist.
        SettingError: if it cannot run on this network, or cannot spend exactly that budget.
    """

    def __init__(self, network: Network, spec: str, nfe: int) -> None:
        self.network, self.spec = network, spec
        self.make = _maker(network, spec)
        self.steps = _steps_for(self.make, spec, nfe)
        scheduler = self.make(self.steps)
        _check_ends(network.schedule, scheduler, spec)
        self.nodes = [_node(network.schedule, float(t)) for t in scheduler.timesteps]

    def __call__(
        self,
        seeds: Sequence[int],
        *,
        class_labels: int | Sequence[int] | None = None,
        conditions: Conditions | None = None,
        negative: Conditions | None = None,
        guidance: Guidance | None = None,
        batch: int = 32,
    ) -> Result:
        """Returns one image per seed; see `Sampler`."""
        guidance = guidance or Unguided()
        if isinstance(guidance, Thresholded):
            raise SettingError("a rival has thresholding of its own; drop the threshold")
        branches = make_branches(self.network, len(seeds), class_labels, conditions, negative)
        check_branches(self.network, branches, guidance, self.grid)
        ledger, parts = Ledger(images=len(seeds)), []
        start = time.perf_counter()
        for i in range(0, len(seeds), batch):
            rows = slice(i, i + batch)
            denoiser = Denoiser(self.network, take_rows(branches, rows), ledger)
            parts.append(self._draw(denoiser, seeds[rows], guidance))
        ledger.seconds = time.perf_counter() - start
        return Result(torch.cat(parts), ledger)

    @property
    def grid(self) -> TimeGrid:
        """The nodes the network is asked at, each one once, and the end."""
        times = [*dict.fromkeys(node.t for node in self.nodes), self.network.schedule.t_zero]
        return TimeGrid.of(self.network.schedule, times)

    def _draw(self, denoiser: Denoiser, seeds: Sequence[int], guidance: Guidance) -> Tensor:
        scheduler, noise = self.make(self.steps), Noise(seeds, self.network.shape).draw()
        scaled, guide = getattr(scheduler, "scale_model_input", _keep_input), guidance.stateless()
        with torch.inference_mode(), _quiet():
            x = noise.to(self.network.device) * float(getattr(scheduler, "init_noise_sigma", 1.0))
            for t, node in zip(scheduler.timesteps, self.nodes, strict=True):
                x_in, moment = scaled(x, t), Moment(node)
                outputs = _outputs(denoiser, x_in, node, guide.ask(moment))
                out = guide.combine(outputs, x_in, moment)
                x = scheduler.step(out, t, x, return_dict=False)[0]
            denoiser.check()
            return (x if self.network.decode is None else self.network.decode(x)).float().cpu()


def _keep_input(x: Tensor, t: Tensor) -> Tensor:
    return x


def _outputs(denoiser: Denoiser, x: Tensor, node: Node, branches: Asks) -> tuple[Tensor, ...]:
    """Returns what the scheduler expects, one per branch, read through the denoiser that counts."""
    schedule = denoiser.network.schedule
    if isinstance(schedule, RectifiedFlow):
        _, rate = schedule.slope(node.t)
        return tuple(out / rate for out in denoiser.velocity(x, node, branches))
    if denoiser.network.prediction is Prediction.V:
        predictions = denoiser.x0(x, node, branches)
        return tuple(convert(x0, x, node, Prediction.X0, Prediction.V) for x0 in predictions)
    return denoiser.eps(x, node, branches)


def rival_of(spec: str) -> tuple[Rival, Settings]:
    """Returns the rival of `name:argument=value,...` and its arguments; raises UnknownNameError."""
    name, extra = parse_spec(spec)
    if name not in RIVALS:
        raise UnknownNameError("rival", name, RIVALS)
    return RIVALS[name], extra


def _maker(network: Network, spec: str) -> Callable[[int], Any]:
    """Returns a function that makes the scheduler ready for a number of steps."""
    import diffusers

    rival, extra = rival_of(spec)
    schedule = network.schedule
    name = rival.flow if isinstance(schedule, RectifiedFlow) else rival.vp
    if name is None:
        kind = "a flow" if isinstance(schedule, RectifiedFlow) else "a variance-preserving"
        raise SettingError(f"rival {spec!r} does not run on {kind} network such as {network.name}")
    scheduler = getattr(diffusers, name)
    known = inspect.signature(scheduler.__init__).parameters.keys() - {"self"}
    for key in extra:
        if key not in known:
            raise UnknownNameError(f"argument of {name}", key, known)
    arguments = {**_process(network, known), **rival.settings, **extra}

    def make(steps: int) -> Any:
        with _quiet():
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
    if isinstance(schedule, VPDiscrete | VPLinear | Cosine):
        predicts = "v_prediction" if network.prediction is Prediction.V else "epsilon"
        return _variance_preserving(_discrete(schedule), known, predicts)
    raise SettingError(
        f"rivals run on variance-preserving processes and on rectified flow; {network.name} is of"
        f" {schedule.family}, for which diffusers' schedulers bring a preconditioning of their own"
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


def _steps_for(make: Callable[[int], Any], spec: str, nfe: int) -> int:
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


def _node(schedule: NoiseSchedule, label: float) -> Node:
    """Returns the node whose network label is the timestep that a scheduler passes on."""
    if isinstance(schedule, VPDiscrete):
        return schedule.at(min((label + 1.0) / schedule.num_train_timesteps, 1.0))
    if isinstance(schedule, VPLinear | Cosine):
        if not 0.0 < label < TIMES - 1:
            return schedule.at(schedule.t_min if label <= 0.0 else schedule.t_max)
        return schedule.at_lam(_node(_discrete(schedule), label).lam)
    tau = label / 1000.0
    if tau >= 1.0:
        return schedule.at(schedule.t_max)
    return schedule.at_lam(math.log1p(-tau) - math.log(tau))


def _check_ends(schedule: NoiseSchedule, scheduler: Any, spec: str) -> None:
    """Refuses sigmas that do not lead from the noise of this process to its data."""
    first, last = float(scheduler.sigmas[0]), float(scheduler.sigmas[-1])
    if isinstance(schedule, RectifiedFlow):
        starts = 0.9 < first <= 1.0
    else:
        starts = first > 0.1 * schedule.at(schedule.t_max).kappa
    if last > NOISE_LEFT or not starts:
        raise SettingError(
            f"rival {spec} runs from sigma {first:.3g} to {last:.3g} here, which is not the way"
            f" from noise to data of {schedule.family}; drop its arguments"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences that some settings of some schedulers are deprecated."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
