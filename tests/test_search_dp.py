"""The strategies that find times: exact dynamic programming, closed forms, and DMN's bound."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from laws import PROCESSES, f64

from fewstep.eval.search.paths import cost_of, shortest
from fewstep.eval.search.problem import Problem, Teacher
from fewstep.eval.search.space import Space
from fewstep.eval.search.strategies.dmn import bound_error, find_best_lams, weigh_steps
from fewstep.eval.search.strategies.grid import make_tan_grid
from fewstep.eval.search.strategies.klub import interval_costs, mean_distances, predict_chain
from fewstep.eval.search.trajectories import make_fine_grid
from fewstep.models.errors import SettingError
from fewstep.models.gaussian import GaussianMixture
from fewstep.models.schedule import EDM
from fewstep.solvers import drive, take_solver

M, N = 10, 4


def all_paths(last, steps):
    """Every way from node 0 to the last one."""
    for inner in itertools.combinations(range(1, last), steps - 1):
        yield [0, *inner, last]


@pytest.mark.parametrize("gamma", [0.8, 1.0, 1.15])
@pytest.mark.parametrize("seed", range(4))
def test_dynamic_programming_equals_enumeration(gamma, seed):
    """Signed costs: the deviation metric has them."""
    cost = torch.randn(M + 1, M + 1, generator=torch.Generator().manual_seed(seed))
    best = min(all_paths(M, N), key=lambda path: cost_of(cost, path, gamma))
    found = shortest(cost, N, gamma)
    assert found == best
    by_hand = sum(gamma**k * cost[i, j].item() for k, (i, j) in enumerate(itertools.pairwise(best)))
    assert cost_of(cost, found, gamma) == pytest.approx(by_hand, rel=1e-6)


def test_the_ends_of_dynamic_programming():
    cost = torch.rand(6, 6)
    assert shortest(cost, 1) == [0, 5]
    assert shortest(cost, 5) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(SettingError, match="do not fit"):
        shortest(cost, 6)


STD = 0.5


def exact_distances(kappas):
    """E |D_t - D_s|^2 / dim of N(0, c^2): c^4 |1 / (c^2 + t^2) - 1 / (c^2 + s^2)|."""
    inverse = 1.0 / (STD**2 + kappas**2)
    return STD**4 * (inverse[:, None] - inverse[None, :]).abs()


def test_klub_distances_are_those_of_a_gaussian():
    """Of the teacher's ends, noised step by step up the fine grid, against the closed form."""
    law = GaussianMixture.single(torch.zeros(8).double(), torch.full((8,), STD).double())
    count = 4000
    problem = Problem.of(
        law.network(EDM(), (8,)), (count, 2, 2), teacher=Teacher(nfe=80), batch=count
    )
    task = SimpleNamespace(
        problem=problem,
        space=Space(process=EDM(), ends=(0.002,)),
        settings={"fine": 8, "noises": count},
        seed=0,
    )
    (predictions,) = predict_chain(task)
    kappas = f64(*(node.kappa for node in make_fine_grid(task).nodes))
    found = mean_distances(predictions.flatten(1), count) / 8
    assert torch.allclose(found, exact_distances(kappas), atol=5e-3)


@pytest.mark.parametrize("p", [1.0, 3.0])
def test_klub_costs_are_the_integrals_of_a_gaussian(p):
    """On a fine grid the trapezoids meet int_t^s k^-p c^4 (1/(c^2+k^2) - 1/(c^2+s^2)) dk."""
    from scipy.integrate import quad

    kappas = torch.logspace(1.0, -1.0, 1500, dtype=torch.float64)
    cost = interval_costs(exact_distances(kappas), kappas, p)
    for i, j in [(0, 1499), (300, 900), (700, 1200)]:
        s, t = float(kappas[i]), float(kappas[j])

        def density(k, s=s):
            return k**-p * STD**4 * (1 / (STD**2 + k**2) - 1 / (STD**2 + s**2))

        assert cost[i, j] == pytest.approx(quad(density, t, s)[0], rel=1e-4)


