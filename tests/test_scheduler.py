"""`SolverScheduler` against our own loop, against diffusers' schedulers, and by itself."""

import copy
import json
import logging
import math

import diffusers
import pytest
import torch
from laws import ONE_BRANCH
from torch import Tensor

from fewstep import Schedule, SolverScheduler, from_module
from fewstep.models.denoiser import Denoiser
from fewstep.models.errors import FewstepError, SettingError
from fewstep.samplers.diffusers.scheduler import Output
from fewstep.samplers.grid import FEW
from fewstep.samplers.guidance import Unguided
from fewstep.samplers.loop import integrate
from fewstep.samplers.plan import make_plan
from fewstep.solvers import solver
from fewstep.solvers.presets import preset
from fewstep.solvers.step_schedule import Compiled

SD = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
VP = diffusers.DDIMScheduler(**SD, clip_sample=False).config
FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config
DYNAMIC = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).config
EDM = diffusers.EDMEulerScheduler().config
SHAPE = (2, 4, 4)
CONFIGS = {"vp": VP, "flow": FLOW, "edm": EDM}
FIXED = [name for name in ONE_BRANCH if name != "dpm-solver-v3"]


def net(x: Tensor, time: Tensor) -> Tensor:
    """A smooth function that depends on both, of unit size."""
    return torch.tanh(1.5 * x + torch.arange(4.0)) * 0.6 + 0.2 * torch.cos(time.view(-1, 1, 1, 1))


def ours(config, **own) -> SolverScheduler:
    return SolverScheduler.from_config(config, **own)


def noise(batch: int = 2, seed: int = 0) -> Tensor:
    return torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(seed))


def run(scheduler, x: Tensor, labels=None, **step) -> Tensor:
    """The loop of a pipeline; labels: what the network is told instead."""
    x = x * getattr(scheduler, "init_noise_sigma", 1.0)
    labels = scheduler.timesteps if labels is None else labels
    for t, label in zip(scheduler.timesteps, labels, strict=True):
        scale = getattr(scheduler, "scale_model_input", None)
        out = net(x if scale is None else scale(x, t), label.expand(len(x)))
        x = scheduler.step(out, t, x, return_dict=False, **step)[0]
    return x


def families(name: str) -> list[str]:
    found = solver(name).info.families or ("vp", "flow", "edm")
    return [family for family in found if family in CONFIGS]


@pytest.mark.parametrize(
    ("name", "family"), [(name, family) for name in FIXED for family in families(name)]
)
def test_every_solver_gives_bit_for_bit_what_our_loop_gives(name, family):
    told_twice = {"_class_name": "FlowMapEulerDiscreteScheduler", "shift": 3.0}
    scheduler = ours(told_twice if name == "flow-map" else CONFIGS[family], solver=name)
    scheduler.set_timesteps(6)
    found = run(scheduler, noise(1), generator=torch.Generator().manual_seed(7))
    process = scheduler.process
    network = from_module(
        lambda x, time, target=None: net(x, time),
        schedule=process.fixed,
        prediction=process.prediction,
        shape=SHAPE,
    )
    plan = make_plan(process.fixed, name, steps=6, grid="uniform" if family == "flow" else None)
    generator = torch.Generator().manual_seed(7)

    def draw() -> Tensor:
        return torch.randn(1, *SHAPE, generator=generator)

    x = noise(1) * process.fixed.noise_scale(plan.grid.nodes[0])
    wanted = integrate(Denoiser(network), plan.solver, plan.grid, x, Unguided(), noise=draw)
    assert torch.equal(found, wanted)
    assert scheduler.nfe == plan.nfe == len(scheduler.timesteps)


