"""`fewstep bench rivals`: the default beside the best that diffusers' schedulers do.

Schedulers are chosen on FEW noises, and the finalists tried on all: so the best of them is chosen
on the noises it is reported on, in its favour.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

from ...models.errors import SettingError
from ..bench.store import RowStore
from ..bench.table import markdown_table
from .distances import Distance, DistanceMeter
from .rival_grid import choose_rivals

FEW = 12  # noises that schedulers are chosen on


class Match(NamedTuple):
    """The default and the nearest scheduler of diffusers at one number of evaluations."""

    ours: Distance
    theirs: Distance


def measure_matches(
    name: str, budgets: Sequence[int], seeds: range, store: RowStore[Distance]
) -> Iterator[Match]:
    """Yields the match at each budget of one network.

    Raises:
        SettingError: if no scheduler runs on it.
    """
    meter = DistanceMeter(name, seeds, store)
    for nfe in budgets:
        theirs = find_nearest_rival(meter, nfe)
        yield Match(meter.measure_default(nfe), theirs)


def find_nearest_rival(meter: DistanceMeter, nfe: int) -> Distance:
    """Returns the distance of the nearest scheduler at a number of evaluations.

    Raises:
        SettingError: if none runs on the network.
    """
    chosen = choose_rivals(meter.schedule, partial(_judge, meter, nfe))
    if not chosen:
        raise SettingError(f"no scheduler of diffusers runs on {meter.name} with {nfe} evaluations")
    finals = (meter.measure_rival(spec, nfe) for spec in chosen)
    return min(finals, key=lambda each: each.rms)


def _judge(meter: DistanceMeter, nfe: int, spec: str) -> float:
    return meter.measure_rival(spec, nfe, FEW).rms


def format_matches(matches: Sequence[Match]) -> Iterator[str]:
    """Yields the table, and what it comes to."""
    titles = ("network", "evaluations", "default", "distance", "diffusers", "distance", "ratio")
    rows = [titles]
    for ours, theirs in matches:
        named = f"`{ours.run.grid}`", str(ours), f"`{theirs.run.rival}`", str(theirs)
        ratio = f"{ours.rms / theirs.rms:.2f}"
        rows.append((ours.run.network, str(ours.run.nfe), *named, ratio))
    yield from markdown_table(rows)
    ratios = [ours.rms / theirs.rms for ours, theirs in matches]
    nearer = f"{sum(ratio < 1.0 for ratio in ratios)} of {len(ratios)}"
    yield f"\nThe default is nearer in {nearer}; the worst ratio is {max(ratios):.2f}."
