"""Inverse problems: operators, and methods against the exact posterior of known laws."""

import math
from dataclasses import replace

import pytest
import torch
from laws import GAUSSIAN, MIXTURE, even_in_lam, f64, solver

from fewstep import LinearMap, Measured
from fewstep.models.denoiser import Denoiser
from fewstep.models.ledger import Ledger
from fewstep.models.schedule import TimeGrid, VPLinear
from fewstep.samplers.guidance import Setup
from fewstep.samplers.guidance.inverse import METHODS, Blur, Downsample, Grey, Inpaint
from fewstep.samplers.guidance.inverse.methods import estimate_trace
from fewstep.samplers.loop import integrate
from fewstep.samplers.noise import Noise

VP = VPLinear()
A = f64([1, 1, 0, 0], [0, 0, 1, -1])
Y, SIGMA_Y = f64([0.5, -0.4]), 0.1
PLACE = VP.at_lam(math.log(0.8 / 0.6))  # alpha .8, sigma .6
X = f64([0.3, -0.2, 0.4, 0.5]).reshape(1, 4, 1, 1)
SHAPE = (4, 1, 1)
SUMS = LinearMap(lambda x: x.flatten(1) @ A.T, SHAPE)
DDIM = solver("ddim")


def close(given, *expected, places=9):
    given = torch.as_tensor(given, dtype=torch.float64).flatten()
    exact = f64(*expected).flatten()
    torch.testing.assert_close(given, exact, rtol=0, atol=0.6 * 10.0**-places)


def posterior(log, means, variances, y=Y[0], sigma_y=SIGMA_Y):
    """Means, covariances and log weights of x0 given y, for components N(mean, diag variance)."""
    moved, narrowed, weights = [], [], []
    for mean, variance, weight in zip(means, variances, log, strict=True):
        s = variance.diag()
        spread = A @ s @ A.T + sigma_y**2 * torch.eye(2).double()
        k, e = s @ A.T @ spread.inverse(), y - A @ mean
        narrowed.append(s - k @ A @ s)
        moved.append(mean + k @ e)
        weights.append(weight - 0.5 * (e @ spread.inverse() @ e + spread.logdet()))
    return torch.stack(moved), torch.stack(narrowed), torch.stack(weights).log_softmax(0)


def prior(law):
    return posterior(law.weights.log(), law.means, (law.stds**2).expand_as(law.means))


def exact_x0(law, x, node):
    """E[x0 | x_t, y]."""
    variance = (law.stds**2).expand_as(law.means)
    spread = node.alpha**2 * variance + node.sigma**2
    off = x.flatten() - node.alpha * law.means
    log = law.weights.log() - 0.5 * (off**2 / spread + spread.log()).sum(1)
    means = law.means + node.alpha * variance / spread * off
    means, _, log = posterior(log, means, variance * node.sigma**2 / spread)
    return (log.exp()[:, None] * means).sum(0)


def correct(method, law=GAUSSIAN, node=PLACE, x=X, **facts):
    """The x0 that a method makes at one state, and what it cost."""
    policy = Measured(SUMS, Y, SIGMA_Y, method, **facts)
    grid = TimeGrid.of(VP, [node.t, VP.at_lam(3.0).t])
    network = law.network(VP, SHAPE)
    denoiser = Denoiser(network, ledger=Ledger(images=1))
    draw = Noise([5], SHAPE).draw
    setup = Setup(network, DDIM.on(grid), grid, 1, evaluate=denoiser.x0, draw=draw)
    policy.check(setup)
    run = integrate(denoiser, DDIM.on(grid), grid, x, policy, noise=draw)
    t, s = grid.nodes
    ratio = s.sigma / t.sigma
    return (run - ratio * x) / (s.alpha - t.alpha * ratio), denoiser.ledger


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def test_the_exact_posteriors_are_those_on_record():
    means, covariances, _ = prior(GAUSSIAN)
    close(means, 0.726666667, -0.233333333, 0.531125828, 0.934437086)
    close(covariances[0].diag(), 0.034666667, 0.041666667, 0.337748344, 0.334437086)
    close(covariances[0][[0, 2], [1, 3]], -0.033333333, 0.331125828)
    means, covariances, log = prior(MIXTURE)
    close(log.exp()[1:], 0.984912939, 0.015087019)
    close(means[1], 0.884210526, -0.415789474, 0.289473684, 0.710526316)
    close(covariances[:, 0, 0], 0.013295455, 0.047368421, 0.022222222)
    mixed = (log.exp()[:, None] * means).sum(0)
    close(mixed, 0.870535105, -0.400799458, 0.277562870, 0.699806572)