RIVALS = {
    "ddim": ("DDIMScheduler", {"clip_sample": False, "timestep_spacing": "trailing"}),
    "dpmpp-1m": ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    "dpmpp-2m": ("DPMSolverMultistepScheduler", {}),
    "dpmpp-3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "unipc-2": ("UniPCMultistepScheduler", {}),
    "unipc-3": ("UniPCMultistepScheduler", {"solver_order": 3}),
    "deis-2": ("DEISMultistepScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "flow euler": ("FlowMatchEulerDiscreteScheduler", {}),
    "flow heun": ("FlowMatchHeunDiscreteScheduler", {}),
    "flow dpmpp-2m": ("DPMSolverMultistepScheduler", {}),
    "flow dpmpp-3m": ("DPMSolverMultistepScheduler", {"solver_order": 3}),
    "flow unipc-2": ("UniPCMultistepScheduler", {}),
    "flow unipc-3": ("UniPCMultistepScheduler", {"solver_order": 3}),
}
FLOWING = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0}


def rival_of(row: str):
    cls, settings = RIVALS[row]
    if not row.startswith("flow "):
        return getattr(diffusers, cls)(**SD, prediction_type="v_prediction", **settings)
    return getattr(diffusers, cls)(**({"shift": 3.0} if "Match" in cls else FLOWING), **settings)


def times_of(rival, process) -> list[float]:
    """The nodes a rival steps over, as times of our schedule, from its sigmas."""
    if not hasattr(rival, "sigmas"):
        return [*((t + 1) / 1000 for t in rival.timesteps.tolist()), 0.0]
    times = []
    for sigma in dict.fromkeys(rival.sigmas.double().tolist()):
        alpha = 1.0 - sigma if process.family == "flow" else 1.0
        ends = {0.0: process.t_zero, 1.0: process.t_max} if process.family == "flow" else {0.0: 0.0}
        lam = 0.0 if sigma in ends else math.log(alpha / sigma)
        lam = max(lam, process.at(process.t_max).lam)  # float32 has carried it over the end
        times.append(ends[sigma] if sigma in ends else process.at_lam(lam).t)
    return times


@pytest.mark.parametrize("row", RIVALS)
def test_solvers_equal_diffusers_on_the_same_grid(row):
    """Both answered with our labels, which diffusers rounds for some; float32 against float64."""
    rival = rival_of(row)
    rival.set_timesteps(8)
    scheduler = ours(rival.config, solver=row.split()[-1])
    scheduler = ours(scheduler.config, grid=times_of(rival, scheduler.process.fixed))
    scheduler.set_timesteps(8)
    start = noise()
    if row == "heun":  # its state is sigma z, not the z that a variance-preserving one starts as
        start = start * scheduler.sigmas[0] / (1.0 + scheduler.sigmas[0] ** 2).sqrt()
    wanted = run(rival, noise(), labels=scheduler.timesteps)
    torch.testing.assert_close(
        run(scheduler, start), wanted, rtol=0.0, atol=TOLERANCE.get(row, 5e-6)
    )


# float32 sigmas and their logarithms in diffusers; DEIS there integrates numerically
TOLERANCE = {"deis-2": 2e-4, "heun": 5e-5}


# what set_timesteps takes


def test_time_labels_are_floats_and_one_per_evaluation():
    scheduler = ours(VP, solver="heun", grid="karras")
    scheduler.set_timesteps(5)
    labels = scheduler.timesteps
    assert labels.dtype == torch.float32
    assert labels.frac().any()
    assert len(labels) == 9
    assert len(scheduler.sigmas) == 10
    assert labels[1] == labels[2]
    assert scheduler.num_inference_steps == 5
    assert len(scheduler) == 1000


def test_sigmas_of_a_flow_are_times_before_the_shift():
    scheduler = ours(FLOW)
    scheduler.set_timesteps(sigmas=[1.0, 0.6, 0.2])
    shifted = [3 * t / (1 + 2 * t) for t in (1.0, 0.6, 0.2)]
    torch.testing.assert_close(scheduler.sigmas, torch.tensor([*shifted, 0.0]))
    torch.testing.assert_close(scheduler.timesteps, 1000 * torch.tensor(shifted))


