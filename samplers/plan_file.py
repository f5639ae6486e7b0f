"""A plan as data: one way to ask one network, what it costs somewhere, and how good it is.

`fewstep tune` writes it; `sample --plan FILE.json`, `Sampler(...)(seeds, plan=...)` and
`SolverScheduler.from_config(config, plan=...)` run it. It unfolds into the settings that a run has
anyway, so nothing but this file knows that it is a plan.
"""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from .. import __version__
from ..models.denoiser import Network
from ..models.errors import SettingError, shorten
from ..models.files import write_bytes
from ..models.reading import StrictModel, parse_as, read_text
from ..models.user_code import refuse_code
from .columns import Columns, Figure
from .guidance.base import list_second_networks
from .network_mark import Finite, NetworkMark
from .run_settings import RunSettings

Count = Annotated[int, Field(ge=0)]
Unit = Literal["ms", "nfe", "rows", "effective", "flops"]
Kind = Literal["searched", "named", "preset", "cache", "guidance", "joint", "rival"]
Block = Literal["train", "validation", "test"]
WORDS = {
    "ms": "{:g} ms",
    "nfe": "{:g} evaluations",
    "rows": "{:g} network rows",
    "effective": "{:g} effective evaluations",
    "flops": "{:.3g} FLOPs",
}


class Spread(StrictModel):
    """Milliseconds that were measured several times: the median, and the quartiles about it."""

    median: Figure
    low: Figure
    high: Figure
    repeats: Annotated[int, Field(ge=1)]

    def __str__(self) -> str:
        return f"{self.median:.3g} ms ({self.low:.3g} to {self.high:.3g})"


class PlanCost(StrictModel):
    """The cost of a run.

    nfe:       evaluations of an image, guided ones counted once.
    rows:      network rows of an image, guided evaluations counted twice.
    effective: the same in units of one that runs everything: both branches under guidance, and all
               blocks under a cache, by FLOPs.
    flops:     of an image; None where the network's are not known.
    predicted: milliseconds of a batch, summed from the measured parts.
    ms:        milliseconds of a batch as they were measured; None where it was not run for that.
    """

    nfe: Figure
    rows: Figure
    effective: Figure
    flops: Figure | None = None
    predicted: Figure | None = None
    ms: Spread | None = None

    def amount(self, unit: Unit) -> float | None:
        """Returns the cost in a unit, as measured where it was; None where it is not known."""
        if unit == "ms":
            return self.predicted if self.ms is None else self.ms.median
        value: float | None = getattr(self, unit)
        return value


class JudgedPoint(StrictModel):
    """A setting with its cost and its quality.

    name:     in words.
    kind:     "searched" (a table that was searched here), "named" (a solver on a grid), "preset" (a
              shipped schedule), "cache" (of a named solver), "guidance" (some steps ask one
              branch), "joint" (a table that was fitted together with its cache), or "rival" (a
              scheduler of diffusers).
    settings: None for what is not run by fewstep, a rival.
    noises:   the block that it was judged on; count: how many of them.
    columns:  None where its ends are not finite. fd: the Frechet distance of its images to real
              ones, of the same features, where those are known.
    """

    name: str
    kind: Kind
    settings: RunSettings | None = None
    cost: PlanCost
    noises: Block
    count: Annotated[int, Field(ge=1)]
    columns: Columns | None = None
    fd: Figure | None = None


class Asked(StrictModel):
    """The budget that a plan was asked for."""

    unit: Unit
    amount: Annotated[float, Field(gt=0.0, allow_inf_nan=False)]

    def __str__(self) -> str:
        return WORDS[self.unit].format(self.amount)


class MeasuredAt(StrictModel):
    """Where costs were measured: images at once, torch's device, number format, and software."""

    batch: Annotated[int, Field(ge=1)]
    device: str
    dtype: str
    machine: str
    versions: dict[str, str]


class JudgedOn(StrictModel):
    """The converged sampler, the noises and the features that quality is measured with.

    reference: the converged sampler, in words. size: root mean square of its ends, for relative
               distances.
    seeds:     of the noises, by block, as ranges such as "1000000-1000095".
    extractor: whose features are compared; None where none fits.
    """

    reference: str
    size: Finite
    seeds: dict[Block, str]
    extractor: str | None = None


