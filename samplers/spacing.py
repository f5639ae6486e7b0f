"""Grids of training timesteps: where diffusers' and ComfyUI's samplers begin their steps.

They say at which labels of the training steps 0 .. N - 1 each step begins; where the run ends comes
after the last. `trailing`, `leading`, `linspace` and `lcm` are diffusers' (its `timestep_spacing`),
of discrete schedules. Its schedulers do not agree on them: those of multistep solvers take one
point more than there are steps and leave out the cleanest (spare=1), and those like EulerDiscrete
do not round `linspace` (whole=false).

The others are ComfyUI's `normal`, `simple` and their like, of any process. Without N timesteps of
its own it has 1000: even times, and on EDM even lam. Between labels, lam is even.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from ..models.errors import ScheduleError, SettingError
from ..models.schedule import EDM, NoiseSchedule, RectifiedFlow, VPDiscrete

TIMESTEPS = 1000  # of a process that has no number of its own


@dataclass(frozen=True)
class LabelRange:
    """The labels, counted from the cleanest, over which a grid is spaced.

    low, high: the cleanest and the noisiest of them, both included; whole numbers of a discrete
               schedule.
    total:     all labels of the process.
    """

    schedule: NoiseSchedule
    low: float
    high: float
    total: int

    @classmethod
    def of(cls, schedule: NoiseSchedule, start: float | None, end: float | None) -> "LabelRange":
        """Returns the labels from the time `end` to the time `start`; None is all of them."""
        n = schedule.num_train_timesteps if isinstance(schedule, VPDiscrete) else TIMESTEPS
        span = cls(schedule, 0, n - 1, n)
        low = span.low if end is None else span.find_label(end)
        return replace(span, low=low, high=span.high if start is None else span.find_label(start))

    @property
    def first(self) -> int:
        """The first whole label."""
        return math.ceil(self.low)

    @property
    def count(self) -> int:
        """How many whole labels there are."""
        return math.floor(self.high) - self.first + 1

    @property
    def is_whole(self) -> bool:
        """True if nothing of the process is left out."""
        return (self.low, self.high) == (0, self.total - 1)

    def leave_last_out(self) -> "LabelRange":
        """Returns the range above its cleanest label."""
        return replace(self, low=math.floor(self.low) + 1)

    def time(self, label: float) -> float:
        """Returns the time of a label; between those of a discrete schedule, lam is even."""
        match self.schedule:
            case VPDiscrete() if label != int(label):
                below, above = (self.schedule.at(self.time(math.floor(label) + k)) for k in (0, 1))
                share = label - math.floor(label)
                return self.schedule.at_lam(below.lam + share * (above.lam - below.lam)).t
            case EDM(sigma_min=low, sigma_max=high):
                share = 1.0 - label / (self.total - 1)
                return high * math.pow(low / high, share)
        return self.schedule.t_max * (label + 1.0) / self.total

    def find_label(self, t: float) -> float:
        """Returns the label of a time: the nearest one of a discrete schedule."""
        match self.schedule:
            case VPDiscrete():
                return max(round(self.total * t) - 1, 0)
            case EDM(sigma_min=low, sigma_max=high):
                return (self.total - 1) * (1.0 - math.log(high / t) / math.log(high / low))
        return self.total * t / self.schedule.t_max - 1.0


def trailing(span: LabelRange, steps: int) -> list[float]:
    """Returns timesteps round(N - i N / steps) - 1, from the noisiest one on (arXiv:2305.08891)."""
    n = _count_labels(span)
    gap = (n - n / steps) - n  # rounded as numpy.arange does it, which decides about halves
    return [(span.low + round(n + i * gap)) / span.total for i in range(steps)]


def leading(span: LabelRange, steps: int, offset: int = 0, spare: int = 0) -> list[float]:
    """Returns timesteps i floor(N / steps) + offset; the noisiest ones are left out."""
    gap = _count_labels(span) // (steps + spare)
    begin = span.low + offset + 1
    return [(i * gap + begin) / span.total for i in reversed(range(spare, steps + spare))]


def linspace(span: LabelRange, steps: int, spare: int = 0, whole: bool = True) -> list[float]:
    """Returns even timesteps from N - 1 to 0, both included, so that 0 has a step of its own."""
    n, points = _count_labels(span), steps + spare
    gap = (n - 1) / (points - 1) if points > 1 else 0.0
    labels = [min(i * gap, n - 1.0) for i in reversed(range(spare, points))]
    return [(span.low + (round(label) if whole else label) + 1) / span.total for label in labels]


def lcm(span: LabelRange, steps: int, original: int = 50) -> list[float]:
    """Returns evenly chosen ones of the `original` timesteps that an LCM was distilled at."""
    _count_labels(span)
    n = span.total
    if not 1 <= original <= n:
        raise SettingError(f"original={original} must lie between 1 and {n}; 50 is usual")
    trained = [n // original * (original - i) for i in range(original)]
    labels = [label for label in trained if span.low <= label - 1 <= span.high]
    if steps > len(labels):
        raise SettingError(
            f"{steps} steps are more than the {len(labels)} timesteps trained; take {len(labels)}"
            " at most"
        )
    return [labels[i * len(labels) // steps] / n for i in range(steps)]


def consistency(span: LabelRange, steps: int, trained: int = 40, rho: float = 7.0) -> list[float]:
    """Returns evenly chosen ones of the sigmas that a consistency model was trained at (EDM)."""
    schedule = span.schedule
    if not isinstance(schedule, EDM):
        raise ScheduleError(
            f"grid 'consistency' is for EDM networks, not for {schedule.family}; take uniform"
        )
    first, last = (sigma ** (1.0 / rho) for sigma in (schedule.sigma_max, schedule.sigma_min))
    roots = (first + i / max(1, trained - 1) * (last - first) for i in range(1, trained))
    sigmas = [schedule.sigma_max, *(root**rho for root in roots)]
    nodes = [t for t in sigmas if span.low - 1e-6 <= span.find_label(t) <= span.high + 1e-6]
    if steps > len(nodes):
        raise SettingError(
            f"{steps} steps are more than the {len(nodes)} sigmas trained; take fewer"
        )
    return [nodes[i * (len(nodes) // steps)] for i in range(steps)]


def scm(span: LabelRange, steps: int, middle: float = 1.3) -> list[float]:
    """Returns even angles from pi / 2 to 0; for two steps the second is at 1.3 (SANA-Sprint)."""
    schedule = span.schedule
    if not isinstance(schedule, RectifiedFlow):
        raise ScheduleError(
            f"grid 'scm' is for rectified flow, not for {schedule.family}; take uniform"
        )
    first, last = (schedule.at(span.time(label)) for label in (span.high, span.low))
    start, end = (math.atan2(node.sigma, node.alpha) for node in (first, last))
    end = end if span.low > 0.0 else 0.0  # the way to clean data is in the last step
    angles = [start + (end - start) * i / steps for i in range(1, steps)]
    if steps == 2 and span.is_whole:
        angles = [middle]
    taus = (math.sin(angle) / (math.sin(angle) + math.cos(angle)) for angle in angles)
    return [first.t, *map(schedule.unshift, taus)]


def simple(span: LabelRange, steps: int) -> list[float]:
    """Returns timesteps N - 1 - floor(i N / steps): whole and even, from the noisiest one on."""
    top, n = span.first + span.count - 1, span.count
    return [span.time(top - i * n // steps) for i in range(steps)]


def normal(span: LabelRange, steps: int) -> list[float]:
    """Returns even timesteps from N - 1 to 0, both included, not rounded.

    On rectified flow ComfyUI, and diffusers where it is given no sigmas, shift the clean end twice;
    so does this, unless start or end is given.
    """
    return _space_evenly(span, steps)


def sgm_uniform(span: LabelRange, steps: int) -> list[float]:
    """Returns even timesteps from N - 1 to 0, without 0, not rounded."""
    return _space_evenly(span, steps + 1)[:-1]


def _space_evenly(span: LabelRange, points: int) -> list[float]:
    low = span.low
    if isinstance(span.schedule, RectifiedFlow) and span.is_whole:
        low = span.total * span.schedule.at(span.time(0)).sigma - 1.0  # which is shifted again
    gap = (span.high - low) / max(1, points - 1)
    return [span.time(span.high - i * gap) for i in range(points)]


def ddim_uniform(span: LabelRange, steps: int) -> list[float]:
    """Returns timesteps 1, 1 + s, 1 + 2 s, .. s = floor(N / steps); more steps may result."""
    gap = max(1, span.count // steps)
    return [span.time(label) for label in range(span.first + 1, span.first + span.count, gap)][::-1]


def beta57(span: LabelRange, steps: int, alpha: float = 0.5, beta: float = 0.7) -> list[float]:
    """Returns the timesteps nearest to even quantiles of Beta(0.5, 0.7), each once (RES4LYF)."""
    from .ramps import beta as place_beta

    places = place_beta(span.count - 1.0, 0.0, steps + 1, alpha, beta)[:-1]
    labels = dict.fromkeys(span.first + round(place) for place in places)
    return [span.time(label) for label in labels]


@dataclass(frozen=True)
class Spacing:
    """A named spacing; place: (labels, steps) and its settings -> times of as many steps.

    inclusive: whether the cleanest label is that of the last step, and not what it steps to.
    """

    place: Callable[..., list[float]]
    inclusive: bool = False


SPACINGS = {
    "beta57": Spacing(beta57),
    "consistency": Spacing(consistency),
    "ddim-uniform": Spacing(ddim_uniform),
    "lcm": Spacing(lcm),
    "leading": Spacing(leading, inclusive=True),
    "linspace": Spacing(linspace, inclusive=True),
    "normal": Spacing(normal, inclusive=True),
    "scm": Spacing(scm),
    "sgm-uniform": Spacing(sgm_uniform),
    "simple": Spacing(simple),
    "trailing": Spacing(trailing),
}


def _count_labels(span: LabelRange) -> int:
    """Returns the number of labels; raises ScheduleError where a schedule is not discrete."""
    if isinstance(span.schedule, VPDiscrete):
        return span.count
    raise ScheduleError(
        f"a {span.schedule.family} schedule has no whole training timesteps to space steps by; take"
        " another grid, such as uniform"
    )
