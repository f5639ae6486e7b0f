"""The functions of k-diffusion: their contract, and the numbers of our own loop."""

import inspect
import math
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from laws import GAUSSIAN, f64, run, start, unit_noise
from torch.testing import assert_close

import fewstep.k_diffusion as k_diffusion
from fewstep.k_diffusion.host import Host
from fewstep.models.errors import FewstepError, ScheduleError, SettingError
from fewstep.models.registry import settings_of
from fewstep.models.schedule import EDM, TimeGrid
from fewstep.solvers import Executor
from fewstep.solvers.base import SOLVERS, SolverInfo
from fewstep.solvers.presets import preset

VE, FLOW = f64(10, 3, 1, 0.3, 0), f64(1, 0.75, 0.5, 0.25, 0)


class Law:
    """The exact denoiser of N(.3, .25) on either path; it counts its calls."""

    def __init__(self, path="ve"):
        self.path, self.calls = path, []

    def __call__(self, x, sigma, **extra_args):
        self.calls.append((sigma.clone(), extra_args))
        s = sigma.reshape(-1, *[1] * (x.ndim - 1))
        alpha = 1.0 if self.path == "ve" else 1.0 - s
        return 0.3 + 0.25 * alpha / (0.25 * alpha**2 + s**2) * (x - alpha * 0.3)


GOLDEN = {  # calls, end of x = 12 at sigma 10, end of x = 1 on the flow path
    "euler": (4, 0.701312101305, 0.640540540541),
    "heun": (7, 0.911425312124, 0.732715453339),
    "dpmpp_2m": (4, 0.752024212361, 0.670478170478),
    "unipc_2": (4, 0.763118956038, 0.682248863668),
    "unipc_3": (4, 0.763118956038, 0.682248863668),
    "deis_3": (4, 0.738280535456, 0.665103720846),
    "ipndm_3": (4, 0.874043566561, 0.780249480249),
    "rf_solver": (8, 0.867433638321, 0.798291215391),
}


def state(value, rows=1):
    return torch.full((rows, 1, 1, 1), float(value), dtype=torch.float64)


def test_frozen_numbers():
    for name, (calls, ve, flow) in GOLDEN.items():
        function = getattr(k_diffusion, f"sample_{name}")
        known = inspect.signature(function).parameters
        named = {"coordinate": "lam"} if "coordinate" in known else {}
        model = Law()
        assert function(model, state(12), VE, **named).item() == pytest.approx(ve, abs=1e-11), name
        assert len(model.calls) == calls, name
        found = function(Law("flow"), state(1), FLOW, path="flow", **named).item()
        assert found == pytest.approx(flow, abs=1e-11), name


def test_every_name_of_a_solver_is_a_function_with_its_settings():
    for name in (*SOLVERS, *SOLVERS.aliases):
        function = getattr(k_diffusion, "sample_" + name.replace("-", "_"))
        assert function.__name__ in k_diffusion.__all__
        known = inspect.signature(function).parameters
        assert list(known)[:6] == ["model", "x", "sigmas", "extra_args", "callback", "disable"]
        ours = SOLVERS.get(SOLVERS.spell(name).partition(":")[0])
        assert {field.name for field in settings_of(ours)} <= known.keys(), name


def test_names_of_other_libraries_have_their_settings():
    """Those of ComfyUI's UniPC, and what a caller gives beside them."""
    wanted = k_diffusion.sample_unipc_3(Law(), state(12), VE, solver_type="bh1")
    assert k_diffusion.sample_uni_pc(Law(), state(12), VE).equal(wanted)
    other = k_diffusion.sample_uni_pc(Law(), state(12), VE, solver_type="bh2")
    assert other.equal(k_diffusion.sample_uni_pc_bh2(Law(), state(12), VE))
    assert not other.equal(wanted)
    shown = inspect.signature(k_diffusion.sample_uni_pc).parameters["solver_type"]
    assert shown.default == "bh1"


