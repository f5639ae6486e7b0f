"""The noise schedule and the prediction of a network, read from a diffusers scheduler config."""

import math
from collections.abc import Mapping
from typing import Any

from .errors import FewstepError, ModelError, reason_of
from .prediction import BOUNDARY, Prediction, check_terminal
from .schedule import EDM, Cosine, NoiseSchedule, RectifiedFlow, VPDiscrete, VPLinear, dynamic_shift

OURS = "SolverScheduler"  # whose config names the class it comes from as "base_class"
FACTS = (  # all keys that are read of a config here
    *("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "trained_betas"),
    *("rescale_betas_zero_snr", "snr_shift_scale", "prediction_type", "use_flow_sigmas"),
    *("shift", "flow_shift", "shift_terminal", "use_dynamic_shifting", "time_shift_type"),
    *("base_shift", "max_shift", "base_image_seq_len", "max_image_seq_len"),
    *("sigma_min", "sigma_max", "sigma_data", "beta_min", "beta_max", "s", "scaler"),
    *("timestep_type", "invert_sigmas"),
)
SHIFTS = ("shift", "flow_shift")  # one fact: of flow schedulers, and of those that can be flow too
EXPLODING = {  # they hold x0 + sigma eps and scale what the network reads
    *("DPMSolverSDEScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler"),
    *("HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler"),
    "LMSDiscreteScheduler",
}
FLOW_CLASSES = ("FlowMap", "FlowMatch", "Helios", "LTXEulerAncestralRF")

_DISCRETE = "it runs on discrete tokens, which have no alpha and sigma"
_DISTILLED = "its network is distilled to its own update and is no x0, eps or velocity network"
_SIGN = "its network answers in a scale or sign of its own"
REFUSED = {
    "AmusedScheduler": _DISCRETE,
    "BlockRefinementScheduler": _DISCRETE,
    "DiscreteDDIMScheduler": _DISCRETE,
    "EntropyBoundScheduler": _DISCRETE,
    "VQDiffusionScheduler": _DISCRETE,
    "ConsistencyDecoderScheduler": _DISTILLED,
    "PiflowScheduler": "its network answers ten velocities at once, which no solver here reads",
    "CosineDPMSolverMultistepScheduler": _SIGN,
    "KarrasVeScheduler": _SIGN,
    "MiniMaxH3Scheduler": _SIGN,
    "RFD4ProteinaScheduler": _SIGN,
    "ScoreSdeVeScheduler": _SIGN,
    "IPNDMScheduler": "it does not say which betas its network was trained with",
}


def from_scheduler_config(
    config: Mapping[str, Any], *, tokens: int | None = None
) -> tuple[NoiseSchedule, Prediction]:
    """Returns the noise schedule and prediction of a diffusers scheduler config.

    Args:
        config: `scheduler.config`, or the contents of a scheduler_config.json.
        tokens: number of image tokens, for flow networks with dynamic shifting (Flux).

    Raises:
        ModelError: if the config belongs to a process without alpha and sigma, or to a network
            whose output is of an unknown type, or holds invalid values; the message says which.
    """
    try:
        return _read_config(config, tokens)
    except FewstepError:
        raise
    except (TypeError, ValueError, ArithmeticError, AttributeError, LookupError) as error:
        raise ModelError(
            f"the scheduler config does not hold what it should: {reason_of(error)}"
        ) from error


def _read_config(config: Mapping[str, Any], tokens: int | None) -> tuple[NoiseSchedule, Prediction]:
    name = class_name_of(config)
    if config.get("invert_sigmas"):
        raise ModelError(f"{name} runs from data to noise (invert_sigmas), which is not supported")
    if name in REFUSED:
        raise ModelError(
            f"{name} cannot be sampled from: {REFUSED[name]};"
            " pass schedule= and prediction= if you know better"
        )
    if is_flow(config):
        return _read_flow(config, tokens), Prediction.FLOW
    if name.startswith("EDM"):
        return _read_edm(name, config), Prediction.EDM
    if name == "CMStochasticIterativeScheduler":
        return _read_consistency(config), Prediction.CONSISTENCY
    if name == "SCMScheduler":  # its network is one of flow, whose state it scales
        return RectifiedFlow(time_scale=1.0), Prediction.FLOW
    if name == "ScoreSdeVpScheduler":
        return _read_score_sde(config), Prediction.EPS
    if name == "DDPMWuerstchenScheduler" and config.get("scaler", 1.0) == 1.0:
        return Cosine(config.get("s", 0.008), time_scale=1.0), Prediction.EPS
    if config.get("timestep_type") == "continuous" or "beta_schedule" not in config:
        raise ModelError(
            f"{name or 'this config'} does not say how its network was trained (no discrete"
            " beta_schedule); pass schedule= and prediction="
        )
    schedule = _read_variance_preserving(config)
    prediction = Prediction.named(config.get("prediction_type", "epsilon"))
    check_terminal(prediction, schedule)
    return schedule, prediction


def is_flow(config: Mapping[str, Any]) -> bool:
    """Tells whether a config is of rectified flow, whose timesteps are its times in thousandths."""
    name = class_name_of(config)
    asked = config.get("use_flow_sigmas") or config.get("prediction_type") == "flow_prediction"
    return bool(asked) or name.startswith(FLOW_CLASSES)


def class_name_of(config: Mapping[str, Any]) -> str:
    """Returns the scheduler that a config is of: of one of ours, the one that it comes from."""
    name = str(config.get("_class_name") or "")
    return str(config.get("base_class") or "") if name in ("", OURS) else name


def shift_key_of(config: Mapping[str, Any]) -> str:
    """Returns the key of a flow network's shift; a converted config may have a leftover too."""
    flow = class_name_of(config).startswith(FLOW_CLASSES)
    usual, other = SHIFTS if flow else reversed(SHIFTS)
    return other if usual not in config and other in config else usual


def _read_flow(config: Mapping[str, Any], tokens: int | None) -> RectifiedFlow:
    if "sigma_data" in config:
        raise ModelError(
            "a flow config with sigma_data is of a Cosmos pipeline, which scales the input and"
            " output of its network itself, as for x0 + sigma eps"
        )
    shift = config.get(shift_key_of(config), 1.0)
    if config.get("use_dynamic_shifting"):
        shift = _read_dynamic_shift(config, tokens)
    return RectifiedFlow(
        shift=float(shift),
        terminal=config.get("shift_terminal"),
        time_scale=float(config.get("num_train_timesteps", 1000)),
    )


def _read_dynamic_shift(config: Mapping[str, Any], tokens: int | None) -> float:
    if tokens is None:
        raise ModelError(
            "this scheduler shifts its times by the size of the image (use_dynamic_shifting);"
            " pass tokens=, the number of image tokens"
        )
    shift = dynamic_shift(
        tokens,
        base_shift=config.get("base_shift", 0.5),
        max_shift=config.get("max_shift", 1.15),
        base_tokens=config.get("base_image_seq_len", 256),
        max_tokens=config.get("max_image_seq_len", 4096),
    )
    return math.log(shift) if config.get("time_shift_type") == "linear" else shift


def _read_score_sde(config: Mapping[str, Any]) -> VPLinear:
    low, high = _read_required(config, "beta_min", "beta_max")
    return VPLinear(low, high, time_scale=999.0)


def _read_edm(name: str, config: Mapping[str, Any]) -> EDM:
    if config.get("prediction_type", "epsilon") != "epsilon":
        raise ModelError(
            f"{name} with prediction_type={config['prediction_type']!r} has a preconditioning we do"
            " not know; only 'epsilon' is the one of the EDM paper"
        )
    low, high, data = _read_required(config, "sigma_min", "sigma_max", "sigma_data")
    return EDM(low, high, data)


def _read_consistency(config: Mapping[str, Any]) -> EDM:
    low, high, data = _read_required(config, "sigma_min", "sigma_max", "sigma_data")
    if low != BOUNDARY:
        raise ModelError(
            f"a consistency model with sigma_min={low:g} is not known here, only with {BOUNDARY}"
        )
    return EDM(low, high, data, time_label="c_noise", time_scale=1000.0)


def _read_required(config: Mapping[str, Any], *keys: str) -> list[float]:
    for key in keys:
        if key not in config:
            raise ModelError(f"the scheduler config lacks {key!r}, which its network depends on")
    return [float(config[key]) for key in keys]


def _read_variance_preserving(config: Mapping[str, Any]) -> VPDiscrete:
    trained = config.get("trained_betas")
    zero_snr = bool(config.get("rescale_betas_zero_snr", False))
    base = VPDiscrete(
        beta_schedule=config["beta_schedule"],
        beta_start=config.get("beta_start", 1e-4),
        beta_end=config.get("beta_end", 0.02),
        num_train_timesteps=config.get("num_train_timesteps", 1000),
        zero_snr=zero_snr,
        trained_betas=None if trained is None else tuple(map(float, trained)),
    )
    k = config.get("snr_shift_scale", 1.0)
    return base if k == 1.0 else _divide_snr(base, k)


def _divide_snr(base: VPDiscrete, k: float) -> VPDiscrete:
    """Divides the SNR of every node by k (CogVideoX): abar' = abar / (k + (1 - k) abar)."""
    plain = VPDiscrete(
        base.beta_schedule,
        base.beta_start,
        base.beta_end,
        base.num_train_timesteps,
        trained_betas=base.trained_betas,
    )
    shifted = VPDiscrete.from_alphas_cumprod(
        [abar / (k + (1.0 - k) * abar) for abar in plain.alphas_cumprod]
    )
    return VPDiscrete(zero_snr=base.zero_snr, trained_betas=shifted.trained_betas)
