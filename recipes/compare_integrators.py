"""Measures our adaptive drivers beside torchdiffeq's: the table of docs/integrators.md.

    python recipes/compare_integrators.py [NETWORK ...] [--images 16]

One row for each network and tolerance (rtol = atol): the distance, which is the root mean square to
a run of ode-dopri8 at 1e-5, and in brackets the evaluations, of ode-dopri5 by its own driver, by
backend=torchdiffeq, and of `torchdiffeq.odeint` on `velocity_field`, which steps in the network's
own time from t_max to t_min and goes on to 0 in one Euler step. "mixture" is a closed-form law.
"""

import argparse

import torch
from torch import Tensor
from torchdiffeq import odeint

from fewstep.eval.experiments.accuracy import draw_mixture
from fewstep.models.load import load
from fewstep.models.network import Network
from fewstep.models.schedule import RectifiedFlow
from fewstep.samplers.noise import Noise, draw_start
from fewstep.samplers.sampler import Sampler
from fewstep.samplers.velocity_field import velocity_field

TOLERANCES = (1e-2, 1e-3, 1e-4)
HEADER = "| network | tolerance | own | backend=torchdiffeq | odeint on velocity_field |"


def main() -> None:
    asked = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    asked.add_argument("networks", nargs="*", default=["mixture", "fashion-dit"])
    asked.add_argument("--images", type=int, default=16)
    given = asked.parse_args()
    print(HEADER, "|---|---:|---:|---:|---:|", sep="\n")
    for name in given.networks:
        network = make_mixture() if name == "mixture" else load(name)
        sampler, seeds = Sampler(network), range(given.images)
        reference, _ = run(sampler, seeds, "ode-dopri8:rtol=1e-5,atol=1e-5")
        for tolerance in TOLERANCES:
            spec = f"ode-dopri5:rtol={tolerance},atol={tolerance}"
            results = [run(sampler, seeds, spec)]
            results.append(run(sampler, seeds, f"{spec},backend=torchdiffeq"))
            results.append(integrate(sampler, seeds, tolerance))
            cells = (
                f"{(x - reference).square().mean().sqrt():.4f} ({calls})" for x, calls in results
            )
            print(f"| {name} | {tolerance:g} |", " | ".join(cells), "|", flush=True)


def make_mixture() -> Network:
    """Returns six Gaussians in eight dimensions as a flow network."""
    return draw_mixture().network(RectifiedFlow(time_scale=1.0), (8,))


def run(sampler: Sampler, seeds: range, solver: str) -> tuple[Tensor, int]:
    """Returns samples and the evaluations that they took."""
    result = sampler(seeds, class_labels=0 if sampler.network.num_classes else None, solver=solver)
    return result.samples, result.ledger.evaluations // len(seeds)


def integrate(sampler: Sampler, seeds: range, tolerance: float) -> tuple[Tensor, int]:
    """Returns what torchdiffeq makes of the network's velocity field in the network's own time."""
    network = sampler.network
    schedule = network.schedule
    field = velocity_field(network, class_labels=0 if network.num_classes else None)
    x = draw_start(Noise(list(seeds), network.shape), schedule, schedule.at(schedule.t_max))
    times = torch.tensor([schedule.t_max, schedule.t_min], dtype=torch.float64)
    options = {"step_t": times[1:]}
    with torch.no_grad():
        x = odeint(
            field, x, times, rtol=tolerance, atol=tolerance, method="dopri5", options=options
        )[-1]
        x = x + field(times[1], x) * (schedule.t_zero - schedule.t_min)
    return x, field.ledger.evaluations // len(seeds)


if __name__ == "__main__":
    main()
