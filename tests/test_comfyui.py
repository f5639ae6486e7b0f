"""The node pack for ComfyUI, on the stand-in, and on the real one that COMFYUI names."""

import importlib.util
import json
import logging
import sys

import comfyui_engine
import pytest
import torch
from comfyui_engine import CONDITION, FOLDER, NOTHING, PACK, Blocks, Gaussian, Real, StandIn
from test_schedule_data import guided_example

from fewstep import CachedCalls, RectifiedFlow, Schedule, solver
from fewstep.k_diffusion import get_sigmas
from fewstep.models.errors import FewstepError
from fewstep.samplers.plan import make_plan
from fewstep.solvers.presets import preset

NODES = ["FewstepSampler", "FewstepGrid", "FewstepSchedule", "FewstepCache", "FewstepGuidance"]
_REAL: list[Real] = []


REAL = pytest.param(
    "real",
    marks=[pytest.mark.comfyui, pytest.mark.skipif(not FOLDER, reason="COMFYUI is not set")],
)


@pytest.fixture(params=["stand-in", REAL])
def engine(request, monkeypatch, tmp_path):
    if request.param == "stand-in":
        return StandIn(monkeypatch, tmp_path)
    if not _REAL:
        _REAL.append(Real())
    return _REAL[0]


def take(engine, node, **inputs):
    """The one output of a node."""
    (output,) = engine.call(node, **inputs)
    return output


def grid(engine, model, name="default", settings="", steps=12, denoise=1.0):
    return take(
        engine,
        "FewstepGrid",
        model=model,
        grid=name,
        settings=settings,
        steps=steps,
        denoise=denoise,
    )


def guided(engine, model, settings, policy="cfg", negative=((NOTHING, {}),)):
    return take(
        engine,
        "FewstepGuidance",
        model=model,
        positive=[[CONDITION, {}]],
        negative=[list(each) for each in negative],
        policy=policy,
        settings=settings,
    )


def cached(engine, model, settings, policy="taylorseer"):
    return take(engine, "FewstepCache", model=model, policy=policy, settings=settings)


def sampler(engine, solver, settings=""):
    return take(engine, "FewstepSampler", solver=solver, settings=settings)


def test_the_nodes_are_there(engine):
    assert [name for name in engine.nodes if name.startswith("Fewstep") and name in NODES] == NODES


# ---- sampler


PARITY = {  # (kind, solver): calls of the network
    ("flow", "euler"): 12,
    ("flow", "heun"): 23,
    ("eps", "euler"): 12,
    ("eps", "heun"): 23,
}


def test_euler_and_heun_are_those_of_comfyui(engine):
    for (kind, name), calls in PARITY.items():
        network = Gaussian(kind)
        model = engine.model(kind, network)
        sigmas, guider = grid(engine, model), engine.guide(model, 1.0)
        ours = engine.draw(guider, sampler(engine, name), sigmas)
        assert network.rows == 2 * calls, (kind, name)
        theirs = engine.draw(guider, engine.samplers.ksampler(name), sigmas)
        assert float((ours - theirs).abs().max()) < 1e-6, (kind, name)


def test_progress_is_told_once_a_step(engine):
    told, model = [], engine.model("flow", Gaussian())
    engine.draw(
        engine.guide(model, 1.0),
        sampler(engine, "heun"),
        grid(engine, model, steps=4),
        told=lambda i, x0, x, total: told.append((i, x0.shape, x.shape, total)),
    )
    assert told == [(i, (2, 4, 4, 4), (2, 4, 4, 4), 4) for i in range(4)]


def test_the_kept_part_of_a_mask_is_kept(engine):
    model, mask = engine.model("flow", Gaussian()), torch.zeros(2, 1, 4, 4)
    mask[..., 2:] = 1.0
    drawn = engine.draw(
        engine.guide(model, 1.0), sampler(engine, "unipc-3"), grid(engine, model), mask=mask
    )
    assert torch.equal(drawn[..., :2], torch.zeros(2, 4, 4, 2))
    assert float(drawn[..., 2:].std()) > 0.3


def test_a_seed_gives_the_same_noise_again(engine):
    model = engine.model("eps", Gaussian("eps"))
    sigmas, guider = grid(engine, model), engine.guide(model, 1.0)
    drawn = [
        engine.draw(guider, sampler(engine, "sde-dpmpp-2"), sigmas, seed=seed) for seed in (3, 3, 4)
    ]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])