def test_sigmas_of_a_vp_network_are_sigma_over_alpha():
    scheduler = ours(VP)
    kappas = [14.615, 6.315, 2.181, 0.555, 0.113]
    scheduler.set_timesteps(sigmas=[*kappas, 0.0])
    torch.testing.assert_close(scheduler.sigmas[1:], torch.tensor([*kappas[1:], 0.0]))
    assert scheduler.timesteps[0] == 999.0  # the first is 14.6146 to the digits of the table


@pytest.mark.parametrize("family", CONFIGS)
def test_timesteps_are_the_labels_of_the_network(family):
    planned = ours(CONFIGS[family])
    planned.set_timesteps(5)
    scheduler = ours(CONFIGS[family])
    scheduler.set_timesteps(timesteps=planned.timesteps)
    torch.testing.assert_close(scheduler.timesteps, planned.timesteps)
    torch.testing.assert_close(scheduler.sigmas, planned.sigmas, rtol=1e-5, atol=1e-6)
    assert scheduler.order == 1


def test_a_list_may_end_where_the_run_does():
    for asked in ({"timesteps": [900, 400, 0]}, {"sigmas": [0.75, 0.2, 0.0]}):
        scheduler = ours(FLOW, solver="euler")
        scheduler.set_timesteps(**asked)
        assert scheduler.timesteps.tolist()[0] == pytest.approx(900.0)
        assert (len(scheduler.timesteps), scheduler.sigmas[-1]) == (2, 0.0)


@pytest.mark.parametrize(("kind", "shift"), [("exponential", math.exp(0.9)), ("linear", 0.9)])
def test_mu_shifts_a_dynamic_network_and_no_other(kind, shift):
    settings = {"use_dynamic_shifting": True, "time_shift_type": kind, "shift": 7.0}
    dynamic = diffusers.FlowMatchEulerDiscreteScheduler(**settings)
    scheduler = ours(dynamic.config, solver="euler")
    ramp = [1.0, 0.75, 0.5, 0.25]
    scheduler.set_timesteps(sigmas=ramp, mu=0.9)
    dynamic.set_timesteps(sigmas=ramp, mu=0.9)
    torch.testing.assert_close(scheduler.sigmas, dynamic.sigmas)
    assert scheduler.sigmas[2] == pytest.approx(shift * 0.5 / (1 + (shift - 1) * 0.5))
    fixed = ours(FLOW)
    fixed.set_timesteps(4, mu=0.9)
    assert fixed.sigmas[2] == pytest.approx(0.75)


def test_a_grid_takes_the_place_of_the_ramp_that_flow_pipelines_pass():
    scheduler = ours(FLOW, grid="logsnr")
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    planned = ours(FLOW, grid="logsnr")
    planned.set_timesteps(4)
    assert torch.equal(scheduler.sigmas, planned.sigmas)
    assert not torch.equal(scheduler.sigmas, make_sigmas(FLOW))


def make_sigmas(config) -> Tensor:
    scheduler = ours(config)
    scheduler.set_timesteps(4)
    return scheduler.sigmas


def test_terminal_shift_is_that_of_diffusers():
    config = {"use_dynamic_shifting": True, "shift_terminal": 0.1}
    rival = diffusers.FlowMatchEulerDiscreteScheduler(**config)
    rival.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=1.1)
    scheduler = ours(rival.config)
    scheduler.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=1.1)
    torch.testing.assert_close(scheduler.sigmas, rival.sigmas)


LU = diffusers.DPMSolverMultistepScheduler(**SD, use_lu_lambdas=True).config
FLAGGED = {
    "vp": (diffusers.EulerDiscreteScheduler(**SD, use_karras_sigmas=True).config, {}, VP, "karras"),
    "lu": (
        diffusers.DPMSolverMultistepScheduler(**SD, use_lu_lambdas=True).config,
        {},
        VP,
        "logsnr",
    ),
    "flow": (
        diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0, use_beta_sigmas=True).config,
        {},
        FLOW,
        "beta",
    ),
    "asked for": (VP, {"use_karras_sigmas": True}, VP, "karras"),
    "dropped": (
        diffusers.EulerDiscreteScheduler(**SD, use_karras_sigmas=True).config,
        {"use_karras_sigmas": False},
        VP,
        FEW["vp"][0][1],
    ),
}


