"""The cost of whole commands to a user: wall time and peak memory of `sample` and of its help."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

COMMANDS = (("sample",), ("sample", "--help"))


def measure(words: Sequence[str], folder: str) -> tuple[float, float]:
    """Returns seconds and peak resident MB of one of our commands; raises if it fails."""
    return measure_python(["-m", "fewstep.cli", *words], folder)


def measure_python(words: Sequence[str], folder: str) -> tuple[float, float]:
    """Returns the same of any process of this interpreter, by its arguments."""
    start = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, words)
    return time.perf_counter() - start, usage.ru_maxrss / 1024


def report(repeats: int = 3) -> str:
    """Returns one line per command: median and slowest wall time, largest memory."""
    lines = [f"{'command':15} {'median s':>9} {'slowest s':>10} {'peak MB':>9}"]
    with tempfile.TemporaryDirectory() as folder:
        for words in COMMANDS:
            seconds, megabytes = zip(*(measure(words, folder) for _ in range(repeats)), strict=True)
            lines.append(
                f"{' '.join(words):15} {statistics.median(seconds):9.2f} {max(seconds):10.2f}"
                f" {max(megabytes):9.0f}"
            )
    return "\n".join(lines)
