"""The report of `fewstep tune`: everything that was judged, and the plans that were chosen."""

from pathlib import Path
from typing import Literal

from pydantic import Field

from ... import __version__
from ...models.errors import SettingError, shorten
from ...models.files import write_bytes
from ...models.reading import StrictModel, parse_as, read_text
from ...samplers.columns import Figure
from ...samplers.network_mark import NetworkMark
from ...samplers.plan_file import (
    Asked,
    Block,
    JudgedOn,
    JudgedPoint,
    MeasuredAt,
    PlanFile,
    Spread,
)


class CostParts(StrictModel):
    """The costs of the parts of a run here, in milliseconds of a batch.

    start:    once a run: noise, conditions, and fetching the images.
    row:      an evaluation of one branch, with the solver's step; step: the step alone.
    pair:     an evaluation of both branches, with the step; None where the network has no second.
    partial:  an evaluation that a cache forecasts, with the step, by the cache's setting without
              its mask; under guidance it is one of both branches.
    share:    the FLOPs of such an evaluation, of those of a whole one.
    flops:    of one row of the network; None where it is no torch module.
    """

    start: Spread
    row: Spread
    step: Spread
    pair: Spread | None = None
    partial: dict[str, Spread] = Field(default_factory=dict)
    share: float | None = None
    flops: float | None = None


Part = Literal["cache", "joint"]


class PartsComparison(StrictModel):
    """The worth of a part of a plan: the best setting that has it beside the best that has not.

    part:     "cache", or "joint" for a table that was fitted together with a cache, beside the
              best of search, guidance and cache alone.
    mine, theirs: what both settings are called; effective: evaluations of the first.
    distance, features: the ratio of each column with its interval of 95 %.
    noises, count: the block that both were judged on, and how many of them.
    pays:     a column is better beyond the interval, and none is worse beyond it.
    chosen:   the first one is the plan.
    """

    part: Part
    mine: str
    theirs: str
    effective: Figure
    distance: tuple[Figure, Figure, Figure]
    features: tuple[Figure, Figure, Figure] | None = None
    noises: Block
    count: int
    pays: bool
    chosen: bool

    def __str__(self) -> str:
        subject = {"cache": "a cache", "joint": "fitting a table together with a cache"}[self.part]
        paying = "pays" if self.pays else "does not pay"
        columns = ((self.distance, "distance"), (self.features, "feature distance"))
        ratios = " and ".join(
            f"{each[0]:.2f} [{each[1]:.2f}, {each[2]:.2f}] of the {name}"
            for each, name in columns
            if each is not None
        )
        return (
            f"at {self.effective:.3g} effective evaluations {subject} {paying}: the best,"
            f" {self.mine}, has {ratios} of {self.theirs}, the best without, on"
            f" {self.count} {self.noises} noises"
        )


class WrittenPlan(StrictModel):
    """A plan that was chosen, and the file that holds it: its name, beside that of the report."""

    file: str
    plan: PlanFile


class TuneReport(NetworkMark):
    """The result of `fewstep tune`.

    command:  what was typed, or would have to be.
    asked:    the budget; None for a front.
    parts:    the measured costs.
    points:   everything that was judged, in no order; those that were looked at once more on test
              noises stand here with these figures alone.
    plans:    chosen, cheapest first.
    compared: whether caches pay, and choosing the parts together, for each group of settings.
    verdicts: what else was found, in words: what was left out, times, better rivals.
    where, judged, seconds, searched: as in a plan.
    """

    format: Literal["fewstep-tune"] = "fewstep-tune"
    version: Literal[1] = 1
    fewstep: str = __version__
    command: str
    asked: Asked | None = None
    parts: CostParts
    points: tuple[JudgedPoint, ...]
    plans: tuple[WrittenPlan, ...]
    compared: tuple[PartsComparison, ...] = ()
    verdicts: tuple[str, ...] = ()
    where: MeasuredAt
    judged: JudgedOn
    seconds: float
    searched: int

    @classmethod
    def load(cls, path: str | Path) -> "TuneReport":
        """Reads a file; raises SettingError if it is not there, damaged, or of another version."""
        text = read_text(path)
        try:
            return parse_as(cls, text)
        except SettingError as error:
            raise SettingError(f"{shorten(path)} is no report of fewstep tune: {error}") from error

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        write_bytes(path, self.model_dump_json(indent=1, exclude_none=True).encode() + b"\n")