def test_names_are_in_the_plain_ksampler_once(engine, monkeypatch):
    lists = engine.samplers.KSAMPLER_NAMES, engine.samplers.SAMPLER_NAMES
    names = sys.modules[f"{engine.pack.__name__}.names"]
    names.add_names()
    for each in lists:
        assert [name for name in each if name.startswith("fewstep_")] == [
            f"fewstep_{name}" for name in names.SAMPLERS
        ]
    assert engine.samplers.SCHEDULER_NAMES.count("fewstep") == 1
    model = engine.model("flow", Gaussian())
    sampling = model.get_model_object("model_sampling")
    sigmas = engine.samplers.SCHEDULER_HANDLERS["fewstep"].handler(sampling, 12)
    assert torch.equal(sigmas, grid(engine, model))
    guider = engine.guide(model, 1.0)
    plain = engine.draw(guider, engine.samplers.ksampler("fewstep_unipc_3"), sigmas)
    assert torch.equal(plain, engine.draw(guider, sampler(engine, "unipc-3"), sigmas))
    monkeypatch.setenv(names.SWITCH, "0")
    before = [list(each) for each in lists]
    monkeypatch.setattr(names, "SAMPLERS", ("heun",))
    names.add_names()
    assert [list(each) for each in lists] == before


# ---- grid


def test_a_grid_of_a_flow_is_shifted_once(engine):
    model = engine.model("flow", Gaussian())
    found = grid(engine, model, "uniform", steps=4)
    t = torch.tensor([1.0, 0.75, 0.5, 0.25, 0.0])
    torch.testing.assert_close(found, 3.0 * t / (1.0 + 2.0 * t))
    half = grid(engine, model, "uniform", steps=2, denoise=0.5)
    assert torch.equal(half, found[2:])
    assert grid(engine, model, denoise=0.0).shape == (0,)


def test_a_grid_of_a_discrete_network_is_on_its_timesteps(engine):
    model = engine.model("eps", Gaussian("eps"))
    sampling, found = model.get_model_object("model_sampling"), grid(engine, model, "karras")
    assert len(found) == 13
    table = sampling.sigmas.tolist()
    for sigma in found[:-1].tolist():
        assert min(abs(sigma / each - 1.0) for each in table) < 1e-6
    torch.testing.assert_close(found[0], sampling.sigmas[-1])
    assert found[-1] == 0.0


def test_a_grid_that_is_finer_than_the_timesteps_says_so(engine, caplog):
    model = engine.model("eps", Gaussian("eps"))
    found = grid(engine, model, "karras", steps=300)
    assert len(found) < 301
    assert torch.equal(found.unique().flip(0), found)
    assert f"comes to {len(found) - 1} steps here, not 300" in caplog.text


# ---- schedule


def make_flow_schedule(steps=6):
    """A schedule of unipc-2 on the path of flow networks."""
    times = make_plan(RectifiedFlow(), "unipc-2", steps=steps).grid
    return Schedule.of(solver("unipc-2").table(times), times, {})


def test_a_schedule_brings_sigmas_and_sampler(engine):
    schedule = make_flow_schedule()
    model = engine.model("flow", Gaussian())
    sigmas, run = engine.call("FewstepSchedule", model=model, schedule=schedule.dump())
    assert torch.equal(sigmas, get_sigmas(schedule))
    guider = engine.guide(model, 1.0)
    drawn = engine.draw(guider, run, sigmas)
    named = engine.draw(guider, sampler(engine, "unipc-2"), sigmas)
    torch.testing.assert_close(drawn, named, rtol=1e-5, atol=1e-6)
    with pytest.raises(FewstepError, match="brings its own sigmas"):
        engine.draw(guider, run, grid(engine, model, steps=6))


def test_a_schedule_of_stable_diffusion_runs_on_its_table(engine):
    model = engine.model("eps", Gaussian("eps"))
    sigmas, run = engine.call("FewstepSchedule", model=model, schedule="ays-sd15-nfe10")
    assert torch.equal(sigmas, get_sigmas(preset("ays-sd15-nfe10")))
    drawn = engine.draw(engine.guide(model, 1.0), run, sigmas, rows=64)
    assert float(drawn.mean()) == pytest.approx(0.3, abs=0.05)
    assert float(drawn.std()) == pytest.approx(0.5, abs=0.05)


