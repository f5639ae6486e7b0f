"""The errors a user can cause: each says what is wrong, what is known and what to do instead."""

from collections.abc import Iterable
from difflib import get_close_matches


class FewstepError(Exception):
    """Base of every error that fewstep raises on purpose; the command line exits with 2."""


class UnknownNameError(FewstepError, LookupError):
    """A name that no registry knows; the message suggests the nearest known one."""

    def __init__(self, kind: str, name: object, known: Iterable[str]) -> None:
        known = sorted(map(str, known))
        close = get_close_matches(str(name), known, n=1, cutoff=0.5)
        hint = f"did you mean {close[0]!r}? " if close else ""
        super().__init__(f"no {kind} {name!r}; {hint}known: {', '.join(known)}")


class UnknownArgumentError(UnknownNameError, TypeError):
    """A keyword that a function does not take."""


class SettingError(FewstepError, ValueError):
    """A setting out of range, or two settings that exclude each other."""


class ScheduleError(FewstepError, ValueError):
    """A time grid or a schedule artefact that cannot be run."""


class ModelError(FewstepError):
    """A network that cannot be found, loaded or called as asked."""


class NonFiniteError(ModelError, ArithmeticError):
    """The network returned NaN or infinity."""


class MemoryLackError(FewstepError, MemoryError):
    """A device or the host has too little memory for what was asked."""
