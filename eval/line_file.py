"""A file of JSON lines: appended to under its lock, read on from where one was, mended if cut."""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from ..models.errors import SettingError
from ..models.files import hold_file, resolve_target
from ..models.reading import FOLDER, ordinary_file

M = TypeVar("M", bound=BaseModel)


class LineFile(Generic[M]):
    """A file of JSON lines, each of which stands for a value.

    path: where it is, or will be once something is appended.
    kind: of the values.
    """

    def __init__(self, path: Path, kind: type[M]) -> None:
        self.path, self.kind = path, kind
        self._offset = self._number = 0  # of the bytes and the lines that were read

    def read(self, *, half: bool = False) -> Iterator[tuple[int, M | ValidationError]]:
        """Yields the value of each line that was not read before, or its fault, and its number.

        half: also of a last line that has no end yet; it is read again when it has one.

        Raises:
            SettingError: if the file cannot be read.
        """
        *whole, last = self._new().split(b"\n")
        for line in whole:
            self._offset += len(line) + 1
            self._number += 1
            if line.strip():
                yield self._number, self._parse(line)
        if half and last.strip():
            yield self._number + 1, self._parse(last)

    def append(self, lines: Iterable[str], *, sync: bool = True) -> None:
        """Adds lines in one piece; the caller holds the lock.

        sync: whether they have reached the disk when this returns.

        Raises:
            SettingError: if the file cannot be written.
        """
        body = "".join(f"{line}\n" for line in lines).encode()
        with self._report_errors(), self.path.open("ab") as file:
            file.write(body)
            file.flush()
            if sync:
                os.fsync(file.fileno())

    @contextmanager
    def lock(self, *, wait: bool = True) -> Iterator[bool]:
        """Holds the file for this process, its last line whole; yields whether it could be had.

        Raises:
            SettingError: if the file cannot be written.
        """
        with ExitStack() as stack:
            with self._report_errors():
                resolve_target(self.path)
                lock = self.path.with_name(f"{self.path.name}.lock")
                mine = stack.enter_context(hold_file(lock, wait=wait))
                if mine and self.path.exists():
                    self._mend()
            yield mine

    def _new(self) -> bytes:
        try:
            with ordinary_file(self.path, missing_ok=True).open("rb") as file:
                file.seek(self._offset)
                return file.read()
        except FileNotFoundError:
            return b""
        except OSError as error:
            raise SettingError(f"cannot read {str(self.path)!r}: {error.strerror}") from error

    def _parse(self, line: bytes) -> M | ValidationError:
        try:
            return self.kind.model_validate_json(line, context={FOLDER: self.path.parent})
        except ValidationError as error:
            return error

    def _mend(self) -> None:
        """Ends a last line without its newline: a whole one is kept, half a one set aside."""
        with self.path.open("r+b") as file:
            body = file.read()
            start = body.rfind(b"\n") + 1
            tail = body[start:]
            if tail and not isinstance(self._parse(tail), ValidationError):
                file.write(b"\n")
            elif tail:
                with self.path.with_name(f"{self.path.name}.broken").open("ab") as aside:
                    aside.write(tail + b"\n")
                file.truncate(start)

    @contextmanager
    def _report_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise SettingError(f"cannot write {str(self.path)!r}: {error.strerror}") from error
