"""The caches and predictors that `fewstep calibrate` tries where no others are named."""

from collections.abc import Iterable, Iterator, Sequence

from ..models.denoiser import Network
from ..models.errors import SettingError
from ..models.registry import extend_spec
from .experiments.caches import FITTED, GATED, INTERVALS, SUMMED

BLOCKS = tuple(f"taylorseer:interval={interval},level=last-block" for interval in INTERVALS)
MODULES = tuple(f"taylorseer:interval={interval}" for interval in INTERVALS)
RIMS = tuple(
    f"deepcache:interval={interval},branch={b}" for interval in INTERVALS for b in (0, 1, 2)
)
PREDICTORS = (
    "reuse",
    "taylor:order=1",
    "taylor:order=2",
    "newton:order=2",
    "newton:order=3",
    "hermite:order=2",
    "spectrum",
    "dmd",
    "foca",
)
FEW = ("reuse", "taylor:order=1", "taylor:order=2", "foca")


def list_settings(
    network: Network, caches: Sequence[str], predictors: Sequence[str] = ()
) -> Iterator[str]:
    """Yields the settings that are tried on a network.

    Args:
        caches: names, or names with settings; none are all that are prepared.
        predictors: tried under each of them, and under those prepared that skip by index; "all" is
            all that are prepared, and fitted.

    Raises:
        SettingError: if a name has none prepared for it, or the network cannot be cached.
    """
    if network.module is None:
        raise SettingError(f"{network.name} is a plain function, which has no blocks to skip")
    unet = hasattr(network.module, "up_blocks")
    if predictors:
        chosen = [*PREDICTORS, "fitted"] if "all" in predictors else predictors
        prepared = (*BLOCKS, *(RIMS if unet else MODULES))
        yield from cross(_choose_caches(network, caches, prepared), chosen)
        return
    gates = (*GATED, *SUMMED, *FITTED)
    if unet:  # these gates need nothing inside the network
        gates = tuple(each for each in gates if each.startswith(("easycache", "sencache")))
    rest = (*cross(RIMS if unet else MODULES, FEW), *gates)
    yield from _choose_caches(network, caches, (*cross(BLOCKS, PREDICTORS), *rest))


def _choose_caches(
    network: Network, caches: Sequence[str], prepared: Sequence[str]
) -> Iterator[str]:
    """Yields what names stand for, and settings as they are."""
    if not caches:
        yield from prepared
    for each in caches:
        specs = [spec for spec in prepared if spec.partition(":")[0] == each]
        if not specs and ":" not in each:
            known = sorted({spec.partition(":")[0] for spec in prepared})
            raise SettingError(
                f"no settings of {each!r} are prepared for {network.name}, only of"
                f" {', '.join(known)}; give some, as in {each}:key=value"
            )
        yield from specs or [each]


def cross(caches: Iterable[str], predictors: Iterable[str]) -> tuple[str, ...]:
    """Returns every cache with every predictor."""
    predictors = [f"[{each}]" if "," in each else each for each in predictors]
    return tuple(extend_spec(cache, f"predictor={each}") for cache in caches for each in predictors)
