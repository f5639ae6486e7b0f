"""A cache as data: what `fewstep calibrate` found for one network, solver and number of steps.

`sample --cache FILE.json` reads it. The settings are taken as they stand; the figures say what they
did when they were chosen, and the sketch tells the network that they were chosen for.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field as Limits

from .. import __version__
from ..models.caching import take_cache
from ..models.denoiser import Network
from ..models.errors import FewstepError, SettingError, shorten
from ..models.files import write_bytes
from ..models.reading import StrictModel, parse_as, read_text
from ..models.schedule import NoiseSchedule
from .network_mark import Finite, NetworkMark
from .plan import settle_choices
from .run_record import Run


class CacheFigures(StrictModel):
    """The effect of the setting on the images it was chosen on.

    effective: evaluations of the whole network that would take as many FLOPs.
    quality:   of the cached images against the uncached ones, by the metric of the file.
    images:    how many there were.
    """

    effective: Finite
    quality: Finite
    images: Annotated[int, Limits(ge=2)]


class PlainFigure(StrictModel):
    """A run without a cache that costs as much.

    ratio: of the cached run's distance from the converged run to this one's, with the interval of
           95 % over noises.
    """

    run: str
    ratio: tuple[Finite, Finite, Finite]


class HeldOut(StrictModel):
    """Figures on noises that the cache was not chosen on, relative root mean squares.

    drift:    from the run without the cache.
    distance: from the converged run; uncached: that of the run without the cache.
    beside:   runs without a cache at the same cost.
    """

    images: Annotated[int, Limits(ge=2)]
    drift: Finite
    distance: Finite
    uncached: Finite
    beside: tuple[PlainFigure, ...]


class CacheFile(NetworkMark):
    """A chosen cache, and the network that it was chosen for.

    cache:     `name:key=value,...`, with everything that was fitted in it.
    solver, grid, nfe, cfg_scale: of the runs that it was chosen on.
    metric:    "rel-l2", "psnr" or "lpips"; wanted: what was asked for.
    held_out:  figures on other noises; None in files of 0.1.0.
    """

    version: Literal[1] = 1
    fewstep: str = __version__
    cache: str
    solver: str
    grid: str | None = None
    nfe: Annotated[int, Limits(ge=1)]
    cfg_scale: Finite = 1.0
    metric: str
    wanted: Finite
    figures: CacheFigures
    held_out: HeldOut | None = None

    @classmethod
    def load(cls, path: Path) -> "CacheFile":
        """Reads a file; raises SettingError if it is not there, damaged, or of another version."""
        text = read_text(path)
        try:
            file = parse_as(cls, text)
        except SettingError as error:
            raise SettingError(
                f"{shorten(path)} is not a file of fewstep calibrate: {error}"
            ) from error
        try:
            take_cache(file.cache)
        except FewstepError as error:
            raise SettingError(f"{str(path)!r}: {error}") from error
        return file

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all."""
        write_bytes(path, self.model_dump_json(indent=1, exclude_none=True).encode() + b"\n")

    def check(self, network: Network, run: Run) -> None:
        """Raises SettingError if it was made for another network or another run."""
        self.check_network(network, "this cache was calibrated", "fewstep calibrate")
        mine, theirs = self._compare_runs(run, network.schedule)
        if mine != theirs:
            raise SettingError(
                f"this cache was calibrated for {_describe(mine)}, not {_describe(theirs)}; type"
                f" {_suggest_options(mine, theirs)}, calibrate again, or --force to try"
            )

    def _compare_runs(
        self, run: Run, schedule: NoiseSchedule
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Returns the choices it was made for, and those of the run, defaults written out."""
        names = ("solver", "nfe", "grid")
        typed = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        mine, theirs = (settle_choices(schedule, each) for each in (typed, run.choices()))
        if run.schedule is not None:
            theirs["solver"] = "a schedule"
        return (
            {**{name: mine.get(name) for name in names}, "cfg_scale": self.cfg_scale},
            {**{name: theirs.get(name) for name in names}, "cfg_scale": run.cfg_scale},
        )


def resolve_cache(spec: str, network: Network, run: Run, force: bool = False) -> str:
    """Returns the spec of a cache: as it is, or that of the file it names, if that is for this run.

    Raises:
        SettingError: if the file cannot be read, or was made for another network or run; the
            latter not with force.
    """
    if not spec.endswith(".json"):
        return spec
    file = CacheFile.load(Path(spec))
    if not force:
        file.check(network, run)
    return file.cache


def _describe(run: Mapping[str, Any]) -> str:
    grid = "" if run["grid"] is None else f" on {run['grid']}"
    nfe = "other steps" if run["nfe"] is None else f"{run['nfe']} evaluations"
    return f"{run['solver']}{grid}, {nfe}, guidance {run['cfg_scale']:g}"


def _suggest_options(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> str:
    """Returns the options to type for the run that it was made for."""
    options = {"solver": "--solver", "nfe": "--nfe", "grid": "--grid"}
    options["cfg_scale"] = "--cfg-scale"
    changed = [name for name in options if mine[name] != theirs[name]]
    typed = [f"{options[n]} {mine[n]}" for n in changed if mine[n] is not None]
    dropped = [f"no {options[n]}" for n in changed if mine[n] is None]
    return " and ".join([*([" ".join(typed)] if typed else []), *dropped])
