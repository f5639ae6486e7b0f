"""Empirical model statistics (arXiv:2310.13268, sec. 3.2): the tables that DPM-Solver-v3 runs on.

Along lam, with f = (sigma eps - l x) / alpha and f' its derivative on the trajectory,

    l = E[diag(sigma d eps / dx)],   s = (E[f f'] - E[f] E[f']) / (E[f^2] - E[f]^2),
    b = E[f'] - s E[f],

each for every element of a sample. Between two nodes of a table the three are read linearly; an
integral takes the mean over each cell, so that constant tables are integrated exactly.
"""

import math
from bisect import bisect_left, bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import save
from torch import Tensor

from ..models.denoiser import Network
from ..models.errors import ScheduleError, SettingError
from ..models.probe import answer, are_alike
from ..models.reading import StrictModel, first_problem, read_tensors
from ..models.schedule import TimeGrid, share_path
from .schedule_parts import Process

NAMED = {"data": (1.0, 0.0, 0.0), "noise": (0.0, -1.0, 0.0)}  # l, s and b everywhere
PLACES = 8  # of Gauss-Legendre quadrature in a cell: exact to rounding in cells as wide as 1


class StatisticsFacts(StrictModel):
    """The origin of statistics.

    process:   the noise schedule of the network.
    network:   its name when they were made.
    data:      what the noised samples were.
    samples:   how many of them at each node.
    cfg_scale: guidance under which the network was asked; 1 is none.
    seed:      of the noise and the probe directions.
    """

    version: int = 1
    process: Process
    network: str
    data: str
    samples: int
    cfg_scale: float = 1.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class ModelStatistics:
    """Tables of l, s and b, float64 (M + 1, *shape), at the rising nodes lam (M + 1).

    probe: an input and the network's answer to it, which tell whether another network is the same:
           "x", "x0" and the conditions it was asked under.
    """

    lam: tuple[float, ...]
    l: Tensor  # noqa: E741
    s: Tensor
    b: Tensor
    facts: StatisticsFacts | None = None
    probe: Mapping[str, Tensor] = field(default_factory=dict)

    @classmethod
    def constant(cls, l: float, s: float, b: float) -> "ModelStatistics":  # noqa: E741
        """Returns l, s and b that never change; (1, 0, 0) is data, (0, -1, 0) noise prediction."""
        rows = [torch.full((2,), value, dtype=torch.float64) for value in (l, s, b)]
        return cls((-math.inf, math.inf), rows[0], rows[1], rows[2])

    @classmethod
    def load(cls, path: Path | str) -> "ModelStatistics":
        """Reads what `to_bytes` wrote; raises SettingError if that is not what the file is."""
        try:
            tensors, metadata = read_tensors(path)
            facts = StatisticsFacts.model_validate_json(metadata.get("facts", "{}"))
            lam = tuple(tensors.pop("lam").tolist())
            l, s, b = (tensors.pop(name).double() for name in "lsb")  # noqa: E741
        except ValidationError as error:
            raise _make_error(path, first_problem(error)) from error
        except (SettingError, KeyError) as error:
            raise _make_error(path, str(error)) from error
        return cls(lam, l, s, b, facts, tensors)

    def to_bytes(self) -> bytes:
        """Returns a safetensors file, the tables in float32."""
        tables = {name: getattr(self, name).float().contiguous() for name in "lsb"}
        lam = torch.tensor(self.lam, dtype=torch.float64)
        facts = "{}" if self.facts is None else self.facts.model_dump_json()
        return save({**tables, "lam": lam, **self.probe}, {"facts": facts})

    def check_grid(self, grid: TimeGrid) -> None:
        """Raises ScheduleError if they belong to another noise schedule."""
        if self.facts is None:
            return
        mine = self.facts.process.schedule()
        if not share_path(mine, grid.schedule):
            raise ScheduleError(
                f"these statistics were made for {self.facts.network} on a {mine.family} schedule,"
                f" the network's schedule is another ({grid.schedule.family}); run `fewstep stats`"
                " for this network"
            )

    def check_network(self, network: Network) -> None:
        """Raises SettingError if a network answers the probe otherwise than the one they tell of.

        That is one evaluation of one row, outside the run and its counts.
        """
        if self.facts is None:
            return
        x, expected = self.probe["x"], self.probe["x0"]
        conditions = {name: t for name, t in self.probe.items() if name not in ("x", "x0")}
        same = expected.shape[1:] == network.shape
        if not (same and are_alike(answer(network, x, conditions), expected)):
            raise SettingError(
                f"these are the statistics of another network ({self.facts.network}), not of"
                f" {network.name}; run `fewstep stats {network.name}` and give what it writes"
            )

    def at(self, lam: float) -> tuple[Tensor, Tensor, Tensor]:
        """Returns (l, s, b) at lam, each of one sample's shape."""
        self._check_inside(lam, lam)
        if math.isinf(self.lam[0]):
            return self.l[0], self.s[0], self.b[0]
        i = min(max(bisect_right(self.lam, lam), 1), len(self.lam) - 1)
        w = (lam - self.lam[i - 1]) / (self.lam[i] - self.lam[i - 1])
        l, s, b = (torch.lerp(t[i - 1], t[i], w) for t in (self.l, self.s, self.b))  # noqa: E741
        return l, s, b

    def cells(self, low: float, high: float) -> "Cells":
        """Returns the cells between two places of lam."""
        self._check_inside(low, high)
        i, j = bisect_right(self.lam, low), bisect_left(self.lam, high)
        edges = torch.tensor([low, *self.lam[i:j], high], dtype=torch.float64)
        inner, ends = (t[i:j] for t in (self.l, self.s, self.b)), (self.at(low), self.at(high))
        values = [
            torch.cat([a[None], t, b[None]])
            for a, t, b in zip(ends[0], inner, ends[1], strict=True)
        ]
        return Cells(edges, *((value[1:] + value[:-1]) / 2.0 for value in values))

    def _check_inside(self, low: float, high: float) -> None:
        if low < self.lam[0] - 1e-6 or high > self.lam[-1] + 1e-6:
            raise ScheduleError(
                f"these statistics reach from lam={self.lam[0]:.4g} to {self.lam[-1]:.4g}, the grid"
                f" needs {low:.4g} to {high:.4g}; run `fewstep stats` again with a wider range"
            )


