"""Recipes of distilled networks: their times, what they refuse, and where configs choose one."""

import json
import math
import warnings

import diffusers
import pytest
import tiny
import torch
from test_distilled import SD, draws
from typer.testing import CliRunner

from fewstep import Sampler, Size, SolverScheduler, encoded, from_module
from fewstep.cli import app
from fewstep.models.distillation import read_distillation
from fewstep.models.errors import FewstepError, ModelError, SettingError
from fewstep.models.schedule import EDM, RectifiedFlow, VPDiscrete
from fewstep.samplers.noise import Noise
from fewstep.samplers.recipes import RECIPES, RecipeRun, list_recipes

FLOW = RectifiedFlow(shift=5.0, terminal=0.1, time_scale=1000.0)
PROCESS = {"vp": VPDiscrete(**SD), "flow": FLOW, "edm": EDM()}
LTX = [1, 0.99375, 0.9875, 0.98125, 0.975, 0.909375, 0.725, 0.421875]
SHIFT_3 = [1, 0.954545, 0.9, 0.833333, 0.75, 0.642857, 0.5, 0.3]
EIGHTHS = [999, 874, 749, 624, 499, 374, 249, 124]
FOURTHS = [999, 749, 499, 249]
TIMES = {  # labels of VP networks, and taus; final, whatever the shift of the config
    "sdxl-lightning-2": [999, 499],
    "sdxl-lightning-4": FOURTHS,
    "sdxl-lightning-8": EIGHTHS,
    "sdxl-lightning-x0-1": [999],
    "sdxl-turbo-1": [999],
    "sdxl-turbo-2": [999, 499],
    "sdxl-turbo-3": [999, 666, 332],
    "sdxl-turbo-4": FOURTHS,
    "hyper-sd-2": [999, 499],
    "hyper-sd-4": FOURTHS,
    "hyper-sd-8": EIGHTHS,
    "hyper-sd-unified-1": [999],
    "hyper-sdxl-unet-1": [800],
    "lcm-lora-4": [999, 759, 499, 259],
    "lcm-lora-8": [999, 879, 759, 639, 499, 379, 259, 139],
    "dmd2-sdxl-1": [399],
    "dmd2-sdxl-4": FOURTHS,
    "wan2.2-lightning-4": [1, 0.9375, 0.833333, 0.625],
    "ltx-2-8": LTX,
    "ltx-2-upscaled-3": LTX[5:],
    "flux.1-schnell-4": [1, 0.75, 0.5, 0.25],
    "qwen-image-lightning-4": [1, 0.9, 0.75, 0.5],
    "qwen-image-lightning-8": SHIFT_3,
    "z-image-turbo-8": SHIFT_3,
    "ace-step-turbo-8": SHIFT_3,
    "stable-audio-3-8": [1, 0.994376, 0.98448, 0.957912, 0.890903, 0.745547, 0.512497, 0.273885],
    "sana-sprint-2": [1, 0.782708],
}
OWN_SHIFT = {"flux.2-klein-4", "anyflow"}  # their times depend on the shift of the config


def read_times(name):
    run = RecipeRun.find(name)
    schedule = PROCESS[run.recipe.family]
    nodes = [schedule.at(t) for t in run.place(schedule, run.recipe.predicts[0])]
    assert nodes[-1].sigma == 0.0
    return [schedule.label(n) if run.recipe.family == "vp" else n.sigma for n in nodes[:-1]]


def test_every_recipe_has_its_published_times():
    assert TIMES.keys() | OWN_SHIFT == set(list_recipes())
    for name, times in TIMES.items():
        assert read_times(name) == pytest.approx(times, abs=6e-7 if times[0] == 1 else 1e-3), name
    mu = RectifiedFlow(shift=math.exp(2.291179894))
    klein = [mu.at(t).sigma for t in RECIPES["flux.2-klein"].place(mu, 4)]
    assert klein == pytest.approx([1, 0.967384, 0.908144, 0.7672, 0], abs=1e-6)


def make_sampler(process="flow", prediction="flow", **facts):
    known = {"schedule": PROCESS[process], "prediction": prediction, "shape": (2, 2, 2)}
    return Sampler(from_module(lambda x, time: 0.3 * x, name="tiny", **known, **facts))


