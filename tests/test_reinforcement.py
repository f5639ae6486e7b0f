"""Steps with log-probability: published numbers, gradients, the ODE without noise, bad input."""

import math
import re
from itertools import pairwise
from pathlib import Path

import diffusers
import pytest
import torch
from laws import MIXTURE, run, unit_noise
from test_named import SD4, draw, measure_moments
from torch.testing import assert_close

from fewstep import SolverScheduler, logprob_step
from fewstep.models.errors import SettingError, UnknownNameError
from fewstep.models.prediction import Prediction, convert
from fewstep.models.schedule import RectifiedFlow, VPDiscrete
from fewstep.samplers.grid import time_grid
from fewstep.solvers import solver
from fewstep.solvers.flow_sde import find_flow_sde

F4 = time_grid("uniform", RectifiedFlow(shift=3.0), 4)
FROZEN = {  # (omega, the first number of the mean, log p of the rows) of each step
    ("sde", 0.7): [
        (0.700000000, 0.698512544, -0.923454128, -0.865092275),
        (0.813326503, 0.549814561, -1.167667803, -1.001972193),
        (0.606217783, -0.189101213, -0.755844097, -0.851372313),
        (0.494974747, -0.576684289, -0.485402543, -0.629670692),
    ],
    ("dance", 0.3): [
        (0.094868330, 0.961598447, 1.075136279, 1.133498132),
        (0.116189500, 0.845945017, 0.778242346, 0.943937956),
        (0.150000000, 0.455233822, 0.640759908, 0.545231691),
        (0.212132034, 0.137596980, 0.361895317, 0.217627169),
    ],
    ("cps", 0.7): [
        (0.801905872, 0.428963205, -0.464529339, -0.389469806),
        (0.668254893, 0.417794216, -0.406688096, -0.258700507),
        (0.445503262, -0.171449764, -0.133938238, -0.171857811),
        (0.0, None, 0.0, 0.0),
    ],
    ("vp", 1.0): [
        (0.932625422, 0.266254859, -1.210377436, None),
        (0.780733262, 0.369009182, -1.126768729, None),
        (0.514405679, -0.254211879, -0.591617011, None),
    ],
}
ENDS = {
    "sde": (-0.427443557, -0.299963352, -0.499491890),
    "cps": (-0.389639616, 0.292113440, 0.165891773),
}


def answer(kind, x, node):
    """Returns the answer of a network of a kind on the mixture."""
    told = Prediction.EPS if kind == "vp" else Prediction.FLOW
    return convert(MIXTURE.x0(x, node), x, node, Prediction.X0, told)


def take_step(kind, x, n, t, s, level):
    """A step with the n-th fixed noise, which is given as the state that it leads to."""
    out = answer(kind, x, t)
    probe = logprob_step(kind, x, out, t, s, level=level, prev=x)
    return logprob_step(kind, x, out, t, s, level=level, prev=probe.mean + probe.std * draw(n, x))


def test_frozen_steps():
    for (kind, level), rows in FROZEN.items():
        x, grid = unit_noise(), SD4 if kind == "vp" else F4
        for n, ((t, s), wanted) in enumerate(zip(pairwise(grid.nodes), rows, strict=False)):
            step = take_step(kind, x, n, t, s, level)
            omega, mean, *log_probs = wanted
            assert step.std == pytest.approx(omega, abs=1e-9)
            assert step.stochastic == (omega > 0.0)
            assert step.root_dt == pytest.approx(math.sqrt(t.sigma - s.sigma))
            assert mean is None or float(step.mean.flatten()[0]) == pytest.approx(mean, abs=2e-9)
            for found, log_prob in zip(step.log_prob.tolist(), log_probs, strict=True):
                assert log_prob is None or found == pytest.approx(log_prob, abs=2e-9)
            assert_close(step.x0, MIXTURE.x0(x, t))
            x = step.x
        if kind in ENDS:
            assert x.flatten()[:3].tolist() == pytest.approx(ENDS[kind], abs=2e-9)


