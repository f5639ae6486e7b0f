"""Which rows stand together: of one version, one set of weights, and the same blocks of seeds."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

from ...models.errors import SettingError
from ..bench.protocol import Drawn, Protocol
from ..bench.rows import ResultRow


def check_joint(rows: Sequence[ResultRow], further: Iterable[Protocol] = ()) -> None:
    """Refuses rows that do not belong together, however alike their measures are.

    They were drawn by one version of fewstep, torch and diffusers, by one set of weights of each
    network, and from blocks of seeds that are equal or have no seed in common.

    further: protocols that are about to be measured beside them.

    Raises:
        SettingError: for the first that is unlike one before it.
    """
    seen: dict[str, str] = {}
    for name, fact in _list_facts(rows, further):
        if seen.setdefault(name, fact) != fact:
            raise SettingError(
                f"rows of {name} {seen[name]!r} and {fact!r} do not stand together; measure all of"
                " them in another store"
            )
    protocols = [*(row.protocol for row in rows), *further]
    _check_blocks([each.images.run.seeds for each in protocols if isinstance(each.images, Drawn)])


def _list_facts(
    rows: Sequence[ResultRow], further: Iterable[Protocol]
) -> Iterator[tuple[str, str]]:
    """Yields what must be equal wherever it has the same name."""
    for row in rows:
        yield from row.versions.items()
    for protocol in (*(row.protocol for row in rows), *further):
        images = protocol.images
        if isinstance(images, Drawn) and images.weights is not None:
            yield f"weights of {images.run.model}", images.weights[:12]


def _check_blocks(seeds: Iterable[Sequence[int]]) -> None:
    """Raises SettingError for two blocks of seeds of which some are the same, and some not."""
    blocks = sorted({(each[0], each[-1]) for each in seeds})
    for (first, last), (start, end) in pairwise(blocks):
        if start <= last:
            raise SettingError(
                f"rows of the seeds {first}-{last} and {start}-{end} do not stand together: some"
                " seeds are in both; measure all in the same blocks"
            )
