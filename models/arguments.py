"""Arguments of users as plain Python values: whole numbers of any kind, and known keywords."""

from collections.abc import Callable, Iterable, Mapping
from inspect import Parameter, signature
from operator import index
from typing import Any, SupportsFloat, SupportsIndex

from .errors import SettingError, UnknownArgumentError, shorten

Integers = SupportsIndex | Iterable[SupportsIndex]
Numbers = Iterable[SupportsFloat]
MOST_NUMBERS = 1_000_000  # of a list such as 0-63: each is an image, drawn and kept in memory


def as_integer(given: Any, argument: str) -> int:
    """Returns a whole number of Python, numpy or torch as an int; a float is none.

    Raises:
        SettingError: for anything else; it names the argument.
    """
    plain = given.tolist() if hasattr(given, "tolist") else given
    if not isinstance(plain, bool):
        try:
            return index(plain)
        except TypeError:
            pass
    raise SettingError(f"{argument} must be a whole number, not {given!r}")


def as_integers(given: Any, argument: str, repeat: int = 1) -> list[int]:
    """Returns whole numbers as a list of ints: a range, a sequence, an array, a tensor, or one.

    repeat: how often one number alone is listed.

    Raises:
        SettingError: as `as_integer`.
    """
    plain = given.tolist() if hasattr(given, "tolist") else given
    if isinstance(plain, str | bytes | Mapping) or not hasattr(plain, "__iter__"):
        return [as_integer(plain, argument)] * repeat
    return [as_integer(each, f"each of {argument}") for each in plain]


def as_numbers(given: Any, argument: str) -> list[float]:
    """Returns real numbers as a list of floats: a sequence, an array or a tensor of one axis.

    Raises:
        SettingError: for anything else; it names the argument.
    """
    try:
        return [float(each) for each in (given.tolist() if hasattr(given, "tolist") else given)]
    except (TypeError, ValueError):
        raise SettingError(f"{argument} must be a row of numbers, not {given!r}") from None


def refuse_unknown(
    given: Iterable[str], function: Callable[..., Any], taken: Iterable[str] = ()
) -> None:
    """Raises UnknownArgumentError for the first keyword that a function does not take.

    taken: those that it takes without naming them in its signature.
    """
    for name in (name for name in given if name not in taken):
        kinds = (Parameter.KEYWORD_ONLY, Parameter.POSITIONAL_OR_KEYWORD)
        parameters = signature(function).parameters.values()
        known = [each.name for each in parameters if each.kind in kinds and each.name != "self"]
        raise UnknownArgumentError("argument", name, [*known, *taken])


def parse_ranges(text: str) -> list[int]:
    """Reads `0-3,7` as [0, 1, 2, 3, 7]; raises SettingError for anything else."""
    numbers: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        try:
            low = int(first)
            high = int(last) if dash else low
        except ValueError:
            raise SettingError(
                f"{shorten(text)} is not a list of numbers; write 0-63 or 1,5,7-9"
            ) from None
        if high < low or high - low + len(numbers) >= MOST_NUMBERS:
            raise SettingError(
                f"the range {shorten(part.strip())} must rise, and all ranges together hold at"
                f" most {MOST_NUMBERS:,} numbers"
            )
        numbers.extend(range(low, high + 1))
    return numbers


def format_ranges(numbers: tuple[int, ...]) -> str:
    """Returns the inverse of `parse_ranges`: runs of consecutive numbers as `first-last`."""
    spans: list[list[int]] = []
    for number in numbers:
        if spans and number == spans[-1][1] + 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    return ",".join(str(a) if a == b else f"{a}-{b}" for a, b in spans)


def parse_interval(text: str) -> tuple[float, float]:
    """Reads `0.3,5` as (0.3, 5.0); raises SettingError for anything else."""
    try:
        low, high = map(float, text.split(","))
    except ValueError:
        raise SettingError(
            f"{shorten(text)} is not an interval; write LOW,HIGH as in 0.3,5"
        ) from None
    return low, high


def parse_times(text: str) -> tuple[float, ...]:
    """Reads `1,0.5,0` as (1.0, 0.5, 0.0); raises SettingError for anything else."""
    try:
        return tuple(map(float, text.split(",")))
    except ValueError:
        raise SettingError(
            f"{shorten(text)} is not a list of times; write them from noise to data, as in"
            " 1,0.8,0.5,0"
        ) from None
