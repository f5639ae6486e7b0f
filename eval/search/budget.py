"""The budget of a search, and how much of it is spent."""

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

from ...models.errors import SettingError
from .log import Log, Trial
from .size import SearchSize

Kind = Literal["seconds", "candidates", "evals"]
UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True)
class Budget:
    """An amount of one kind.

    seconds:    wall time of each worker.
    candidates: trials of all workers together; work that is no trial counts by its network rows.
    evals:      network rows of all workers together.
    """

    kind: Kind
    amount: float

    @classmethod
    def parse(cls, text: str) -> "Budget":
        """`20m`, `90s`, `1.5h`, `candidates=1500` or `evals=2e6`; raises SettingError."""
        timed = re.fullmatch(r"([0-9.]+)([smh])", text)
        counted = re.fullmatch(r"(candidates|evals)=([0-9.e+]+)", text)
        try:
            if timed:
                return cls("seconds", _parse_positive(timed[1]) * UNITS[timed[2]])
            if counted:
                return cls(counted[1], _parse_positive(counted[2]))  # type: ignore[arg-type]
        except ValueError:
            pass
        raise SettingError(
            f"{text!r} is not a budget; write a time such as 20m or 90s, candidates=1500 or"
            " evals=2e6"
        )

    def divide(self, parts: int) -> "Budget":
        """Returns the same kind, shared evenly."""
        return Budget(self.kind, self.amount / parts)

    def __str__(self) -> str:
        amount = f"{self.amount:g}"
        return f"{amount}s" if self.kind == "seconds" else f"{self.kind}={amount}"


def _parse_positive(text: str) -> float:
    value = float(text)
    if not value > 0.0:
        raise ValueError(text)
    return value


@dataclass
class Meter:
    """Reads off what was spent: what the log says, and what was spent since its last line.

    budget:    of the search at this NFE.
    log:       its trials carry their costs.
    size:      whose trials count.
    rows:      network rows this process has spent so far.
    candidate: rows of one candidate on the training block.
    span:      the part of the budget that counts as 0 to 1 in `used`.
    """

    budget: Budget
    log: Log
    size: SearchSize
    rows: Callable[[], int]
    candidate: int
    span: tuple[float, float] = (0.0, 1.0)
    _mark: tuple[int, float] = field(init=False)
    _charged: int = field(init=False, default=0)
    _sum: tuple[int, float] = field(init=False, default=(0, 0.0))

    def __post_init__(self) -> None:
        self.mark()

    def mark(self) -> None:
        """A trial was written: what comes now is spent for the next one."""
        self._mark, self._charged = (self.rows(), time.perf_counter()), 0

    def charge(self, rows: int) -> None:
        """Counts network rows that a killed process spent for the next trial."""
        self._charged += rows

    def since(self) -> tuple[int, float]:
        """Returns rows and seconds since the last trial of this process."""
        rows, start = self._mark
        return self.rows() - rows + self._charged, time.perf_counter() - start

    def share(self) -> float:
        """Returns the share of the budget that is gone; above 1 if it was overdrawn."""
        return self.spent() / self.budget.amount

    def spent(self) -> float:
        """In the unit of the budget."""
        rows, seconds = self.since()
        now = {"seconds": seconds, "evals": float(rows), "candidates": rows / self.candidate}
        return self._sum_logged() + now[self.budget.kind]

    def used(self) -> float:
        """Returns how much of the present span is gone, from 0 to 1."""
        first, last = self.span
        return min(max((self.share() - first) / (last - first), 0.0), 1.0)

    def _sum_logged(self) -> float:
        """Returns what the trials in the log have cost; only those that are new are added."""
        mine = self.budget.kind == "seconds"
        trials = self.log.own if mine else self.log.trials.values()
        count, total = self._sum
        for trial in islice(trials, count, None):
            total += self._cost(trial) if self.size.fits(trial.schedule) else 0.0
        self._sum = len(trials), total
        return total

    def _cost(self, trial: Trial) -> float:
        candidates = max(1.0, trial.evals / self.candidate)
        costs = {"seconds": trial.seconds, "evals": float(trial.evals), "candidates": candidates}
        return costs[self.budget.kind]
