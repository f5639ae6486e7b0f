"""Networks from elsewhere: the conventions that `from_module` takes, and what it says of slips."""

import math
import re
import warnings
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from laws import ONE_BRANCH, solver

from fewstep import (
    EDM,
    Cosine,
    GaussianMixture,
    Prediction,
    RectifiedFlow,
    Sampler,
    VPDiscrete,
    VPLinear,
    from_module,
)
from fewstep.models.denoiser import Denoiser
from fewstep.models.errors import ModelError, ScheduleError, SettingError
from fewstep.models.schedule import FAMILIES, noise_schedule
from fewstep.samplers.guidance import Unguided
from fewstep.samplers.loop import integrate
from fewstep.samplers.noise import Noise
from fewstep.samplers.plan import make_plan

MEAN, STD = 0.3, 0.2
SHAPE = (1, 4, 4)


def velocity(x, tau):
    """E[eps - x0 | x] of data N(MEAN, STD^2) at x = (1 - tau) x0 + tau eps; tau (B,)."""
    tau = tau.reshape(-1, 1, 1, 1)
    off = x - (1 - tau) * MEAN
    var = ((1 - tau) * STD) ** 2 + tau**2
    return (tau - (1 - tau) * STD**2) / var * off - MEAN


CONVENTIONS = {  # the function as it was trained, and how that is said
    "t = 1 is noise": (velocity, {"time_scale": 1}, "flow"),
    "t = 1000 is noise": (lambda x, t: velocity(x, t / 1000), {"time_scale": 1000}, "flow"),
    "t = 0 is noise": (
        lambda x, t: -velocity(x, 1 - t),
        {"time_scale": 1, "noise_at": 0},
        "flow-to-data",
    ),
    "t = 0 is noise, of 1000": (
        lambda x, t: -velocity(x, 1 - t / 1000),
        {"time_scale": 1000, "noise_at": 0},
        "flow-to-data",
    ),
    "t = 0 is noise, slope upwards": (
        lambda x, t: velocity(x, 1 - t),
        {"time_scale": 1, "noise_at": 0},
        "flow",
    ),
}


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize(("function", "facts", "prediction"), CONVENTIONS.values(), ids=CONVENTIONS)
def test_every_convention_of_flow_gives_the_data(function, facts, prediction, shift):
    """The exact flow of N(m, s^2) takes noise z to m + s z."""
    schedule = RectifiedFlow(shift, **facts)
    network = from_module(function, schedule=schedule, prediction=prediction, shape=SHAPE)
    with warnings.catch_warnings(action="error"):
        result = Sampler(network)(range(4), solver="unipc-3", steps=100)
    expected = MEAN + STD * Noise(range(4), SHAPE).draw()
    torch.testing.assert_close(result.samples, expected, rtol=0, atol=2e-3)


@pytest.mark.parametrize(
    ("schedule", "prediction", "advice"),
    [
        (RectifiedFlow(), "flow", r"write RectifiedFlow\(time_scale=1\) .* time_scale=1000"),
        (RectifiedFlow(3.0, noise_at=0), "flow-to-data", "time_scale=1"),
        (VPLinear(), "eps", r"write VPLinear\(time_scale=1\)"),
        (Cosine(), "v", r"write Cosine\(time_scale=1\)"),
        (noise_schedule("flow"), "flow", "time_scale=1"),
        (EDM(), "x0", r'write EDM\(time_label="sigma"\)'),
    ],
    ids=str,
)
def test_the_units_of_the_time_are_never_assumed(schedule, prediction, advice):
    facts = {"prediction": prediction, "shape": SHAPE}
    with pytest.raises(SettingError, match=advice):
        from_module(lambda x, t: x, schedule=schedule, **facts)
    stated = {"time_label": "sigma"} if isinstance(schedule, EDM) else {"time_scale": 1}
    network = from_module(lambda x, t: x, schedule=replace(schedule, **stated), **facts)
    node = network.schedule.at(0.25)
    assert network.schedule.label(node) == pytest.approx(
        0.5 if schedule == RectifiedFlow(3.0, noise_at=0) else 0.25
    )


