"""Every scheduler of diffusers: what its config says of the network, or why it is refused."""

import contextlib
import inspect
import json
import math

import pytest
import torch
from diffusers import SchedulerMixin, schedulers

from fewstep import Sampler, from_module
from fewstep.models.diffusers_config import FACTS, REFUSED, from_scheduler_config
from fewstep.models.errors import FewstepError, ModelError, UnknownNameError
from fewstep.models.prediction import Prediction, combine, convert, x0_from
from fewstep.models.schedule import EDM, Cosine, RectifiedFlow, VPDiscrete, VPLinear

pytestmark = pytest.mark.filterwarnings("ignore:__array_wrap__")  # diffusers' own arithmetic

EXPORTED = {name: getattr(schedulers, name, None) for name in dir(schedulers)}
CLASSES = {  # without those that diffusers replaces by a stub, because a package is missing
    name: cls
    for name, cls in EXPORTED.items()
    if inspect.isclass(cls) and issubclass(cls, SchedulerMixin) and cls is not SchedulerMixin
}
OTHERS = {  # all that are neither refused nor here are VPDiscrete
    "CMStochasticIterativeScheduler": (
        EDM(time_label="c_noise", time_scale=1000.0),
        Prediction.CONSISTENCY,
    ),
    "DDPMWuerstchenScheduler": (Cosine(time_scale=1.0), Prediction.EPS),
    "EDMDPMSolverMultistepScheduler": (EDM(), Prediction.EDM),
    "EDMEulerScheduler": (EDM(), Prediction.EDM),
    "FlowMapEulerDiscreteScheduler": (RectifiedFlow(time_scale=1000), Prediction.FLOW),
    "FlowMatchEulerDiscreteScheduler": (RectifiedFlow(time_scale=1000), Prediction.FLOW),
    "FlowMatchHeunDiscreteScheduler": (RectifiedFlow(time_scale=1000), Prediction.FLOW),
    "FlowMatchLCMScheduler": (RectifiedFlow(time_scale=1000), Prediction.FLOW),
    "HeliosDMDScheduler": (RectifiedFlow(time_scale=1000), Prediction.FLOW),
    "HeliosScheduler": (RectifiedFlow(time_scale=1000), Prediction.FLOW),
    "LTXEulerAncestralRFScheduler": (RectifiedFlow(time_scale=1000), Prediction.FLOW),
    "SCMScheduler": (RectifiedFlow(time_scale=1), Prediction.FLOW),
    "ScoreSdeVpScheduler": (VPLinear(time_scale=999), Prediction.EPS),
}
VP = sorted(CLASSES.keys() - REFUSED.keys() - OTHERS.keys())
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"}
BETA_SETTINGS = [
    {},
    {"beta_schedule": "scaled_linear", "beta_start": 8.5e-4, "beta_end": 0.012},
    {"beta_schedule": "squaredcos_cap_v2", "num_train_timesteps": 300},
    {"beta_schedule": "sigmoid", "beta_start": 1e-4, "beta_end": 0.02},
    {"beta_schedule": "scaled_linear", "beta_end": 0.012} | ZERO_SNR,
    {"trained_betas": [0.1, 0.2, 0.05, 0.6], "num_train_timesteps": 4},
    {"snr_shift_scale": 1.0},
    {"snr_shift_scale": 2.0} | ZERO_SNR,
]


def built(name):
    """The scheduler with each of the settings that it has."""
    known = inspect.signature(CLASSES[name].__init__).parameters.keys()
    for wanted in BETA_SETTINGS:
        if wanted.keys() <= known:
            with contextlib.suppress(NotImplementedError, TypeError):  # a value it does not know
                yield CLASSES[name](**wanted)


def saved(scheduler):
    """The contents of its scheduler_config.json."""
    return json.loads(scheduler.to_json_string())


def config_of(name, **settings):
    return saved(CLASSES[name](**settings))