CACHED = CachedCalls(compute=(0, 1, 3, 5))
REFUSED = [
    ("flow", lambda: "ays-sd15-nfe10", "path is flow"),
    ("eps", lambda: make_flow_schedule().dump(), "for flow networks"),
    ("eps", lambda: preset("usf-cifar10-nfe9").dump(), "another path"),
    ("eps", lambda: json.dumps(guided_example()), "combines the branches"),
    ("flow", lambda: make_flow_schedule().with_cache(CACHED).dump(), "brings a cache"),
    ("eps", lambda: "no-such-schedule", "list schedules"),
    ("eps", lambda: "../elsewhere.json", "input folder"),
    ("eps", lambda: "{", "JSON"),
]


def test_other_schedules_are_refused_with_a_remedy(engine):
    for kind, text, words in REFUSED:
        model = engine.model(kind, Gaussian(kind))
        with pytest.raises(FewstepError, match=words) as caught:
            engine.call("FewstepSchedule", model=model, schedule=text())
        assert "\n" not in str(caught.value)


# ---- guidance


def test_guidance_is_that_of_comfyui(engine):
    """To the rounding: ours is one `lerp`. Without guidance it is to the bit."""
    for kind in ("flow", "eps"):
        model = engine.model(kind, Gaussian(kind))
        sigmas, run = grid(engine, model), sampler(engine, "dpmpp-2m")
        for scale, most in ((1.0, 0.0), (3.0, 2e-6)):
            ours = engine.draw(guided(engine, model, f"scale={scale}"), run, sigmas)
            theirs = engine.draw(engine.guide(model, scale), run, sigmas)
            assert float((ours - theirs).abs().max()) <= most, (kind, scale)


def test_an_interval_leaves_rows_out_for_any_sampler(engine):
    for run in (sampler(engine, "heun"), engine.samplers.ksampler("heun")):
        network = Gaussian()
        model = engine.model("flow", network)
        sigmas = grid(engine, model)
        inside = [0.3 < sigma <= 0.9 for sigma in sigmas.tolist()]
        guider = guided(engine, model, "scale=3+interval:low=0.3,high=0.9,in=t")
        engine.draw(guider, run, sigmas, rows=1)
        both = sum(inside[:-1]) + sum(inside[1:-1])  # at the start of each step, and at its end
        assert network.rows == 23 + both
        assert 0 < both < 23


def test_a_policy_that_judges_steps_sees_each_once(engine):
    network = Gaussian()
    model = engine.model("flow", network)
    guider = guided(engine, model, "scale=2,threshold=-0.9,warmup=1,need=4", "adaptive")
    engine.draw(guider, engine.samplers.ksampler("heun"), grid(engine, model), rows=1)
    assert network.rows == 23 + 7  # four steps agree: one evaluation at the first, two at others


def test_no_negative_condition_is_asked_for_where_none_is_needed(engine):
    network = Gaussian()
    model = engine.model("flow", network)
    sigmas = grid(engine, model)
    engine.draw(
        guided(engine, model, "scale=1", negative=()), sampler(engine, "euler"), sigmas, rows=1
    )
    assert network.rows == 12
    with pytest.raises(FewstepError, match="connect one"):
        guided(engine, model, "scale=3", negative=())


def test_guidance_that_needs_more_than_a_guider_is_refused(engine):
    model = engine.model("flow", Gaussian())
    for policy, settings, words in (
        ("cfg-pp", "scale=0.6", "fewstep.Sampler"),
        ("adaptive", "scale=3,batch=per-sample", "batch=all"),
        ("cfg", "sclae=3", "did you mean"),
    ):
        with pytest.raises(FewstepError, match=words):
            guided(engine, model, settings, policy)


# ---- cache


def run_cached(engine, network, settings="", policy="taylorseer", scale=2.0, steps=8, **named):
    model = engine.model("flow", network)
    if settings:
        model = cached(engine, model, settings, policy)
    guider = guided(engine, model, f"scale={scale}")
    return engine.draw(guider, sampler(engine, "euler"), grid(engine, model, steps=steps), **named)


LAST = "order=1,level=last-block"


