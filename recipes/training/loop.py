"""The loop: steps until the budget is used, a log, checkpoints, and a way to stop it."""

import json
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from fewstep.models.errors import SettingError
from fewstep.models.files import write_bytes

from . import checkpoint
from .run import Run

CHECKPOINT, LOG = "checkpoint.pt", "log.jsonl"
LOG_SECONDS = 5.0
LAST_RATE = 0.01  # of the peak
BAR = "{percentage:3.0f}% |{bar}| {elapsed}, {postfix}"


@dataclass(frozen=True)
class Budget:
    """How long to train: by minutes of wall time or by steps, one of the two."""

    minutes: float | None = None
    steps: int | None = None

    def __post_init__(self) -> None:
        if (self.minutes is None) == (self.steps is None):
            raise SettingError("give either --minutes or --steps, as --minutes 8")
        if self.minutes is not None and not 0.0 < self.minutes < math.inf:
            raise SettingError(f"--minutes must be above 0, not {self.minutes:g}")
        if self.steps is not None and self.steps < 1:
            raise SettingError(f"--steps must be at least 1, not {self.steps}")

    def used(self, steps: int, seconds: float) -> float:
        """Returns the share of it, from 0 to 1."""
        if self.steps is not None:
            return min(steps / self.steps, 1.0)
        assert self.minutes is not None
        return min(seconds / (60.0 * self.minutes), 1.0)


@dataclass(frozen=True)
class Place:
    """Where a training is kept, and every how many seconds."""

    folder: Path
    save_every: float

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    @property
    def log(self) -> Path:
        return self.folder / LOG


class Stopped(Exception):
    """A signal asked for the end; the training was saved."""

    def __init__(self, number: int, steps: int) -> None:
        super().__init__(f"stopped at step {steps}; the same command goes on from there")
        self.code = 128 + number


def rate(peak: float, warmup: int, steps: int, used: float) -> float:
    """Returns the learning rate: a linear rise over `warmup` steps, times a half cosine to 1 %."""
    cosine = 0.5 * (1.0 + math.cos(math.pi * used))
    return peak * min(1.0, (steps + 1) / warmup) * (LAST_RATE + (1.0 - LAST_RATE) * cosine)


def train(run: Run, budget: Budget, place: Place) -> None:
    """Trains until the budget is used; what was done before counts.

    Raises:
        Stopped: at SIGTERM or SIGINT, after a checkpoint.
        NonFiniteError: if the training diverged; the last checkpoint stays as it was.
    """
    with catch_signals() as received, Watch(run, budget, place) as watch:
        while watch.used < 1.0:
            run.step(watch.rate)
            watch.look(over=bool(received))
            if received and watch.used < 1.0:
                raise Stopped(received[-1], run.progress.steps)


class Watch:
    """Everything about a training but its steps: the clock, the bar, the log, the checkpoints."""

    def __init__(self, run: Run, budget: Budget, place: Place) -> None:
        self.run, self.budget, self.place = run, budget, place
        self.start = time.perf_counter() - run.progress.seconds
        self.saved = self.logged = run.progress.seconds
        self.steps_logged = run.progress.steps
        self.bar = tqdm(total=1.0, disable=None, bar_format=BAR)

    def __enter__(self) -> "Watch":
        _cut(self.place.log, self.run.progress.steps)
        self._show()
        return self

    def __exit__(self, *_: object) -> None:
        self.bar.close()

    @property
    def used(self) -> float:
        return self.budget.used(self.run.progress.steps, self.run.progress.seconds)

    @property
    def rate(self) -> float:
        recipe = self.run.recipe
        return rate(recipe.rate, recipe.warmup, self.run.progress.steps, self.used)

    def look(self, over: bool) -> None:
        """Reads the clock after a step; logs and saves where due, and where it is over."""
        progress = self.run.progress
        progress.seconds = time.perf_counter() - self.start
        over = over or self.used >= 1.0
        self._show()
        if over or progress.seconds - self.logged >= LOG_SECONDS:
            self._log()
        if over or progress.seconds - self.saved >= self.place.save_every:
            checkpoint.save(self.run, self.place.checkpoint)
            self.saved = progress.seconds

    def _log(self) -> None:
        progress = self.run.progress
        done, passed = progress.steps - self.steps_logged, progress.seconds - self.logged
        row = {
            "step": progress.steps,
            "seconds": round(progress.seconds, 2),
            "loss": round(progress.loss, 6) if progress.losses else None,
            "rate": self.rate,
            "images_per_second": round(done * self.run.recipe.batch / max(passed, 1e-9), 1),
            "skipped": progress.skipped,
        }
        _append(self.place.log, json.dumps(row) + "\n")
        self.logged, self.steps_logged = progress.seconds, progress.steps

    def _show(self) -> None:
        progress = self.run.progress
        self.bar.n = self.used
        seconds = progress.seconds * (1.0 / self.used - 1.0) if self.used else 0.0
        left = f"{tqdm.format_interval(seconds)} left, " if self.used else ""
        self.bar.set_postfix_str(f"{left}step {progress.steps}, loss {progress.loss:.4f}")


def _append(log: Path, line: str) -> None:
    try:
        with log.open("a") as file:
            file.write(line)
    except OSError as error:
        raise SettingError(f"cannot write {str(log)!r}: {error.strerror or error}") from error


def _cut(log: Path, steps: int) -> None:
    """Drops the rows of steps that were lost since the last checkpoint, and half a last row."""
    if log.exists():
        rows = [row for row in map(_read_row, log.read_text().splitlines()) if row is not None]
        text = "".join(json.dumps(row) + "\n" for row in rows if row["step"] <= steps)
        write_bytes(log, text.encode())


def _read_row(line: str) -> dict[str, Any] | None:
    try:
        row: dict[str, Any] = json.loads(line)
    except ValueError:
        return None
    return row


@contextmanager
def catch_signals() -> Iterator[list[int]]:
    """Yields the stopping signals as they come; a second one ends the process as ever."""
    received: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def note(number: int, frame: object) -> None:
        received.append(number)
        signal.signal(number, before[number])

    for number in before:
        signal.signal(number, note)
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
