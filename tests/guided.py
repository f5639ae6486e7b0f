"""A guided problem with a known answer: a mixture, some of whose Gaussians are the condition."""

import math
from dataclasses import replace

import torch
from laws import MIXTURE, PROCESSES, even_in_lam, registered, start

from fewstep.models.denoiser import Branch, Denoiser
from fewstep.models.gaussian import GaussianMixture
from fewstep.models.registry import is_needed, settings_of
from fewstep.samplers.guidance import Unguided, names, policy_class
from fewstep.samplers.loop import integrate

SCHEDULE = PROCESSES["vp-linear"]
SHAPE = (2, 1, 2)
CLASS = GaussianMixture(MIXTURE.means[:2], MIXTURE.stds[:2], MIXTURE.weights[:2] / 0.8)
FIRST, LAST = 20.0, 0.05  # kappa of the ends; the middle of the grid is at 1
EDGE = math.sqrt(FIRST * LAST) * (1.0 + 1e-9)


def list_scaled():
    """Names of policies that need a scale and nothing else."""
    made = {name: settings_of(policy_class(name)) for name in names()}
    needed = {name: {each.name for each in made[name] if is_needed(each)} for name in made}
    return [name for name in needed if needed[name] == {"scale"}]


SCALED = list_scaled()


def network(schedule=SCHEDULE, seen=None):
    """Conditional with w = 1, unconditional with w = 0, per row; `seen` collects batch sizes."""
    cond, uncond = (law.network(schedule, SHAPE) for law in (CLASS, MIXTURE))

    def forward(x, node, conditions):
        if seen is not None:
            seen.append(len(x))
        w = conditions["w"].reshape(-1, 1, 1, 1)
        return w * cond.forward(x, node, {}) + (1.0 - w) * uncond.forward(x, node, {})

    return replace(cond, forward=forward)


def denoiser(rows=2, schedule=SCHEDULE, seen=None):
    w = {
        branch: {"w": torch.full((rows,), value, dtype=torch.float64)}
        for branch, value in ((Branch.COND, 1.0), (Branch.UNCOND, 0.0))
    }
    return Denoiser(network(schedule, seen), w)


def grid_of(n, first=FIRST, last=LAST, schedule=SCHEDULE):
    return even_in_lam(schedule, n, first, last)


def ends(settings, n, guidance, grid=None, x=None, who=None):
    """The end of a run of n steps."""
    grid = grid or grid_of(n)
    x = start(grid) if x is None else x
    who = who or denoiser(len(x))
    return integrate(who, settings.on(grid), grid, x, guidance)


def exact(first, second, cache={}):  # noqa: B006
    """Where the run goes that is guided by one policy down to the edge and then by the other."""
    key = repr((first, second))
    if key not in cache:
        rk = registered("ode-rk4")
        above, below = grid_of(300, FIRST, 1.0), grid_of(300, 1.0, LAST)
        x = ends(rk, 0, first, above)
        cache[key] = ends(rk, 0, second, below, x)
    return cache[key]


NONE = Unguided()
