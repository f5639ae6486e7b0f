"""The one store of figures: a file of JSON lines that is appended to and never rewritten.

A line is written in one piece, under the file's lock, and reaches the disk before the next piece of
work begins. If a process is killed while it writes, the file ends in half a line: the next writer
moves that half to `<file>.broken` and goes on, so nothing that was finished is lost or hidden.

Several processes may share a store: each piece of work is claimed by one of them (`RowStore.turns`)
with a lock in the folder `<file>.parts`, which ends with its holder and is gone when all is done.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import ValidationError

from ...models.errors import SettingError
from ...models.files import check_folder, check_writable, claim, clear_locks
from ...models.reading import StrictModel, first_problem
from ..line_file import LineFile


class KeyedRow(StrictModel):
    """A row of a store."""

    @property
    def key(self) -> str:
        """Returns what the row is of; of two rows with one key the later one counts."""
        raise NotImplementedError

    @property
    def line(self) -> str:
        """Returns the row as JSON."""
        return self.model_dump_json()


R = TypeVar("R", bound=KeyedRow)
W = TypeVar("W")


class RowStore(Generic[R]):
    """The rows of one file, by key.

    path:   the file; it is made with the first row.
    rows:   key -> row, in the order of the file.
    broken: what is wrong with each line that could not be read.

    Raises:
        SettingError: if the file cannot be read, or is none of these: nothing is appended to
            another kind of file.
    """

    def __init__(self, path: Path, kind: type[R]) -> None:
        self.path = path.resolve() if path.is_symlink() else path
        self.rows: dict[str, R] = {}
        self.broken: list[str] = []
        self._file = LineFile(self.path, kind)
        self._take(half=True)
        if self.broken and not self.rows and not self._is_begun(kind):
            raise SettingError(
                f"{str(path)!r} is not a store of these figures, and nothing is written to it:"
                f" {self.broken[0]}; give another name"
            )

    def check(self) -> None:
        """Raises SettingError if rows could not be added, before anything is computed."""
        check_writable(self.path)
        check_folder(self.parts.with_suffix(".reference"))  # the longest name of what lies beside

    @property
    def parts(self) -> Path:
        """The folder of work in progress: claims, and what is done of a long piece of it."""
        return self.path.with_name(f"{self.path.name}.parts")

    def refresh(self) -> None:
        """Takes in what other processes have added since."""
        self._take()

    def append(self, *rows: R) -> None:
        """Adds rows, which have reached the disk when this returns.

        Raises:
            SettingError: if the file cannot be written.
        """
        with self._file.lock():
            self._file.append(row.line for row in rows)
        for row in rows:
            self._keep(row)

    def turns(
        self, works: Sequence[W], name: Callable[[W], object], is_done: Callable[[W], bool]
    ) -> Iterator[W]:
        """Yields each piece of work that is this process's to do, and holds it meanwhile.

        Work that another process is at comes last, and is waited for: it is done then, or that
        process was killed.

        name:    what tells a piece of work from all others that end in this file.
        is_done: asked with all rows at hand that any process has added.
        """
        for wait in (False, True):
            busy = []
            for work in works:
                path = self._claim_path(name(work))
                with claim(path, lambda work=work: self._has(is_done, work), wait=wait) as mine:  # type: ignore[misc]
                    if mine:
                        yield work
                    elif not is_done(work):
                        busy.append(work)
            works = busy
        self._tidy()

    def _claim_path(self, name: object) -> Path:
        digest = hashlib.sha256(repr(name).encode()).hexdigest()
        return self.parts / f"{digest[:16]}.claim"

    def _has(self, is_done: Callable[[W], bool], work: W) -> bool:
        self.refresh()
        return is_done(work)

    def _tidy(self) -> None:
        """Removes the locks that killed processes have left, and the folder of parts if it can."""
        with self._file.lock():
            pass
        beside = f".*{self.path.name}.lock"
        for _ in (*clear_locks(self.parts, "*.claim"), *clear_locks(self.path.parent, beside)):
            pass
        with suppress(OSError):  # it is not empty, or not there
            self.parts.rmdir()

    def _take(self, *, half: bool = False) -> None:
        for number, row in self._file.read(half=half):
            if isinstance(row, ValidationError):
                where = f"line {number} of {str(self.path)!r}"
                self.broken.append(f"{where}: {first_problem(row)}")
            else:
                self._keep(row)

    def _keep(self, row: R) -> None:
        self.rows.pop(row.key, None)
        self.rows[row.key] = row

    def _is_begun(self, kind: type[R]) -> bool:
        """Returns whether the file is the beginning of a first row, whose writer was killed."""
        start = f'{{"{next(iter(kind.model_fields))}":'.encode()
        body = self.path.read_bytes()
        return b"\n" not in body and body.startswith(start)