@pytest.mark.parametrize("case", FLAGGED)
def test_karras_flags_and_their_like_are_grids(case):
    config, own, plain, grid = FLAGGED[case]
    flagged, named = ours(config, **own), ours(plain, grid=grid)
    flagged.set_timesteps(6)
    named.set_timesteps(6)
    assert torch.equal(flagged.sigmas, named.sigmas)


def test_what_is_not_taken_over_is_said(caplog):
    logger = logging.getLogger("diffusers")
    logger.addHandler(caplog.handler)
    try:
        ours(diffusers.FlowMatchEulerDiscreteScheduler(stochastic_sampling=True).config)
        ours(diffusers.DDIMScheduler(**SD).config)
        assert "TCDScheduler" not in " ".join(caplog.messages)
        ours(diffusers.LCMScheduler(**SD).config)
    finally:
        logger.removeHandler(caplog.handler)
    said = " ".join(caplog.messages)
    assert "stochastic_sampling of the config is not taken over" in said
    assert "clip_sample of the config is not taken over" in said
    assert "of LCMScheduler or TCDScheduler and does not say which: it is taken for the" in said


@pytest.mark.parametrize(("solver", "nfe", "steps"), [("unipc-2", 7, 7), ("heun", 9, 5)])
def test_a_budget_stands_in_for_steps(solver, nfe, steps):
    by_config, by_call = ours(VP, solver=solver, nfe=nfe), ours(VP, solver=solver)
    by_config.set_timesteps(steps)
    by_call.set_timesteps(nfe=nfe)
    for scheduler in (by_config, by_call):
        assert len(scheduler.timesteps) == nfe
        assert scheduler.num_inference_steps == steps
    with pytest.raises(SettingError, match=f"is {steps} steps, not 50; .*={steps}$"):
        by_config.set_timesteps(50)


# the state


def test_an_edit_between_two_steps_moves_the_state_by_what_it_is():
    """With the predictions fixed, an edit e at node t arrives as (sigma_s / sigma_t) e."""
    found = []
    for how in ("none", "new", "in place"):
        scheduler = ours(VP, solver="dpmpp-2m")
        scheduler.set_timesteps(timesteps=[900, 600, 300])
        first, second, _ = scheduler.timesteps
        x = scheduler.step(noise(), first, noise(seed=1), return_dict=False)[0]
        x = x + 1.0 if how == "new" else x.add_(1.0) if how == "in place" else x
        out = x0_answer(scheduler, x, torch.zeros_like(x))
        found.append(scheduler.step(out, second, x, return_dict=False)[0])
    t, s = (scheduler.process.fixed.at((label + 1) / 1000) for label in (600, 300))
    gain = torch.full_like(x, s.sigma / t.sigma)
    torch.testing.assert_close(found[1] - found[0], gain, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[1], found[2])


def x0_answer(scheduler, x: Tensor, x0: Tensor) -> Tensor:
    """The eps that an eps network answers where its x0 is the given one."""
    k = float(scheduler.sigmas[scheduler.step_index])
    sigma = k / math.hypot(1.0, k)
    return (x - math.sqrt(1 - sigma**2) * x0) / sigma


def test_a_low_precision_edit_keeps_the_digits_of_what_was_not_edited():
    def end(edit) -> Tensor:
        scheduler = ours(FLOW, solver="euler")
        scheduler.set_timesteps(4)
        x = noise().bfloat16()
        for t in scheduler.timesteps:
            x = edit(scheduler.step(torch.zeros_like(x), t, x, return_dict=False)[0])
        return scheduler._stepper.x

    assert torch.equal(end(lambda x: x), end(lambda x: x.clone()))
    kept = noise().bfloat16().float()
    torch.testing.assert_close(end(lambda x: x), kept, rtol=1e-6, atol=1e-6)


