"""Two networks in one run, each on its side of a noise level."""

from itertools import pairwise
from pathlib import Path

import diffusers
import pytest
import torch
from test_pipelines_families import latent, texts_of
from tiny_pipes import call, pipeline
from typer.testing import CliRunner

from fewstep import (
    CFG,
    RectifiedFlow,
    Sampler,
    Size,
    SolverScheduler,
    caching,
    encoded,
    from_module,
    join_experts,
)
from fewstep.cli import app
from fewstep.models.caching import find_attachment
from fewstep.models.errors import FewstepError, ModelError, SettingError
from fewstep.models.schedule import TimeGrid
from fewstep.samplers.expert_parts import format_low_noise
from fewstep.samplers.result_file import record_call
from fewstep.samplers.sampler import LoadedFrom
from fewstep.solvers import drive, take_solver

GRID = [1.0, 0.8, 0.65, 0.4, 0.3, 0.2, 0.1, 0.0]
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


def test_a_pipeline_of_two_solvers_is_sampled_as_with_a_scheduler_that_switches():
    """The scheduler changes where the pipeline changes networks, and the guidance with them."""
    pipe = wan()
    conditions, negative = encoded(pipe, SIZE, **texts_of("wan"))
    sampler = Sampler(latent(Sampler.from_pipeline(pipe, SIZE).network))
    texts = {"conditions": conditions, "negative": negative}
    usual = {"steps": 8, "grid": "uniform", "guidance": CFG(4.0), **texts}
    low_noise = {"solver": "dpmpp-2m:kind=taylor", "guidance": CFG(3.0)}
    found = sampler([0], solver="unipc-3", low_noise=low_noise, **usual).samples
    alone = sampler([0], solver="unipc-3", low_noise={"guidance": CFG(3.0)}, **usual).samples
    switch = "switch:high=unipc-3,low=[dpmpp-2m:kind=taylor],sigma=0.875"
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, solver=switch)
    theirs = call("wan", pipe, num_inference_steps=8, guidance_scale=4.0, guidance_scale_2=3.0)
    size = max(1.0, float(theirs.abs().max()))
    assert (found - theirs).abs().max() < 1e-5 * size
    assert (found - alone).abs().max() > 1e-3 * size


def test_one_network_on_both_sides_is_the_plain_run_bit_for_bit():
    """The solver's memory crosses the boundary."""
    one = made(0.4)
    both = Sampler(join_experts(one, made(0.4), sigma=0.6))
    for solver in ("unipc-3", "dpmpp-2m", "sa-solver", "euler"):
        own = Sampler(one)(range(3), solver=solver, steps=6).samples
        found = both(range(3), solver=solver, steps=6, batch=3)
        assert torch.equal(found.samples, own), solver
        assert both(range(3), solver=solver, steps=6, batch=2).ledger.nfe == found.ledger.nfe


def watch(sampler, **given):
    """The states (B, *) after each step of a run."""
    states = []
    sampler([0, 1], callback=lambda n, node, x, *_: states.append(x.clone()), **given)
    return states


def test_a_solver_of_its_own_begins_anew_at_the_boundary():
    """The first goes on as in a run of its own to the end, the second as in one from there."""
    sampler, usual = Sampler(join_experts(made(0.4), made(0.3), sigma=0.6)), {"grid": GRID}
    found = watch(sampler, solver="unipc-2", low_noise={"solver": "dpmpp-2m"}, **usual)
    whole = watch(Sampler(made(0.4)), solver="unipc-2", **usual)
    assert all(torch.equal(a, b) for a, b in zip(found[:3], whole, strict=False))
    x, nodes = whole[2].double(), [FLOW.at(t) for t in GRID[3:]]
    grid = TimeGrid.of(FLOW, GRID[3:])
    steps = take_solver("dpmpp-2m").on(grid)
    state = steps.init()
    for t, s in pairwise(nodes):
        x, state = drive(steps.step(x, state, t, s), lambda x, node: x - node.sigma * 0.3 * x)
    torch.testing.assert_close(found[-1].double(), x, rtol=0, atol=2e-6)
    assert not torch.equal(found[-1], watch(sampler, solver="unipc-2", **usual)[-1])
    spelled = watch(sampler, solver="switch:high=unipc-2,low=[dpmpp-2m],sigma=0.6", **usual)
    assert torch.equal(spelled[-1], found[-1])


class ByBranch:
    """A network whose predictions are constant: the mean it is told."""

    def __call__(self, x, time, mean):
        return (x - mean) / (time / 1000.0).reshape(-1, 1, 1, 1)