REFUSED = {
    "guided": ("flow", {"recipe": "ltx-2-8", "guidance": "cfg:scale=2"}, "in the weights of ltx-2"),
    "steps": ("vp", {"recipe": "sdxl-lightning-4", "steps": 6}, "is 4 steps, not 6; ask for 4, or"),
    "number": (
        "vp",
        {"recipe": "sdxl-lightning-6"},
        "not trained for 6 steps; take sdxl-lig",
    ),
    "several": ("vp", {"recipe": "sdxl-lightning"}, "is several recipes; take sdxl-lightning-2 or"),
    "process": ("flow", {"recipe": "dmd2-sdxl-4"}, "of a network on vp, and this one is on flow"),
    "output": ("vp", {"recipe": "sdxl-lightning-x0-1"}, "predicts x0, and this one predicts eps"),
    "solver": ("flow", {"recipe": "ltx-2-8", "solver": "unipc-2"}, "a recipe decides the solver"),
    "grid": ("flow", {"recipe": "ltx-2-8", "grid": [1.0, 0.5, 0.0]}, "is 8 steps, not 2"),
    "end": ("flow", {"recipe": "ltx-2-8", "final": "sigma_min"}, "a recipe decides the final"),
    "late": (
        "flow",
        {"recipe": "ltx-2-upscaled-3"},
        "for pipelines, as it begins with",
    ),
    "name": ("flow", {"recipe": "qwen-image-ligtning-4"}, "did you mean 'qwen-image-lightning-4'"),
    "setting": ("flow", {"recipe": "ltx-2-8:shift=3"}, "takes force=true and no 'shift'"),
    "force": ("flow", {"recipe": "ltx-2-8:force=yes"}, "force='yes' of recipe ltx-2-8 must be"),
    "one time": (
        "flow",
        {"recipe": "anyflow", "steps": 3},
        "tells its network two times, and tiny",
    ),
    "flow map": ("flow", {"solver": "flow-map", "nfe": 3}, "tells its network two times, and tiny"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.filterwarnings("ignore:of recipe anyflow")
def test_what_does_not_go_together_is_refused(case):
    process, given, message = REFUSED[case]
    with pytest.raises(FewstepError, match=message):
        make_sampler(process, {"vp": "eps"}.get(process, "flow"))([0], **given)


def test_other_betas_are_another_network():
    network = from_module(
        lambda x, time: x, schedule=VPDiscrete(), prediction="eps", shape=(2, 2, 2)
    )
    with pytest.raises(SettingError, match="betas of Stable Diffusion"):
        Sampler(network).plan(recipe="sdxl-lightning-4")


def test_a_forced_number_is_placed_by_the_same_rule():
    plan = make_sampler("vp", "eps").plan(recipe="sdxl-lightning:force=true", steps=5)
    assert [PROCESS["vp"].label(node) for node in plan.grid.nodes[:-1]] == pytest.approx(
        [999, 799, 599, 399, 199]
    )
    with pytest.raises(SettingError, match="times are listed for 8 steps alone"):
        make_sampler().plan(recipe="ltx-2:force=true", steps=4)


def test_a_scale_of_0_is_taken_for_none():
    sampler = make_sampler()
    with pytest.warns(UserWarning, match="guidance scale 0 is taken as off"):
        samples = sampler([0], recipe="ltx-2-8", guidance="cfg:scale=0").samples
    assert torch.equal(samples, sampler([0], recipe="ltx-2-8").samples)


def test_what_is_uncertain_is_said_and_the_rest_is_quiet():
    with pytest.warns(UserWarning, match="of recipe z-image-turbo it is not confirmed: the shift"):
        make_sampler().plan(recipe="z-image-turbo-8")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make_sampler().plan(recipe="ltx-2-8")
        make_sampler("vp", "eps").plan(recipe="dmd2-sdxl-1")


# What a network says of itself


def test_a_distilled_network_has_its_update_and_times_by_itself():
    sampler = make_sampler("vp", "eps", distilled="lcm")
    result = sampler([0, 1])
    assert result.ledger.nfe == 4
    assert torch.equal(result.samples, sampler([0, 1], solver="lcm", grid="lcm", steps=4).samples)
    with pytest.warns(UserWarning, match="tiny was distilled to lcm, and unipc-2 expects"):
        sampler.plan(solver="unipc-2")
    with pytest.warns(UserWarning, match="timesteps 999 749 499 249; .* are 999 759 499 239"):
        sampler.plan(grid="trailing", steps=4)
    with pytest.warns(UserWarning, match="renoise is for networks that were distilled to it"):
        make_sampler().plan(solver="renoise")
    with pytest.raises(FewstepError, match="no update of distilled networks 'lmc'"):
        make_sampler(distilled="lmc")


def test_a_flow_map_is_told_where_its_steps_go_and_runs_no_other_solver():
    told = []

    def network(x, time, target):
        told.append((float(time[0]), float(target[0])))
        return x

    facts = {"schedule": RectifiedFlow(time_scale=1000.0), "prediction": "flow", "shape": (2, 2, 2)}
    sampler = Sampler(from_module(network, distilled="flow-map", **facts))
    assert sampler([0], steps=2).ledger.nfe == 2
    assert told == [(1000.0, 500.0), (500.0, 0.0)]
    for solver in ("euler", "unipc-2", "heun"):
        with pytest.raises(SettingError, match=f"is a flow map, .* and {solver} takes them for"):
            sampler.plan(solver=solver)


CONFIGS = {
    "LCMScheduler": ("lcm:timestep_scaling=10.0", [999, 759, 499, 259]),
    "TCDScheduler": ("tcd", [999, 759, 499, 259]),
    "FlowMatchLCMScheduler": ("renoise", [1000, 750, 500, 250]),
    "FlowMapEulerDiscreteScheduler": ("flow-map", [1000, 750, 500, 250]),
    "CMStochasticIterativeScheduler": ("consistency", None),
}


def run_scheduler(scheduler, size, monkeypatch):
    """The loop of a pipeline on some network, with the noise of `draws`."""
    source = draws()
    for module in ("lcm", "tcd", "flow_match_lcm", "consistency_models"):
        path = f"diffusers.schedulers.scheduling_{module}.randn_tensor"
        monkeypatch.setattr(path, lambda *args, **_: next(source))
    path = "fewstep.samplers.diffusers.stepper.randn_tensor"
    monkeypatch.setattr(path, lambda *args, **_: next(source))
    scheduler.set_timesteps(**size)
    x = next(source) * getattr(scheduler, "init_noise_sigma", 1.0)
    for label in scheduler.timesteps:
        scale = getattr(scheduler, "scale_model_input", None)
        scaled = x if scale is None else scale(x, label)
        out = 0.4 * scaled + torch.sin(label.double() / 300) * scaled.roll(1, -1)
        x = scheduler.step(out, label, x, return_dict=False)[0]
    return x


@pytest.mark.parametrize("name", CONFIGS)
def test_a_config_of_a_distilled_scheduler_runs_as_that_does(name, monkeypatch):
    """By itself, with the same noise; their tables and sigmas are float32."""
    solver, labels = CONFIGS[name]
    own = {"CM": {"clip_denoised": False}, "Fl": {}}.get(name[:2], SD)
    size = {"sigmas": [1.0, 0.75, 0.5, 0.25]} if name[:2] == "Fl" else {"num_inference_steps": 4}
    rival = getattr(diffusers, name)(**own)
    ours = SolverScheduler.from_config({**rival.config, "_class_name": name})
    assert ours.choices.solver == solver
    theirs = run_scheduler(rival, size, monkeypatch)
    if labels is not None:
        ours.set_timesteps(4)
        assert ours.timesteps.tolist() == pytest.approx(labels)
    off = run_scheduler(ours, size, monkeypatch) - theirs
    assert off.abs().max() < 2e-5 * theirs.abs().max()


def test_configs_that_cannot_be_sampled_from_say_why():
    enlarging = diffusers.FlowMatchLCMScheduler(scale_factors=[1.0, 2.0]).config
    with pytest.raises(ModelError, match=r"enlarges the image between steps \(scale_factors\)"):
        SolverScheduler.from_config(enlarging)
    with pytest.raises(ModelError, match=r"SCMScheduler turns .* take Sampler\.from_pipeline"):
        SolverScheduler.from_config(diffusers.SCMScheduler().config)
    assert read_distillation("SCMScheduler", {}).grid == "scm"
    with pytest.raises(SettingError, match="is a flow map"):
        SolverScheduler.from_config(
            {"_class_name": "FlowMapEulerDiscreteScheduler"}, solver="unipc-2"
        )


# In pipelines


def plan_scheduler(config, given, **own):
    scheduler = SolverScheduler.from_config(config, **own)
    scheduler.set_timesteps(**given)
    return scheduler.timesteps.tolist()


@pytest.mark.filterwarnings("ignore:of recipe")
def test_a_recipe_in_a_pipeline_has_final_times_whatever_the_config_shifts():
    ramp = {"sigmas": [1.0, 0.75, 0.5, 0.25]}
    wan = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    for given in ({"num_inference_steps": 4}, ramp, {"nfe": 4}):
        assert plan_scheduler(wan, given, recipe="wan2.2-lightning-4") == pytest.approx(
            [1000, 937.5, 833.3333, 625]
        )
    qwen = diffusers.FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, shift_terminal=0.02
    ).config
    times = plan_scheduler(qwen, {**ramp, "mu": 0.8}, recipe="qwen-image-lightning-4")
    assert times == pytest.approx([1000, 900, 750, 500])
    unipc = diffusers.UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=5.0
    ).config
    assert (
        plan_scheduler(unipc, {"num_inference_steps": 4}, recipe="wan2.2-lightning-4")[1] == 937.5
    )
    saved = SolverScheduler.from_config(wan, recipe="wan2.2-lightning-4").config
    assert SolverScheduler.from_config(saved).choices.recipe == "wan2.2-lightning-4"
    assert SolverScheduler.from_config(saved, solver="unipc-2").choices.recipe is None


