"""No run lets the host wait for its device, unless a gate has to.

A tensor on the device "meta" has no values: whatever reads one on the host fails on it, as it would
stall a GPU. Copies from the host must be asked for without waiting, and constants are copied once.
"""

from dataclasses import replace

import pytest
import torch
from guided import SCALED
from laws import DETERMINISTIC, FIXED, solver
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep import EDM, RectifiedFlow, VPDiscrete, from_module
from fewstep.models.caching.predictors import predictor_class, predictor_names
from fewstep.models.denoiser import Branch, Denoiser
from fewstep.models.devices import Constant, Reading, send
from fewstep.samplers.grid import time_grid
from fewstep.samplers.guidance import Thresholded, Unguided, parse_guidance
from fewstep.samplers.loop import BatchRun
from fewstep.solvers import Executor, StepSchedule, drive
from fewstep.solvers.mean_image import MeanImage

META = torch.device("meta")
UNGATED = [f"{name}:scale=2" for name in SCALED if name != "adaptive"] + [
    "cfg:scale=2,rescale=0.7",
    "cfg:scale=2+interval:low=0.3,high=5",
    "cfg-mp:scale=2,anderson=true",
    "cfg-pp",
    "smc:scale=2,switch=soft",
]


class Copies(TorchDispatchMode):
    """Copies from the host to the device: those that are waited for, and how many there are."""

    def __init__(self):
        super().__init__()
        self.waiting, self.all = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.overloadpacket.__name__ == "_to_copy" and args[0].device != out.device:
            self.all += 1
            if not kwargs.get("non_blocking"):
                self.waiting.append(tuple(out.shape))
        return out


def on_nothing(schedule, scale=0.5):
    """A network whose samples have no values."""

    def network(x, time, w=None):
        return x * scale if w is None else x * w.reshape(-1, 1, 1, 1)

    made = from_module(network, schedule=schedule, prediction="x0", shape=(1, 2, 2))
    return replace(made, device=META)


def driven(ready, grid, guidance, conditions=None):
    """The copies of a run; a row of noise is drawn on the CPU where it is asked for."""
    denoiser = Denoiser(on_nothing(grid.schedule), conditions or {})
    x = torch.zeros(2, 1, 2, 2, device=META)
    run = BatchRun(denoiser, ready, grid, guidance, noise=lambda: torch.zeros(2, 1, 2, 2))
    with torch.no_grad(), Copies() as copies:
        x = drive(run.steps(x), run.answer)
    assert x.device == META
    assert copies.waiting == []
    return copies.all


@pytest.mark.parametrize("name", FIXED)
def test_no_solver_reads_its_state(name):
    settings, schedule = solver(name), RectifiedFlow(time_scale=1000)
    if settings.info.families and "flow" not in settings.info.families:
        exploding = settings.info.families == ("edm",)
        schedule = EDM(time_label="sigma") if exploding else VPDiscrete()
    grid = time_grid("logsnr", schedule, 6)
    ready = settings.on(grid)
    if name == "dpm-solver-v3":
        driven(ready, grid, Unguided())  # copies its tables, at its first run alone
    copied = driven(ready, grid, Unguided())
    draws = 6 * max(2, settings.info.calls_per_step)
    assert copied == 0 if name in DETERMINISTIC else 0 < copied <= draws  # its noise


@pytest.mark.parametrize("spec", UNGATED)
def test_no_guidance_without_a_gate_reads_what_the_network_answers(spec):
    grid = time_grid("logsnr", RectifiedFlow(time_scale=1000), 6)
    w = {branch: {"w": torch.ones(2, device=META)} for branch in (Branch.UNCOND, Branch.COND)}
    for guidance in (parse_guidance(spec), Thresholded(parse_guidance(spec))):
        assert driven(solver("unipc-2").on(grid), grid, guidance, w) == 0


def test_a_gate_does_and_is_seen_by_this_test():
    grid = time_grid("logsnr", RectifiedFlow(time_scale=1000), 6)
    w = {branch: {"w": torch.ones(2, device=META)} for branch in (Branch.UNCOND, Branch.COND)}
    with pytest.raises(NotImplementedError, match="meta"):
        driven(solver("ddim").on(grid), grid, parse_guidance("adaptive:scale=2,warmup=1"), w)


def forecast_nothing(predictor):
    """A forecast at a skipped call after five full ones, of values that nobody can read."""
    memory, x = predictor.make_memory(10), torch.zeros(2, 3, device=META)
    for index in (0, 2, 4, 6, 8):
        memory.probe = x
        memory.update(x, index)
    return memory.forecast(9, x)


def test_no_predictor_reads_what_is_stored_unless_it_says_so():
    rows = {"fitted": {"rows": ((9, (8, 6), (1.5, -0.5)),)}}
    predictors = [predictor_class(name)(**rows.get(name, {})) for name in predictor_names()]
    with torch.no_grad(), Copies() as copies:
        for each in predictors:
            if each.waits:
                with pytest.raises(NotImplementedError, match="meta"):
                    forecast_nothing(each)
            else:
                assert forecast_nothing(each).device == META
    assert copies.all == 0
    assert [each.info.name for each in predictors if each.waits] == ["dmd"]


def test_a_mean_image_is_copied_once_for_all_runs():
    grid = time_grid("logsnr", RectifiedFlow(time_scale=1000), 5)
    body = solver("unipc-2").step_schedule(grid).model_dump()
    mean = MeanImage.of([0.1, 0.2, 0.3, 0.4], (1, 2, 2)).model_dump()
    ready = Executor(StepSchedule.model_validate({**body, "afs": mean, "nfe": 4}))
    assert [driven(ready, grid, Unguided()) for _ in range(3)] == [1, 0, 0]


def test_a_constant_keeps_its_value_and_knows_its_places():
    made = Constant(torch.tensor([1.0, 2.0]))
    half = torch.zeros(1, dtype=torch.float16)
    assert made.on(half).dtype is torch.float16
    assert made.on(half) is made.on(half)
    assert made.on(torch.zeros(1)).tolist() == [1.0, 2.0]


def test_sending_and_reading_on_a_cpu_copy_nothing():
    x = torch.tensor([[1.5, float("inf")]])
    assert send(x, x.device) is x
    assert send(x, x.device, torch.float64).dtype is torch.float64
    assert Reading(x).numbers() == [[1.5, float("inf")]]
    assert Reading(x).tensor().data_ptr() == x.data_ptr()