def test_learned_sigma_is_dropped():
    outs = []
    for out in (noise(seed=1), torch.cat([noise(seed=1), noise(seed=2)], dim=1)):
        scheduler = ours(VP)
        scheduler.set_timesteps(3)
        outs.append(scheduler.step(out, None, noise(), return_dict=False)[0])
    assert torch.equal(*outs)


def test_add_noise_is_that_of_diffusers():
    rival, scheduler = diffusers.DDIMScheduler.from_config(VP), ours(VP)
    for labels in ([999, 400], [17]):
        asked = torch.tensor(labels)
        wanted = rival.add_noise(noise(), noise(seed=1), asked)
        found = scheduler.add_noise(noise(), noise(seed=1), asked)
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    flow = ours(FLOW)
    flow.set_timesteps(4)
    found = flow.scale_noise(noise(), flow.timesteps[1:2], noise(seed=1))
    sigma = flow.sigmas[1]
    torch.testing.assert_close(found, (1 - sigma) * noise() + sigma * noise(seed=1))


def test_edm_networks_read_the_scaled_state():
    scheduler = ours(EDM, grid="karras")
    scheduler.set_timesteps(4)
    assert scheduler.init_noise_sigma == pytest.approx(80.0)
    rival = diffusers.EDMEulerScheduler()
    rival.set_timesteps(4)
    found = scheduler.scale_model_input(noise() * 80.0, scheduler.timesteps[0])
    torch.testing.assert_close(found, rival.scale_model_input(noise() * 80.0, rival.timesteps[0]))


@pytest.mark.parametrize("name", ["unipc-2", "heun", "sde-dpmpp-2"])
@pytest.mark.parametrize("after", [0, 1, 2, 3])
def test_a_scheduler_can_be_copied_at_any_time(name, after):
    scheduler = ours(VP, solver=name)
    scheduler.set_timesteps(4)
    x, generator = noise(), torch.Generator().manual_seed(3)
    for t in scheduler.timesteps[:after]:
        x = scheduler.step(net(x, t.expand(2)), t, x, generator=generator, return_dict=False)[0]
    ends = []
    for made in (copy.deepcopy(scheduler), scheduler):
        y, drawn = x.clone(), torch.Generator().manual_seed(4)
        for t in made.timesteps[after:]:
            y = made.step(net(y, t.expand(2)), t, y, generator=drawn, return_dict=False)[0]
        ends.append(y)
    assert torch.equal(*ends)


# saving


@pytest.mark.parametrize(
    "own",
    [
        {},
        {"solver": "unipc-3:solver_type=bh1", "grid": "karras:rho=5", "nfe": 6, "final": "denoise"},
        {"grid": [1.0, 0.5, 0.25, 0.0]},
        {"schedule": "ays-sd15-nfe10"},
    ],
)
def test_a_scheduler_is_saved_and_loaded(own, tmp_path):
    made = ours(VP, **own)
    made.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "scheduler_config.json").read_text())
    assert saved["_class_name"] == "SolverScheduler"
    assert saved["beta_schedule"] == "scaled_linear"
    loaded = SolverScheduler.from_pretrained(tmp_path)
    assert loaded.choices == made.choices
    steps = {"schedule": 10, "grid": 3 if isinstance(own.get("grid"), list) else 5}
    n = next((steps[key] for key in ("schedule", "nfe", "grid") if key in own and key in steps), 6)
    for scheduler in (made, loaded):
        scheduler.set_timesteps(None if "nfe" in own else n)
    assert torch.equal(run(made, noise()), run(loaded, noise()))