def test_a_network_is_told_0_or_1_at_noise_and_nothing_else():
    assert RectifiedFlow(time_scale=1000, noise_at=0).label(RectifiedFlow().at(1.0)) == 0.0
    assert RectifiedFlow(time_scale=1000, noise_at=0).label(RectifiedFlow().at(0.0)) == 1000.0
    with pytest.raises(SettingError, match=r"noise_at=2 must be 1 \(t = 0 is data\) or 0"):
        RectifiedFlow(noise_at=2)


# The look at the first answer


def test_a_time_in_wrong_units_is_seen_at_the_first_answer():
    """A network that was trained on [0, 1] and grows linearly beyond, as layers with ReLU do."""

    def network(x, t):
        inside = t.clamp(0.0, 1.0)
        return velocity(x, inside) + (t - inside).reshape(-1, 1, 1, 1)

    def samples(scale):
        schedule = RectifiedFlow(time_scale=scale)
        made = from_module(network, schedule=schedule, prediction="flow", shape=SHAPE)
        return Sampler(made)(range(8), nfe=10).samples

    with warnings.catch_warnings(action="error"):
        assert samples(1).abs().max() < 1.5
    with pytest.warns(UserWarning, match=r"time 1000\), is more than 10 times.*check the units"):
        assert samples(1000).abs().max() > 100


@pytest.mark.parametrize("prediction", ["eps", "x0", "v", "flow", "flow-to-data", "edm"])
def test_the_first_answer_is_judged_by_what_the_network_predicts(prediction):
    """Nine times the usual size passes, eleven times does not, and later answers are not judged."""
    schedule = EDM() if prediction == "edm" else RectifiedFlow(time_scale=1)
    node, x = schedule.at(0.5), torch.zeros(2, *SHAPE)
    usual = {"v": math.sqrt(0.5), "flow": math.sqrt(2.0), "flow-to-data": math.sqrt(2.0)}

    def denoiser(times):
        value = times * usual.get(prediction, 1.0)
        facts = {"schedule": schedule, "prediction": prediction, "shape": SHAPE}
        return Denoiser(from_module(lambda x, t: torch.full_like(x, value), **facts))

    with warnings.catch_warnings(action="error"):
        denoiser(9.0).x0(x, node)
    loud = denoiser(11.0)
    with pytest.warns(UserWarning, match=f"that it predicts {prediction}"):
        loud.x0(x, node)
    with warnings.catch_warnings(action="error"):
        loud.x0(x, node)


# Whole timesteps


class Tabled(torch.nn.Module):
    """eps of data that are one point, MEAN, with alpha and sigma looked up in an embedding."""

    def __init__(self):
        super().__init__()
        abar = torch.tensor(VPDiscrete(num_train_timesteps=50).alphas_cumprod)
        self.table = torch.nn.Embedding.from_pretrained(
            torch.stack([abar.sqrt(), (1.0 - abar).sqrt()], dim=1)
        )

    def forward(self, x, t):
        alpha, sigma = self.table(t).reshape(-1, 2, 1, 1, 1).unbind(1)
        return (x - alpha * MEAN) / sigma


def tabled(whole_times):
    schedule = VPDiscrete(num_train_timesteps=50, whole_times=whole_times)
    return Sampler(from_module(Tabled(), schedule=schedule, prediction="eps", shape=SHAPE))