def test_corrected_predictions_are_those_on_record():
    close(PLACE.alpha, 0.8)
    mmps = 0.708143879, -0.216102407, 0.439911029, 0.841241891
    close(exact_x0(GAUSSIAN, X, PLACE), *mmps)
    close(correct("mmps:rounds=2")[0], *mmps)
    close(correct("pigdm")[0], 0.687397296, -0.312254840, 0.433656728, 0.845840641)
    close(correct("diffpir")[0], 0.765361907, -0.266907483, 0.433863177, 0.834607411)
    exact = 0.833463164, -0.367617986, 0.296823404, 0.715668263
    close(exact_x0(MIXTURE, X, PLACE), *exact)
    found = correct("mmps:rounds=2", MIXTURE)[0]
    close(found, 0.414774148, 0.051480297, 0.080985651, 0.490508973)


def test_mmps_ends_at_the_posterior_of_a_gaussian():
    """The run is affine in its start, so five starts tell its mean and covariance exactly."""
    grid = even_in_lam(VP, 200, 150.0, 0.004)
    starts = torch.cat([torch.zeros(1, 4), torch.eye(4)]).double().reshape(5, *SHAPE)
    policy = Measured(SUMS, Y, SIGMA_Y, "mmps:rounds=2,above=1e9")
    denoiser = Denoiser(GAUSSIAN.network(VP, SHAPE))
    ends = integrate(denoiser, solver("dpmpp-2m").on(grid), grid, starts, policy).flatten(1)
    means, covariances, _ = prior(GAUSSIAN)
    spread = ends[1:] - ends[0]
    torch.testing.assert_close(ends[0], means[0], rtol=0, atol=0.006)  # it starts at kappa 150
    torch.testing.assert_close(spread.T @ spread, covariances[0], rtol=0, atol=0.003)


DEVIATIONS = {  # largest error of the mean; least and largest ratio of variances; see the spread
    "mmps": (0.03, 0.85, 1.1),
    "pigdm": (0.05, 0.85, 1.3),
    "diffpir": (0.07, 0.9, 1.4),
    "dps:scale=0.1": (0.05, 0.6, 1.0),
    "stsl:scale=0.02,rounds=2": (0.05, 0.8, 1.15),
}


@pytest.mark.parametrize("method", DEVIATIONS)
def test_methods_end_near_the_posterior_of_a_gaussian(method):
    grid, count = even_in_lam(VP, 60, 40.0, 0.02), 1500
    draw = torch.Generator().manual_seed(0)

    def noise():
        return torch.randn(count, *SHAPE, generator=draw, dtype=torch.float64)

    denoiser = Denoiser(GAUSSIAN.network(VP, SHAPE))
    x, policy = noise(), Measured(SUMS, Y, SIGMA_Y, method)
    ends = integrate(denoiser, solver("ddpm").on(grid), grid, x, policy, noise=noise).flatten(1)
    means, covariances, _ = prior(GAUSSIAN)
    off, low, high = DEVIATIONS[method]
    ratios = ends.var(0) / covariances[0].diag()
    assert float((ends.mean(0) - means[0]).abs().max()) < off
    assert low < float(ratios.min())
    assert float(ratios.max()) < high


def hessian_trace(law, step=1e-4):
    """Returns the trace of the Hessian of log p as STSL's term gives it for small steps."""

    def predict(x):
        return law.x0(x, PLACE)

    x = X.clone().requires_grad_()
    with torch.enable_grad():
        m, total = predict(x), 0.0
        for i in range(8):
            delta = torch.zeros(1, 4).double()
            delta[0, i % 4] = step if i < 4 else -step
            total = total + estimate_trace(predict, x, m, PLACE, delta.reshape(X.shape))
        total = total.sum() / (2.0 * step**2)
        return total.detach(), torch.autograd.grad(total, x)[0]


def test_the_trace_of_stsl_is_that_of_the_hessian():
    trace, slope = hessian_trace(MIXTURE)
    close(trace, -5.709580891, places=5)
    close(slope, -3.325318, 3.081870, 0.132755, -2.705663, places=4)
    trace, slope = hessian_trace(GAUSSIAN)
    spread = PLACE.alpha**2 * GAUSSIAN.stds**2 + PLACE.sigma**2
    close(trace, -float((1.0 / spread).sum()), places=5)
    assert float(slope.abs().max()) < 1e-5


def test_the_second_order_of_stsl_is_nothing_on_a_gaussian():
    without, _ = correct("stsl:scale=0.1,curvature=0")
    with_, _ = correct("stsl:scale=0.1,curvature=50")
    torch.testing.assert_close(with_, without, rtol=0, atol=1e-11)
    mixed, _ = correct("stsl:scale=0.1,curvature=50", MIXTURE)
    assert float((mixed - correct("stsl:scale=0.1,curvature=0", MIXTURE)[0]).abs().max()) > 0.1