def test_klub_path_equals_enumeration():
    kappas = torch.logspace(1.5, -2.0, M + 1, dtype=torch.float64)
    cost = interval_costs(exact_distances(kappas), kappas, 1.0)

    def bound(path):
        """Summed slice by slice from the definition."""
        total = 0.0
        for i, j in itertools.pairwise(path):
            for k in range(i, j):
                ends = [exact_distances(kappas)[i, m] / kappas[m] for m in (k, k + 1)]
                total += float(0.5 * sum(ends) * (kappas[k] - kappas[k + 1]))
        return total

    assert shortest(cost, N) == min(all_paths(M, N), key=bound)


def product_of_cosines(kappas, std):
    """What DDIM multiplies the standard deviation's error of N(0, std^2) with, step by step."""
    angles = np.arctan(np.array(kappas) / std)
    return float(np.prod(np.cos(angles[:-1] - angles[1:])))


@pytest.mark.parametrize("process", ["edm", "vp"])
def test_tan_grid_is_the_best_for_ddim_on_a_gaussian(process):
    space = Space(process=PROCESSES[process])
    end = space.process.t_min
    grid = make_tan_grid(space, 5, end, 0.6)
    kappas = [node.kappa for node in grid.nodes]
    best = product_of_cosines(kappas, 0.6)
    for i in range(1, 5):
        for factor in (0.99, 1.01):
            moved = [k * factor if j == i else k for j, k in enumerate(kappas)]
            assert product_of_cosines(moved, 0.6) < best
    law = GaussianMixture.single(torch.zeros(1).double(), f64(0.6))
    solver = take_solver("ddim").on(grid)
    x, state = f64([grid.nodes[0].sigma]), solver.init()
    for t, s in itertools.pairwise(grid.nodes):
        x, state = drive(solver.step(x, state, t, s), law.x0)
    first, last = grid.nodes[0], grid.nodes[-1]
    spread = [math.hypot(0.6 * node.alpha, node.sigma) for node in (first, last)]
    exact = first.sigma * spread[1] / spread[0]
    assert float(x) / exact == pytest.approx(best, rel=1e-9)


def test_tan_grid_to_zero_has_even_angles():
    grid = make_tan_grid(Space(process=EDM()), 4, 0.0, 0.6)
    angles = [math.atan(node.kappa / 0.6) for node in grid.nodes]
    assert np.diff(angles) == pytest.approx([-angles[0] / 4] * 4)


def test_dmn_weights_integrate_polynomials_exactly():
    """If D is a polynomial of the step's order in lam, sum_n J_n D_n is int e^lam D dlam."""
    from scipy.integrate import quad

    lams = np.array([-3.0, -1.7, -0.9, 0.4, 1.1, 2.0])
    weights = weigh_steps(lams) * math.exp(lams[-1])
    for n in range(5):
        order = min(3, n + 1, 5 - n)
        for power in range(order):
            wanted = quad(lambda u, p=power: math.exp(u) * u**p, lams[n], lams[n + 1])[0]
            assert weights[n] @ lams[:-1] ** power == pytest.approx(wanted, rel=1e-9)


@pytest.mark.parametrize("process", ["edm", "vp", "flow"])
@pytest.mark.parametrize("steps", [4, 9])
def test_dmn_lowers_its_bound_and_keeps_the_ends(process, steps):
    schedule = PROCESSES[process]
    low, high = Space(process=schedule).lams
    found = find_best_lams(schedule, steps, 1.0)
    even = np.linspace(low, high, steps + 1)
    assert (found[0], found[-1]) == (low, high)
    assert np.all(np.diff(found) > 0.0)
    assert bound_error(found, schedule, 1.0) < 0.95 * bound_error(even, schedule, 1.0)