def test_every_solver_does_what_it_does_in_our_loop():
    process = EDM(sigma_min=0.05, sigma_max=20.0)
    sigmas = f64(20, 8, 3, 1.2, 0.5, 0.2, 0.05, 0)
    x = 20.0 * unit_noise()
    for name in sorted(set(SOLVERS) - {"dpm-solver-v3", "flow-map", "uni-inv"}):
        settings = SOLVERS.make(name)
        if settings.info.stochastic or settings.info.guided:
            continue
        ends = [20.0, 0.05, 0.0] if settings.info.adaptive else sigmas.tolist()
        wanted = run(settings, TimeGrid.of(process, ends), x, GAUSSIAN.x0)
        found = k_diffusion.sample(ask_gaussian, x, sigmas, solver=settings)
        assert_close(found, wanted, rtol=1e-12, atol=1e-12, msg=name)


def ask_gaussian(x, sigma):
    return GAUSSIAN.x0(x, EDM().at(sigma[0].item()))


def test_callback_is_told_each_step_once_with_its_first_answer():
    told = []
    k_diffusion.sample_heun(Law(), state(12, rows=2), VE, {}, told.append, True)
    assert [each["i"] for each in told] == [0, 1, 2, 3]
    assert [each.keys() for each in told] == [{"x", "i", "sigma", "sigma_hat", "denoised"}] * 4
    assert_close(torch.stack([each["sigma"] for each in told]), VE[:-1])
    assert_close(torch.stack([each["sigma_hat"] for each in told]), VE[:-1])
    for each in told:
        assert_close(each["denoised"], Law()(each["x"], each["sigma"].expand(2)))


def test_what_the_model_is_given():
    model, x = Law(), state(12, rows=3).half()
    found = k_diffusion.sample_euler(model, x, VE, {"seed": 1, "model_options": "as they are"})
    assert found.dtype == torch.float16
    for sigma, extra_args in model.calls:
        assert (sigma.shape, sigma.dtype) == ((3,), torch.float16)
        assert extra_args == {"seed": 1, "model_options": "as they are"}


def test_a_repeated_sigma_is_no_step_and_keeps_the_count():
    told = []
    doubled = f64(10, 3, 3, 1, 0.3, 0)
    found = k_diffusion.sample_euler(Law(), state(12), doubled, callback=told.append)
    assert found.item() == pytest.approx(GOLDEN["euler"][1], abs=1e-11)
    assert [each["i"] for each in told] == [0, 2, 3, 4]


def test_runs_may_end_above_zero_and_may_be_none():
    half = k_diffusion.sample_euler(Law(), state(12), VE[:3])
    assert k_diffusion.sample_euler(Law(), half, VE[2:]).item() == pytest.approx(
        GOLDEN["euler"][1], abs=1e-11
    )
    x = state(12)
    assert k_diffusion.sample_euler(Law(), x, VE[:1]) is x


def test_an_adaptive_solver_takes_the_ends():
    found = k_diffusion.sample_ode_dopri5(Law(), state(12), f64(10, 0.002, 0))
    assert found.item() == pytest.approx(0.884270118244, abs=1e-3)


def test_flow_models_of_comfyui_are_known_by_their_class():
    class CONST:
        noise_scale = 2.0

    class Mixed(CONST):
        pass

    model = Law("flow")
    model.inner_model = SimpleNamespace(inner_model=SimpleNamespace(model_sampling=Mixed()))
    found = k_diffusion.sample_euler(model, state(1), FLOW)
    assert found.item() == pytest.approx(GOLDEN["euler"][2], abs=1e-11)
    seeded = {"extra_args": {"seed": 3}, "solver": "sde-dpmpp-1"}
    scaled = k_diffusion.sample(model, state(1), FLOW, **seeded)
    plain = k_diffusion.sample(Law("flow"), state(1), FLOW, path="flow", **seeded)
    none = k_diffusion.sample(
        Law("flow"), state(1), FLOW, path="flow", solver="sde-dpmpp-1:s_noise=0"
    )
    assert_close(scaled - none, 2.0 * (plain - none))  # the law is Gaussian: noise enters linearly


# ---- noise


