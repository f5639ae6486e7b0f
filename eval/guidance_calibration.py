"""Where adaptive guidance would stop: the similarity of the branches in every step of many runs.

With a log of gamma over seeds and conditions, the threshold for a wanted saving follows: a run of S
steps that stops after K guided ones saves (S - K) / 2S of the network rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..models.denoiser import Ask, Network
from ..models.errors import SettingError
from ..samplers.guidance.base import BOTH, Guide, Moment
from ..samplers.guidance.space import Space, choose_prediction, compute_similarity, convert_from_x0
from ..samplers.plan import Plan
from .guidance_runs import Images, run_guided


@dataclass(frozen=True)
class Similarity:
    """gamma (images, steps) of full guidance, and the space it was taken in."""

    gamma: Tensor
    space: Space

    @property
    def steps(self) -> int:
        return self.gamma.shape[1]

    def guided_steps(self, threshold: float, warmup: int = 3, need: int = 2) -> Tensor:
        """(images,): K, the steps that each image by itself would be guided in."""
        above = self.gamma > threshold
        found = torch.full((len(above),), self.steps)
        for step in range(self.steps - 1, need - 2, -1):
            agreed = above[:, step - need + 1 : step + 1].all(1)
            found = torch.where(agreed, max(step + 1, warmup), found)
        return found.clamp(max=self.steps)

    def saving(self, threshold: float, warmup: int = 3, need: int = 2) -> float:
        """The share of network rows that it would save, on average."""
        guided = self.guided_steps(threshold, warmup, need).double().mean()
        return float(self.steps - guided) / (2.0 * self.steps)

    def proposed(self, saving: float, warmup: int = 3, need: int = 2) -> float:
        """The highest threshold that saves at least so much; more caution is not to be had.

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
    """gamma in every step of full guidance, for images of all classes in turn.

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
