"""The outputs of a table: text, a plot and a page, all checked before anything is measured."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...models.errors import UnknownNameError
from ...models.extras import check_installed
from ...models.files import check_apart, check_writable
from .plot import KINDS

TEXTS = ("csv", "md")


@dataclass(frozen=True)
class ReportFiles:
    """The outputs that were asked for.

    text: "md" or "csv", what is printed.
    plot: the curves, .png, .svg or .pdf; page: everything as one HTML page.
    """

    text: str = "md"
    plot: Path | None = None
    page: Path | None = None

    def check(self, others: Iterable[Path] = ()) -> None:
        """Checks that all of it can be made beside other files of the command.

        Raises:
            UnknownNameError: for another text.
            SettingError: for another suffix, a folder that is not there, or a missing package.
        """
        if self.text not in TEXTS:
            raise UnknownNameError("table", self.text, TEXTS)
        if self.plot is not None:
            check_writable(self.plot, *KINDS)
        if self.page is not None:
            check_writable(self.page, ".html", ".htm")
        check_apart([self.plot, self.page], others)
        needed = {"matplotlib": self.plot or self.page, "jinja2": self.page}
        check_installed(*(name for name, asked in needed.items() if asked))
