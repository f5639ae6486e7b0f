"""Where adaptive guidance would stop: the similarity of the branches in every step of many runs.

With a log of gamma over seeds and conditions, the threshold for a wanted saving follows: a run of S
steps that stops after K guided ones saves (S - K) / 2S of the network rows.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.denoiser import Ask, Network
from ..models.errors import SettingError
from ..models.load import load
from ..models.registry import parse_spec
from ..samplers.guidance import AdaptiveGuidance, parse_guidance
from ..samplers.guidance.base import BOTH, Guide, Moment
from ..samplers.guidance.space import Space, choose_prediction, compute_similarity, convert_from_x0
from ..samplers.plan import Plan
from .calibration_request import CalibrationRequest
from .guidance_runs import Images, plan_of, run_guided


@dataclass(frozen=True)
class Similarity:
    """gamma (images, steps) of full guidance, and the space it was taken in."""

    gamma: Tensor
    space: Space

    @property
    def steps(self) -> int:
        return self.gamma.shape[1]

    def count_guided_steps(self, threshold: float, warmup: int = 3, need: int = 2) -> Tensor:
        """Returns (images,): K, the steps that each image by itself would be guided in."""
        above = self.gamma > threshold
        guided = torch.full((len(above),), self.steps)
        for step in range(self.steps - 1, need - 2, -1):
            agreed = above[:, step - need + 1 : step + 1].all(1)
            guided = torch.where(agreed, max(step + 1, warmup), guided)
        return guided.clamp(max=self.steps)

    def saving(self, threshold: float, warmup: int = 3, need: int = 2) -> float:
        """Returns the share of network rows that it would save, on average."""
        guided = self.count_guided_steps(threshold, warmup, need).double().mean()
        return float(self.steps - guided) / (2.0 * self.steps)

    def find_threshold(self, saving: float, warmup: int = 3, need: int = 2) -> float:
        """Returns the highest threshold that saves at least so much; more caution is not to be had.

        Raises:
            SettingError: if no threshold saves that much.
        """
        most = self.saving(-1.0, warmup, need)
        if not 0.0 < saving <= most:
            raise SettingError(
                f"adaptive guidance of these {self.steps} steps saves between 0 and {most:.3f} of"
                f" the network rows with a warm-up of {warmup}, not {saving:g}; ask for less, or"
                " give a shorter warm-up, as adaptive:warmup=1"
            )
        candidates: list[float] = torch.sort(self.gamma.flatten()).values.tolist()
        low, high = -1, len(candidates) - 1  # candidate -1 stands for no threshold at all
        while high - low > 1:
            middle = (low + high) // 2
            if self.saving(candidates[middle], warmup, need) >= saving:
                low = middle
            else:
                high = middle
        return float(candidates[low]) if low >= 0 else -1.0


def similarity_log(
    network: Network,
    plan: Plan,
    scale: float,
    images: Images,
    space: Space = "x0",
    *,
    progress: bool = False,
) -> Similarity:
    """Returns gamma in every step of full guidance, for images of all classes in turn.

    Raises:
        SettingError: if the network cannot be guided.
    """
    kind = choose_prediction(space, network.schedule)
    log: list[Tensor] = []

    class Watching(Guide):
        """CFG that writes the similarity down."""

        def ask(self, moment: Moment) -> tuple[Ask, ...]:
            return BOTH

        def combine(self, outputs: Sequence[Tensor], x: Tensor, moment: Moment) -> Tensor:
            if moment.stage == 0:
                u, c = (convert_from_x0(each, x, moment.node, kind) for each in outputs)
                log.append(compute_similarity(c, u).cpu())
            return torch.lerp(outputs[0], outputs[1], scale)

    run_guided(network, plan, images, lambda setup: Watching(), progress=progress)
    return Similarity(torch.stack(log, 1), space)


def propose_threshold(request: CalibrationRequest, progress: bool = False) -> Iterator[str]:
    """Yields the similarity of the branches in each step, the threshold, and what to type.

    Raises:
        SettingError: if no threshold saves that much, or the network cannot be guided.
    """
    spec = request.guidance or "adaptive"
    guidance = parse_guidance(spec, request.cfg_scale)
    if not isinstance(guidance, AdaptiveGuidance):
        raise SettingError(
            f"only adaptive guidance has such a threshold, not {spec}; write --guidance adaptive"
        )
    if request.cfg_scale == 1.0:
        raise SettingError("a guidance scale of 1 is no guidance; give --cfg-scale 3")
    ignored = parse_spec(spec)[1].keys() - {"scale", "space", "warmup", "need"}
    if ignored:
        raise SettingError(
            "the calibration finds the threshold itself, for each image alone; drop"
            f" {', '.join(sorted(ignored))}"
        )
    network = load(request.network, device=request.device)
    plan = plan_of(network, request.solver, request.nfe, request.grid_type)
    images = Images(count=request.images)
    log = similarity_log(
        network, plan, request.cfg_scale, images, guidance.space, progress=progress
    )
    exact = log.find_threshold(request.saving, guidance.warmup, guidance.need)
    threshold = math.floor(exact * 1e6) / 1e6  # not rounded up, so that it saves no less
    yield "| step | mean similarity | least |"
    yield "|---|---|---|"
    for step in range(log.steps):
        gamma = log.gamma[:, step]
        yield f"| {step} | {float(gamma.mean()):.5f} | {float(gamma.min()):.5f} |"
    yield ""
    saved = log.saving(threshold, guidance.warmup, guidance.need)
    yield f"threshold {threshold!r} saves {100.0 * saved:.1f} % of the rows of full guidance"
    yield "of images that are each judged by themselves; batch=all saves less."
    yield ""
    yield format_command(request, threshold, guidance)


def format_command(
    request: CalibrationRequest, threshold: float, guidance: AdaptiveGuidance
) -> str:
    settings: dict[str, Any] = {
        "threshold": threshold,
        "space": guidance.space,
        "warmup": guidance.warmup,
    }
    settings |= {"need": guidance.need, "batch": "per-sample"}
    spec = ",".join(f"{name}={value}" for name, value in settings.items())
    grid = "" if request.grid_type is None else f" --grid {request.grid_type}"
    return (
        f"sample {request.network} --solver {request.solver} --nfe {request.nfe}{grid}"
        f" --cfg-scale {request.cfg_scale:g} --guidance adaptive:{spec}"
    )