def close(found, expected, **tolerance):
    torch.testing.assert_close(found, expected, **{"rtol": 1e-4, "atol": 1e-7, **tolerance})


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_sampled_from_is_refused_by_name(name):
    with pytest.raises(ModelError, match=f"{name} cannot be sampled from: .*pass schedule="):
        from_scheduler_config({"_class_name": name, "beta_schedule": "linear"})


@pytest.mark.parametrize("name", sorted(CLASSES.keys() - REFUSED.keys()))
def test_every_other_scheduler_is_read(name):
    schedule, prediction = from_scheduler_config(config_of(name))
    assert isinstance(prediction, Prediction)
    if name in OTHERS:
        assert (schedule, prediction) == OTHERS[name]
    else:
        assert (type(schedule), prediction) == (VPDiscrete, Prediction.EPS)


def test_the_schedulers_were_found():
    assert len(VP) > 15
    assert REFUSED.keys() <= EXPORTED.keys()
    assert OTHERS.keys() - CLASSES.keys() <= {"ScoreSdeVpScheduler"}  # it needs transformers


# Variance preserving


@pytest.mark.parametrize("name", VP)
def test_alphas_cumprod_are_those_of_the_scheduler(name):
    tried = 0
    for scheduler in built(name):
        schedule, _ = from_scheduler_config(saved(scheduler))
        close(torch.tensor(schedule.alphas_cumprod), scheduler.alphas_cumprod.float())
        tried += 1
    assert tried >= 2


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [("epsilon", Prediction.EPS), ("sample", Prediction.X0), ("v_prediction", Prediction.V)],
)
@pytest.mark.parametrize("t", [1, 500, 998])
def test_predictions_mean_what_they_mean_in_diffusers(theirs, ours, t):
    scheduler = CLASSES["DDIMScheduler"](prediction_type=theirs, clip_sample=False)
    scheduler.set_timesteps(1000)
    schedule, prediction = from_scheduler_config(saved(scheduler))
    assert prediction is ours
    x_t, out = torch.randn(2, 2, 3, generator=torch.Generator().manual_seed(0))
    node = schedule.at((t + 1) / 1000)
    x0 = convert(out, x_t, node, prediction, Prediction.X0)
    close(x0, scheduler.step(out, t, x_t).pred_original_sample, rtol=1e-3, atol=1e-4)
    assert schedule.label(node) == pytest.approx(t)


def test_zero_terminal_snr_is_refused_with_eps_and_right_with_v():
    """An imperfect network, whose answers are .1 % off: its data are N(.3, .5^2)."""
    scheduler = CLASSES["DDIMScheduler"](rescale_betas_zero_snr=True)
    for config in (saved(scheduler), {**saved(scheduler), "_class_name": "SolverScheduler"}):
        with pytest.raises(ModelError, match="set prediction_type='v_prediction' if"):
            from_scheduler_config(config)
    schedule = VPDiscrete(zero_snr=True)

    def answer(x, time):
        abar = scheduler.alphas_cumprod[time.round().long()].reshape(-1, 1, 1, 1)
        a, s = abar.sqrt(), (1.0 - abar).sqrt()
        off = (x - a * 0.3) / (abar * 0.25 + s**2)
        return (a * s * off - s * (0.3 + a * 0.25 * off)) * 1.001

    with pytest.raises(ModelError, match="rescale_betas_zero_snr=False"):
        from_module(answer, schedule=schedule, prediction="eps", shape=(1, 8, 8))
    network = from_module(answer, schedule=schedule, prediction="v", shape=(1, 8, 8))
    samples = Sampler(network)(range(32), solver="unipc-2", grid="uniform", steps=50).samples
    assert samples.mean().item() == pytest.approx(0.3, abs=0.05)
    assert samples.std().item() == pytest.approx(0.5, abs=0.05)


