"""The material of an editor: a network, a source image, and two conditions for it."""

from dataclasses import dataclass, field

from torch import Tensor

from ...models.denoiser import Branch, Denoiser, Network
from ...models.errors import SettingError
from ...models.ledger import Ledger
from ...models.schedule import Node
from ..conditions import Branches, tell_scale
from ..noise import Noise, draw_noise


@dataclass
class Scene:
    """One edit of a batch of images.

    network:   the network.
    image:     (B, *) the source, in float64 where the device has it.
    source, target: the conditions of the image as it is and as it shall be, by branch.
    noise:     draws (B, *) for editors that need noise; one seed per image.
    ledger:    counts all that is evaluated.
    bytes_held, bytes_predicted: most bytes of V that an editor kept, and what the formula says.
    """

    network: Network
    image: Tensor
    source: Branches
    target: Branches
    noise: Noise
    ledger: Ledger = field(default_factory=Ledger)
    bytes_held: int = 0
    bytes_predicted: int = 0

    def draw(self) -> Tensor:
        """Returns noise of the process at unit scale, like the image."""
        return draw_noise(self.noise, self.network.schedule).to(self.image)

    def make_denoiser(self, branches: Branches, network: Network | None = None) -> Denoiser:
        """Returns the network under conditions, counting in the scene's ledger."""
        return Denoiser(network or self.network, branches, self.ledger)

    def compute_velocity(
        self, x: Tensor, node: Node, branches: Branches, scale: float = 1.0
    ) -> Tensor:
        """Returns v = eps - x0 = dx/dsigma on rectified flow, guided by u + scale (c - u)."""
        branches, scale = tell_scale(self.network, branches, scale)
        slope = self.network.schedule.slope(node.t)[1]
        denoiser = self.make_denoiser(branches)
        if scale == 1.0:
            return denoiser.velocity(x, node)[0] / slope
        check_guided(branches, scale, self.network.name)
        uncond, cond = denoiser.velocity(x, node, (Branch.UNCOND, Branch.COND))
        return (uncond + scale * (cond - uncond)) / slope


def check_guided(branches: Branches, scale: float, name: str) -> None:
    """Raises SettingError if a guidance scale is asked for that cannot be had."""
    if scale != 1.0 and Branch.UNCOND not in branches:
        raise SettingError(
            f"{name} has no unconditional branch (no null class and no negative conditions), so it"
            f" cannot be guided by {scale:g}; set the guidance of the editor to 1, or give negative"
        )
