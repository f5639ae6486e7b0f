"""How large a schedule is: what a search fixes while all else may vary."""

from dataclasses import dataclass
from typing import Literal

from ...solvers.artefact import Artefact

Unit = Literal["nfe", "rows"]


@dataclass(frozen=True)
class SearchSize:
    """Network evaluations of a schedule; or network rows per image, if it brings its guidance.

    amount: at least 1.
    unit:   of the amount. A schedule whose table weighs both branches has rows, any other an NFE:
            what guidance would add to that is not in it.
    """

    amount: int
    unit: Unit = "nfe"

    def fits(self, schedule: Artefact) -> bool:
        """Returns whether a schedule is of this size."""
        return size_of(schedule) == self

    @property
    def mark(self) -> str:
        """In names of files."""
        return f"{self.unit}{self.amount}"

    def __str__(self) -> str:
        return f"NFE {self.amount}" if self.unit == "nfe" else f"{self.amount} rows"


def size_of(schedule: Artefact) -> SearchSize:
    """Returns the size that a schedule is of."""
    return SearchSize(schedule.rows, "rows") if schedule.guided else SearchSize(schedule.nfe)