def test_dps_moves_the_state_after_the_step():
    node, s = PLACE, VP.at_lam(3.0)
    with torch.enable_grad():
        x = X.clone().requires_grad_()
        m = GAUSSIAN.x0(x, node)
        (slope,) = torch.autograd.grad((Y - SUMS.forward(m)).norm(), x)
    ratio = s.sigma / node.sigma
    moved = ratio * X + (s.alpha - node.alpha * ratio) * m.detach() - 0.7 * slope
    x0, ledger = correct("dps:scale=0.7")
    step = ratio * X + (s.alpha - node.alpha * ratio) * x0
    torch.testing.assert_close(step, moved, rtol=1e-11, atol=1e-11)
    assert (ledger.rows, ledger.backwards) == (1, 1)


COSTS = {
    "diffpir": (1, 0),
    "pigdm": (1, 1),
    "mmps": (1, 1),
    "mmps:rounds=3": (1, 3),
    "dps": (1, 1),
    "stsl:rounds=2": (5, 4),
}


def test_rows_and_backward_passes_are_counted():
    for method, cost in COSTS.items():
        ledger = correct(method)[1]
        assert (ledger.rows, ledger.backwards) == cost, method
    assert {METHODS.make(each).name for each in COSTS} == set(METHODS)


OPERATORS = {
    "inpaint": Inpaint((torch.arange(64).reshape(8, 8) % 3 == 0).double()),
    "one channel": Inpaint(torch.eye(3)[:, :, None].expand(3, 3, 64).reshape(3, 24, 8)[:, :8]),
    "downsample": Downsample(4),
    "blur": Blur(0.8),
    "grey": Grey(),
}


def test_operators_have_the_adjoint_and_the_inverse_that_they_say():
    draw = torch.Generator().manual_seed(0)
    x, other = (torch.randn(2, 3, 8, 8, generator=draw, dtype=torch.float64) for _ in range(2))
    for name, operator in OPERATORS.items():
        y = operator.forward(x)
        v = operator.forward(other)
        assert tuple(y.shape[1:]) == operator.measure((3, 8, 8)), name
        torch.testing.assert_close((y * v).sum(), (x * operator.adjoint(v)).sum(), msg=name)
        known = LinearMap(operator.forward, (3, 8, 8))
        with torch.inference_mode():  # as runs without a gradient are
            torch.testing.assert_close(known.adjoint(v + 0.0), operator.adjoint(v), msg=name)
        solved = operator.solve(v, 0.7, 0.2)
        back = 0.7 * operator.forward(operator.adjoint(solved)) + 0.2 * solved
        torch.testing.assert_close(back, v, msg=name)
        torch.testing.assert_close(known.solve(v, 0.7, 0.2), solved, rtol=0, atol=1e-6, msg=name)
        exact = operator.solve(v, 1.0, 0.0)  # without noise, v in the range of A
        torch.testing.assert_close(operator.forward(operator.adjoint(exact)), v, msg=name)


def test_what_a_measurement_holds_outside_of_the_mask_says_nothing():
    operator, law = OPERATORS["inpaint"], MIXTURE
    law = replace(law, means=law.means.repeat(1, 16), stds=law.stds)
    grid = even_in_lam(VP, 2)
    x, y = torch.randn(2, 2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).double()
    known = operator.forward(torch.ones_like(y))
    for method in ("diffpir", "pigdm", "mmps", "dps"):
        ends = [
            integrate(
                Denoiser(law.network(VP, (1, 8, 8))),
                DDIM.on(grid),
                grid,
                x,
                Measured(operator, each, 0.3, method),
            )
            for each in (y, y * known)
        ]
        assert torch.equal(*ends), method


def test_without_noise_a_measured_pixel_stays_what_it_is():
    operator = OPERATORS["inpaint"]
    law = torch.nn.Conv2d(1, 1, 3, padding=1).double().requires_grad_(False)
    network = replace(MIXTURE.network(VP, (1, 8, 8)), forward=lambda x, node, conditions: law(x))
    y = torch.rand(2, 1, 8, 8, dtype=torch.float64) * 2 - 1
    grid = even_in_lam(VP, 4)
    grid = TimeGrid.of(VP, [*(node.t for node in grid.nodes), 0.0])
    policy, x = Measured(operator, y, 0.0), torch.randn(2, 1, 8, 8).double()
    end = integrate(Denoiser(network), solver("unipc-2").on(grid), grid, x, policy)
    known = operator.forward(torch.ones_like(y)) == 1
    torch.testing.assert_close(end[known], y[known], rtol=0, atol=1e-12)
