"""The variance-exploding schedule of EDM networks, and of PFGM++, which have another noise."""

import math
from dataclasses import dataclass
from typing import ClassVar

from .arguments import as_integer
from .errors import SettingError, UnknownNameError
from .node import Node, check_range


@dataclass(frozen=True)
class EDM:
    """Variance exploding: alpha = 1, sigma = t (arXiv:2206.00364); with aug_dim, PFGM++.

    time_label: "c_noise" tells the network ln(sigma) / 4, "sigma" tells it sigma; None is not
                stated, and c_noise for networks in the EDM preconditioning.
    time_scale: a factor of what the network is told; 1000 where its embedding of times was made for
                the timesteps of diffusers.
    sigma_data: standard deviation of the data, used by the EDM preconditioning.
    aug_dim:    D >= 1 of a network trained as PFGM++ (arXiv:2302.04265): its noise is not normal
                but Student's t of D degrees of freedom, x_t = x0 + sigma z sqrt(D / c) with
                z ~ N(0, I) and one c ~ chi^2_D for each sample. The ODE is the same. None is
                normal noise, its limit.
    """

    family: ClassVar[str] = "edm"
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    sigma_data: float = 0.5
    time_label: str | None = None
    time_scale: float = 1.0
    aug_dim: int | None = None

    t_zero: ClassVar[float] = 0.0

    def __post_init__(self) -> None:
        if self.aug_dim is not None:
            object.__setattr__(self, "aug_dim", as_integer(self.aug_dim, "aug_dim"))
            if self.aug_dim < 1:
                raise SettingError(
                    f"aug_dim={self.aug_dim} must be 1 or more; None is normal noise"
                )
        if not self.time_scale > 0.0:
            raise SettingError(f"time_scale={self.time_scale:g} must be positive; 1 is none")
        if self.time_label not in ("c_noise", "sigma", None):
            raise UnknownNameError("EDM time label", self.time_label, ("c_noise", "sigma"))

    @property
    def t_min(self) -> float:
        return self.sigma_min

    @property
    def t_max(self) -> float:
        return self.sigma_max

    def at(self, t: float) -> Node:
        check_range(t >= 0.0, t, self)
        return Node(t, 1.0, t, math.inf if t == 0.0 else -math.log(t))

    def at_lam(self, lam: float) -> Node:
        return self.at(math.exp(-lam))

    def slope(self, t: float) -> tuple[float, float]:
        return 0.0, 1.0

    def label(self, node: Node) -> float:
        label = node.sigma if self.time_label == "sigma" else -0.25 * node.lam
        return self.time_scale * label

    def noise_scale(self, node: Node) -> float:
        return node.sigma
