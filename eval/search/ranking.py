"""The ranking predictor of S^3: which of two schedules is better, without running them.

Times are told by sinusoids and a small MLP, decisions by one-hot codes and another; an LSTM reads
the steps, its outputs are normalised and averaged, and an MLP makes one number of them. It is
trained on pairs by a hinge, so that a worse schedule gets a higher number (arXiv:2312.07243, with
the sizes that the same authors publish for arXiv:2306.08860).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ...models.seeds import seed_everything
from ...solvers import StepSchedule
from ...solvers.exponential import StepSpec
from .log import Trial

TIME, HIDDEN, HEAD = 128, 128, 200
RELAX = ("none", "bh1", "bh2", "linear")
CODES = 16  # numbers that `_codes` gives for one step
THRESHOLD = 0.25  # least difference of a pair, in standard deviations of the ranks
MARGIN = 1.0
EPOCHS, BATCH = 60, 128


class Ranking(nn.Module):
    """(B, N) steps to B numbers, lower is better."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(2 * TIME, 64), nn.SiLU(), nn.Linear(64, 64))
        self.step = nn.Sequential(nn.Linear(CODES, 64), nn.Sigmoid(), nn.Linear(64, 64))
        self.lstm = nn.LSTM(128, HIDDEN, batch_first=True)
        layers = [nn.Linear(HIDDEN, HEAD), nn.ReLU(), nn.Linear(HEAD, HEAD), nn.ReLU()]
        self.head = nn.Sequential(*layers, nn.Linear(HEAD, 1))

    def forward(self, times: Tensor, codes: Tensor, lengths: Tensor) -> Tensor:
        """times (B, N, 2 TIME), codes (B, N, CODES), of which the first `lengths` (B) count."""
        read, _ = self.lstm(torch.cat([self.time(times), self.step(codes)], dim=-1))
        there = torch.arange(times.shape[1])[None] < lengths[:, None]
        mean = (nn.functional.normalize(read, dim=-1) * there[..., None]).sum(1) / lengths[:, None]
        out: Tensor = self.head(nn.functional.normalize(mean, dim=-1))
        return out[:, 0]

    def scores(self, schedules: Sequence[StepSchedule]) -> list[float]:
        """One number per schedule, lower is better."""
        with torch.no_grad():
            found: list[float] = self(*_inputs(schedules)).tolist()
        return found


def fit(trials: Sequence[Trial], seed: int = 0) -> Ranking:
    """A predictor trained on trials with finite scores; the same ones give the same one."""
    with torch.random.fork_rng(devices=[]):
        seed_everything(seed)
        ranking = Ranking()
        inputs = _inputs([trial.schedule for trial in trials])
        worth = _ranks([trial.rank for trial in trials])
        optimizer = torch.optim.Adam(ranking.parameters(), lr=1e-3)
        rounds = EPOCHS * -(-len(trials) // BATCH)
        rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, rounds, eta_min=1e-6)
        for _ in range(EPOCHS):
            for rows in torch.split(torch.randperm(len(trials)), BATCH):
                loss = _hinge(ranking(*(each[rows] for each in inputs)), worth[rows])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                rate.step()
    return ranking


def _hinge(found: Tensor, worth: Tensor) -> Tensor:
    """Mean over pairs that differ of max(0, margin - (s_worse - s_better))."""
    apart = (worth[:, None] - worth[None, :]) > THRESHOLD
    loss = (MARGIN - (found[:, None] - found[None, :])).clamp_min(0.0)
    return (loss * apart).sum() / apart.sum().clamp_min(1)


def _ranks(keys: Sequence[tuple[float, str]]) -> Tensor:
    """The place of each in the order, scaled to standard deviation 1."""
    places = {key: i for i, key in enumerate(sorted(keys))}
    spread = max(len(keys) - 1, 1) / math.sqrt(12.0)
    return torch.tensor([places[key] / spread for key in keys])


def _inputs(schedules: Sequence[StepSchedule]) -> tuple[Tensor, Tensor, Tensor]:
    """What the network reads: padded times and codes, and lengths."""
    longest = max(len(schedule.steps) for schedule in schedules)
    times = torch.zeros(len(schedules), longest, 2 * TIME)
    codes = torch.zeros(len(schedules), longest, CODES)
    for i, schedule in enumerate(schedules):
        count = len(schedule.steps)
        lams = torch.tensor([_bounded(node.lam) for node in schedule.grid().nodes])
        waves = _sinusoids(lams)
        times[i, :count] = torch.cat([waves[:-1], waves[1:]], dim=-1)
        afs = float(schedule.afs is not None)
        codes[i, :count] = torch.tensor([[*_codes(step), afs] for step in schedule.steps])
    return times, codes, torch.tensor([len(schedule.steps) for schedule in schedules])


def _bounded(lam: float) -> float:
    """lam is infinite at both ends of a path; there any number beyond all others will do."""
    return min(max(lam, -12.0), 12.0)


def _sinusoids(lams: Tensor) -> Tensor:
    """(N,) to (N, TIME): periods from 0.05 to 50."""
    rates = 2.0 * math.pi / torch.logspace(math.log10(0.05), math.log10(50.0), TIME // 2)
    angles = lams[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


def _codes(step: StepSpec) -> list[float]:
    """Order, prediction, points, relaxation and corrector of a step as 15 numbers."""
    orders = [float(step.order == q) for q in (1, 2, 3, 4)]
    relax = [float(step.relax == kind) for kind in RELAX]
    corrector = [float(step.corr.on and step.corr.relax == kind) for kind in RELAX[:3]]
    low = float(bool(step.est) and step.est[0] < step.order - 1)
    kmul = float(step.kmul is not None)
    return [*orders, step.ell, low, kmul, *relax, 3.0 * step.c, *corrector]
