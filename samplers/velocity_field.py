"""Views of a network as functions of time and state: velocity, score and denoised data.

The three are linear in each other. With dx/dt = alpha' x0 + sigma' eps, x = alpha x0 + sigma eps,

    velocity dx/dt,   score = -eps / sigma = (alpha x0 - x) / sigma^2,   denoiser x0,

so that for every g(t) >= 0 the SDE dx = (dx/dt - g^2 score / 2) dt + g dW, with t falling to 0, has
the marginals of the ODE (arXiv:2303.08797).
"""

from dataclasses import dataclass, field
from typing import Any, Literal, TypedDict, Unpack

from torch import Tensor

from ..models.arguments import Integers, refuse_unknown
from ..models.denoiser import Denoiser, Network
from ..models.errors import SettingError
from ..models.ledger import Ledger
from ..models.prediction import Linear, combine
from ..models.schedule import Node, TimeGrid
from .conditions import Conditions, check_branches, make_branches
from .guidance import CFG, Guidance, Moment, take_guidance

View = Literal["velocity", "score", "x0"]


@dataclass
class NetworkField:
    """f(t, x) in one of the module's views, as `torchdiffeq.odeint` and its like take it.

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
    view: View
    guidance: Guidance
    class_labels: Integers | None = None
    conditions: Conditions | None = None
    negative: Conditions | None = None
    ledger: Ledger = field(default_factory=Ledger)
    _denoiser: Denoiser | None = field(init=False, default=None)
    _rows: int = field(init=False, default=0)

    def __call__(self, t: Tensor | float, x: Tensor) -> Tensor:
        """Returns the view at time t of the state x (B, *).

        Raises:
            FewstepError: for a time outside the schedule, conditions that do not fit the rows of x,
                guidance that is no weighted sum of velocities where sigma is 0, and a score there.
            NonFiniteError: if the network returns NaN or infinity; on a GPU `check` does so.
        """
        schedule, denoiser = self.network.schedule, self._find_denoiser(len(x))
        node = schedule.at(float(t))
        near = node if node.sigma else schedule.at(schedule.t_min)  # guidance has a limit at 0
        guide, moment = self.guidance.stateless(), Moment(near)
        asks = guide.ask(moment)
        if len(asks) == 1 or (isinstance(self.guidance, CFG) and not self.guidance.rescale):
            return guide.combine(getattr(denoiser, self.view)(x, node, asks), x, moment)
        if node.sigma == 0.0:
            raise SettingError(
                f"{self.guidance.name} guidance has no {self.view} at t={float(t):g}, where sigma"
                f" is 0; end at t={schedule.t_min:g}, or take cfg"
            )
        x0 = guide.combine(denoiser.x0(x, node, asks), x, moment)
        return combine(self._weigh_x0(node), x, x0)

    def _weigh_x0(self, node: Node) -> Linear:
        """Returns the view as weights of the state and of x0, where sigma > 0."""
        if self.view == "x0":
            return 0.0, 1.0
        if self.view == "score":
            return -1.0 / node.sigma**2, node.alpha / node.sigma**2
        d_alpha, d_sigma = self.network.schedule.slope(node.t)
        share = d_sigma / node.sigma  # of eps = (x - alpha x0) / sigma
        return share, d_alpha - share * node.alpha

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


class FieldChoices(TypedDict, total=False):
    """The choices that decide what a field asks its network.

    class_labels, conditions, negative: as `Sampler` takes them, for the rows of x.
    guidance: a policy that needs nothing of the course of a run, such as "cfg:scale=2".
    """

    class_labels: Integers | None
    conditions: Conditions | None
    negative: Conditions | None
    guidance: Guidance | str | None


def velocity_field(network: Network, **choices: Unpack[FieldChoices]) -> NetworkField:
    """Returns the probability-flow ODE of a network as a function f(t, x) = dx/dt.

    Args:
        network: what `fewstep.load` returns, or `from_module`.
        choices: see `FieldChoices`.

    Raises:
        SettingError: for what is no network, and for any other guidance.
    """
    refuse_unknown(choices, velocity_field, FieldChoices.__annotations__)
    return _make_field(network, "velocity", **choices)


def score_field(network: Network, **choices: Unpack[FieldChoices]) -> NetworkField:
    """Returns the score of a network, the gradient of log p_t(x), as a function f(t, x).

    Arguments and errors are those of `velocity_field`; at sigma = 0 there is no score.
    """
    refuse_unknown(choices, score_field, FieldChoices.__annotations__)
    return _make_field(network, "score", **choices)


def denoiser_field(network: Network, **choices: Unpack[FieldChoices]) -> NetworkField:
    """Returns the prediction of clean data by a network as a function f(t, x) = x0.

    Arguments and errors are those of `velocity_field`.
    """
    refuse_unknown(choices, denoiser_field, FieldChoices.__annotations__)
    return _make_field(network, "x0", **choices)


def _make_field(
    network: Network, view: View, guidance: Guidance | str | None = None, **given: Any
) -> NetworkField:
    if not isinstance(network, Network):
        raise SettingError(
            f"{network!r} is not a network; give fewstep.load(name) or from_module(..)"
        )
    policy: Any = take_guidance(guidance)
    policy.stateless()
    return NetworkField(network, view, policy, **given)
