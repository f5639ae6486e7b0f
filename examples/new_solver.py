# %% [markdown]
# # A solver of your own
#
# DPM-Solver++(2M) extrapolates the last two predictions x0 to the middle of a step. Is that too
# bold at few evaluations, or not bold enough? Here is a solver with a dial: `boldness=0` is DDIM,
# 1 is DPM-Solver++, and the rest is new. It is written outside the package, in one class. We check
# its order of convergence, and then turn the dial at five evaluations.

# %%
import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from fewstep import GaussianMixture, RectifiedFlow, Sampler, compare
from fewstep.solvers import LinearSolver, SolverInfo, register

SEEDS = range(8)
FINE = 500  # steps of the reference
CONVERGED = {"solver": "unipc-3", "nfe": 60}

# %% [markdown]
# ## The class
#
# A linear solver says what each step weighs: the state x at the last node, and the predictions x0
# at this node and earlier ones. With the half log-SNR lam and h the width of a step in it,
#
#     x_s = sigma_s / sigma_t x_t + (alpha_s - alpha_t sigma_s / sigma_t) D,
#     D   = x0_n + boldness h_n / (2 h_{n-1}) (x0_n - x0_{n-1}).
#
# Its settings are the fields, `register` gives it its name, and from there on it can be typed
# wherever a solver can.


# %%
@register
@dataclass(frozen=True)
class Bold(LinearSolver):
    """DPM-Solver++(2M) with its extrapolation scaled.

    boldness: 0 is DDIM, 1 the published method.
    """

    info: ClassVar[SolverInfo] = SolverInfo(name="bold", order=2, source="this file")
    boldness: float = 1.0

    def combinations(self, grid):
        return [self.combine(grid.nodes, n) for n in range(grid.steps)]

    def combine(self, nodes, n):
        t, s = nodes[n], nodes[n + 1]
        ratio = s.sigma / t.sigma
        weight, lead = s.alpha - t.alpha * ratio, self.find_lead(nodes, n)
        combination = {("x", n): ratio, ("x0", n): weight * (1 + lead)}
        return combination | ({("x0", n - 1): -weight * lead} if lead else {})

    def find_lead(self, nodes, n):
        """Pure noise and clean data lie at infinite lam: there is nothing to extrapolate by."""
        if n == 0 or not math.isfinite(nodes[n - 1].lam) or not math.isfinite(nodes[n + 1].lam):
            return 0.0
        before, t, s = (node.lam for node in nodes[n - 1 : n + 2])
        return self.boldness * (s - t) / (2 * (t - before))


# %% [markdown]
# ## Its order
#
# On Gaussian data the exact solution is known, so the error is that of the solver alone: from a
# state of noise down to a little noise, twice the steps shall leave a quarter of the error.

# %%
law = GaussianMixture.single(torch.tensor([0.5, -0.2]), torch.tensor([0.3, 0.8]))
exact = Sampler(law.network(RectifiedFlow(time_scale=1), shape=(2,)))
span = {"grid": "logsnr:start=0.98,end=0.05", "final": "sigma_min"}
target = exact(SEEDS, solver="bold", steps=FINE, **span).samples


def find_order(boldness):
    """The slope of the error between 20 and 40 steps."""
    spec = f"bold:boldness={boldness}"
    runs = (exact(SEEDS, solver=spec, steps=n, **span).samples for n in (20, 40))
    coarse, fine = (float((run - target).abs().max()) for run in runs)
    return math.log2(coarse / fine)


orders = {boldness: find_order(boldness) for boldness in (0.0, 0.8, 1.0)}
print({boldness: f"order {order:.2f}" for boldness, order in orders.items()})
assert abs(orders[1.0] - 2) < 0.2
assert abs(orders[0.0] - 1) < 0.2

# %% [markdown]
# ## Turning the dial
#
# Only a boldness of 1 is of second order. That is about small steps; five are not small.

# %%
dial = (0, 0.5, 1, 1.5, 2)
settings = {f"bold {each}": {"solver": f"bold:boldness={each}", "nfe": 5} for each in dial}
comparison = compare("fashion-dit", settings, seeds=SEEDS, converged=CONVERGED, repeats=1)
print(comparison.table())
comparison.save("new_solver.png")
best = min(comparison.runs, key=lambda run: run.distance.value)
print(f"nearest to the converged run: {best.name}")

# %% [markdown]
# ## On the command line
#
# There `--solver bold` is known once this class is imported. A package of yours names the module
# in its `pyproject.toml`, and after `pip install` commands and calls know the solver by its name:
#
#     [project.entry-points."fewstep.solvers"]
#     bold = "my_package.bold"
