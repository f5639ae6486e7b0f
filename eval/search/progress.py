"""Progress of a search while it runs: a line in the terminal and a picture in its folder."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

from ...models.files import write_bytes
from ...models.progress import make_bar
from .log import Trial
from .size import SearchSize
from .strategies import STRATEGIES, Task

EVERY = 2.0  # seconds between two pictures
REFRESH = 0.2  # and between two states of the bar
WIDTH, HEIGHT, LEFT, TOP, RIGHT, BOTTOM = 720, 400, 70, 34, 150, 46


@dataclass
class Progress:
    """Called after every trial; a bar of the budget, and the picture now and then.

    plot: where the picture goes; None draws none.
    show: whether there is a bar.
    """

    plot: Path | None
    show: bool
    _bars: dict[SearchSize, Any] = field(default_factory=dict)
    _last: Task | None = None
    _drawn: float = 0.0
    _shown: float = 0.0

    def __call__(self, strategy: str, task: Task) -> None:
        self._last = task
        if self.show and time.monotonic() - self._shown > REFRESH:
            self._bar(strategy, task)
            self._shown = time.monotonic()
        if time.monotonic() - self._drawn > EVERY:
            self._draw()
            self._drawn = time.monotonic()

    def close(self) -> None:
        """The last picture, and the end of the bars."""
        self._draw()
        for bar in self._bars.values():
            bar.close()

    def _draw(self) -> None:
        """Writes the picture of the trials so far, whole or not at all."""
        if self.plot is None or self._last is None:
            return
        task = self._last
        shown = [trial for trial in task.log.trials.values() if task.size.fits(trial.schedule)]
        write_bytes(self.plot, draw_picture(shown, task.size).encode())

    def _bar(self, strategy: str, task: Task) -> None:
        if task.size not in self._bars:
            style = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining}{postfix}"
            share = task.meter.share()
            looks = {"bar_format": style, "dynamic_ncols": True}
            self._bars[task.size] = make_bar(total=1.0, initial=share, **looks, show=True)
        bar, best = self._bars[task.size], task.best(1)[0]
        bar.set_description_str(f"{task.size} {strategy}", refresh=False)
        count = len(task.log.trials)
        worth = "none yet" if best.score is None else f"{best.score:.4g}"
        bar.set_postfix_str(f" best {worth} ({best.strategy}) of {count}", refresh=False)
        bar.n = min(task.meter.share(), 1.0)
        bar.refresh()


Point = tuple[float, Trial]  # network rows spent when a trial was done, and the trial


def draw_picture(trials: Sequence[Trial], size: SearchSize) -> str:
    """SVG: every trial as a dot in its strategy's colour, and the best so far as a line."""
    spent = accumulate(trial.evals for trial in trials)
    points = [(float(x), t) for x, t in zip(spent, trials, strict=True) if t.score is not None]
    parts = [_head(), _title(f"{size}: score on the training block, {len(trials)} trials")]
    if points:
        axis = _Axis(points)
        parts += [axis.frame(), axis.dots(points), axis.best(points), _legend(points)]
    return "\n".join([*parts, "</svg>\n"])


def _head() -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
        f' viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">'
        '<rect width="100%" height="100%" fill="white"/>'
    )


def _title(text: str) -> str:
    return f'<text x="{LEFT}" y="20" font-size="14">{text}</text>'


class _Axis:
    """Where a trial stands in the picture.

    Scores above six times the best are not drawn. The scale is logarithmic where all are positive.
    """

    def __init__(self, points: Sequence[Point]) -> None:
        values = [_score(trial) for _, trial in points]
        self.last = max(points[-1][0], 1.0)
        self.log = min(values) > 0.0
        low = self._scale(min(values))
        high = min(max(map(self._scale, values)), low + (math.log(6.0) if self.log else 6.0))
        margin = 0.05 * (high - low) or 0.1
        self.low, self.high = low - margin, high + margin

    def _scale(self, value: float) -> float:
        return math.log(value) if self.log else value

    def x(self, rows: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * rows / self.last

    def inside(self, value: float) -> bool:
        return self._scale(value) <= self.high

    def y(self, value: float) -> float:
        share = (self._scale(value) - self.low) / (self.high - self.low)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * min(max(share, 0.0), 1.0)

    def frame(self) -> str:
        """Returns the axes with their numbers."""
        lines = []
        for i in range(6):
            place = self.low + (self.high - self.low) * i / 5
            value = math.exp(place) if self.log else place
            y = self.y(value)
            lines.append(
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#ddd"/>'
                f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.3g}</text>'
            )
        for i in range(5):
            rows = self.last * i / 4
            lines.append(
                f'<text x="{self.x(rows):.1f}" y="{HEIGHT - BOTTOM + 18}"'
                f' text-anchor="middle">{rows:,.0f}</text>'
            )
        middle = (LEFT + WIDTH - RIGHT) / 2
        lines.append(
            f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">network rows</text>'
        )
        return "".join(lines)

    def dots(self, points: Sequence[Point]) -> str:
        return "".join(
            f'<circle cx="{self.x(rows):.1f}" cy="{self.y(_score(trial)):.1f}" r="2.5"'
            f' fill="{_colour(trial.strategy)}" fill-opacity="0.7"/>'
            for rows, trial in points
            if self.inside(_score(trial))
        )

    def best(self, points: Sequence[Point]) -> str:
        """Returns the running minimum as a staircase."""
        corners: list[str] = []
        best = math.inf
        for rows, trial in points:
            if _score(trial) < best:
                if corners:
                    corners.append(f"{self.x(rows):.1f},{self.y(best):.1f}")
                best = _score(trial)
                corners.append(f"{self.x(rows):.1f},{self.y(best):.1f}")
        corners.append(f"{self.x(self.last):.1f},{self.y(best):.1f}")
        path = " ".join(corners)
        return f'<polyline points="{path}" fill="none" stroke="black" stroke-width="1.5"/>'


def _colour(strategy: str) -> str:
    return STRATEGIES.get(strategy).colour if strategy in STRATEGIES else "#000000"


def _score(trial: Trial) -> float:
    return math.inf if trial.score is None else trial.score


def _legend(points: Sequence[Point]) -> str:
    """Returns each strategy with its colour and its best score."""
    best: dict[str, float] = {}
    for _, trial in points:
        best[trial.strategy] = min(_score(trial), best.get(trial.strategy, math.inf))
    lines = []
    for row, (name, value) in enumerate(best.items()):
        x, y = WIDTH - RIGHT + 14, TOP + 14 + 20 * row
        lines.append(
            f'<circle cx="{x}" cy="{y - 4}" r="4" fill="{_colour(name)}"/>'
            f'<text x="{x + 10}" y="{y}">{name} {value:.4g}</text>'
        )
    return "".join(lines)