class PlanFile(NetworkMark):
    """A plan: one point that was chosen for a budget, and the network it was chosen for.

    asked:    the budget; None for a point of a front.
    point:    what runs, what it costs, and both columns on test noises, which chose nothing.
    rivals:   what it was compared with, on the same noises.
    verdict:  why it was chosen, in words.
    where:    costs were measured. judged: how quality was.
    seconds:  that finding it took, of the whole command; searched: network rows of candidates.
    """

    format: Literal["fewstep-plan"] = "fewstep-plan"
    version: Literal[1] = 1
    fewstep: str = __version__
    asked: Asked | None = None
    point: JudgedPoint
    rivals: tuple[JudgedPoint, ...] = ()
    verdict: str
    where: MeasuredAt
    judged: JudgedOn
    seconds: Figure
    searched: Count

    @property
    def settings(self) -> RunSettings:
        """The settings that run."""
        assert self.point.settings is not None
        return self.point.settings

    @classmethod
    def load(cls, path: str | Path) -> "PlanFile":
        """Reads a file; raises SettingError if it is not there, damaged, or of another version."""
        text = read_text(path)
        try:
            plan = parse_as(cls, text, Path(path).parent)
        except SettingError as error:
            raise SettingError(f"{shorten(path)} is not a plan of fewstep tune: {error}") from error
        if plan.point.settings is None:
            raise SettingError(
                f"{shorten(path)} is not a plan of fewstep tune: it does not say what to run"
            )
        second = list_second_networks(plan.point.settings.guidance())
        refuse_code(second, f"the plan {shorten(path)}", "give its guidance without the plan")
        return plan

    def write(self, path: Path) -> None:
        """Writes the file, whole or not at all, and what belongs beside it."""
        if self.settings.schedule is not None:
            self.settings.schedule.write_files(path.parent)
        write_bytes(path, self.model_dump_json(indent=1, exclude_none=True).encode() + b"\n")

    def bind(self, network: Network, batch: int, *, force: bool = False) -> RunSettings:
        """Returns the settings that run on the network that is here.

        Warns where the plan's time does not hold: on another device, or, if it was asked for
        a time, for another number of images at once.

        Raises:
            SettingError: if it was made for another network; not with force.
        """
        settings = self.settings
        if not force:
            self.check_network(network, "this plan was made", "fewstep tune")
        elif settings.schedule is not None:
            schedule = settings.schedule.for_any()
            settings = settings.model_copy(update={"schedule": schedule})
        self._warn_of_time(network, batch)
        return settings

    def _warn_of_time(self, network: Network, batch: int) -> None:
        here, device = network.device.type, self.where.device.partition(":")[0]
        if device != here:
            warnings.warn(
                f"this plan was measured on {device}, and this run is on {here}: its time does not"
                f" hold; fewstep tune {self.network} --device {here} measures it there",
                stacklevel=4,
            )
        elif self.asked is not None and self.asked.unit == "ms" and batch != self.where.batch:
            warnings.warn(
                f"this plan was measured with {self.where.batch} images at once, and this run has"
                f" {batch}: its time does not hold; fewstep tune {self.network} --batch {batch}"
                " measures it so",
                stacklevel=4,
            )


def take_plan(plan: "PlanFile | str | Path") -> PlanFile:
    """Returns a plan, of a file if it is a path."""
    return plan if isinstance(plan, PlanFile) else PlanFile.load(plan)


def unfold_plan(
    plan: PlanFile | str | Path, network: Network, batch: int, beside: dict[str, Any]
) -> dict[str, Any]:
    """Returns the arguments of a call of a sampler that a plan stands for.

    beside: what else was given, None for nothing.

    Raises:
        SettingError: for a plan of another network, or something beside it that it decides itself.
    """
    chosen = take_plan(plan)
    if given := sorted(name for name, value in beside.items() if value is not None):
        raise SettingError(f"a plan decides {', '.join(given)}; drop that, or the plan")
    return chosen.bind(network, batch).arguments()


def unfold_for_scheduler(given: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the arguments of `SolverScheduler.from_config`, with a plan among them unfolded.

    Raises:
        SettingError: for a plan of which a scheduler cannot run a part, or something beside it.
    """
    beside = {name: value for name, value in given.items() if name != "plan"}
    if given.get("plan") is None:
        return beside
    settings = take_plan(given["plan"]).settings
    _check_parts(settings)
    choices = settings.choices()
    if settings.schedule is not None:
        choices["schedule"] = choices.pop("solver")
    decided = {"solver", "grid", "nfe", "final", "schedule", "recipe"}
    if twice := sorted(name for name in decided & beside.keys() if beside[name] is not None):
        raise SettingError(f"a plan decides {', '.join(twice)}; drop that, or the plan")
    return {**beside, **choices}


def _check_parts(settings: RunSettings) -> None:
    """Raises SettingError for parts that a scheduler cannot run; warns of a guidance scale."""
    cached = settings.schedule is not None and settings.schedule.cache is not None
    if settings.cache is not None or cached:
        raise SettingError(
            "this plan has a cache, which a scheduler cannot run; put one on the network with"
            " fewstep.caching, and take a plan without"
        )
    unrun = ("guidance_spec", "cfg_interval", "threshold")
    for name in unrun:
        if getattr(settings, name) is not None:
            raise SettingError(
                f"this plan has a guidance ({getattr(settings, name)}), which a scheduler cannot"
                " run; give it to fewstep.guided, and take a plan without"
            )
    if settings.cfg_scale != 1.0:
        warnings.warn(
            f"this plan is for a guidance scale of {settings.cfg_scale:g}, which the pipeline"
            f" decides; give it guidance_scale={settings.cfg_scale:g}",
            stacklevel=4,
        )