def test_the_folder_of_another_scheduler_is_taken(tmp_path):
    diffusers.DDIMScheduler(**SD, clip_sample=False).save_pretrained(tmp_path)
    loaded = SolverScheduler.from_pretrained(tmp_path, solver="heun")
    assert (loaded.config.solver, loaded.process) == ("heun", ours(loaded.config).process)
    with pytest.raises(FewstepError, match="no scheduler setting 'solvr'; did you mean 'solver'"):
        SolverScheduler.from_pretrained(tmp_path, solvr="heun")


def test_configs_go_both_ways():
    scheduler = ours(VP, solver="heun")
    back = diffusers.DDIMScheduler.from_config(scheduler.config)
    assert back.config.beta_end == VP.beta_end
    again = ours(scheduler.config, grid="karras")
    assert (again.config.solver, again.config.grid) == ("heun", "karras")
    assert again.process == scheduler.process
    table = ours(again.config, schedule="ays-sd15-nfe10")
    assert (table.config.solver, table.config.grid) == (None, None)
    assert ours(table.config, solver="ddim").config.schedule is None


CHANGES = [
    (VP, {"prediction_type": "v_prediction"}, lambda own: own.process.prediction == "v"),
    (FLOW, {"shift": 5.0}, lambda own: own.process.fixed.shift == 5.0),
    (VP, {"beta_end": 0.02}, lambda own: own.process.fixed.beta_end == 0.02),
    (DYNAMIC, {"max_shift": 0.9}, lambda own: own.config.max_shift == 0.9),  # pipelines read it
    (DYNAMIC, {"shift": 5.0, "use_dynamic_shifting": False}, lambda own: not own.process.dynamic),
    (VP, {"timestep_spacing": "leading"}, lambda own: own.config.grid.startswith("leading")),
]


@pytest.mark.parametrize(("config", "own", "holds"), CHANGES)
def test_settings_of_the_config_can_be_changed(config, own, holds):
    assert holds(ours(config, **own))


# bad input


