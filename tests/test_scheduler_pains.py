"""What users complained of in the schedulers of diffusers, by the numbers of our field notes."""

import json
import math
import threading

import diffusers
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fewstep import RectifiedFlow, SolverScheduler, VPDiscrete
from fewstep.models.errors import SettingError

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VP = diffusers.DDIMScheduler(**SD, clip_sample=False).config
FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
SHAPE = (3, 4, 4)
MULTISTEP = ["ddim", "dpmpp-2m", "dpmpp-3m", "unipc-2", "unipc-3", "deis-3", "ipndm-4", "evodiff"]
SINGLESTEP = ["heun", "dpm-3s", "dpmpp-3s", "res-3s", "dpm2", "ode-rk4"]


def made(config=VP, **own) -> SolverScheduler:
    return SolverScheduler.from_config(config, **own)


def noise(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed))


def net(x: Tensor, label: Tensor) -> Tensor:
    return torch.tanh(x + label / 1000.0)


def run(scheduler, x: Tensor, **step) -> Tensor:
    for t in scheduler.timesteps:
        x = scheduler.step(net(x, t), t, x, return_dict=False, **step)[0]
    return x


def exact(scheduler, x: Tensor, spread: float, mean: float = 0.0) -> Tensor:
    """The run of a network that knows the data: normal with this mean and spread."""
    for t, k in zip(scheduler.timesteps, scheduler.sigmas.double().tolist(), strict=False):
        alpha, sigma = 1 / math.hypot(1, k), k / math.hypot(1, k)
        variance = alpha**2 * spread**2 + sigma**2
        eps = sigma * (x - alpha * mean) / variance
        x = scheduler.step(eps, t, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("name", MULTISTEP + SINGLESTEP)
def test_pain_01_no_noise_is_left_at_the_end(name):
    scheduler = made(solver=name)
    scheduler.set_timesteps(10)
    assert scheduler.sigmas[-1] == 0.0
    end = exact(scheduler, noise().double(), spread=0.0, mean=0.7)
    torch.testing.assert_close(end, torch.full_like(end, 0.7), rtol=0, atol=1e-5)


def test_pain_01_a_gaussian_has_its_exact_variance():
    scheduler = made(solver="unipc-3")
    scheduler.set_timesteps(60)
    start = noise().double()
    gain = exact(scheduler, start, spread=0.5) / start
    first = scheduler.process.fixed.at(1.0)
    wanted = 0.5 / math.hypot(first.alpha * 0.5, first.sigma)  # the flow of the exact ODE
    torch.testing.assert_close(gain, torch.full_like(gain, wanted), rtol=2e-3, atol=0)


@pytest.mark.parametrize("config", [VP, FLOW], ids=["vp", "flow"])
def test_pain_02_every_number_of_steps_stays_near_the_end_of_many(config):
    fine = made(config, solver="ode-rk4")
    fine.set_timesteps(300)
    end = run(fine, noise())
    for name in ("dpm-3s", "dpmpp-3s", "unipc-3", "deis-3", "heun", "dpmpp-3m"):
        for steps in (1, 2, 3, 4, 5, 6, 8, 11, 29, 50):
            scheduler = made(config, solver=name)
            scheduler.set_timesteps(steps)
            wrong = (run(scheduler, noise()) - end).abs().max() / end.abs().max()
            assert wrong < (0.01 if steps == 50 else 0.5), (name, steps)


def test_pain_03_labels_that_round_alike_are_steps_of_their_own():
    scheduler = made(solver="dpmpp-2m", grid="karras")
    scheduler.set_timesteps(30)
    labels = scheduler.timesteps
    assert len(labels.long().unique()) < 30
    assert len(labels.unique()) == 30
    run(scheduler, noise())
    assert scheduler.step_index == 30


def test_pain_04_a_second_run_begins_anew_or_says_what_to_do():
    scheduler = made(solver="unipc-3")
    scheduler.set_timesteps(5)
    first = run(scheduler, noise())
    with pytest.raises(SettingError, match="over after its 5 evaluations; call set_timesteps"):
        scheduler.step(noise(), 999, noise())
    scheduler.set_timesteps(5)
    assert torch.equal(run(scheduler, noise()), first)
    scheduler.set_timesteps(5)  # and after a run that was broken off
    scheduler.step(noise(), 999, noise())
    scheduler.set_timesteps(5)
    assert torch.equal(run(scheduler, noise()), first)


def test_pain_05_two_threads_one_scheduler_each():
    def work(seed: int) -> None:
        scheduler = made(solver="unipc-3")
        for _ in range(2):
            scheduler.set_timesteps(20)
            x = noise(seed=seed)
            for t in scheduler.timesteps:
                turns.wait()  # so that the steps of both alternate
                x = scheduler.step(net(x, t), t, x, return_dict=False)[0]
            found[seed].append(x)

    turns = threading.Barrier(2, timeout=10)
    found: dict[int, list[Tensor]] = {1: [], 2: []}
    threads = [threading.Thread(target=work, args=(seed,)) for seed in found]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, ends in found.items():
        scheduler = made(solver="unipc-3")
        scheduler.set_timesteps(20)
        wanted = run(scheduler, noise(seed=seed))
        assert len(ends) == 2
        assert all(torch.equal(end, wanted) for end in ends)


@pytest.mark.parametrize("name", ["dpmpp-3m", "unipc-3", "deis-2", "ipndm-2", "ddim", "sa-solver"])
def test_pain_06_every_solver_takes_sigmas_timesteps_and_mu(name):
    config = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
    rival = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    for sigmas in ([1.0, 0.75, 0.5, 0.25], [1.0, 0.9, 0.3]):
        rival.set_timesteps(sigmas=sigmas, mu=0.8)
        by_sigmas, by_labels = made(config, solver=name), made(config, solver=name)
        by_sigmas.set_timesteps(sigmas=sigmas, mu=0.8)
        by_labels.set_timesteps(timesteps=rival.timesteps, mu=0.8)
        for scheduler in (by_sigmas, by_labels):
            torch.testing.assert_close(scheduler.timesteps, rival.timesteps)
            torch.testing.assert_close(scheduler.sigmas, rival.sigmas)


def test_pain_07_the_shift_is_applied_once():
    """A golden table: 3 t / (1 + 2 t) of t = 1, 7/8, .., 1/8, as the paper has it."""
    golden = [1.0, 21 / 22, 0.9, 5 / 6, 0.75, 9 / 14, 0.5, 0.3, 0.0]
    for asked in ({"num_inference_steps": 8}, {"sigmas": [1 - i / 8 for i in range(8)]}):
        scheduler = made(FLOW)
        scheduler.set_timesteps(**asked)
        torch.testing.assert_close(scheduler.sigmas, torch.tensor(golden))
    scheduler.set_timesteps(timesteps=[1000 * sigma for sigma in golden[:-1]])
    torch.testing.assert_close(scheduler.sigmas, torch.tensor(golden))


@pytest.mark.parametrize("name", ["unipc-3", "dpmpp-3m", "heun", "rf-solver"])
def test_pain_08_a_late_start_is_a_run_of_its_own(name):
    """The order is built up again, and no entry is lost or left over."""
    scheduler = made(FLOW, solver=name)
    scheduler.set_timesteps(8)
    begin = 4 * scheduler.order
    rest = scheduler.timesteps[begin:]
    scheduler.set_begin_index(begin)
    x = scheduler.scale_noise(noise(seed=1), rest[:1], noise())
    late = x
    for t in rest:
        late = scheduler.step(net(late, t), t, late, return_dict=False)[0]
    own = made(FLOW, solver=name, grid=[0.5, 0.375, 0.25, 0.125, 0.0])
    own.set_timesteps(4)
    assert torch.equal(rest, own.timesteps)
    assert torch.equal(late, run(own, x))
    assert scheduler.nfe == len(rest)


def test_pain_08_strength_is_the_noise_level_on_a_uniform_grid():
    scheduler = made(solver="unipc-2", grid="uniform")
    scheduler.set_timesteps(20)
    begin = 20 - int(20 * 0.3)  # as image-to-image pipelines work it out
    assert scheduler.timesteps[begin] == pytest.approx(1000 * 0.3 - 1.0)


@pytest.mark.parametrize(
    ("own", "begin", "message"),
    [
        ({"solver": "heun"}, 19, "nothing is left to run, so raise strength"),
        ({"solver": "heun"}, 20, "nothing is left to run, so raise strength"),
        ({"solver": "fireflow"}, 3, "take a solver with one evaluation per step"),
        ({"solver": "unipc-2"}, 10, "nothing is left to run, so raise strength"),
        ({"schedule": "ays-sd15-nfe10"}, 5, "use strength=1"),
    ],
)
def test_pain_08_a_start_that_cannot_be_is_refused(own, begin, message):
    scheduler = made(**own)
    scheduler.set_timesteps(10)
    with pytest.raises(SettingError, match=message):
        scheduler.set_begin_index(begin)


def test_pain_08_uneven_steps_do_not_start_late():
    """On flow the first step of res-3s has one call, so a step is no fixed number of entries."""
    scheduler = made(FLOW, solver="res-3s")
    scheduler.set_timesteps(8)
    with pytest.raises(SettingError, match="as many calls in every step"):
        scheduler.set_begin_index(4 * scheduler.order)


@pytest.mark.parametrize("steps", [1, 2, 7, 10])
@pytest.mark.parametrize("name", ["unipc-2", "heun", "res-3s", "ode-rk4", "fireflow", "dpm-3s"])
def test_pain_09_bars_end_at_the_number_of_steps(name, steps):
    scheduler = made(solver=name)
    scheduler.set_timesteps(steps)
    calls = len(scheduler.timesteps)
    warmup = calls - steps * scheduler.order  # what follows is the rule of all pipelines
    ticks = [
        i
        for i in range(calls)
        if i == calls - 1 or (i + 1 > warmup and (i + 1) % scheduler.order == 0)
    ]
    assert len(ticks) == scheduler.num_inference_steps == steps
    run(scheduler, noise())
    assert scheduler.nfe == calls


@pytest.mark.parametrize("name", ["sde-dpmpp-2", "er-sde-3", "sa-solver", "ddpm"])
def test_pain_10_an_image_does_not_depend_on_its_batch(name):
    def drawn(rows: slice) -> Tensor:
        scheduler = made(solver=name)
        scheduler.set_timesteps(6)
        each = [torch.Generator().manual_seed(seed) for seed in range(3)][rows]
        return run(scheduler, noise(3)[rows], generator=each)

    whole = drawn(slice(None))
    for k in range(3):
        torch.testing.assert_close(drawn(slice(k, k + 1))[0], whole[k], rtol=1e-5, atol=1e-5)
    assert not torch.equal(whole[0], whole[1])


def test_pain_11_the_prediction_is_there_at_every_step():
    scheduler = made(solver="dpmpp-2m")
    scheduler.set_timesteps(5)
    assert scheduler.x0 is None
    x = noise()
    for n, t in enumerate(scheduler.timesteps):
        k = float(scheduler.sigmas[n])
        eps = net(x, t)
        out = scheduler.step(eps, t, x)
        wanted = (x - k / math.hypot(1, k) * eps) * math.hypot(1, k)
        torch.testing.assert_close(out.pred_original_sample, wanted, rtol=1e-4, atol=1e-4)
        assert scheduler.x0 is out.pred_original_sample
        assert scheduler.nfe == n + 1
        x = out.prev_sample
    torch.testing.assert_close(x, scheduler.x0)  # the last step ends at it


class NoWaiting(TorchDispatchMode):
    """Fails at every operation whose result the host would wait for, or decide by."""

    FORBIDDEN = ("item", "_local_scalar_dense", "nonzero", "is_nonzero", "equal", "allclose")
    COMPARING = ("eq", "ne", "lt", "le", "gt", "ge", "any", "all", "isnan", "isfinite", "where")

    def __init__(self) -> None:
        super().__init__()
        self.full: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.split(".")[0]
        assert name not in self.FORBIDDEN + self.COMPARING, name
        self.full.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["dpmpp-2m", "unipc-3", "heun", "sde-dpmpp-2", "sa-solver"])
