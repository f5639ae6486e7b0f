"""Cells, the pieces of work whose rows go into a store, and what an experiment says of them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from ...models.errors import FewstepError
from .store import KeyedRow, RowStore
from .team import Team

C = TypeVar("C")  # a cell: settings, equal to another where they measure the same
R = TypeVar("R", bound=KeyedRow)
Advance = Callable[[float], Any]


class Experiment(ABC, Generic[C, R]):
    """A set of cells and how each is measured; `runner.run_cells` does the rest.

    store:   where rows go and come from.
    team:    the processes that measure one cell together.
    remarks: what was left out, and why.
    unit:    of the progress bar, in which cells are weighed.
    """

    store: RowStore[R]
    remarks: list[str]
    team: Team = Team()
    unit: str = "run"

    @abstractmethod
    def cells(self) -> Sequence[C]:
        """Returns all that is measured, in the order in which it is."""

    def find_rows(self, cell: C) -> Sequence[R]:
        """Returns the rows of a cell that are in the store; none as long as one is missing.

        Here a cell has one row, whose key is what `identify` returns.
        """
        row = self.store.rows.get(self.identify(cell))
        return [] if row is None else [row]

    @abstractmethod
    def measure(self, cell: C, advance: Advance) -> Sequence[R]:
        """Returns the rows of a cell.

        advance: called with the work that was done, in the unit of `weigh`, where it is known.

        Raises:
            FewstepError: if it cannot be measured.
        """

    def is_done(self, cell: C) -> bool:
        """Returns whether the store holds a cell."""
        return bool(self.find_rows(cell))

    def identify(self, cell: C) -> str:
        """Returns what tells a cell from all others that end in one store."""
        return repr(cell)

    def weigh(self, cell: C) -> float:
        """Returns the work in a cell, in units of the progress bar."""
        return 1.0

    def describe(self, cell: C) -> str:
        """Returns what stands before the progress bar while a cell is measured."""
        return ""

    def leave_out(self, cell: C, error: FewstepError) -> None:
        """Notes that a cell cannot be measured, or raises the error if the others are to stop."""
        raise error

    def clear(self, cell: C) -> None:
        """Removes what lies beside the store of a cell that is done."""

    def note(self, remark: str) -> None:
        """Adds a remark, unless it was made before."""
        if remark not in self.remarks:
            self.remarks.append(remark)

    def rows(self) -> list[R]:
        """Returns the rows of this experiment that are in the store, in the order of its cells."""
        return [row for cell in self.cells() for row in self.find_rows(cell)]
