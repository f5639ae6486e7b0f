"""Stamps of measured pages: the version and the weights that their figures are of.

    <!-- measured: fewstep 0.1.0; fashion-dit 7b4a9ad1; emoji 0f3c2d4e -->

`python -m fewstep.eval.bench.stamp STORE` prints that of a store of quality benchmarks. A page
whose figures are older than what it speaks of is stale; a test reads the stamps.
"""

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from ... import __version__
from ...models.weights import hash_weights
from .protocol import Drawn
from .rows import ResultRow, ResultStore

DIGITS = 8  # of a hash
FIRST = "first edition"  # of the weights, of which a page may speak in words
_STAMP = re.compile(r"<!-- measured: ([^>]*) -->")


def format_stamp(facts: Mapping[str, str]) -> str:
    """Returns the line of a page; facts: version of fewstep, and hashes of weights by network."""
    return f"<!-- measured: {'; '.join(f'{name} {fact}' for name, fact in facts.items())} -->"


def find_facts(rows: Iterable[ResultRow]) -> dict[str, str]:
    """Returns what rows are of: the version, and the weights of each network that drew."""
    facts = {}
    for row in rows:
        facts["fewstep"] = row.versions.get("fewstep", "?")
        images = row.protocol.images
        if isinstance(images, Drawn) and images.weights is not None:
            facts[images.run.model] = images.weights[:DIGITS]
    return facts


def find_stale(text: str) -> Iterator[str]:
    """Yields what is older than the package in the stamps of a page, and that it has none."""
    stamps = _STAMP.findall(text)
    if not stamps:
        yield "no stamp"
    for fact in (each.strip() for stamp in stamps for each in stamp.split(";")):
        if fact == FIRST:
            if FIRST not in _STAMP.sub("", text):
                yield "figures of the first edition of the weights, and the page does not say so"
        else:
            name, _, made = fact.partition(" ")
            if made != (here := _find_present(name)):
                yield f"figures of {name} {made}, which is {here} now"


def _find_present(name: str) -> str:
    if name == "fewstep":
        return __version__
    return (hash_weights(name) or "unknown")[:DIGITS]


if __name__ == "__main__":
    rows = ResultStore.existing(Path(sys.argv[1])).rows.values()
    sys.stdout.write(f"{format_stamp(find_facts(rows))}\n")
