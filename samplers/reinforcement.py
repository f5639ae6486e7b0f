"""Steps with their log-probability, for reinforcement learning of flow and VP networks.

Every kind of step is a draw from a Gaussian whose mean is linear in the state and the network's
output; see `solvers.flow_sde`, and `ddpm` for "vp".
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.errors import SettingError, UnknownNameError
from ..models.prediction import Prediction, combine, eps_from, x0_from
from ..models.schedule import Node
from ..solvers.exponential import StepSpec, combine_step
from ..solvers.flow_sde import StepLaw, find_flow_cps, find_flow_sde, find_posterior

LEVELS = {"sde": 0.7, "dance": 0.3, "cps": 0.7, "vp": 1.0, "ode": 0.0}
MOST = {"cps": 1.0, "vp": 1.0, "ode": 0.0}
Generators = torch.Generator | list[torch.Generator] | None


class LogProbStep(NamedTuple):
    """A step and its probability.

    x:        the state (B, *) at s, without gradient.
    log_prob: (B,), the mean over all dimensions but the batch; the whole is their number times it.
              0 where the step is not stochastic.
    mean:     (B, *), with the gradient; to a reference the KL is |mean - mean_ref|^2 / (2 std^2).
    std:      the deviation omega of the noise.
    root_dt:  sqrt(sigma_t - sigma_s), which is sqrt(-dt) on rectified flow.
    x0:       the prediction (B, *).
    t, s:     the nodes.
    stochastic: whether the step drew noise.
    """

    x: Tensor
    log_prob: Tensor
    mean: Tensor
    std: float
    root_dt: float
    x0: Tensor
    t: Node
    s: Node
    stochastic: bool


def logprob_step(
    kind: str,
    x: Tensor,
    out: Tensor,
    t: Node,
    s: Node,
    *,
    prev: Tensor | None = None,
    generator: Generators = None,
    level: float | None = None,
    prediction: Prediction | str | None = None,
    sigma_data: float = 0.5,
) -> LogProbStep:
    """Takes a step from t to s, or says how probable one is that was taken.

    Args:
        kind: "sde" (Flow-GRPO), "dance" (DanceGRPO), "cps" (Flow-CPS) on rectified flow, "vp"
            (DDPO) on any process, or "ode", Euler's step without noise.
        x: the state (B, *) at t; it is computed with in float32 at least.
        out: the network's output (B, *), whose gradient the mean and log_prob carry.
        prev: the state at s that was drawn before; then nothing is drawn.
        generator: what the noise is drawn from; of a list, one per row.
        level: how much noise: a, and eta of "dance" and "vp"; None is 0.7, 0.3, 0.7 and 1.
        prediction: what the network predicts; None is "flow", and "eps" for "vp".
        sigma_data: of networks with the prediction "edm".

    log_prob is that of the whole Gaussian, and of "cps" -(x_s - mean)^2, as published.

    Raises:
        SettingError: for prev beside a generator, a level out of range, states of another shape,
            or nodes that are not those of the kind's process.
        UnknownNameError: for an unknown kind.
    """
    level = _check_level(kind, level)
    if prev is not None and generator is not None:
        raise SettingError(
            "prev is the state that was drawn, and nothing is drawn anew; drop the generator"
        )
    _check_nodes(kind, t, s)
    x = x.to(torch.promote_types(x.dtype, torch.float32))
    for name, given in (("out", out), ("prev", prev)):
        if given is not None and given.shape != x.shape:
            raise SettingError(f"{name} has shape {tuple(given.shape)}, but x {tuple(x.shape)}")
    default = Prediction.EPS if kind == "vp" else Prediction.FLOW
    told = default if prediction is None else Prediction.named(prediction)
    x0 = combine(x0_from(told, t, sigma_data), x, out := out.to(x.dtype))
    law = _find_law(kind, t, s, level)
    if law.omega == 0.0:
        mean, state = _step_by_ode(x, x0, t, s), prev
    else:
        noise, clean = eps_from(told, t, sigma_data), x0_from(told, t, sigma_data)
        of_x, of_out = (s.alpha * a + law.rho * b for a, b in zip(clean, noise, strict=True))
        mean = combine((of_x, of_out), x, out)
        state = mean + law.omega * _draw(x, generator) if prev is None else prev
    state = (mean if state is None else state.to(x.dtype)).detach()
    log_prob = _compute_log_prob(kind, state, mean, law.omega)
    root = math.sqrt(max(0.0, t.sigma - s.sigma))
    return LogProbStep(state, log_prob, mean, law.omega, root, x0, t, s, law.omega > 0.0)


def _check_level(kind: str, level: float | None) -> float:
    if kind not in LEVELS:
        raise UnknownNameError("kind of step", kind, LEVELS)
    level, most = LEVELS[kind] if level is None else level, MOST.get(kind, math.inf)
    if not 0.0 <= level <= most or math.isinf(level):
        upper = f" and at most {most:g}" if kind in MOST else ""
        raise SettingError(f"level={level:g} of {kind!r} must be at least 0{upper}")
    return level


def _check_nodes(kind: str, t: Node, s: Node) -> None:
    if not s.lam > t.lam:
        raise SettingError(f"a step goes from noise to data, not from t={t.t:g} to t={s.t:g}")
    straight = all(abs(node.alpha + node.sigma - 1.0) < 1e-6 for node in (t, s))
    if kind in ("sde", "dance", "cps") and not straight:
        raise SettingError(f"{kind!r} is a step of rectified flow; elsewhere take 'vp'")


def _find_law(kind: str, t: Node, s: Node, level: float) -> StepLaw:
    match kind:
        case "sde" | "dance":
            return find_flow_sde(t, s, level, "sde" if kind == "sde" else "dance")
        case "cps":
            return find_flow_cps(s, level)
        case _:
            return find_posterior(t, s, level)


def _step_by_ode(x: Tensor, x0: Tensor, t: Node, s: Node) -> Tensor:
    """Returns what `ddim` and `euler` do, to the bit."""
    weights = combine_step([t, s], 0, 1, StepSpec(), [])
    return (x * weights["x", 0]).add(x0, alpha=weights["x0", 0])


def _draw(x: Tensor, generator: Generators) -> Tensor:
    """Returns standard normal noise like x."""
    from .diffusers.stepper import make_draw

    return make_draw(generator)(x)


def _compute_log_prob(kind: str, state: Tensor, mean: Tensor, omega: float) -> Tensor:
    """Returns the log-probability (B,), the mean over the other dimensions."""
    off = (state - mean).square().flatten(1).mean(1)
    if omega == 0.0:
        return torch.zeros_like(off)
    if kind == "cps":
        return -off
    return -off / (2.0 * omega * omega) - math.log(omega) - 0.5 * math.log(2.0 * math.pi)