def test_a_cache_skips_blocks_and_leaves_the_model_as_it_was(engine, caplog):
    caplog.set_level(logging.INFO)
    network = Blocks()
    plain = run_cached(engine, network)
    assert network.count() == 32
    assert torch.equal(run_cached(engine, network, f"interval=1,{LAST}"), plain)
    network = Blocks()
    first = run_cached(engine, network, f"interval=2,{LAST}")
    assert "skipped 3 of 8 calls" in caplog.text
    error = float((first - plain).norm() / plain.norm())
    assert 0.0 < error < 0.05
    assert torch.equal(run_cached(engine, network, f"interval=2,{LAST}"), first)
    before = network.count()
    assert torch.equal(run_cached(engine, network), plain)
    assert network.count() == before + 32


def test_a_run_that_is_stopped_leaves_the_model_as_it_was(engine):
    network = Blocks()
    plain = run_cached(engine, network)

    def stop(i, *_):
        if i == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cached(engine, network, f"interval=2,{LAST}", told=stop)
    assert torch.equal(run_cached(engine, network), plain)


def test_branches_in_calls_of_their_own_have_memories_of_their_own(engine, monkeypatch):
    together = run_cached(engine, Blocks(), f"interval=2,{LAST}")
    engine.part_branches(monkeypatch)
    network = Blocks()
    apart = run_cached(engine, network, f"interval=2,{LAST}")
    assert network.count() > 4 * 8  # calls of one branch each
    torch.testing.assert_close(apart, together)


def test_batches_of_other_branches_do_not_disturb_a_memory(engine, monkeypatch, caplog):
    """Memory allows both branches in one batch at every second step."""
    caplog.set_level(logging.INFO)

    def change(i, *_):
        engine.part_branches(monkeypatch, apart=i % 2 == 0)

    run_cached(engine, Blocks(), f"interval=2,{LAST}", told=change)
    skipped = int(caplog.text.partition("skipped ")[2].split()[0])
    assert skipped >= 3


def test_a_run_that_a_cache_cannot_help_says_why(engine, caplog):
    model = engine.model("flow", Gaussian())
    guider = guided(engine, cached(engine, model, "interval=2"), "scale=2")
    with pytest.raises(FewstepError, match="nothing that a cache can skip"):
        engine.draw(guider, sampler(engine, "euler"), grid(engine, model))
    model = cached(engine, engine.model("flow", Blocks()), "interval=2")
    with pytest.raises(FewstepError, match="take one of the two nodes out"):
        cached(engine, model, "interval=2")
    run_cached(engine, Blocks(), "threshold=1e-9", "cg-taylor")
    assert "skipped none of 8 calls; raise its threshold" in caplog.text
    with pytest.raises(FewstepError, match="take more steps"):
        run_cached(engine, Blocks(), "threshold=1", "cg-taylor", steps=3)


def make_flux(**place):
    from comfy.ldm.flux.model import Flux

    sizes = {"in_channels": 4, "out_channels": 4, "vec_in_dim": 8, "context_in_dim": 4}
    sizes |= {"hidden_size": 32, "num_heads": 2, "depth": 2, "depth_single_blocks": 3}
    more = {"axes_dim": [4, 6, 6], "theta": 10000, "patch_size": 2, "mlp_ratio": 2.0}
    return Flux(**sizes, **more, qkv_bias=True, guidance_embed=False, **place)


def make_sd3(**place):
    from comfy.ldm.modules.diffusionmodules.mmdit import OpenAISignatureMMDITWrapper

    context = {"target": "torch.nn.Linear", "params": {"in_features": 4, "out_features": 192}}
    sizes = {"input_size": None, "patch_size": 2, "in_channels": 4, "depth": 3, "context_size": 4}
    more = {"pos_embed_max_size": 16, "num_patches": 256, "context_embedder_config": context}
    return OpenAISignatureMMDITWrapper(**sizes, **more, **place)