def test_the_wuerstchen_and_sde_schedules():
    s = 0.02
    scheduler = CLASSES["DDPMWuerstchenScheduler"](s=s)
    schedule, _ = from_scheduler_config(saved(scheduler))
    for t in (0.1, 0.5, 0.9):
        expected = scheduler._alpha_cumprod(torch.tensor([t]), "cpu").item()
        assert schedule.at(t).alpha ** 2 == pytest.approx(expected, rel=1e-5)
        assert schedule.label(schedule.at(t)) == t
    config = {"_class_name": "ScoreSdeVpScheduler", "beta_min": 0.2, "beta_max": 10}
    assert from_scheduler_config(config)[0] == VPLinear(0.2, 10, time_scale=999)


# Flow


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_with_a_static_shift(shift):
    scheduler = CLASSES["FlowMatchEulerDiscreteScheduler"](shift=shift)
    schedule, prediction = from_scheduler_config(saved(scheduler))
    nodes = [schedule.at(1.0 - i / 1000) for i in range(1000)]
    assert prediction is Prediction.FLOW
    close(torch.tensor([node.sigma for node in nodes]), scheduler.sigmas[:1000])
    close(torch.tensor([schedule.label(node) for node in nodes]), scheduler.timesteps)


@pytest.mark.parametrize("kind", ["exponential", "linear"])
@pytest.mark.parametrize("tokens", [256, 1024, 4096])
def test_flow_with_a_shift_by_size(kind, tokens):
    scheduler = CLASSES["FlowMatchEulerDiscreteScheduler"](
        use_dynamic_shifting=True, time_shift_type=kind, shift=9.0, max_shift=1.3
    )
    schedule, _ = from_scheduler_config(saved(scheduler), tokens=tokens)
    mu = 0.5 + (1.3 - 0.5) * (tokens - 256) / (4096 - 256)
    for t in (0.1, 0.5, 0.9):
        assert schedule.at(t).sigma == pytest.approx(scheduler.time_shift(mu, 1.0, t))


def test_flow_with_a_shift_by_size_needs_the_size():
    config = config_of("FlowMatchEulerDiscreteScheduler", use_dynamic_shifting=True)
    with pytest.raises(ModelError, match="pass tokens="):
        from_scheduler_config(config)