def test_whole_timesteps_give_the_exact_point_with_every_solver_or_are_refused():
    """One point is exact on any nodes, but only if state and network mean the same ones."""
    sampler, refused = tabled(whole_times=True), []
    for name in ONE_BRANCH:
        if sampler.network.schedule.family not in (solver(name).info.families or ("vp",)):
            continue
        try:
            samples = sampler(range(2), solver=solver(name), steps=7).samples
        except SettingError:
            refused.append(name)
            continue
        if name != "tcd":  # which ends at timestep 0, with the noise that is there
            torch.testing.assert_close(samples, torch.full_like(samples, MEAN), atol=1e-3, rtol=0)
    assert {"dpm2", "ode-rk4", "res-2s", "rf-solver"} <= set(refused)
    assert not {"unipc-2", "ddim", "heun", "dpmpp-3s", "sde-dpmpp-2", "sa-solver"} & set(refused)
    with pytest.raises(SettingError, match="between the nodes"):
        sampler([0], solver="ode-dopri5")


def test_whole_timesteps_are_integers_each_told_once():
    sampler, seen = tabled(whole_times=True), []
    sampler.network.module.register_forward_pre_hook(lambda module, args: seen.append(args[1]))
    sampler([0, 1], solver="unipc-2", nfe=50, grid="uniform")
    assert [time.tolist() for time in seen] == [[n, n] for n in range(49, -1, -1)]
    assert seen[0].dtype == torch.long
    with pytest.raises(ScheduleError, match=r"nearest of the whole timesteps .* take fewer steps"):
        sampler([0], solver="unipc-2", nfe=51)
    with pytest.raises(ScheduleError, match="nearest of the whole timesteps"):
        sampler([0], grid=[1.0, 0.501, 0.5, 0.0])
    with pytest.raises(ScheduleError, match="between timesteps 24 and 25"):
        sampler.network.schedule.label(VPDiscrete(num_train_timesteps=50).at(0.51))


@pytest.mark.parametrize(
    "look_up",
    [
        torch.nn.Embedding(50, 1),
        lambda t: torch.ones(50, 1)[t],
        lambda t: torch.ones(50).gather(0, t)[:, None],
        lambda t: torch.ones(50).index_select(0, t)[:, None],
        lambda t: torch.nn.functional.one_hot(t, 50)[:, :1],
    ],
)
def test_a_network_that_looks_floats_up_is_told_what_to_say(look_up):
    schedule, facts = VPDiscrete(num_train_timesteps=50), {"prediction": "eps", "shape": SHAPE}

    def network(x, t):
        return x + look_up(t).reshape(-1, 1, 1, 1)

    with pytest.raises(ModelError, match=r"whole numbers.*VPDiscrete\(\.\.\., whole_times=True\)"):
        Sampler(from_module(network, schedule=schedule, **facts))([0], nfe=2)
    whole = replace(schedule, whole_times=True)
    assert Sampler(from_module(network, schedule=whole, **facts))([0], nfe=2).ledger.nfe == 2
    with pytest.raises(ModelError, match="IndexError: list index out of range"):  # is another one
        Sampler(from_module(lambda x, t: x[[][0]], schedule=schedule, **facts))([0], nfe=2)


# The type of the time


def test_a_float64_network_is_told_its_time_in_float64():
    """ode-dopri8 chased the rounding of float32 times and gave up after 10,000 calls."""
    seen = set()

    def network(x, t):
        seen.add(t.dtype)
        return velocity(x, t)

    facts = {"schedule": RectifiedFlow(time_scale=1), "prediction": "flow", "shape": SHAPE}
    spec = "ode-dopri8:rtol=1e-9,atol=1e-9"
    plan = make_plan(facts["schedule"], spec, final="sigma_min")
    x = Noise(range(2), SHAPE).draw().double()
    denoiser = Denoiser(from_module(network, **facts))
    found = integrate(denoiser, plan.solver, plan.grid, x, Unguided())
    law = GaussianMixture.single(*torch.tensor([[MEAN], [STD]], dtype=torch.float64).expand(2, 16))
    expected = law.flow_map(x, plan.grid.nodes[0], plan.grid.nodes[-1])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-8)
    assert denoiser.ledger.calls < 600
    assert seen == {torch.float64}
    Sampler(from_module(network, **facts))([0], nfe=2)
    assert seen == {torch.float64, torch.float32}


