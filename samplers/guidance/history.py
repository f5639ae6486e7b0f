"""The predictions in a solver's memory, which are revised where guidance stops or starts.

A multistep solver takes differences of predictions. At a switch the prediction jumps by the
guidance, and a difference across the jump is O(1): one step of first order is lost, and with it the
order of the run. So at the switch the remembered predictions are replaced by what they would have
been: the conditional ones where guidance stops; where it starts, the conditional ones plus the
guidance of the first guided answer, as no unconditional ones were evaluated.
"""

from collections import deque
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ...models.devices import send
from ...solvers import Revision
from .base import Guide, Moment
from .space import shape_per_row

Guided = bool | tuple[bool, ...]
Outputs = Sequence[Tensor]


class History:
    """The last answers to a solver that looks back `reach` predictions."""

    def __init__(self, reach: int) -> None:
        self.answers: deque[tuple[Tensor, Tensor]] = deque(maxlen=reach)  # (answer, conditional)
        self.guided: Guided | None = None
        self.due: tuple[Revision, ...] = ()

    def note(self, answer: Tensor, guided: Guided, conditional: Callable[[], Tensor]) -> None:
        """Takes in an answer (B, *); all rows of it are guided or not, or each by itself."""
        cond = conditional()
        stopped, started = _turns(self.guided, guided)
        if self.answers and (any(stopped) or any(started)):
            self._revise(stopped, started, answer - cond)
        self.answers.appendleft((answer, cond))
        self.guided = guided

    def changes(self) -> tuple[Revision, ...]:
        """Returns the predictions to replace, newest first, once."""
        due, self.due = self.due, ()
        return due

    def _revise(
        self, stopped: tuple[bool, ...], started: tuple[bool, ...], guidance: Tensor
    ) -> None:
        due = []
        for answer, cond in self.answers:
            new = _where(stopped, cond, answer)
            new = _where(started, cond + guidance, new) if any(started) else new
            due.append(Revision(answer, new))
        conds = [cond for _, cond in self.answers]
        self.answers.clear()
        self.answers.extend(zip([each.new for each in due], conds, strict=True))
        self.due = tuple(due)


class PastBranches:
    """The last answers of a network before another takes over, with the branches of each.

    A solver that remembers `reach` predictions goes on as if the guidance of the other had been on
    all along: what it remembers is combined anew from the branches.
    """

    def __init__(self, reach: int) -> None:
        self.answers: deque[tuple[Tensor, Outputs, Tensor, Moment]] = deque(maxlen=reach)

    def note(self, answer: Tensor, outputs: Outputs, x: Tensor, moment: Moment) -> None:
        """Takes in an answer (B, *), made of an x0 per branch at the state x."""
        self.answers.appendleft((answer, outputs, x, moment))

    def combine_anew(
        self, guide: Guide, answer: Tensor, outputs: Outputs, x: Tensor, moment: Moment
    ) -> tuple[Revision, ...]:
        """Returns the predictions to replace, newest first, given the other's first answer.

        Where no unconditional branch was evaluated, the guidance of that answer is added.
        """
        added = answer - guide.conditional(outputs, x, moment)
        revisions = []
        for old, parts, state, place in self.answers:
            if len(parts) >= len(outputs):
                new = guide.combine(parts[-len(outputs) :], state, place)
            else:
                new = guide.conditional(parts, state, place) + added
            revisions.append(Revision(old, new))
        return tuple(revisions)


def _turns(old: Guided | None, new: Guided) -> tuple[tuple[bool, ...], tuple[bool, ...]]:
    """Returns flags of the rows that stopped being guided, and of those that started."""
    if old is None or old == new:
        return (), ()
    size = max(len(each) if isinstance(each, tuple) else 1 for each in (old, new))
    before, now = (each if isinstance(each, tuple) else (each,) * size for each in (old, new))
    pairs = list(zip(before, now, strict=True))
    return tuple(a and not b for a, b in pairs), tuple(b and not a for a, b in pairs)


def _where(rows: tuple[bool, ...], a: Tensor, b: Tensor) -> Tensor:
    """Returns a in these rows, b in the others."""
    if all(rows):
        return a
    if not any(rows):
        return b
    return torch.where(shape_per_row(send(torch.tensor(rows), a.device), a).bool(), a, b)
