"""DMN: times that minimise a bound on the solver's error, without a network (arXiv:2402.17376).

A multistep solve in data prediction is x_N / sigma_N = x_0 / sigma_0 + sum_n c_n x0_n with

    c_n = sum over the steps that use x0_n of J,   J = int e^lam L_n(lam) dlam  over the step,

L_n the Lagrange polynomial of its points. If x0_n errs by at most eps(t_n) = sigma^p / alpha, the
end errs by at most F = sum_n |c_n| eps(t_n), which is minimised over the times.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from ....models.schedule import NoiseSchedule, TimeGrid
from ....samplers.ramps import find_lam_ends
from .base import Proposal, Task
from .named import propose_on

Array = NDArray[np.float64]
POWERS = (1.0, 2.0)
GAP = 0.02  # nearest nodes in lam
APART = 3  # first steps whose weights are not summed at few steps: the sum is too unstable there
FEW = 7
METHODS = ("SLSQP", "L-BFGS-B")  # the first finds more, but has been seen to return its start


def propose(task: Task) -> Iterator[Proposal]:
    """Yields the best times for each power p of the assumed network error."""
    space, process = task.space, task.space.process
    end = process.at(space.ends[0])
    for power in task.settings.get("dmn", POWERS):
        lams = find_best_lams(process, task.nfe, power)
        inner = [process.at_lam(float(lam)) for lam in lams[1:-1]]
        grid = TimeGrid(process, (process.at(process.t_max), *inner, end))
        yield from propose_on(task, grid.nodes, f"dmn p={power:g}")


def find_best_lams(process: NoiseSchedule, steps: int, power: float) -> Array:
    """Returns the lam of steps + 1 nodes with both ends fixed; even in lam where it starts."""
    low, high = find_lam_ends(process)
    even = np.linspace(low, high, steps + 1)
    if steps == 1:
        return even

    def lams(logits: Array) -> Array:
        """Increments by a softmax, each at least GAP, so that no trial ever leaves the range."""
        shares = np.exp(logits - logits.max())
        gaps = GAP + (high - low - GAP * steps) * shares / shares.sum()
        return np.concatenate([[low], low + np.cumsum(gaps)[:-1], [high]])

    def objective(logits: Array) -> float:
        return float(np.log(bound_error(lams(logits), process, power)))

    start = np.zeros(steps)
    for method in METHODS:
        result = minimize(objective, start, method=method, options={"maxiter": 500})
        if result.fun < objective(start):
            return lams(result.x)
    return even


def bound_error(lams: Array, process: NoiseSchedule, power: float) -> float:
    """F of the module, for orders 1, 2, 3, ..., 3, 2, 1."""
    steps = len(lams) - 1
    nodes = [process.at_lam(float(lam)) for lam in lams[:-1]]
    weights = weigh_steps(lams)
    apart = APART if steps <= FEW else 0
    alone = np.sqrt(np.square(weights[:apart]).sum(0))
    summed = np.abs(weights[apart:].sum(0)) + alone
    errors = np.array([node.sigma**power / node.alpha for node in nodes])
    return float(summed @ errors)


def weigh_steps(lams: Array) -> Array:
    """J of each step (rows) for each prediction (columns), in units of e^{lam of the end}."""
    steps = len(lams) - 1
    weights = np.zeros((steps, steps))
    for n in range(steps):
        order = min(3, n + 1, steps - n)
        points = np.arange(n, n - order, -1)
        h, scale = lams[n + 1] - lams[n], np.exp(lams[n] - lams[-1])
        coefficients = np.linalg.inv(np.vander(lams[points] - lams[n], increasing=True))
        weights[n, points] = scale * (_moments(h)[:order] @ coefficients)
    return weights


def _moments(h: float) -> Array:
    """int_0^h e^u u^k du for k = 0, 1, 2."""
    first = np.expm1(h)
    second = h * np.exp(h) - first
    return np.array([first, second, h * h * np.exp(h) - 2.0 * second])
