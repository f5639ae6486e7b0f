"""diffusers' schedulers through our networks: their budget, their labels, and where they end."""

import math

import diffusers
import pytest
import torch
from laws import GAUSSIAN

from fewstep.eval.experiments.rival_grid import choose_rivals, list_rivals, vary_rival
from fewstep.eval.experiments.rival_schedulers import RIVALS
from fewstep.eval.experiments.rivals import RivalSampler
from fewstep.models.errors import FewstepError, SettingError, UnknownNameError
from fewstep.models.load import load
from fewstep.models.prediction import Prediction
from fewstep.models.schedule import EDM, Cosine, RectifiedFlow, VPDiscrete, VPLinear
from fewstep.samplers.guidance import CFG, Thresholded
from fewstep.samplers.sampler import Sampler

SHAPE = (1, 2, 2)
NETWORKS = {
    "vp": GAUSSIAN.network(VPDiscrete(), SHAPE, Prediction.EPS),
    "vp-v": GAUSSIAN.network(VPDiscrete("scaled_linear", 0.00085, 0.012), SHAPE, Prediction.V),
    "vp-x0": GAUSSIAN.network(VPDiscrete(), SHAPE, Prediction.X0),
    "vp-linear": GAUSSIAN.network(VPLinear(time_scale=1), SHAPE, Prediction.EPS),
    "vp-cosine": GAUSSIAN.network(Cosine(time_scale=1), SHAPE, Prediction.V),
    "flow-1": GAUSSIAN.network(RectifiedFlow(time_scale=1), SHAPE, Prediction.FLOW),
    "flow-back": GAUSSIAN.network(
        RectifiedFlow(time_scale=1, noise_at=0), SHAPE, Prediction.FLOW_TO_DATA
    ),
    "flow": GAUSSIAN.network(RectifiedFlow(time_scale=1000), SHAPE, Prediction.FLOW),
    "flow-3": GAUSSIAN.network(RectifiedFlow(shift=3.0, time_scale=1000), SHAPE, Prediction.FLOW),
    "edm": GAUSSIAN.network(EDM(), SHAPE, Prediction.EDM),
    "edm-x0": GAUSSIAN.network(EDM(sigma_data=0.7), SHAPE, Prediction.X0),
}
EVERYWHERE = ("vp", "vp-v", "flow", "flow-3")  # all rivals there, a few of each kind elsewhere
SOME = ("euler", "euler-flux", "heun", "dpmpp-2m-karras", "unipc-3")
RUNS = [
    (kind, name)
    for kind in NETWORKS
    for name, rival in RIVALS.items()
    if rival.find_class(NETWORKS[kind].schedule)
    and (kind in EVERYWHERE or kind.startswith("edm") or name in SOME)
]


@pytest.mark.parametrize(("kind", "name"), RUNS)
def test_budget_is_spent_exactly_and_the_end_is_ours(kind, name):
    network, seeds = NETWORKS[kind], range(8)
    ours = Sampler(network)(seeds, solver="unipc-3", nfe=60).samples
    errors = []
    for nfe in (5, 99):
        result = RivalSampler(network, name, nfe)(seeds)
        assert result.ledger.nfe == result.ledger.rows_per_image == nfe
        errors.append(float((result.samples - ours).square().mean().sqrt()))
    assert errors[1] < 0.03
    assert errors[1] < errors[0]


@pytest.mark.parametrize("name", [name for name in RIVALS if name.startswith("heun")])
def test_heun_cannot_spend_an_even_budget(name):
    with pytest.raises(SettingError, match=r"exactly 6 evaluations; [57] or [57] it can"):
        RivalSampler(NETWORKS["vp"], name, 6)


def test_it_is_the_pipeline_s_loop():
    """Stepped by hand with a plain eps network that is told integers, as diffusers' own loop."""
    network, told = load("fashion-unet"), []
    forward = network.forward

    def listening(x, node, conditions):
        told.append(network.schedule.label(node))
        return forward(x, node, conditions)

    object.__setattr__(network, "forward", listening)
    result = RivalSampler(network, "dpmpp-2m-karras", 5)([3, 4], class_labels=[3, 4])
    scheduler = diffusers.DPMSolverMultistepScheduler(use_karras_sigmas=True)
    scheduler.set_timesteps(5)
    x = torch.stack([torch.randn(1, 32, 32, generator=seeded(seed)) for seed in (3, 4)])
    with torch.inference_mode():
        for t in scheduler.timesteps:
            node = network.schedule.at((float(t) + 1.0) / 1000.0)
            out = forward(x, node, {"class_labels": torch.tensor([3, 4])})
            x = scheduler.step(out, t, x).prev_sample
    assert told == pytest.approx(scheduler.timesteps.tolist(), abs=1e-9)
    torch.testing.assert_close(result.samples, x, rtol=0, atol=1e-5)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("euler", diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)),
        ("heun", diffusers.FlowMatchHeunDiscreteScheduler(shift=3.0)),
        (
            "unipc",
            diffusers.UniPCMultistepScheduler(
                use_flow_sigmas=True, flow_shift=3.0, prediction_type="flow_prediction"
            ),
        ),
    ],
)
def test_flow_labels_are_the_scheduler_s(name, scheduler):
    network = NETWORKS["flow-3"]
    scheduler.set_timesteps(4)
    sampler = RivalSampler(network, name, len(scheduler.timesteps))
    labels = [network.schedule.label(node) for node in sampler.nodes]
    assert labels == pytest.approx(scheduler.timesteps.tolist(), rel=1e-9)