MEANS = {  # by branch
    "conditions": {"mean": torch.full((1, 2, 1, 1), 0.7)},
    "negative": {"mean": torch.tensor([0.2, -0.5]).reshape(1, 2, 1, 1)},
}


@pytest.mark.parametrize(("high", "low"), [(4.0, 1.5), (4.0, 1.0), (1.0, 3.0)])
@pytest.mark.parametrize("solver", ["dpmpp-2m", "dpmpp-3m", "unipc-3"])
def test_what_becomes_of_the_memory_where_guidance_jumps(solver, high, low):
    """Solvers are exact on what is constant, so they end where the second guidance leads from the
    boundary if they forget what was before it, or remember it as that would have been."""
    facts = {"schedule": FLOW, "prediction": "flow", "shape": (2, 2, 2)}
    network = join_experts(*(from_module(ByBranch(), **facts) for _ in range(2)), sigma=0.6)
    given = {"solver": solver, "grid": [*GRID[:-1], 0.05], "guidance": CFG(high), **MEANS}
    u, c = MEANS["negative"]["mean"], MEANS["conditions"]["mean"]
    far = {}
    for history in ("keep", "reset", "rewrite"):
        low_noise = {"guidance": CFG(low), "history": history}
        states = watch(Sampler(network), low_noise=low_noise, **given)
        ratio = 0.05 / GRID[3]
        exact = ratio * states[2] + (0.95 - 0.6 * ratio) * (u + low * (c - u))
        far[history] = float((states[-1] - exact).abs().max())
    assert far["reset"] < 3e-6
    assert far["rewrite"] < 3e-6
    assert far["keep"] > 1e-2


def test_guidance_that_goes_on_is_that_of_a_plain_run_to_the_bit():
    """Where it depends on the step alone, or rewrites the memory itself, across the boundary."""
    facts = {"schedule": FLOW, "prediction": "flow", "shape": (2, 2, 2)}
    one = from_module(ByBranch(), **facts)
    both = Sampler(join_experts(one, from_module(ByBranch(), **facts), sigma=0.6))
    interval = "cfg:scale=3+interval:low=0.35,high=9,rewrite_history=true"
    for solver, guidance in (("ddim", "cfg-pp"), ("dpmpp-3m", interval)):
        given = {"solver": solver, "grid": GRID, "guidance": guidance, **MEANS}
        plain = watch(Sampler(one), **given)[-1]
        assert torch.equal(watch(both, **given)[-1], plain), solver
        again = "history=rewrite" if solver == "ddim" else "history=keep"
        if guidance == interval:
            assert torch.equal(watch(both, low_noise=again, **given)[-1], plain)


def test_choices_for_the_second_network_are_taken_as_text_and_recorded(tmp_path):
    network = join_experts(made(0.4), made(0.3), sigma=0.6)
    values = {"solver": "dpmpp-2m:kind=taylor,lower_order_final=never", "boundary": 0.3}
    text = format_low_noise(values)
    assert text == "solver=[dpmpp-2m:kind=taylor,lower_order_final=never],boundary=0.3"
    given = {"solver": "unipc-2", "grid": GRID}
    found = Sampler(network)([0], low_noise=values, **given)
    assert torch.equal(Sampler(network)([0], low_noise=text, **given).samples, found.samples)
    sampler = Sampler(network, LoadedFrom("a-pipeline"))
    record = record_call(sampler([0], low_noise=values, **given).call)
    assert record.low_noise == text
    assert record.arguments()["low_noise"] == text
    with pytest.raises(SettingError, match="its guidance of low_noise was no text"):
        record_call(sampler([0], low_noise={"guidance": CFG(1.0)}, **given).call)


PAIR = """
from fewstep import RectifiedFlow, from_module, join_experts

facts = {"schedule": RectifiedFlow(time_scale=1000), "prediction": "flow", "shape": (3, 8, 8)}
one, other = (from_module(lambda x, t, k=k: k * x, **facts) for k in (0.5, 0.4))
pair = join_experts(one, other, sigma=0.875)
"""


def test_sample_takes_choices_for_the_second_network_and_repeats_them(tmp_path):
    (tmp_path / "pair.py").write_text(PAIR)
    model, out = f"{tmp_path}/pair.py:pair", [str(tmp_path / name) for name in ("a.png", "b.png")]
    words = [model, "--seeds", "0", "--steps", "6", "--low-noise"]

    def sample(*given):
        return CliRunner().invoke(app, ["sample", *map(str, given)])

    made = sample(*words, "solver=[dpmpp-2m:kind=taylor],boundary=0.6", "--out", out[0])
    assert made.exit_code == 0, made.output
    assert sample(model, "--from-png", out[0], "--out", out[1]).exit_code == 0
    assert Path(out[0]).read_bytes() == Path(out[1]).read_bytes()
    for text, message in (
        ("boundary=0.01", "lies outside of the steps of this run"),
        ("boundary=1.2", "is not a boundary of this process"),
        ("sover=euler", "did you mean 'solver'"),
    ):
        refused = sample(*words, text, "--out", tmp_path / "c.png")
        assert refused.exit_code == 2
        assert message in refused.stderr
    assert not (tmp_path / "c.png").exists()


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


