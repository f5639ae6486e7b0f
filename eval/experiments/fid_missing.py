"""The figures that sweeps ask for and a store does not hold."""

from collections import Counter
from collections.abc import Iterable, Iterator

from ...models.hashing import hash_json
from ..bench.protocol import Drawn, Measure, Protocol
from ..bench.rows import ResultRow
from .fid_plan import Networks, plan_cells
from .fid_points import network_label
from .fid_sweep import Sweep


def list_missing(sweep: Sweep, rows: Iterable[ResultRow], networks: Networks) -> Iterator[str]:
    """Yields a line for each network, with its guidance, of which figures are missing.

    The extractor and the reference are not asked for: rows of the sweep's metric and n count.

    Raises:
        FewstepError: as `plan_cells`.
    """
    known = {_identify(row.protocol) for row in rows}
    nothing = dict.fromkeys(("extractor", "extractor_sha256", "resize"), "")
    reference = {"reference": "", "reference_sha256": ""}
    measure = Measure(metric=sweep.metric, n=sweep.n, **nothing, **reference)
    asked, missing = Counter[tuple[str, int]](), Counter[tuple[str, int]]()
    for cell in plan_cells(sweep, measure, networks).cells:
        assert isinstance(cell.protocol.images, Drawn)
        key = network_label(cell.protocol.images), cell.nfe
        asked[key] += 1
        missing[key] += _identify(cell.protocol) not in known
    for network in dict.fromkeys(network for network, _ in asked):
        budgets = sorted(nfe for name, nfe in asked if name == network and missing[name, nfe])
        if budgets:
            each = (f"{missing[network, n]} of {asked[network, n]} at NFE {n}" for n in budgets)
            yield f"{sweep.metric} of {network}: {', '.join(each)}"


def _identify(protocol: Protocol) -> str:
    """Returns what tells a figure from others, whatever extractor and reference are."""
    return hash_json([protocol.images.deciding(), protocol.measure.metric, protocol.measure.n])
