"""The ODE of a network as a function, and torchdiffeq as a backend of solvers."""

import threading
from itertools import product
from pathlib import Path

import pytest
import torch
from laws import MIXTURE, PROCESSES, find_end, run, start
from torch.testing import assert_close
from torchdiffeq import odeint

from fewstep import (
    RectifiedFlow,
    Sampler,
    Trigonometric,
    denoiser_field,
    from_module,
    score_field,
    velocity_field,
)
from fewstep.models.errors import ModelError, NonFiniteError, SettingError, UnknownArgumentError
from fewstep.models.prediction import Prediction
from fewstep.models.schedule import TimeGrid
from fewstep.samplers.guidance import CFG, Interval
from fewstep.solvers import solver
from fewstep.solvers.base import drive
from fewstep.solvers.odeint import converse


def labelled(schedule, prediction="flow"):
    """A network of two classes and a null class: it returns a x + b t + class."""

    def forward(x, time, class_labels):
        shift = class_labels.to(x).reshape(-1, *[1] * (x.ndim - 1))
        return 0.7 * x + 0.1 * time.reshape(shift.shape) + shift

    return from_module(
        forward,
        schedule=schedule,
        prediction=prediction,
        shape=(1, 2, 2),
        num_classes=2,
        null_class=2,
    )


NETWORK = labelled(RectifiedFlow(time_scale=1.0))
X = torch.linspace(-1.0, 1.0, 8).reshape(2, 1, 2, 2)


def test_it_is_the_velocity_of_the_network_also_at_both_ends():
    field = velocity_field(NETWORK, class_labels=[0, 1])
    for t in (1.0, 0.4, 0.0):
        wanted = 0.7 * X + 0.1 * t + torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1)
        assert_close(field(torch.tensor(t), X), wanted)
    assert field.ledger.evaluations == 6


def test_guidance_is_the_rule_in_velocities():
    for t in (1.0, 0.4, 0.0):
        found = velocity_field(NETWORK, class_labels=1, guidance=CFG(3.0))(t, X)
        assert_close(found, 0.7 * X + 0.1 * t + (2.0 + 3.0 * (1.0 - 2.0)))
    for policy in (Interval(CFG(3.0), low=0.1, high=5.0), CFG(3.0, rescale=1e-7)):  # through x0
        found = velocity_field(NETWORK, class_labels=1, guidance=policy)(0.4, X)
        assert_close(found, 0.7 * X + 0.04 - 1.0, rtol=1e-5, atol=1e-5)
    assert velocity_field(NETWORK, class_labels=1, guidance="cfg:scale=3")(0.4, X).shape == X.shape


def test_the_score_is_that_of_the_law_and_the_denoiser_its_mean():
    for process in (*PROCESSES.values(), Trigonometric()):
        network, t = MIXTURE.network(process, (2, 1, 2), Prediction.V), 0.3 * process.t_max
        node, x = process.at(t), X.double().reshape(2, 2, 1, 2).requires_grad_()
        assert_close(denoiser_field(network)(t, x), MIXTURE.x0(x, node), rtol=1e-9, atol=1e-9)
        var = node.alpha**2 * MIXTURE.stds**2 + node.sigma**2
        off = x.flatten(1)[:, None] - node.alpha * MIXTURE.means
        each = (-0.5 * off**2 / var - 0.5 * var.log()).sum(-1) + MIXTURE.weights.log()
        (gradient,) = torch.autograd.grad(each.logsumexp(-1).sum(), x)
        assert_close(score_field(network)(t, x), gradient, rtol=1e-9, atol=1e-9)


def test_views_agree_under_any_guidance():
    for t, policy in product((1.0, 0.4), (CFG(3.0), CFG(3.0, rescale=0.5))):
        choices = {"class_labels": 1, "guidance": policy}
        x0, velocity = denoiser_field(NETWORK, **choices), velocity_field(NETWORK, **choices)
        alpha, eps = 1.0 - t, (X - (1.0 - t) * x0(t, X)) / t
        assert_close(velocity(t, X), eps - x0(t, X), rtol=1e-5, atol=1e-5)
        assert_close(score_field(NETWORK, **choices)(t, X), (alpha * x0(t, X) - X) / t**2)


