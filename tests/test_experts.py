"""Two networks in one run, each on its side of a noise level."""

import diffusers
import pytest
import torch
from test_pipelines_families import latent, texts_of
from tiny_pipes import call, pipeline

from fewstep import (
    CFG,
    RectifiedFlow,
    Sampler,
    Size,
    SolverScheduler,
    encoded,
    from_module,
    join_experts,
)
from fewstep.models.errors import FewstepError, ModelError, SettingError

SIZE = Size(64, 64, frames=5)
FLOW = RectifiedFlow(time_scale=1000.0)


def made(factor, seen=None, **facts):
    """A network that answers factor x, and notes the times it is told."""

    def forward(x, time):
        if seen is not None:
            seen.append(float(time[0]))
        return factor * x

    known = {"schedule": FLOW, "prediction": "flow", "shape": (2, 2, 2), "name": f"x{factor}"}
    return from_module(forward, **{**known, **facts})


def wan(shift=5.0, **own):
    """A tiny Wan 2.2: two transformers with other weights, and the scheduler of Wan."""
    torch.manual_seed(3)
    second = pipeline("wan").transformer
    for parameter in second.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    pipe = pipeline("wan", transformer_2=second, boundary_ratio=0.875, **own)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    return pipe


def count_calls(module):
    """Counts the calls of a module in a list of one number."""
    calls = [0]
    module.register_forward_pre_hook(lambda *_: calls.__setitem__(0, calls[0] + 1))
    return calls


@pytest.mark.parametrize(("steps", "high"), [(4, 2), (8, 3)])
def test_a_pipeline_of_two_networks_is_sampled_as_it_samples_itself(steps, high):
    """With its own Euler steps; each network answers on its side, with its own scale."""
    pipe = wan()
    scales = {"guidance_scale": 4.0, "guidance_scale_2": 3.0}
    wanted = call("wan", pipe, num_inference_steps=steps, **scales)
    conditions, negative = encoded(pipe, SIZE, **texts_of("wan"))
    sampler = Sampler(latent(Sampler.from_pipeline(pipe, SIZE).network))
    times = [sampler.network.schedule.unshift(s) for s in pipe.scheduler.sigmas.tolist()]
    calls = count_calls(pipe.transformer), count_calls(pipe.transformer_2)
    found = sampler(
        [0],
        conditions=conditions,
        negative=negative,
        solver="euler",
        grid=times,
        guidance=CFG(4.0),
        low_noise={"guidance": CFG(3.0)},
    )
    assert (found.samples - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))
    assert (calls[0][0], calls[1][0]) == (high, steps - high)
    assert found.ledger.rows_per_image == 2 * steps
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, solver="euler", grid=times)
    again = call("wan", pipe, num_inference_steps=steps, **scales)
    assert (again - wanted).abs().max() < 1e-5 * max(1.0, float(wanted.abs().max()))


def test_one_network_on_both_sides_is_the_plain_run_bit_for_bit():
    """The solver's memory crosses the boundary."""
    one = made(0.4)
    both = Sampler(join_experts(one, made(0.4), sigma=0.6))
    for solver in ("unipc-3", "dpmpp-2m", "sa-solver", "euler"):
        own = Sampler(one)(range(3), solver=solver, steps=6).samples
        found = both(range(3), solver=solver, steps=6, batch=3)
        assert torch.equal(found.samples, own), solver
        assert both(range(3), solver=solver, steps=6, batch=2).ledger.nfe == found.ledger.nfe


@pytest.mark.parametrize("boundary", [0.875, 0.9])
def test_each_network_answers_on_its_side_of_the_trained_times(boundary):
    """Two steps of Wan2.2-Lightning each, wherever it is; a node on it is the first's."""
    high, low = [], []
    sampler = Sampler(join_experts(made(0.4, high), made(0.3, low), sigma=boundary))
    with pytest.warns(UserWarning, match="not confirmed"):
        sampler([0], recipe="wan2.2-lightning-4")
    assert (high, low) == ([1000.0, 937.5], pytest.approx([833.3333, 625.0]))
    del high[:], low[:]
    sampler([0], solver="euler", grid=[1.0, boundary, 0.5, 0.0])
    assert (high, low) == ([1000.0, 1000.0 * boundary], [500.0])