BAD = {
    "both": (VP, {}, {"sigmas": [1.0], "timesteps": [900]}, "give sigmas or timesteps, not both"),
    "count": (VP, {}, {"num_inference_steps": 9, "timesteps": [900, 400]}, "2 times .* 9 steps"),
    "none": (VP, {}, {}, "needs num_inference_steps, sigmas, timesteps or nfe"),
    "empty": (VP, {}, {"sigmas": []}, "empty list"),
    "rising": (VP, {}, {"timesteps": [400, 900]}, "timesteps must fall, and 400 is followed by"),
    "rising sigmas": (VP, {}, {"sigmas": [0.4, 0.9]}, "sigmas must fall, and 0.4 is followed by"),
    "rising flow": (FLOW, {}, {"sigmas": [0.9, 0, 0.1]}, "sigmas must fall, and 0 is followed"),
    "label": (VP, {}, {"timesteps": [1000.5, 900]}, "timestep 1000.5 lies outside the vp schedule"),
    "labels": (FLOW, {}, {"timesteps": [900, -5]}, "timestep -5 .* whose labels fall from 1000 to"),
    "edm label": (EDM, {}, {"timesteps": [900]}, r"timestep 900 lies .* from 1\.09551 to -1\.55"),
    "flow sigma": (FLOW, {}, {"sigmas": [1.5, 0.5]}, "sigma=1.5 lies .* from 1 to 0 before the"),
    "the end alone": (VP, {}, {"sigmas": [0.0]}, "sigmas hold only the end of a run"),
    "sigma": (VP, {}, {"sigmas": [80.0, 1.0]}, "sigma=80 lies outside the network's schedule"),
    "grid": (VP, {"grid": "karras"}, {"timesteps": [900, 400]}, "has grid already"),
    "zero": (VP, {}, {"num_inference_steps": 0}, "=0 must be a positive whole"),
    "text": (
        VP,
        {},
        {"num_inference_steps": "4"},
        "steps must be a whole number, not '4'",
    ),
    "half": (VP, {}, {"num_inference_steps": 4.5}, "steps must be a whole number, not 4.5"),
    "budget": (VP, {}, {"nfe": True}, "nfe must be a whole number, not True"),
    "two sizes": (VP, {"grid": [1.0, 0.5, 0.0]}, {"nfe": 7}, "the grid takes 2 evaluations, not"),
    "one number": (VP, {}, {"sigmas": 3.0}, "sigmas must be a row of numbers, not 3.0"),
    "words": (VP, {}, {"timesteps": ["first"]}, "timesteps must be a row of numbers"),
    "table budget": (VP, {"schedule": "ays-sd15-nfe10"}, {"nfe": 7}, "takes 10 evaluations, not"),
    "table": (VP, {"schedule": "ays-sd15-nfe10"}, {"num_inference_steps": 9}, "is 10 steps, not 9"),
    "mu": (DYNAMIC, {}, {"num_inference_steps": 4}, "pass mu="),
    "mu text": (DYNAMIC, {}, {"num_inference_steps": 4, "mu": "big"}, "mu='big' is no shift"),
    "mu far": (DYNAMIC, {}, {"num_inference_steps": 4, "mu": 1e6}, "is no shift; give a number"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_planned_says_why(case):
    config, own, asked, message = BAD[case]
    scheduler = ours(config, **own)
    with pytest.raises(FewstepError, match=message):
        scheduler.set_timesteps(**asked)


PLAIN = preset("ays-sd15-nfe10")
AFS = PLAIN.model_copy(update={"evaluations": (None, *PLAIN.evaluations[1:]), "nfe": 9})
ONE_STEP = Compiled(A=(0.0,), B=((1.0,),), U=((-2.0,),), tau=(1.0,), guided=(0,))
BASE = solver("ddim").step_schedule(make_plan(ours(VP).process.fixed, steps=1).grid)
GUIDED = Schedule.of_steps(BASE.model_copy(update={"compiled": ONE_STEP}))
CANNOT = {
    "solver": (VP, {"solver": "unipc3"}, "did you mean 'unipc-3'"),
    "no solver": (VP, {"solver": ""}, "no solver ''; known"),
    "solver 3": (VP, {"solver": 3}, "solver=3 must be a name"),
    "grid 3": (VP, {"grid": 3}, "grid must be a row of numbers, not 3"),
    "nfe true": (VP, {"nfe": True}, "nfe must be a whole number, not True"),
    "nfe beside a grid": (
        VP,
        {"nfe": 5, "grid": [1.0, 0.5, 0.0]},
        "takes 2 evaluations, not nfe=5",
    ),
    "spacing": (VP, {"timestep_spacing": "even"}, "no timestep spacing 'even'; known: leading, li"),
    "spacing and grid": (
        VP,
        {"timestep_spacing": "trailing", "grid": "karras"},
        "timestep_spacing and grid each say",
    ),
    "spacing of a flow": (FLOW, {"timestep_spacing": "trailing"}, "has no whole training timest"),
    "offset": (VP, {"steps_offset": 3}, "steps_offset=3 changes .* of timestep_spacing='leading'"),
    "order": (VP, {"solver_order": 3}, "solver_order=3 changes nothing here; choose with solver="),
    "clipping": (VP, {"thresholding": True}, "no prediction is clipped here"),
    "shift of a dynamic one": (DYNAMIC, {"shift": 5.0}, "add use_dynamic_shifting=False"),
    "no effect": (VP, {"set_alpha_to_one": False}, "changes nothing here; drop it"),
    "two grids": (VP, {"use_karras_sigmas": True, "grid": "beta"}, "drop all but one"),
    "kind": (FLOW, {"shift": "three"}, "shift of the scheduler config must be a number"),
    "setting": (VP, {"solvr": "ddim"}, "did you mean 'solver'"),
    "adaptive": (VP, {"solver": "ode-dopri5"}, "unipc-2, or Sampler"),
    "velocity": (VP, {"solver": "euler"}, "edm, flow schedules only"),
    "grid": (VP, {"grid": "karas"}, "did you mean 'karras'"),
    "final": (VP, {"final": "nil"}, "no end rule 'nil'"),
    "process": (FLOW, {"schedule": "ays-sd15-nfe10"}, "vp.*flow|flow.*vp"),
    "file": (VP, {"schedule": "nowhere.json"}, "cannot read schedule"),
    "more": (VP, {"schedule": "ays-sd15-nfe10", "nfe": 10}, "drop solver, grid, nfe and final"),
    "budget": (VP, {"solver": "heun", "nfe": 8}, "7 or 9"),
    "config": ({"_class_name": "IPNDMScheduler", "num_train_timesteps": 1000}, {}, "betas"),
    "fields": ({"foo": 1}, {}, '"_class_name" nor "beta_schedule"'),
    "continuous": (
        diffusers.EulerDiscreteScheduler(timestep_type="continuous").config,
        {},
        "trained",
    ),
    "path": ("folder", {}, "from_pretrained"),
    "words": (VP, {"nfe": "8"}, "nfe must be a whole number"),
    "distilled": (diffusers.SCMScheduler().config, {}, "keep its own scheduler"),
    "afs": (VP, {"schedule": AFS}, "without the network .afs."),
    "guided": (VP, {"schedule": GUIDED}, "combined them already"),
}


@pytest.mark.parametrize("case", CANNOT)
def test_what_cannot_run_says_why(case):
    config, own, message = CANNOT[case]
    with pytest.raises(FewstepError, match=message):
        ours(config, **own)


def test_step_says_what_is_missing():
    scheduler = ours(VP)
    with pytest.raises(SettingError, match="call set_timesteps"):
        scheduler.step(noise(), 999, noise())
    scheduler.set_timesteps(2)
    _, second = scheduler.timesteps
    with pytest.raises(SettingError, match="solver='euler-ancestral:eta=0"):
        scheduler.step(noise(), 999, noise(), eta=0.5)
    same = ours(VP, solver="euler-ancestral:eta=.5")
    same.set_timesteps(2)
    assert same.step(noise(), same.timesteps[0], noise(), eta=0.5).prev_sample.isfinite().all()
    with pytest.raises(SettingError, match=r"answered \(2, 1, 4, 4\)"):
        scheduler.step(noise()[:, :1], 999, noise())
    with pytest.raises(SettingError, match=r"as a tensor, not a Output; pass its \.sample"):
        scheduler.step(Output(noise()), 999, noise())
    scheduler.step(noise(), 999, noise())
    with pytest.raises(SettingError, match="call set_timesteps before another"):
        scheduler.step(noise(3), second, noise(3))


@pytest.mark.parametrize(
    ("generator", "message"),
    [
        (7, "must be a torch.Generator or a list"),
        ([torch.Generator()] * 3, "3 generators for 2 images; give one for each"),
        ([torch.Generator()], "1 generators for 2 images"),
    ],
)
def test_generators_are_checked_where_noise_is_drawn(generator, message):
    scheduler = ours(VP, solver="ddpm")
    scheduler.set_timesteps(3)
    with pytest.raises(SettingError, match=message):
        scheduler.step(noise(), 999, noise(), generator=generator)


def test_noise_is_added_at_one_label_or_one_for_each():
    scheduler = ours(VP)
    one = scheduler.add_noise(noise(3), noise(3, 1), 500)
    assert torch.equal(one, scheduler.add_noise(noise(3), noise(3, 1), torch.tensor([500] * 3)))
    with pytest.raises(SettingError, match="2 labels for 3 samples"):
        scheduler.add_noise(noise(3), noise(3, 1), torch.tensor([500, 20]))


@pytest.mark.parametrize("begin", [None, 1.5, "2", -1])
def test_a_begin_index_is_a_number_of_an_evaluation(begin):
    scheduler = ours(VP)
    scheduler.set_timesteps(4)
    with pytest.raises(SettingError, match=r"is not in 0\.\.3$"):
        scheduler.set_begin_index(begin)