def test_seeded_noise_is_that_of_the_row_and_not_that_of_the_start():
    x = torch.randn(4, 1, 2, 2, generator=torch.Generator().manual_seed(7))
    four = k_diffusion.sample_ddpm(Law(), 10 * x, VE, {"seed": 7})
    assert_close(four, k_diffusion.sample_ddpm(Law(), 10 * x, VE, {"seed": 7}), rtol=0, atol=0)
    two = k_diffusion.sample_ddpm(Law(), 10 * x[:2], VE, {"seed": 7})
    assert_close(two, four[:2], rtol=0, atol=0)
    assert not torch.allclose(four, k_diffusion.sample_ddpm(Law(), 10 * x, VE, {"seed": 8}))
    host = Host(Law(), x, {"seed": 7}, "ve")
    assert not torch.equal(host._noise.draw()[0], x[0])


def test_a_noise_sampler_is_asked_for_the_interval_of_the_step():
    asked = []

    def noise_sampler(sigma, sigma_next):
        asked.append((sigma.item(), sigma_next.item()))
        return state(0)

    k_diffusion.sample_ddpm(Law(), state(12), VE, noise_sampler=noise_sampler)
    assert asked == [(10, 3), (3, 1), (1, pytest.approx(0.3))]


# ---- schedules


def test_a_schedule_of_a_vp_network_runs_in_its_own_states():
    schedule = preset("ays-sd15-nfe10")
    sigmas, grid = k_diffusion.get_sigmas(schedule).double(), schedule.grid()
    wanted = run(
        SimpleNamespace(on=lambda grid: Executor(schedule)), grid, start(grid), GAUSSIAN.x0
    )

    def model(x, sigma):
        kappa = sigma[0].item()
        node = min(grid.nodes, key=lambda node: abs(node.sigma / node.alpha - kappa))
        return GAUSSIAN.x0(node.alpha * x, node)

    x = start(grid) / grid.nodes[0].alpha
    found = k_diffusion.sample(model, x, sigmas, solver=schedule)
    assert_close(found, wanted / grid.nodes[-1].alpha, rtol=1e-12, atol=1e-12)
    with pytest.raises(ScheduleError, match="get_sigmas"):
        k_diffusion.sample(model, x, 0.9 * sigmas, solver=schedule)
    with pytest.raises(ScheduleError, match="path is flow"):
        k_diffusion.sample(model, x, sigmas / sigmas[0], solver=schedule, path="flow")


# ---- bad input


class TwoDraws:
    """A solver that draws noise twice a step."""

    info = SolverInfo(name="two-draws", order=1, source="none", stochastic=True)

    def on(self, grid):
        return self

    def init(self):
        return None

    def step(self, x, state, t, s):
        x = yield x, t
        yield x, None
        yield x, None
        return x, state


REFUSED = [
    ({"sigmas": VE.flip(0)}, ScheduleError, "fewstep.invert"),
    ({"sigmas": f64(10, math.nan, 0)}, ScheduleError, "sigma nan"),
    ({"sigmas": f64(1.5, 1, 0), "path": "flow"}, ScheduleError, r"in \[0, 1\]"),
    ({"model": lambda x, sigma: x[:1, :0]}, SettingError, "x0 of shape"),
    ({"model": lambda x, sigma: (x - 0.1) / sigma.view(-1, 1, 1, 1)}, SettingError, "eps"),
    ({"solver": "unipc-9"}, FewstepError, "did you mean"),
    ({"solver": "euler-cfg-pp"}, SettingError, "guided already; take another one"),
    *(({"solver": name}, SettingError, "take renoise") for name in ("lcm", "tcd", "consistency")),
    ({"solver": "flow-map", "sigmas": FLOW, "path": "flow"}, SettingError, "more of its network"),
    ({"solver": "evodiff", "x": torch.ones(1, 1, 8)}, SettingError, "inner=sample"),
    ({"solver": TwoDraws(), "noise_sampler": lambda *ends: state(0)}, SettingError, "2 times"),
]


def test_what_cannot_be_run_is_refused_with_a_remedy():
    for given, error, words in REFUSED:
        with pytest.raises(error, match=words):
            k_diffusion.sample(**{"model": Law(), "x": state(12), "sigmas": VE} | given)


def test_the_example_of_the_page_runs():
    page = (Path(__file__).parents[1] / "docs" / "k-diffusion.md").read_text(encoding="utf-8")
    scope = {}
    exec(page.split("```python\n")[1].split("```")[0], scope)
    assert scope["x"].mean() == pytest.approx(0.3, abs=0.1)
    assert scope["x"].std() == pytest.approx(0.5, abs=0.1)