@pytest.mark.filterwarnings("ignore:of recipe")
def test_the_recipe_of_a_flow_map_takes_configs_that_may_be_of_one():
    """A live scheduler's config names no class."""
    live = diffusers.FlowMapEulerDiscreteScheduler(shift=5.0).config
    assert "_class_name" not in live
    times = plan_scheduler(live, {"num_inference_steps": 4}, recipe="anyflow")
    assert times == pytest.approx([1000, 937.5, 833.3333, 625])
    other = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0).config
    with pytest.raises(SettingError, match="tells its network two times, and the network of this"):
        plan_scheduler(other, {}, recipe="anyflow")


@pytest.mark.filterwarnings("ignore:of recipe")
def test_a_recipe_in_a_pipeline_refuses_other_steps_times_and_choices():
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
    recipe = {"recipe": "wan2.2-lightning-4"}
    with pytest.raises(SettingError, match="is 4 steps, not 50; ask for 4"):
        plan_scheduler(config, {"num_inference_steps": 50}, **recipe)
    with pytest.raises(SettingError, match="lists its times; drop sigmas and timesteps"):
        plan_scheduler(config, {"timesteps": [1000, 500]}, **recipe)
    with pytest.raises(SettingError, match="a recipe decides solver and times; drop solver"):
        plan_scheduler(config, {}, solver="ddim", **recipe)


