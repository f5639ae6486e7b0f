"""How large a schedule is: what a search fixes while all else may vary."""

from dataclasses import dataclass
from typing import Literal

from ...solvers.artefact import Artefact

Unit = Literal["nfe", "rows", "full"]


@dataclass(frozen=True)
class SearchSize:
    """Network evaluations of a schedule; or network rows per image; or evaluations in full.

    amount: at least 1.
    unit:   of the amount. A schedule whose table weighs both branches has rows, one that brings a
            cache has full evaluations, any other an NFE: what guidance would add to that is not in
            it.
    nfe:    all evaluations, where the amount is of those in full; else 0.
    """

    amount: int
    unit: Unit = "nfe"
    nfe: int = 0

    def fits(self, schedule: Artefact) -> bool:
        """Returns whether a schedule is of this size."""
        return size_of(schedule) == self

    @property
    def evaluations(self) -> int:
        """The evaluations of a schedule, or as many as its network rows at most."""
        return self.nfe or self.amount

    @property
    def mark(self) -> str:
        """In names of files."""
        return f"{self.unit}{self.amount}" + (f"of{self.nfe}" if self.nfe else "")

    def __str__(self) -> str:
        names = {"nfe": f"NFE {self.amount}", "rows": f"{self.amount} rows"}
        return names.get(self.unit, f"{self.amount} of {self.nfe} evaluations in full")


def size_of(schedule: Artefact) -> SearchSize:
    """Returns the size that a schedule is of."""
    if schedule.guided:
        return SearchSize(schedule.rows, "rows")
    policy = schedule.cache_policy
    if policy is not None:
        return SearchSize(len(policy.compute), "full", schedule.nfe)
    return SearchSize(schedule.nfe)