def test_flux_euler_is_our_euler():
    """Even sigmas from 1 to 1/N and then 0: the uniform grid."""
    network = NETWORKS["flow"]
    theirs = RivalSampler(network, "euler-flux", 6)([0, 1]).samples
    ours = Sampler(network)([0, 1], solver="euler", grid="uniform", nfe=6).samples
    torch.testing.assert_close(theirs, ours, rtol=0, atol=1e-5)


def test_edm_euler_is_our_euler():
    """On Karras' sigmas; it starts from noise of sqrt(sigma_max^2 + 1)."""
    theirs = RivalSampler(NETWORKS["edm"], "euler", 8)([0, 1]).samples
    ours = Sampler(NETWORKS["edm"])([0, 1], solver="euler", grid="karras", nfe=8).samples
    torch.testing.assert_close(theirs, ours, rtol=0, atol=2e-4)


@pytest.mark.parametrize("kind", ["vp", "vp-cosine", "flow-3", "edm"])
def test_all_settings_that_are_tried_are_those_of_a_scheduler(kind):
    """Some end where the process does not; no other reason to refuse one."""
    network, refused = NETWORKS[kind], []
    specs = list_rivals(network.schedule)
    varied = [each for spec in specs[::5] for each in vary_rival(spec, network.schedule)]
    assert len({*specs, *varied}) == len(specs) + len(varied) > 20
    for spec in (*specs, *varied):
        try:
            RivalSampler(network, spec, 5)
        except FewstepError as error:
            refused.append(str(error))
    assert all("drop its arguments" in reason for reason in refused), refused
    assert len(refused) < 0.4 * len(specs)


def test_the_best_settings_are_varied():
    """The judge likes UniPC on trailing timesteps, bh1, and to end at sigma_min."""
    liked = ("unipc:", "trailing", "bh1", "sigma_min")
    asked = []

    def judge(spec):
        asked.append(spec)
        if "heun" in spec:
            return math.inf
        return 5.0 - sum(each in spec for each in liked)

    best, *others = choose_rivals(VPDiscrete(), judge)
    assert all(each in best for each in liked)
    assert len(asked) == len(set(asked))
    assert len(others) == 5
    assert not any("heun" in each for each in others)
    assert choose_rivals(VPDiscrete(), lambda spec: math.inf) == []


def test_an_image_depends_on_its_seed_alone():
    rival = RivalSampler(NETWORKS["vp"], "unipc", 5)
    together = rival([5, 6, 7], batch=2).samples
    torch.testing.assert_close(together[2:], rival([7]).samples, rtol=1e-5, atol=1e-6)
    assert not torch.equal(together[0], together[1])


def test_guidance_costs_rows_and_is_linear_in_the_output():
    network = load("fashion-dit")
    rival = RivalSampler(network, "euler-flux", 1)
    plain = rival([0], class_labels=3).samples
    null = rival([0], class_labels=3, guidance=CFG(0.0)).samples
    result = rival([0], class_labels=3, guidance=CFG(2.0))
    assert (result.ledger.nfe, result.ledger.rows_per_image) == (1, 2)
    torch.testing.assert_close(result.samples, 2.0 * plain - null, rtol=1e-4, atol=1e-4)


def test_arguments_reach_the_scheduler():
    lower, full = (
        RivalSampler(NETWORKS["vp"], f"dpmpp-2m:solver_order={p}", 8)([0]).samples for p in (1, 2)
    )
    assert not torch.equal(lower, full)


@pytest.mark.parametrize(
    ("spec", "kind", "error", "message"),
    [
        ("dpmpp2m", "vp", UnknownNameError, "did you mean 'dpmpp-2m'"),
        ("unipc:order=3", "vp", UnknownNameError, "did you mean 'solver_order'"),
        ("deis", "flow", SettingError, "does not run on a flow network"),
        ("euler-flux", "vp", SettingError, "does not run on a variance-preserving network"),
        ("unipc:use_flow_sigmas=true", "vp", SettingError, "drop its arguments"),
        ("dpmpp-2m:use_karras_sigmas=true", "flow", SettingError, "drop its arguments"),
    ],
)
def test_wrong_choices_are_told(spec, kind, error, message):
    with pytest.raises(error, match=message):
        RivalSampler(NETWORKS[kind], spec, 5)


def test_networks_and_policies_no_rival_can_run():
    with pytest.raises(SettingError, match="'unipc' does not run on an EDM network"):
        RivalSampler(NETWORKS["edm"], "unipc", 5)
    ended = GAUSSIAN.network(RectifiedFlow(terminal=0.1), SHAPE, Prediction.FLOW)
    with pytest.raises(SettingError, match="without a terminal time"):
        RivalSampler(ended, "unipc", 5)
    with pytest.raises(SettingError, match="thresholding of its own"):
        RivalSampler(NETWORKS["vp"], "unipc", 5)([0], guidance=Thresholded(CFG(1.0), 0.9))
    with pytest.raises(SettingError, match="at least 1"):
        RivalSampler(NETWORKS["vp"], "unipc", 0)
