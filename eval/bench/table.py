"""Tables in Markdown, and numbers as they stand in them."""

from collections.abc import Iterable, Iterator, Sequence


def markdown_table(rows: Iterable[Sequence[str]], rule: str = "---:") -> Iterator[str]:
    """Yields a table of a header and rows; rule: below all columns but the first."""
    for i, row in enumerate(rows):
        yield f"| {' | '.join(row)} |"
        if i == 0:
            yield f"|---|{f'{rule}|' * (len(row) - 1)}"


def align_table(rows: Sequence[Sequence[str]], left: int = 1) -> Iterator[str]:
    """Yields a table whose columns are also straight as plain text.

    left: how many columns, the first ones, begin at their left side.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for i, row in enumerate(rows):
        cells = [
            cell.ljust(w) if k < left else cell.rjust(w)
            for k, (cell, w) in enumerate(zip(row, widths, strict=True))
        ]
        yield f"| {' | '.join(cells)} |"
        if i == 0:
            rules = [
                "-" * (w + 2) if k < left else "-" * (w + 1) + ":" for k, w in enumerate(widths)
            ]
            yield f"|{'|'.join(rules)}|"


def format_number(value: float) -> str:
    """Returns three significant digits, without an exponent from 0.001 to 999999."""
    if abs(value) >= 100.0:
        return f"{value:.0f}"
    return f"{value:#.3g}" if abs(value) >= 1e-3 else f"{value:.3g}"


def format_range(values: Sequence[float]) -> str:
    """Returns the least and the largest of some values."""
    return f"{format_number(min(values))}..{format_number(max(values))}"