def test_steps_are_those_of_the_solvers():
    """Their means and deviations: a run of the solver is a run of such steps."""
    pairs = {
        "sde": "flow-sde",
        "dance": "flow-sde:kind=dance,level=.3",
        "cps": "flow-cps",
        "vp": "ddpm",
    }
    for kind, spec in pairs.items():
        grid = SD4 if kind == "vp" else F4
        rows = solver(spec).on(grid).rows
        for row, (t, s) in zip(rows, pairwise(grid.nodes), strict=True):
            x, x0 = unit_noise(), unit_noise().flip(0)
            step = logprob_step(kind, x, x0, t, s, prev=x, prediction="x0")
            assert_close(step.mean, row.x * x + row.x0 * x0)
            assert step.std == pytest.approx(row.z, abs=1e-12)


def test_without_noise_a_step_is_eulers_to_the_bit():
    for kind, level in (("sde", 0.0), ("cps", 0.0), ("ode", None)):
        x = unit_noise().float()
        for t, s in pairwise(F4.nodes):
            step = logprob_step(kind, x, answer(kind, x, t), t, s, level=level)
            assert torch.equal(step.log_prob, torch.zeros(2))
            assert not step.stochastic
            x = step.x

        def law(x, t):
            return convert(answer("ode", x, t), x, t, Prediction.FLOW, Prediction.X0)

        assert torch.equal(x, run(solver("euler"), F4, unit_noise().float(), law))


def test_the_gradient_is_that_of_finite_differences():
    for kind in ("sde", "dance", "cps", "vp"):
        t, s = (SD4 if kind == "vp" else F4).nodes[1:3]
        x, prev, out = unit_noise(), unit_noise().flip(1), unit_noise().flip(0)
        out.requires_grad_()
        step = logprob_step(kind, x, out, t, s, prev=prev)
        assert not step.x.requires_grad
        assert step.mean.requires_grad
        (gradient,) = torch.autograd.grad(step.log_prob.sum(), out)
        with torch.no_grad():
            for k in (0, 5):
                bump = torch.zeros(8, dtype=torch.float64)
                bump[k] = 1e-6
                ends = [
                    logprob_step(kind, x, out + sign * bump.reshape(x.shape), t, s, prev=prev)
                    for sign in (1, -1)
                ]
                slope = (ends[0].log_prob.sum() - ends[1].log_prob.sum()) / 2e-6
                assert float(gradient.flatten()[k]) == pytest.approx(float(slope), rel=1e-6)


def test_log_prob_is_that_of_a_normal_law_per_dimension():
    (t, s), x = F4.nodes[1:3], unit_noise()
    step = take_step("sde", x, 0, t, s, 0.7)
    whole = torch.distributions.Normal(step.mean, step.std).log_prob(step.x).flatten(1).sum(1)
    assert_close(step.log_prob * 4, whole)
    step = take_step("cps", x, 0, t, s, 0.7)
    assert_close(step.log_prob, -(step.x - step.mean).square().flatten(1).mean(1))


def test_states_of_low_precision_are_computed_with_in_float32():
    (t, s), x = F4.nodes[1:3], unit_noise()
    step = logprob_step("sde", x.bfloat16(), x.bfloat16(), t, s, prev=x.bfloat16())
    assert step.x.dtype is step.mean.dtype is step.log_prob.dtype is torch.float32


