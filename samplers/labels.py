"""Lists of numbers, and class labels as they are typed: also names of classes, or no class."""

from ..models.denoiser import Network
from ..models.errors import SettingError
from ..models.reading import shorten

MOST_NUMBERS = 1_000_000  # of a list such as 0-63: each is an image, drawn and kept in memory
NULL = "null"  # the name of no class at all


def parse_classes(text: str, network: Network) -> list[int] | None:
    """Returns the labels of `0-3,shirt`; None, which is no class, for `null` alone.

    Raises:
        SettingError: for what is neither a number nor the name of a class, and for labels and a
            null class that the network does not have.
    """
    if not network.num_classes:
        raise SettingError(f"{network.name} has no classes; leave them out")
    if text.strip() == NULL:
        if network.null_class is None:
            raise SettingError(
                f"{network.name} has no null class; give one of 0 to {_find_last(network)}"
            )
        return None
    names = {name: label for label, name in enumerate(network.class_names)}
    labels: list[int] = []
    for part in (part.strip() for part in text.split(",")):
        labels += [names[part]] if part in names else _parse_numbers(part, network)
    return labels


def _parse_numbers(part: str, network: Network) -> list[int]:
    try:
        labels = parse_ranges(part)
    except SettingError:
        if not network.class_names or part.replace("-", "").isdecimal():
            raise
        known = ", ".join(network.class_names)
        raise SettingError(
            f"no class {shorten(part)} in {network.name}; known: 0 to {_find_last(network)}, or"
            f" {known}, or {NULL} for none"
        ) from None
    for label in labels:
        check_label(label, network)
    return labels


def check_label(label: int, network: Network) -> None:
    """Raises SettingError for a label beyond the classes, that of the null class among them."""
    if not 0 <= label < network.num_classes:
        none = "" if network.null_class is None else "; no class is class_labels=None, or null"
        raise SettingError(
            f"class {label} does not exist; {network.name} has classes 0 to"
            f" {_find_last(network)}{none}"
        )


def _find_last(network: Network) -> int:
    return network.num_classes - 1


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
                f"{shorten(text)} is no list of numbers; write 0-63 or 1,5,7-9"
            ) from None
        if high < low or high - low + len(numbers) >= MOST_NUMBERS:
            raise SettingError(
                f"the range {shorten(part.strip())} must rise, and all ranges together hold at"
                f" most {MOST_NUMBERS:,} numbers"
            )
        numbers.extend(range(low, high + 1))
    return numbers