@pytest.mark.parametrize("engine", [REAL], indirect=True)
def test_a_cache_finds_the_blocks_of_comfyuis_own_networks(engine):
    from comfy.ops import disable_weight_init

    for make in (make_flux, make_sd3):
        network = make(dtype=torch.float32, device="cpu", operations=disable_weight_init).eval()
        generator = torch.manual_seed(0)
        for parameter in network.parameters():
            parameter.data = 0.05 * torch.randn(parameter.shape, generator=generator)
        plain = run_cached(engine, network)
        assert torch.equal(run_cached(engine, network, f"interval=1,{LAST}"), plain), make.__name__
        first = run_cached(engine, network, f"interval=2,{LAST}")
        error = float((first - plain).norm() / plain.norm())
        assert 0.0 < error < 0.1, make.__name__
        assert torch.equal(run_cached(engine, network, f"interval=2,{LAST}"), first), make.__name__
        assert torch.equal(run_cached(engine, network), plain), make.__name__


# ---- a whole graph


def read_graph(name):
    return json.loads((PACK / "examples" / f"{name}.json").read_text())


def prepare(graph, prefix=""):
    """The graph with the test's network in the place of a checkpoint, and without its pictures."""
    graph = {key: node for key, node in graph.items() if node["class_type"] != "SaveImage"}
    for node in graph.values():
        match node["class_type"]:
            case "CheckpointLoaderSimple":
                node |= {"class_type": "FewstepTestLoader", "inputs": {}}
            case "CLIPTextEncode":
                empty = not node["inputs"]["text"]
                node |= {"class_type": "FewstepTestCondition", "inputs": {"empty": empty}}
            case "EmptyLatentImage":
                node["inputs"] |= {"width": 32, "height": 32}
            case "VAEDecode":
                samples = node["inputs"]["samples"]
                node |= {"class_type": "FewstepTestKeep", "inputs": {"samples": samples}}
    return graph


def make_outside(engine, kind, network):
    """The nodes of a graph that are not the pack's, as functions."""
    model = engine.model(kind, network)

    def draw(noise, guider, sampler, sigmas, latent_image):
        torch.manual_seed(noise)
        drawn = guider.sample(
            torch.randn(latent_image.shape), latent_image, sampler, sigmas, None, None, True, noise
        )
        return ({"samples": drawn},)

    return {
        "FewstepTestLoader": lambda: (model, None, None),
        "FewstepTestCondition": lambda empty: ([[NOTHING if empty else CONDITION, {}]],),
        "FewstepTestKeep": lambda samples: (samples["samples"],),
        "EmptyLatentImage": lambda width, height, batch_size: (
            torch.zeros(batch_size, 4, height // 8, width // 8),
        ),
        "RandomNoise": lambda noise_seed: (noise_seed,),
        "SamplerCustomAdvanced": draw,
    }


def test_a_graph_of_all_nodes_runs(engine):
    graph = prepare(read_graph("workflow"))
    graph["schedule"] = {
        "class_type": "FewstepSchedule",
        "inputs": {"model": ["cache", 0], "schedule": make_flow_schedule().dump()},
    }
    links = {"sampler": ["schedule", 1], "sigmas": ["schedule", 0]}
    graph["second"] = {
        "class_type": "SamplerCustomAdvanced",
        "inputs": graph["sample"]["inputs"] | links,
    }
    graph["second image"] = {
        "class_type": "FewstepTestKeep",
        "inputs": {"samples": ["second", 0]},
    }
    assert {node["class_type"] for node in graph.values()} >= set(NODES)
    network = Blocks()
    kept = engine.run(graph, make_outside(engine, "flow", network))
    assert len(kept) == 2
    assert all(x.shape == (1, 4, 4, 4) and bool(x.isfinite().all()) for x in kept)
    assert network.count() < 4 * (20 + 6)  # of both runs


def test_the_example_with_a_schedule_runs(engine):
    network = Gaussian("eps")
    graph = prepare(read_graph("schedule"))
    (kept,) = engine.run(graph, make_outside(engine, "eps", network))
    assert network.rows == 2 * preset("ays-sd15-nfe10").nfe
    assert bool(kept.isfinite().all())


# ---- the pack


def test_another_version_is_named(monkeypatch, tmp_path, caplog):
    StandIn(monkeypatch, tmp_path, "0.9.1")
    assert "tested with ComfyUI 0.3.75, and this is 0.9.1" in caplog.text


def test_comfyui_is_not_found_here():
    """So that the stand-in is what the other tests import."""
    assert FOLDER or importlib.util.find_spec("comfy") is None
    assert comfyui_engine.PACK.is_dir()
