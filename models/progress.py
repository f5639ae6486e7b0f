"""Progress of long work: a bar in a terminal, a line now and then where nobody watches one."""

import sys
import time
from typing import Any

from tqdm.auto import tqdm
from tqdm.std import tqdm as plain

EVERY = 30.0  # seconds between lines
LINE = "{desc}: {percentage:.0f} %, {elapsed} passed, about {remaining} left{postfix}"


class Heartbeat(plain):  # type: ignore[misc]
    """A bar that a file or a pipe gets as whole lines, the first after half a minute."""

    said: float

    def __init__(self, *args: Any, **options: Any) -> None:
        self.said = time.monotonic()
        line = {"bar_format": LINE, "mininterval": 1.0, "miniters": 1, "leave": False}
        super().__init__(*args, **{**options, **line})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Prints where the work is, if the last line is old enough."""
        now = time.monotonic()
        if msg is None and self.n > self.initial and now - self.said >= EVERY:
            self.said = now
            self.fp.write(str(self).lstrip(": ") + "\n")
            self.fp.flush()
        return True

    def close(self) -> None:
        """Ends it; in a file there is no line to be cleared."""
        self.disable = True


def make_bar(*args: Any, show: bool, **options: Any) -> Any:
    """Returns a bar of tqdm; `show` is whether the user wants to see it, in whatever form."""
    if not show:
        return tqdm(*args, **options, disable=True)
    return (tqdm if sys.stderr.isatty() else Heartbeat)(*args, **options)
