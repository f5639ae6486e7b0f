"""Commands as a hostile user types them: run in this process, timed, and judged by one rule."""

import hashlib
import signal
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner, Result

from fewstep.cli import app

SECONDS = 10.0
BESIDE = ("warning: ", "left out: ")  # what may stand on the error stream beside the error


class TooSlow(BaseException):
    """Raised into a call that takes too long; no handler of ordinary errors stops it."""


@contextmanager
def limit(seconds: float = SECONDS) -> Iterator[None]:
    """Ends what runs inside after so many seconds."""

    def end(number: int, frame: object) -> None:
        raise TooSlow

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


def run_command(words: Sequence[object], seconds: float = SECONDS) -> Result:
    """Runs `fewstep` with these words, for so long at most."""
    with limit(seconds):
        return CliRunner().invoke(app, [str(word) for word in words])


def read_folder(folder: Path) -> Mapping[str, str]:
    """Returns what lies in a folder: names, and hashes of ordinary files."""
    found = {}
    for path in sorted(folder.rglob("*")):
        plain = path.is_file() and not path.is_symlink()
        body = hashlib.sha256(path.read_bytes()).hexdigest() if plain else "other"
        found[str(path.relative_to(folder))] = body
    return found


@dataclass(frozen=True)
class Answer:
    """What a command did.

    fault:  what is wrong with it, None if nothing is. Right is an exit code of 0, or of 2 with one
            line of error and the folder as it was.
    output: what it said.
    code:   its exit code.
    """

    fault: str | None
    output: str = ""
    code: int = 2


def examine(words: Sequence[object], folder: Path, seconds: float = SECONDS) -> Answer:
    """Returns what a command did in a folder."""
    before = read_folder(folder)
    try:
        result = run_command(words, seconds)
    except TooSlow:
        return Answer(f"over {seconds:g} s")
    fault = _find_fault(result)
    if fault is None and result.exit_code == 2 and (left := read_folder(folder)) != before:
        fault = f"left behind: {sorted(left.items() ^ before.items())}"
    return Answer(fault, result.output, result.exit_code)


def _find_fault(result: Result) -> str | None:
    if result.exit_code == 0:
        return None
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        return "traceback: " + "".join(traceback.format_exception(result.exception))[-1500:]
    if result.exit_code != 2:
        return f"exit code {result.exit_code}: {result.output}"
    lines = [line for line in result.output.splitlines() if not line.startswith(BESIDE)]
    if len(lines) != 1 or not lines[0].startswith("error: "):
        return f"not one line: {result.output}"
    return None