def test_it_leads_where_the_exact_flow_leads():
    for process in PROCESSES.values():
        network = MIXTURE.network(process, (2, 1, 2))
        grid = TimeGrid.of(process, [process.t_max, process.t_min])
        times = torch.tensor([node.t for node in grid.nodes], dtype=torch.float64)
        x = start(grid)
        options = {"step_t": times[1:]}
        found = odeint(
            velocity_field(network),
            x,
            times,
            rtol=1e-5,
            atol=1e-5,
            method="dopri5",
            options=options,
        )
        assert_close(found[-1], find_end(grid, x), rtol=0, atol=3e-4, msg=process.family)


def test_gradients_flow_and_rows_may_change():
    field = velocity_field(NETWORK, class_labels=1)
    x = X.clone().requires_grad_()
    field(0.5, x).sum().backward()
    assert_close(x.grad, torch.full_like(X, 0.7))
    assert field(0.5, X[:1]).shape == (1, 1, 2, 2)


def test_bad_input_of_fields():
    with pytest.raises(SettingError, match="not a network"):
        velocity_field("fashion-dit")
    with pytest.raises(SettingError, match="course of a run"):
        velocity_field(NETWORK, guidance="adaptive:scale=2")
    with pytest.raises(SettingError, match="end at t="):
        velocity_field(NETWORK, class_labels=1, guidance=CFG(3.0, rescale=0.5))(0.0, X)
    with pytest.raises(SettingError, match="3 class labels for 2"):
        velocity_field(NETWORK, class_labels=[0, 1, 1])(0.5, X)
    with pytest.raises(ModelError, match="no score at t=0"):
        score_field(NETWORK, class_labels=1)(0.0, X)
    with pytest.raises(UnknownArgumentError, match="'guidnce'; did you mean 'guidance'"):
        denoiser_field(NETWORK, guidnce=CFG(3.0))
    with pytest.raises(NonFiniteError):
        velocity_field(NETWORK, class_labels=1)(0.5, X * float("nan"))


# ---- backend=torchdiffeq


@pytest.mark.parametrize("name", ["ode-bosh3", "ode-dopri5", "ode-dopri8"])
def test_backend_solves_on_every_process(name):
    for process in PROCESSES.values():
        grid = TimeGrid.of(process, [process.t_max, process.t_min])
        x = start(grid)
        tight = solver(name, rtol=1e-6, atol=1e-6, backend="torchdiffeq")
        found = run(tight, grid, x, MIXTURE.x0)
        assert_close(found, find_end(grid, x), rtol=0, atol=1e-4, msg=process.family)


def test_backend_in_a_sampler_counts_its_calls_and_names_what_it_lacks():
    spec = "ode-dopri5:rtol=1e-3,atol=1e-3,backend=torchdiffeq"
    result = Sampler(NETWORK)(range(2), class_labels=1, solver=spec)
    own = Sampler(NETWORK)(range(2), class_labels=1, solver="ode-dopri5:rtol=1e-5,atol=1e-5")
    assert_close(result.samples, own.samples, rtol=0, atol=1e-2)
    assert result.ledger.evaluations > 12
    with pytest.raises(SettingError, match="ode-bosh3, ode-dopri5, ode-dopri8"):
        Sampler(NETWORK)(range(2), class_labels=1, solver="ode-tsit5:backend=torchdiffeq")
    with pytest.raises(SettingError, match="max_calls above 9"):
        Sampler(NETWORK)(range(2), class_labels=1, solver=f"{spec},max_calls=9")


def test_errors_reach_the_run_and_no_thread_is_left():
    before = threading.active_count()

    def answer(x, node):
        raise NonFiniteError("no number")

    with pytest.raises(NonFiniteError, match="no number"):
        drive(converse(lambda ask: ask(X, None)), answer)
    with pytest.raises(ZeroDivisionError):
        drive(converse(lambda ask: X / (1 // 0)), answer)
    half = converse(lambda ask: ask(X, None))
    next(half)
    half.close()
    assert threading.active_count() == before


def test_the_example_of_the_page_runs():
    page = (Path(__file__).parents[1] / "docs" / "integrators.md").read_text(encoding="utf-8")
    scope = {}
    exec(page.split("```python\n")[1].split("```")[0], scope)
    assert scope["samples"].shape == (4, 1, 32, 32)