def test_rows_are_drawn_from_their_own_generators():
    (t, s), x = F4.nodes[1:3], unit_noise((3, 1, 2, 2))

    def seeded(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    together = logprob_step("sde", x, x, t, s, generator=seeded(0, 1, 2)).x
    alone = logprob_step("sde", x[1:2], x[1:2], t, s, generator=seeded(1)).x
    assert torch.equal(together[1:2], alone)


def test_the_variance_of_many_steps():
    """Of samples of N(.4, .25): the SDE tends to it, Flow-CPS does not."""
    grids = [time_grid("uniform", RectifiedFlow(shift=3.0), n) for n in (10, 40, 1000)]
    for spec, wanted in (("flow-sde", (0.180, 0.230, 0.250)), ("flow-cps", (0.107, 0.153, 0.179))):
        found = [measure_moments(solver(spec), grid)[1] for grid in grids]
        assert found == pytest.approx(wanted, abs=6e-4), spec


def test_the_noise_level_of_few_steps_is_another():
    """The figures of docs/reinforcement.md."""
    laws = [find_flow_sde(t, s, 0.7, "sde") for t, s in pairwise(F4.nodes)]
    levels = [math.hypot(law.rho, law.omega) for law in laws]
    assert levels == pytest.approx([0.9587, 0.8988, 0.6577, 0.5523], abs=5e-5)
    assert laws[-1].rho < 0


def test_the_page_runs():
    text = (Path(__file__).parents[1] / "docs" / "reinforcement.md").read_text()
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(code, {})


def test_bad_input_is_refused():
    t, s = F4.nodes[1:3]
    x, vp = unit_noise(), VPDiscrete()
    generator = torch.Generator()
    cases = [
        ({"kind": "grpo"}, UnknownNameError, "no kind of step 'grpo'; .*known: cps, dance, ode"),
        (
            {"prev": x, "generator": generator},
            SettingError,
            "nothing is drawn anew; drop the generator",
        ),
        ({"level": -1}, SettingError, "level=-1 of 'sde' must be at least 0$"),
        ({"kind": "cps", "level": 2}, SettingError, "at least 0 and at most 1"),
        ({"prev": x[:1]}, SettingError, r"prev has shape \(1, 2, 1, 2\), but x"),
        ({"t": s, "s": t}, SettingError, "from noise to data"),
        ({"t": vp.at(0.9), "s": vp.at(0.5)}, SettingError, "elsewhere take 'vp'"),
    ]
    for given, error, message in cases:
        arguments = {"kind": "sde", "x": x, "out": x, "t": t, "s": s, **given}
        first = [arguments.pop(name) for name in ("kind", "x", "out", "t", "s")]
        with pytest.raises(error, match=message):
            logprob_step(*first, **arguments)


# The scheduler


def make_scheduler(solver="euler"):
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    made = SolverScheduler.from_config(config, solver=solver)
    made.set_timesteps(4)
    return made


def test_a_scheduler_takes_the_steps_of_its_timesteps_in_any_order():
    made, x = make_scheduler(), unit_noise()
    for n in (2, 0, 3):
        t, s = F4.nodes[n : n + 2]
        found = made.logprob_step(x, made.timesteps[n], x, "sde", prev=x.flip(0))
        wanted = logprob_step("sde", x, x, t, s, prev=x.flip(0))
        assert_close(found.log_prob, wanted.log_prob)
    assert made.step_index is None


def test_outside_the_window_a_step_is_that_of_the_scheduler_to_the_bit():
    made, x = make_scheduler(), unit_noise().float()
    y = x
    for n, label in enumerate(made.timesteps):
        step = made.logprob_step(y.sin(), label, y, "sde", window={1}, generator=torch.Generator())
        assert step.stochastic == (n == 1)
        z = made.step(y.sin(), label, y).prev_sample
        assert torch.equal(step.x, z) == (n != 1)
        y = z


def test_a_scheduler_refuses_what_has_no_probability():
    for name in ("unipc-2", "heun", "dpmpp-2m"):
        made = make_scheduler(name)
        with pytest.raises(SettingError, match="take solver='ddim'"):
            made.logprob_step(unit_noise(), made.timesteps[0], unit_noise(), "sde")
    config = diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear").config
    made = SolverScheduler.from_config(config, solver="ddim", state="ve")
    made.set_timesteps(4)
    with pytest.raises(SettingError, match="pass state='vp'"):
        made.logprob_step(unit_noise(), made.timesteps[0], unit_noise(), "vp")