def test_a_cache_on_both_networks_of_a_pipeline_knows_the_calls_of_each():
    """By the boundary of the pipeline, so that each has its own first and last calls."""
    pipe = wan()
    pipe.scheduler = SolverScheduler.from_config(pipe.scheduler.config, grid="uniform")
    with caching(pipe, "taylorseer:interval=3,order=1,level=last-block") as ledger:
        call("wan", pipe, num_inference_steps=10)
        high, low = find_attachment(pipe).engines
        times = pipe.scheduler.timesteps.tolist()
        assert [high.run.count(0, times[0]), low.run.count(0, times[5])] == [5, 5]
        assert [len(each.run.levels(0, times[0])) for each in (high, low)] == [5, 5]
    assert ledger.hits > 0
    with caching(pipe.transformer_2, "taylorseer:interval=3,order=1,level=last-block") as ledger:
        calls = count_calls(pipe.transformer.blocks[0].attn1)
        call("wan", pipe, num_inference_steps=10)
    assert calls[0] == 2 * 5  # the two branches are two calls
    assert ledger.hits > 0


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
    "history": ({"steps": 4, "low_noise": "history=kep"}, "no history 'kep'; did you mean 'keep'"),
    "anew": (
        {"steps": 4, "low_noise": "solver=euler,history=rewrite"},
        "begins anew, so history='rewrite' has nothing to go on with",
    ),
    "boundary": (
        {"steps": 4, "low_noise": {"boundary": 1.5}},
        "sigma=1.5 is not a boundary of this",
    ),
    "no number": ({"steps": 4, "low_noise": "boundary=high"}, "'high' must be a sigma, such as"),
    "outside": (
        {"steps": 4, "low_noise": "boundary=0.1"},
        r"sigma=0.1, lies outside .* 0 and 0.25",
    ),
    "two": (
        {"recipe": "ltx-2-8", "low_noise": "history=reset"},
        "a recipe decides the solver all the way",
    ),
    "own steps": (
        {"steps": 4, "low_noise": "solver=ode-dopri5"},
        "switch: ode-dopri5 chooses its own steps",
    ),
    "own guidance": (
        {"steps": 4, "low_noise": "solver=euler-cfg-pp"},
        "switch: euler-cfg-pp brings its own guidance",
    ),
    "adapted": (
        {"steps": 4, "guidance": "apg:scale=2", "low_noise": "history=rewrite"},
        "apg guidance depends on the course of a run",
    ),
    "nothing known": (
        {"steps": 4, "guidance": "cfg:scale=0", "low_noise": "history=rewrite"},
        "for guidance that evaluates the conditional branch",
    ),
    "short": (
        {"steps": 3, "low_noise": "cache=[fixed-mask:compute=[0,1,2]]"},
        "compute lists call 2, but the run has 1",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_divided_is_refused(case):
    given, message = REFUSED[case]
    usual = {} if case in ("adaptive", "recipe", "two") else {"solver": "euler", "grid": "uniform"}
    sampler = Sampler(join_experts(made(0.4), made(0.3), sigma=0.6))
    with pytest.raises(FewstepError, match=message):
        sampler([0], **usual | given)


def test_networks_that_cannot_answer_in_one_run_are_refused():
    other = made(0.3, schedule=RectifiedFlow(shift=3.0, time_scale=1000.0))
    with pytest.raises(ModelError, match=r"need one schedule: 'x0\.4' has .* and 'x0\.3'"):
        join_experts(made(0.4), other, sigma=0.6)
    with pytest.raises(SettingError, match="sigma=1 is not a boundary of this process"):
        join_experts(made(0.4), made(0.3), sigma=1.0)
    with pytest.raises(
        SettingError, match=r"x0\.4 is one network, and low_noise is for the second"
    ):
        Sampler(made(0.4))([0], steps=4, low_noise={"guidance": None})
    pipe = pipeline("wan", transformer_2=pipeline("wan").transformer)
    with pytest.raises(ModelError, match="does not say from where it answers"):
        Sampler.from_pipeline(pipe, SIZE)
