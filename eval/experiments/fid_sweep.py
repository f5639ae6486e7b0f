"""A sweep as data: which settings are measured, and the cells that follow from it.

A cell is one protocol: one network, solver, budget, guidance and block of seeds. Block b draws the
seeds b n .. (b + 1) n - 1. Cells run part by part, in a part cheap first, where a repeat with
further seeds counts as so many times dearer: a run that is interrupted has all settings at small
budgets before any repeat.
"""

from collections.abc import Iterator
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import Field, ValidationError, model_validator

from ...models.caching import take_cache
from ...models.errors import SettingError, shorten
from ...models.reading import StrictModel, first_problem, parse_as, read_text
from ...models.user_code import refuse_code
from ...samplers.guidance import parse_guidance
from ...samplers.guidance.base import list_second_networks
from ...solvers import take_solver
from ...solvers.presets import preset_names
from .rival_schedulers import rival_of

M = TypeVar("M", bound=StrictModel)


class Entry(StrictModel):
    """Settings whose every combination is measured.

    models:  as `sample` takes them.
    solvers: names, `name:key=value,...`, or schedules, which bring their own NFE, by file (*.json)
             or name.
    tuned:   also the schedules that come with the package for each network, at these budgets and
             guidance scales; of one with guidance of its own twice the budget counts in rows.
    plans:   files of `fewstep tune`, each the whole run.
    rivals:  diffusers' schedulers, as `experiments.rivals` names them.
    grids:   of the named solvers; none is the default one of the network.
    nfe:     budgets, such as "4-6,8,10".
    guidances, caches: `name:key=value,...` as `sample` takes them, of our own solvers; none is
             classifier-free guidance, and no cache.
    part:    the entries of lower parts are measured first.
    """

    models: Annotated[tuple[str, ...], Field(min_length=1)]
    solvers: tuple[str, ...] = ()
    tuned: bool = False
    plans: tuple[str, ...] = ()
    rivals: tuple[str, ...] = ()
    grids: tuple[str, ...] = ()
    final: str = "zero"
    nfe: str = "4-6,8,10"
    cfg_scales: tuple[float, ...] = (1.0,)
    cfg_interval: tuple[float, float] | None = None
    guidances: tuple[str, ...] = ()
    caches: tuple[str, ...] = ()
    part: Annotated[int, Field(ge=1)] = 1

    @model_validator(mode="after")
    def _check_ignored(self) -> Self:
        if self.cfg_interval is not None and set(self.cfg_scales) == {1.0}:
            raise ValueError("cfg_interval needs a guidance scale other than 1")
        if self.grids and not any(map(is_name, self.solvers)):
            raise ValueError("grids are for named solvers; rivals and schedules bring their own")
        if self.rivals and (self.guidances or self.caches):
            raise ValueError("guidances and caches are not for rivals; give those another entry")
        if self.plans and (self.cfg_scales != (1.0,) or self.guidances or self.caches):
            raise ValueError("plans bring guidance and cache; give those another entry")
        return self

    @model_validator(mode="after")
    def _check_names(self) -> Self:
        """Checks all names before a network, a reference or an extractor is touched."""
        for solver in filter(is_name, self.solvers):
            take_solver(solver)
        for rival in self.rivals:
            rival_of(rival)
        for scale, guidance in product(self.cfg_scales, self.guidances):
            with suppress(SettingError):  # a remark of the plan, which goes on without it
                parse_guidance(guidance, None if scale == 1.0 else scale)
        for cache in self.caches:
            with suppress(SettingError):
                take_cache(cache)
        return self

    def list_networks(self) -> Iterator[str]:
        """Yields the names of all networks that are asked, those of guidances too."""
        yield from self.models
        for scale, guidance in product(self.cfg_scales, self.guidances):
            with suppress(SettingError):
                policy = parse_guidance(guidance, None if scale == 1.0 else scale)
                yield from list_second_networks(policy)


class ConvergedRun(StrictModel):
    """The run that others are compared with image by image, on the default grid of many steps.

    guided_nfe: evaluations under guidance, each of two rows; None for as many as without.
    """

    solver: str = "unipc-3"
    nfe: Annotated[int, Field(ge=1)] = 60
    guided_nfe: Annotated[int, Field(ge=1)] | None = None

    def count_evaluations(self, scale: float) -> int:
        """Returns those at a guidance scale."""
        return self.nfe if scale == 1.0 or self.guided_nfe is None else self.guided_nfe


class Sweep(StrictModel):
    """All choices of `fewstep bench fid-nfe`, version 1.

    metric:    `fd-small`, `fid`, or another of `fewstep list metrics`, with `-dinov2` or `-clip`.
    reference: images or statistics; None is the set that comes with fd-small or fd-emoji.
    floor:     real images that are measured as drawn ones are; None is the test set of a reference
               known by name, if there is one.
    n:         images of a cell; blocks: cells with further seeds.
    groups:    equal parts of a cell's images whose figures are kept, from which intervals follow.
    converged: measured too, for every network and guidance scale; None compares with none.
    channels_last: runs convolutions in the layout (B, H, W, C), which is faster on most machines
               and changes the last bits of samples.
    """

    format: Literal["fewstep-sweep"] = "fewstep-sweep"
    version: Literal[1] = 1
    metric: str = "fd-small"
    reference: str | None = None
    floor: str | None = None
    n: Annotated[int, Field(ge=2)] = 2000
    blocks: Annotated[int, Field(ge=1)] = 1
    groups: Annotated[int, Field(ge=1)] = 1
    converged: ConvergedRun | None = None
    batch: Annotated[int, Field(ge=1)] = 32
    dtype: str = "fp32"
    channels_last: bool = False
    entries: Annotated[tuple[Entry, ...], Field(min_length=1)]

    @classmethod
    def load(cls, path: Path) -> "Sweep":
        """Reads and checks a JSON file; raises SettingError with the first thing that is wrong."""
        try:
            sweep = parse_as(cls, read_text(path))
        except SettingError as error:
            raise SettingError(f"{shorten(path)} is not a valid sweep: {error}") from error
        names = (name for entry in sweep.entries for name in entry.list_networks())
        refuse_code(names, f"the sweep {shorten(path)}", "give --model and the other options")
        return sweep

    def limit(self, parts: int | None, blocks: int | None) -> Self:
        """Returns the first parts and the first blocks of it; None is all of them.

        Raises:
            SettingError: if no entry is left.
        """
        first = min(entry.part for entry in self.entries)
        entries = [each for each in self.entries if parts is None or each.part <= parts]
        if not entries:
            raise SettingError(f"the first part of this sweep is {first}, not {parts}")
        fewer = {"entries": tuple(entries), "blocks": min(blocks or self.blocks, self.blocks)}
        return self.model_copy(update=fewer)


def check_choices(kind: type[M], **choices: Any) -> M:
    """Returns an entry or a sweep; raises SettingError with the first that is wrong."""
    try:
        return kind(**choices)
    except ValidationError as error:
        raise SettingError(first_problem(error)) from error


def is_name(solver: str) -> bool:
    """Returns whether a solver is a named one, and no schedule by file or name."""
    return not solver.endswith(".json") and solver not in preset_names()
