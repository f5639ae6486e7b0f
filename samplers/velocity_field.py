"""The probability-flow ODE of a network as a function of time and state, for any integrator."""

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from ..models.arguments import Integers
from ..models.denoiser import Denoiser, Network
from ..models.errors import SettingError
from ..models.ledger import Ledger
from ..models.schedule import TimeGrid
from .conditions import Conditions, check_branches, make_branches
from .guidance import CFG, Guidance, Moment, take_guidance


@dataclass
class VelocityField:
    """f(t, x) = dx/dt, as `torchdiffeq.odeint` and its like take it.

    t is the time of the network's noise schedule, from `schedule.t_max` to 0, and x (B, *) the
    state there; a run starts from `samplers.noise.draw_start`, on most processes normal noise times
    `schedule.noise_scale(schedule.at(t))`.
    Gradients flow where torch records them.

    >>> field = velocity_field(network, class_labels=3, guidance="cfg:scale=2")
    >>> x0 = odeint(field, noise, torch.tensor([1.0, 0.0]), rtol=1e-4, atol=1e-4)[-1]
    >>> field.ledger.evaluations

    ledger: counts every call.
    """

    network: Network
    guidance: Guidance
    class_labels: Integers | None = None
    conditions: Conditions | None = None
    negative: Conditions | None = None
    ledger: Ledger = field(default_factory=Ledger)
    _denoiser: Denoiser | None = field(init=False, default=None)
    _rows: int = field(init=False, default=0)

    def __call__(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Returns dx/dt at time t for the state x (B, *).

        Raises:
            FewstepError: for a time outside the schedule, conditions that do not fit the rows of x,
                and guidance that is not a weighted sum of velocities where sigma is 0.
            NonFiniteError: if the network returns NaN or infinity; on a GPU `check` does so.
        """
        schedule, denoiser = self.network.schedule, self._find_denoiser(len(x))
        node = schedule.at(float(t))
        near = node if node.sigma else schedule.at(schedule.t_min)  # guidance has a limit at 0
        guide, moment = self.guidance.stateless(), Moment(near)
        asks = guide.ask(moment)
        if len(asks) == 1 or (isinstance(self.guidance, CFG) and not self.guidance.rescale):
            return guide.combine(denoiser.velocity(x, node, asks), x, moment)
        if node.sigma == 0.0:
            raise SettingError(
                f"{self.guidance.name} guidance has no velocity at t={float(t):g}, where sigma is"
                f" 0; end at t={schedule.t_min:g}, or take cfg"
            )
        x0 = guide.combine(denoiser.x0(x, node, asks), x, moment)
        d_alpha, d_sigma = schedule.slope(node.t)
        share = d_sigma / node.sigma  # of eps = (x - alpha x0) / sigma
        return share * x + (d_alpha - share * node.alpha) * x0

    def check(self) -> None:
        """Raises NonFiniteError if any answer so far held NaN or infinity."""
        if self._denoiser is not None:
            self._denoiser.check()

    def _find_denoiser(self, rows: int) -> Denoiser:
        """Returns the network with the conditions of so many rows."""
        if self._denoiser is None or rows != self._rows:
            network = self.network
            branches = make_branches(
                network, rows, self.class_labels, self.conditions, self.negative
            )
            ends = TimeGrid.of(network.schedule, [network.schedule.t_max, network.schedule.t_min])
            check_branches(network, branches, self.guidance, ends)
            self._denoiser, self._rows = Denoiser(network, branches, self.ledger), rows
        return self._denoiser


def velocity_field(
    network: Network,
    *,
    class_labels: Integers | None = None,
    conditions: Conditions | None = None,
    negative: Conditions | None = None,
    guidance: Guidance | str | None = None,
) -> VelocityField:
    """Returns the probability-flow ODE of a network as a function f(t, x) = dx/dt.

    Args:
        network: what `fewstep.load` returns, or `from_module`.
        class_labels, conditions, negative: as `Sampler` takes them, for the rows of x.
        guidance: a policy that needs nothing of the course of a run, such as "cfg:scale=2".

    Raises:
        SettingError: for what is no network, and for any other policy.
    """
    if not isinstance(network, Network):
        raise SettingError(f"{network!r} is no network; give fewstep.load(name) or from_module(..)")
    policy: Any = take_guidance(guidance)
    policy.stateless()
    return VelocityField(network, policy, class_labels, conditions, negative)