@pytest.mark.parametrize("name", ["DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
@pytest.mark.parametrize(
    "asked", [{"use_flow_sigmas": True}, {"prediction_type": "flow_prediction"}], ids=str
)
def test_flow_asked_of_a_general_scheduler(name, asked):
    config = config_of(name, flow_shift=3.0, num_train_timesteps=500, **asked)
    expected = RectifiedFlow(3.0, time_scale=500.0), Prediction.FLOW
    assert from_scheduler_config(config) == expected


def test_flow_with_a_terminal():
    config = config_of("FlowMatchEulerDiscreteScheduler", shift_terminal=0.1)
    assert from_scheduler_config(config)[0] == RectifiedFlow(terminal=0.1, time_scale=1000)


def test_flow_from_data_to_noise_is_refused():
    config = config_of("FlowMatchEulerDiscreteScheduler", invert_sigmas=True)
    with pytest.raises(ModelError, match="invert_sigmas"):
        from_scheduler_config(config)


def test_flow_that_a_cosmos_pipeline_scales_itself_is_refused():
    """Its pipelines write EDM's sigmas into the config of a flow scheduler."""
    scheduler = CLASSES["FlowMatchEulerDiscreteScheduler"](use_karras_sigmas=True)
    scheduler.register_to_config(sigma_max=80.0, sigma_min=0.002, sigma_data=1.0)
    with pytest.raises(ModelError, match="sigma_data is of a Cosmos pipeline, which scales"):
        from_scheduler_config(saved(scheduler))


# EDM


@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm_preconditions_as_the_scheduler_does(name):
    scheduler = CLASSES[name](sigma_min=0.01, sigma_max=20.0, sigma_data=0.7)
    schedule, prediction = from_scheduler_config(saved(scheduler))
    assert schedule == EDM(0.01, 20.0, 0.7)
    x_t, out = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    for t in (0.01, 1.0, 20.0):
        node, sigma = schedule.at(t), torch.tensor(t)
        c_in = prediction.input_scale(node, schedule.sigma_data)
        x0 = combine(x0_from(prediction, node, schedule.sigma_data), x_t, out)
        close(c_in * x_t, scheduler.precondition_inputs(x_t, sigma))
        close(x0, scheduler.precondition_outputs(x_t, out, sigma))
        assert schedule.label(node) == pytest.approx(float(scheduler.precondition_noise(sigma)))


def test_edm_with_another_preconditioning_is_refused():
    config = config_of("EDMEulerScheduler", prediction_type="v_prediction")
    with pytest.raises(ModelError, match=r"EDMEulerScheduler .*'v_prediction'"):
        from_scheduler_config(config)


# Configs that say too little


@pytest.mark.parametrize(
    ("config", "error", "text"),
    [
        ({}, ModelError, "this config does not say how"),
        ({"_class_name": "NewScheduler"}, ModelError, "NewScheduler does not say how"),
        (
            {
                "_class_name": "EulerDiscreteScheduler",
                "beta_schedule": "scaled_linear",
                "timestep_type": "continuous",
            },
            ModelError,
            "EulerDiscreteScheduler does not say how",
        ),
        (
            {"_class_name": "DDPMWuerstchenScheduler", "scaler": 2.0},
            ModelError,
            "DDPMWuerstchenScheduler does not say how",
        ),
        ({"beta_schedule": "laplace"}, UnknownNameError, "no beta schedule 'laplace'; known: lin"),
        (
            {"beta_schedule": "linear", "prediction_type": "v_predict"},
            UnknownNameError,
            "no prediction 'v_predict'; did you mean 'v_prediction'",
        ),
        (
            {"_class_name": "EDMEulerScheduler", "sigma_min": 0.002, "sigma_max": 80.0},
            FewstepError,
            "sigma_data",
        ),
        ({"_class_name": "ScoreSdeVpScheduler", "beta_min": 0.1}, FewstepError, "beta_max"),
        ({"beta_schedule": None}, UnknownNameError, "no beta schedule None"),
    ],
    ids=str,
)
def test_a_config_that_says_too_little_is_refused(config, error, text):
    with pytest.raises(error, match=text):
        from_scheduler_config(config)


class Recording(dict):
    """A config that notes what is read of it."""

    read: set[str]

    def get(self, key, default=None):
        self.read.add(key)
        return super().get(key, default)

    def __getitem__(self, key):
        self.read.add(key)
        return super().__getitem__(key)


def test_all_that_is_read_of_a_config_is_named_as_a_fact():
    """For `SolverScheduler.from_config` takes these of every network, and no others."""
    read = set()
    extra = [{"use_dynamic_shifting": True}, {"use_flow_sigmas": True}, {"snr_shift_scale": 2.0}]
    for name in sorted(CLASSES.keys() - REFUSED.keys()):
        for more in extra:
            config = Recording(config_of(name) | more)
            config.read = read
            with contextlib.suppress(FewstepError):
                from_scheduler_config(config, tokens=1024)
    continuous = Recording({"_class_name": "ScoreSdeVpScheduler", "beta_min": 0.1, "beta_max": 20})
    continuous.read = read
    from_scheduler_config(continuous)
    assert read - {"_class_name", "base_class"} == set(FACTS)


def test_a_config_with_defaults_left_out_is_the_plain_one():
    """What diffusers itself wrote in its first releases."""
    schedule, prediction = from_scheduler_config({"beta_schedule": "linear"})
    assert (schedule, prediction) == (VPDiscrete(), Prediction.EPS)
    assert math.isfinite(schedule.at(1.0).lam)
