"""`fewstep bench speed`: solver steps, whole pictures, caches and commands beside their rivals.

All sides of a race are measured in turns within one process, so that a slow moment of the machine
hits all of them. A ratio is that of a side to ours in the same turn; quartiles are over the turns.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ...models.errors import FewstepError, UnknownNameError
from ..bench.cell import Advance, Experiment
from ..bench.rows import MeasuredRow, open_times
from ..bench.store import RowStore
from ..bench.table import align_table, format_number
from ..bench.timing import Quartiles, find_quartiles, record_turns
from .distances import open_distances
from .speed_races import (
    OURS,
    Contest,
    Race,
    race_caches,
    race_commands,
    race_pictures,
    race_scheduler,
    race_steps,
)

PARTS = ("steps", "pictures", "caches", "commands")
NETWORKS = ("fashion-dit", "fashion-unet", "fashion-edm", "emoji")
BATCHES = (1, 64)
FIRST_SEED = 40_000


class SpeedRow(MeasuredRow):
    """The outcome of a race.

    sides:  quartiles of what each side measured, ours first; ratios: of the others over ours.
    turns:  how often each side ran.
    asked, unit: see `Race`; remark, equal, spent, images: see `Contest`.
    """

    part: str
    name: str
    sides: dict[str, Quartiles]
    ratios: dict[str, Quartiles]
    turns: int
    unit: str
    asked: float | None = None
    remark: str = ""
    equal: bool = True
    spent: float | None = None
    images: int = 1

    @property
    def key(self) -> str:
        return f"{self.part}: {self.name}"

    @property
    def rival(self) -> str:
        """The side that ours is compared with."""
        return list(self.sides)[1]

    @property
    def met(self) -> bool:
        """True where the ratio is what is claimed, of runs that are equally good."""
        return self.equal and self.ratios[self.rival][1] >= (self.asked or 0.0)

    @property
    def verdict(self) -> str:
        """The claim, and whether it is met; empty where there is none."""
        if self.asked is None:
            return ""
        return f"at least {self.asked:g}: {'met' if self.met else 'NOT MET'}"

    @property
    def break_even(self) -> float | None:
        """The number of images that save the time of the search; None without one or a saving."""
        saved = (self.sides[self.rival][1] - self.sides[OURS][1]) / self.images
        return self.spent / saved if self.spent is not None and saved > 0.0 else None


@dataclass
class SpeedBench(Experiment[Race, SpeedRow]):
    """All races on this machine.

    parts:    which of PARTS are run.
    networks: of whole pictures; seeds: noises that their distances are measured on.
    repeats:  turns, after one that does not count; long ones have a quarter of them.
    """

    store: RowStore[SpeedRow]
    parts: tuple[str, ...]
    networks: tuple[str, ...]
    seeds: range
    repeats: int
    remarks: list[str] = field(default_factory=list)

    def cells(self) -> list[Race]:
        return list(self._races())

    def _races(self) -> Iterator[Race]:
        distances = self.store.path.with_name(f"{self.store.path.name}.distances")
        if "steps" in self.parts:
            yield from race_steps()
            yield from race_scheduler()
        if "caches" in self.parts:
            yield from race_caches("fashion-dit", 8)
        if "commands" in self.parts:
            yield from race_commands()
        if "pictures" in self.parts:
            store = open_distances(distances)
            yield from race_pictures(self.networks, self.seeds, BATCHES, store)

    def identify(self, cell: Race) -> str:
        return f"{cell.part}: {cell.name}"

    def leave_out(self, cell: Race, error: FewstepError) -> None:
        """Goes on: a rival that is not installed does not cost the others."""
        self.note(f"{cell.part}, {cell.name}: {error}")

    def measure(self, cell: Race, advance: Advance) -> list[SpeedRow]:
        """Returns the row of one race."""
        contest, threads = cell.prepare(), torch.get_num_threads()
        repeats = self.repeats if cell.part == "solver step" else max(1, self.repeats // 4)
        torch.set_num_threads(1)
        try:
            taken = record_turns(contest.works, repeats, warm=1)
        finally:
            torch.set_num_threads(threads)
        return [self._row(cell, contest, taken)]

    def _row(self, race: Race, contest: Contest, taken: dict[str, list[float]]) -> SpeedRow:
        ours = taken[OURS]
        ratios = {
            side: find_quartiles([other / mine for other, mine in zip(times, ours, strict=True)])
            for side, times in taken.items()
            if side != OURS
        }
        return SpeedRow.here(
            part=race.part,
            name=race.name,
            unit=race.unit,
            asked=race.asked,
            sides={side: find_quartiles(times) for side, times in taken.items()},
            ratios=ratios,
            turns=len(ours),
            remark=contest.remark,
            equal=contest.equal,
            spent=contest.spent,
            images=contest.images,
        )


def open_bench(
    path: Path,
    parts: Sequence[str] | None = None,
    networks: Sequence[str] | None = None,
    repeats: int = 20,
    noises: int = 48,
) -> SpeedBench:
    """Returns the bench of a store; None stands for all parts or networks.

    Raises:
        UnknownNameError: for another part.
        SettingError: if the store holds times of another machine or another version.
    """
    for part in parts or ():
        if part not in PARTS:
            raise UnknownNameError("part", part, PARTS)
    store = open_times(path, SpeedRow)
    seeds = range(FIRST_SEED, FIRST_SEED + noises)
    return SpeedBench(store, tuple(parts or PARTS), tuple(networks or NETWORKS), seeds, repeats)


HEADER = ("", "ours", "rival", "its time", "ratio", "claimed", "beside")


def write_table(rows: Sequence[SpeedRow]) -> Iterator[str]:
    """Yields a table of each part, and below what the searches cost against what they save."""
    for part in dict.fromkeys(row.part for row in rows):
        yield f"### {part.capitalize()}"
        yield ""
        yield from align_table([HEADER, *(_line(row) for row in rows if row.part == part)])
        yield ""
    pays = [row for row in rows if row.break_even is not None]
    for row in pays:
        yield (
            f"- {row.name}: the search of its schedule took {row.spent:.0f} s, which"
            f" {row.break_even:,.0f} images save."
        )


def _line(row: SpeedRow) -> tuple[str, ...]:
    times = {side: f"{_spread(each)} {row.unit}" for side, each in row.sides.items()}
    plain = [side for side in row.sides if side not in (OURS, row.rival)]
    beside = ", ".join(f"{side} {times[side]}" for side in plain)
    rival = row.rival
    about = "; ".join(filter(None, (row.remark, beside)))
    return (
        row.name,
        times[OURS],
        rival,
        times[rival],
        _spread(row.ratios[rival]),
        row.verdict,
        about,
    )


def _spread(values: Quartiles) -> str:
    low, middle, high = map(format_number, values)
    return f"{middle} ({low}..{high})"