def test_final_times_given_as_sigmas_of_a_shifted_network_are_refused_with_both_results():
    config = diffusers.FlowMatchEulerDiscreteScheduler(shift=5.0).config
    final = {"sigmas": [1.0, 0.9375, 0.8333, 0.625, 0.0]}
    with pytest.raises(SettingError, match=r"of wan2.2-lightning-4, .* 1 0.9868 0.9615 0.8929; "):
        plan_scheduler(config, final)
    assert plan_scheduler(config, {"timesteps": [1000.0, 937.5, 833.3, 625.0, 0.0]})[1] == 937.5
    plain = diffusers.FlowMatchEulerDiscreteScheduler().config
    assert plan_scheduler(plain, final)[1] == 937.5


def test_a_pipeline_of_sana_sprint_is_sampled_as_it_samples_itself(monkeypatch):
    """Its network is told the scale, and its process is rectified flow behind an angle."""
    config = {k: v for k, v in tiny.network("sana").config.items() if not k.startswith("_")}
    config |= {"guidance_embeds": True, "guidance_embeds_scale": 0.1}
    torch.manual_seed(0)
    net = diffusers.SanaTransformer2DModel(**config).eval()
    pipe = diffusers.SanaSprintPipeline(None, None, None, net, diffusers.SCMScheduler())
    pipe.set_progress_bar_config(disable=True)
    text = {"prompt_embeds": torch.randn(1, 5, config["caption_channels"])}
    text["prompt_attention_mask"] = torch.ones(1, 5)
    size, source = {"height": 192, "width": 192}, torch.Generator()
    size["use_resolution_binning"] = False
    wanted = pipe(**text, **size, num_inference_steps=2, generator=source, output_type="latent")[0]
    sampler = Sampler.from_pipeline(pipe, Size(192, 192))
    source.manual_seed(source.initial_seed())
    monkeypatch.setattr(Noise, "draw", lambda _: torch.randn(wanted.shape, generator=source))
    conditions, negative = encoded(pipe, Size(192, 192), **text)
    assert negative is None
    found = sampler([0], conditions=conditions)
    assert found.ledger.nfe == 2
    assert (found.samples - wanted).abs().max() < 5e-6 * wanted.abs().max()


# On the command line


def test_sample_takes_a_recipe_and_repeats_it(tmp_path):
    out, again = tmp_path / "a.png", tmp_path / "b.png"
    words = ["sample", "emoji", "--recipe", "qwen-image-lightning-4", "--seeds", "0", "--json"]
    first = CliRunner().invoke(app, [*words, "--out", str(out)])
    assert first.exit_code == 0, first.output
    body = json.loads(first.stdout)
    assert body["run"]["recipe"] == "qwen-image-lightning-4"
    assert body["ledger"]["nfe"] == 4
    second = CliRunner().invoke(app, ["sample", "--from-png", str(out), "--out", str(again)])
    assert second.exit_code == 0, second.output
    assert out.read_bytes() == again.read_bytes()
    refused = CliRunner().invoke(app, [*words, "--cfg-scale", "2"])
    assert refused.exit_code != 0
