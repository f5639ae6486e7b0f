"""The errors a user can cause: each says what is wrong, what is known and what to do instead."""

from collections.abc import Iterable
from difflib import SequenceMatcher, get_close_matches

SHOWN = 200  # characters of a name in a message
SUGGESTED = 3  # known names at most, all as near as the nearest


class FewstepError(Exception):
    """Base of every error that fewstep raises on purpose; the command line exits with 2."""


class UnknownNameError(FewstepError, LookupError):
    """A name that no registry knows; the message suggests the nearest known ones.

    preferred: the one to suggest first where it is as near as any.
    """

    def __init__(self, kind: str, name: object, known: Iterable[str], preferred: str = "") -> None:
        known, given = sorted(map(str, known)), str(name)[:SHOWN]
        near = sorted(_find_nearest(given, known), key=lambda each: (each != preferred, each))
        hint = f"did you mean {join_choices(map(repr, near[:SUGGESTED]))}? " if near else ""
        shown = name if given == str(name) else f"{given}..."
        super().__init__(f"no {kind} {shown!r}; {hint}known: {', '.join(known)}")


def _find_nearest(given: str, known: list[str]) -> list[str]:
    """Returns the names that are as near to a given one as the nearest; none if that is far."""
    close = get_close_matches(given, known, n=max(1, len(known)), cutoff=0.5)
    return [each for each in close if rate_likeness(given, each) == rate_likeness(given, close[0])]


def rate_likeness(given: str, known: str) -> float:
    """Returns the likeness of two names, 0 to 1."""
    return SequenceMatcher(None, known, given).ratio()


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


def join_choices(things: Iterable[object]) -> str:
    """Returns things as a choice in words."""
    return " or ".join(map(str, things))


def shorten(path: object) -> str:
    """Returns a name as it stands in a message, in quotes."""
    name = str(path)
    return repr(name if len(name) <= SHOWN else f"{name[:SHOWN]}...")


def reason_of(error: BaseException) -> str:
    """Returns the first line of an error's own words, and the next where it ends with a colon."""
    text = getattr(error, "strerror", None) or str(error).strip() or type(error).__name__
    first, *rest = str(text).splitlines()
    return f"{first} {rest[0].strip()}" if rest and first.rstrip().endswith(":") else first