# Training mode


class Normed(torch.nn.Module):
    """A network whose answers depend on the batch while it is in training mode."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(1)

    def forward(self, x, t):
        return self.norm(x)


class Wrapper:
    """An object with a network in it."""

    def __init__(self, module):
        self.module = module

    def __call__(self, x, t):
        return self.module(x, t)

    def method(self, x, t):
        return self.module(x, t)


GLOBAL = Normed()


def by_global(x, t):
    return GLOBAL(x, t)


def holding(module):
    """Functions that hold a module in each of the ways there are."""

    def inner(x, t):
        return module(x, t)

    def default(x, t, held=module):
        return held(x, t)

    def listed(x, t, parts=(module,)):
        return parts[0](x, t)

    wrapper = Wrapper(module)
    return [
        lambda x, t: module(x, t),
        lambda x, t: inner(x, t),
        default,
        listed,
        partial(lambda held, x, t: held(x, t), module),
        wrapper,
        wrapper.method,
        module.forward,
    ]


def test_a_module_in_training_mode_is_found_behind_every_function():
    module = Normed().train()
    for function in [*holding(module), by_global]:
        GLOBAL.train(), module.train()
        schedule = RectifiedFlow(time_scale=1)
        network = from_module(function, schedule=schedule, prediction="flow", shape=SHAPE)
        sampler = Sampler(network)
        with pytest.warns(UserWarning, match=r"a Normed behind .* is in training mode: .*\.eval"):
            alone = sampler([0], nfe=2).samples
        with pytest.warns(UserWarning, match="training mode"):
            assert not torch.allclose(sampler([0, 1], nfe=2).samples[:1], alone, atol=1e-3)
        GLOBAL.eval(), module.eval()
        with warnings.catch_warnings(action="error"):
            alone = sampler([0], nfe=2).samples
            assert torch.equal(sampler([0, 1], nfe=2).samples[:1], alone)


def test_a_module_itself_is_put_out_of_training_mode_and_watched():
    module = Normed().train()
    facts = {"schedule": RectifiedFlow(time_scale=1), "prediction": "flow", "shape": SHAPE}
    sampler = Sampler(from_module(module, **facts))
    with warnings.catch_warnings(action="error"):
        sampler([0], nfe=2)
    module.norm.train()
    with pytest.warns(UserWarning, match="a Normed behind 'Normed' is in training mode"):
        sampler([0], nfe=2)


# The range of the data


def test_samples_of_another_range_are_grey_and_decode_mends_it():
    """Data uniform in [-.5, .5]: x0 is known, and pictures shall use all of 0..255."""

    def network(x, t):
        return torch.linspace(-0.5, 0.5, 64).reshape(1, 1, 8, 8).expand_as(x)

    facts = {"schedule": RectifiedFlow(time_scale=1), "prediction": "x0", "shape": (1, 8, 8)}
    result = Sampler(from_module(network, **facts))([0], nfe=2)
    with pytest.warns(UserWarning, match=r"between -0\.49 and 0\.49, .* decode=lambda x: 2 \* x"):
        assert result.images[0].getextrema() == (64, 191)
    with warnings.catch_warnings(action="error"):
        mended = Sampler(from_module(network, decode=lambda x: 2 * x, **facts))([0], nfe=2)
        assert mended.images[0].getextrema() == (0, 255)


# The page


def test_the_page_on_networks_of_your_own_runs_and_names_every_prediction():
    page = (Path(__file__).parents[1] / "docs" / "your-own-network.md").read_text(encoding="utf-8")
    code, *_ = re.findall(r"```python\n(.*?)```", page, re.DOTALL)  # others: test_compare.py
    names = {}
    exec(code, names)
    assert names["samples"].shape == (16, 2)
    assert set(re.findall(r'^\| `"([a-z0-9-]+)"` \|', page, re.MULTILINE)) == set(Prediction)
    for family in FAMILIES.values():
        assert f"`{family.__name__}(" in page