def test_pain_19_a_step_reads_nothing_from_the_device(name, dtype):
    scheduler = made(solver=name)
    scheduler.set_timesteps(6)
    x, out = noise().to(dtype), noise(seed=1).to(dtype)
    timesteps = list(scheduler.timesteps)
    with NoWaiting() as watch:
        for t in timesteps:
            x = scheduler.step(out, t, scheduler.scale_model_input(x, t), return_dict=False)[0]
    if name == "dpmpp-2m" and dtype is torch.float32:
        assert len(watch.full) <= 6 * 5  # x0 takes two, the step three


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_pain_19_no_synchronisation_on_a_gpu():
    scheduler = made(solver="unipc-3")
    scheduler.set_timesteps(6, device="cuda")
    x, out = noise().cuda(), noise(seed=1).cuda()
    timesteps = list(scheduler.timesteps)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for t in timesteps:
            x = scheduler.step(out, t, x, return_dict=False)[0]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_pain_25_the_config_alone_repeats_the_run():
    scheduler = made(FLOW, schedule=None, solver="unipc-3:solver_type=bh1", grid="karras")
    again = SolverScheduler.from_config(json.loads(scheduler.to_json_string()))
    for each in (scheduler, again):
        each.set_timesteps(6)
    assert torch.equal(run(scheduler, noise()), run(again, noise()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_pain_26_states_are_float32_whatever_the_network_is(dtype):
    """A network of low precision; its states are cast at the border, and only there."""

    def end(hold: torch.dtype) -> Tensor:
        scheduler = made(FLOW, solver="unipc-2")
        scheduler.set_timesteps(50)
        x = noise().to(dtype).to(hold)
        for t in scheduler.timesteps:
            low = x.to(dtype)
            out = net(low.float(), t).to(dtype)
            x = scheduler.step(out, t, x, return_dict=False)[0]
            assert x.dtype == hold
        return x.float()

    error = (end(dtype) - end(torch.float32)).abs().max()
    assert error < (4e-3 if dtype is torch.float16 else 3e-2)  # half a unit of the last place


def test_processes_are_those_of_the_configs():
    assert made(FLOW).process.fixed == RectifiedFlow(shift=3.0, time_scale=1000)
    assert made(VP).process.fixed == VPDiscrete("scaled_linear", 0.00085, 0.012)