def test_a_cache_on_one_network_does_not_touch_the_other():
    pipe = wan()
    conditions, negative = encoded(pipe, SIZE, **texts_of("wan"))
    sampler = Sampler(latent(Sampler.from_pipeline(pipe, SIZE).network))
    given = {"conditions": conditions, "negative": negative, "solver": "euler", "steps": 10}
    given |= {"grid": "uniform", "guidance": CFG(4.0)}
    cache = "taylorseer:interval=3,order=1,level=last-block"
    plain = sampler([0], **given)
    blocks = [count_calls(each.blocks[0].attn1) for each in (pipe.transformer, pipe.transformer_2)]
    low = sampler([0], low_noise={"cache": cache}, **given)
    whole, skipped = (each[0] for each in blocks)
    assert whole == 5
    assert skipped < 5
    assert low.ledger.cache.hits == 5 - skipped
    high = sampler([0], cache=cache, **given)
    assert (blocks[0][0] - whole, blocks[1][0] - skipped) == (5 - high.ledger.cache.hits, 5)
    assert high.ledger.cache.hits > 0
    assert (low.samples - plain.samples).abs().max() > 0.0
    both = sampler([0], cache=cache, low_noise={"cache": cache}, **given).ledger.cache
    assert both.hits == low.ledger.cache.hits + high.ledger.cache.hits


REFUSED = {
    "end": ({"steps": 1}, "sigma=0.6, lies outside of the steps of this run; its nearest nodes"),
    "start": ({"grid": [0.5, 0.2, 0.0]}, r"lies outside .* are at 0.5 and 0.2: take more steps"),
    "block": ({"solver": "dpmpp-2s", "steps": 4, "grid": "uniform"}, "lies within a block of this"),
    "stage": ({"solver": "heun", "steps": 4}, "asks at sigma 0.5 below it; take a solver with one"),
    "adaptive": ({"solver": "ode-dopri5"}, "an adaptive solver chooses its own steps"),
    "recipe": (
        {"recipe": "ltx-2-8", "low_noise": {"guidance": "cfg:scale=3"}},
        "guidance is in the weights of ltx-2-8",
    ),
    "choice": ({"steps": 4, "low_noise": {"guidence": None}}, "did you mean 'guidance'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_divided_is_refused(case):
    given, message = REFUSED[case]
    usual = {} if case in ("adaptive", "recipe") else {"solver": "euler", "grid": "uniform"}
    sampler = Sampler(join_experts(made(0.4), made(0.3), sigma=0.6))
    with pytest.raises(FewstepError, match=message):
        sampler([0], **usual | given)


def test_networks_that_cannot_answer_in_one_run_are_refused():
    other = made(0.3, schedule=RectifiedFlow(shift=3.0, time_scale=1000.0))
    with pytest.raises(ModelError, match=r"need one schedule: 'x0\.4' has .* and 'x0\.3'"):
        join_experts(made(0.4), other, sigma=0.6)
    with pytest.raises(SettingError, match="sigma=1 is no boundary of this process"):
        join_experts(made(0.4), made(0.3), sigma=1.0)
    with pytest.raises(
        SettingError, match=r"x0\.4 is one network, and low_noise is for the second"
    ):
        Sampler(made(0.4))([0], steps=4, low_noise={"guidance": None})
    pipe = pipeline("wan", transformer_2=pipeline("wan").transformer)
    with pytest.raises(ModelError, match="does not say from where it answers"):
        Sampler.from_pipeline(pipe, SIZE)