def take_statistics(given: str | ModelStatistics | None) -> ModelStatistics:
    """Returns statistics given as such, as the name of a special case, or as a file.

    Raises:
        SettingError: for none, for a file that is not there, and for what holds no statistics.
    """
    if isinstance(given, ModelStatistics):
        return given
    if given is None:
        raise SettingError(
            "dpm-solver-v3 runs on the statistics of its network: `fewstep stats NETWORK --out"
            " FILE` makes them, and dpm-solver-v3:stats=FILE takes them (stats=data and stats=noise"
            " are its special cases)"
        )
    if given in NAMED:
        return ModelStatistics.constant(*NAMED[given])
    if not Path(given).is_file():
        raise SettingError(
            f"there is no file {given!r}; `fewstep stats NETWORK --out FILE` makes it"
        )
    return _load_statistics(given, Path(given).stat().st_mtime_ns)


@lru_cache(maxsize=8)
def _load_statistics(path: str, changed: int) -> ModelStatistics:
    return ModelStatistics.load(path)


@dataclass(frozen=True, eq=False)
class Cells:
    """Constant l, s and b in each cell between edges (n + 1)."""

    edges: Tensor
    l: Tensor  # noqa: E741
    s: Tensor
    b: Tensor

    @property
    def widths(self) -> Tensor:
        return self._like(self.edges.diff())

    def total(self, rate: Tensor) -> Tensor:
        """Returns the integral of a rate over all cells."""
        return (rate * self.widths).sum(0)

    def transport(self) -> tuple[Tensor, Tensor]:
        """Returns (e^S, int e^{S - S_u} b du) from the first edge to the last.

        f' = s f + b carries a value f of the first edge to e^S f + the integral.
        """
        grown = self.s * self.widths
        after = grown.sum(0) - grown.cumsum(0)
        return grown.sum(0).exp(), (after.exp() * self.b * self.widths * _phi1(grown)).sum(0)

    def weights(self, order: int) -> tuple[list[Tensor], Tensor]:
        """Returns E_k, k < order, and O: the integrals over u from the first edge to the last of

        W(u) (u - u_0)^k / k!   and   W(u) int_{u_0}^u e^{-S_r} b_r dr,
        W(u) = e^{-(L_end - L_u) + S_u}, with L and S counted from the first edge.
        """
        places, unit = _legendre()
        inside = self._spread(places) * self.widths  # (PLACES, cells, *shape)
        before = {"l": self._before(self.l), "s": self._before(self.s)}
        grown_s = before["s"] + self.s * inside
        rest = self.total(self.l) - before["l"] - self.l * inside
        w = (grown_s - rest).exp() * self._spread(unit) * self.widths
        far = self._like(self.edges[:-1] - self.edges[0]) + inside
        moments = [(w * far**k / math.factorial(k)).sum((0, 1)) for k in range(order)]
        inside_drift = (-before["s"]).exp() * self.b * inside * _phi1(-self.s * inside)
        drift = (-before["s"]).exp() * self.b * self.widths * _phi1(-self.s * self.widths)
        return moments, (w * (drift.cumsum(0) - drift + inside_drift)).sum((0, 1))

    def _before(self, rate: Tensor) -> Tensor:
        """Returns the integral of a rate from the first edge to the left edge of each cell."""
        grown = rate * self.widths
        return grown.cumsum(0) - grown

    def _like(self, row: Tensor) -> Tensor:
        return row.reshape(-1, *[1] * (self.l.ndim - 1))

    def _spread(self, row: Tensor) -> Tensor:
        return row.reshape(-1, *[1] * self.l.ndim)


def _phi1(z: Tensor) -> Tensor:
    """Returns (e^z - 1) / z, 1 at 0."""
    safe = torch.where(z == 0.0, 1.0, z)
    return torch.where(z == 0.0, 1.0, torch.expm1(safe) / safe)


def _legendre() -> tuple[Tensor, Tensor]:
    """Returns places in (0, 1) and weights, exact for polynomials of degree 2 PLACES - 1."""
    import numpy as np

    places, weights = np.polynomial.legendre.leggauss(PLACES)
    return torch.from_numpy((places + 1.0) / 2.0), torch.from_numpy(weights / 2.0)


def _make_error(path: Path | str, reason: str) -> SettingError:
    return SettingError(
        f"{str(path)!r} holds no statistics of `fewstep stats`: {' '.join(reason.split())}"
    )
