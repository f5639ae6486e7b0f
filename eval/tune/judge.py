"""Settings judged on a block of noises: what they cost and both columns, each once for a folder."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from torch import Tensor

from ...models.arguments import format_ranges
from ...models.errors import FewstepError, NonFiniteError
from ...models.hashing import hash_json
from ...models.ledger import Ledger
from ...models.progress import make_bar
from ...samplers.columns import Column, Columns
from ...samplers.plan_file import Block as BlockOf
from ...samplers.plan_file import JudgedOn, JudgedPoint, Kind
from ...samplers.run_settings import RunSettings
from ...samplers.sampler import Sampler
from ..bench.store import KeyedRow, RowStore
from ..search.columns import square_distances
from ..search.problem import BLOCKS, Block, Problem
from ..search.reference_end import find_real
from ..search.rivals import reach_rival_ends
from ..search.search import Search
from ..statistics import Moments, frechet
from .costs import describe_cost
from .report import CostParts

LEAST = 3  # settings that are judged whatever the time
LEAST_FD = 96  # noises whose features have a distance to real ones


@dataclass(frozen=True)
class PointChoice:
    """A setting that is to be judged.

    name, kind, settings: as of `JudgedPoint`.
    rival: in place of settings a scheduler of diffusers, as `RivalSampler` takes it, with the
           search whose evaluations it has.
    """

    name: str
    kind: Kind
    settings: RunSettings | None = None
    rival: tuple[str, Search] | None = None

    @property
    def identity(self) -> list[object]:
        """The value that tells the runs of one setting from those of others."""
        if self.settings is None:
            assert self.rival is not None
            return [self.rival[0], self.rival[1].size.mark]
        body = self.settings.model_dump(mode="json", exclude={"schedule"})
        schedule = self.settings.schedule
        return [body, None if schedule is None else schedule.schedule_id]


class PointRow(KeyedRow):
    """A judged setting, as the folder keeps it.

    id: of the setting and of what it was judged on.
    distances, features: mean squares of single noises, to compare settings noise by noise.
    """

    id: str
    point: JudgedPoint
    distances: tuple[float, ...]
    features: tuple[float, ...] | None

    @property
    def key(self) -> str:
        return self.id

    def name(self, choice: PointChoice) -> "PointRow":
        """Returns the row under the name that a choice has for its setting."""
        named = {"name": choice.name, "kind": choice.kind}
        return self.model_copy(update={"point": self.point.model_copy(update=named)})


@dataclass
class PointJudge:
    """Judges settings on one problem.

    search: of the problem and its features; any of them.
    parts:  the costs.
    folder: that keeps what was judged.
    left:   returns the seconds of the budget that are left after a share of it; infinite where the
            budget is no time.
    remarks: settings that could not be run, and why.
    """

    search: Search
    parts: CostParts
    folder: Path
    left: Callable[[float], float]
    progress: bool = False
    remarks: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.store = RowStore(self.folder / "points.jsonl", PointRow)
        self.real = find_real(self.problem, self.search.features)

    @property
    def problem(self) -> Problem:
        """The problem of the search."""
        return self.search.problem

    def judge(
        self,
        choices: Sequence[PointChoice],
        name: BlockOf,
        count: int | None = None,
        until: float = 1.0,
    ) -> list[tuple[PointChoice, PointRow]]:
        """Returns each setting with its cost and columns; those that cannot run are left out.

        Args:
            choices: the most important first.
            name: of the block.
            count: of the first noises of the block; None is all.
            until: the share of a budget of time after which only the first LEAST are judged.
        """
        block = self.problem.block(name)
        block = block if count is None else block.first(min(count, len(block)))
        keys = {id(each): self._make_key(each, block) for each in choices}

        def is_done(each: PointChoice) -> bool:
            return keys[id(each)] in self.store.rows

        missing = [each for each in choices if not is_done(each)]
        for each in self._show(
            self.store.turns(missing, lambda each: keys[id(each)], is_done), len(missing), name
        ):
            if choices.index(each) >= LEAST and self.left(until) <= 0.0:
                self._remark("some settings were left out, as the time was up; give more --budget")
                continue
            row = self._measure(each, block, keys[id(each)])
            if row is not None:
                self.store.append(row)
        known = ((each, self.store.rows.get(keys[id(each)])) for each in choices)
        return [(each, row.name(each)) for each, row in known if row is not None]

    def _show(
        self, works: Iterator[PointChoice], count: int, name: BlockOf
    ) -> Iterator[PointChoice]:
        named = {"desc": f"{name} noises", "unit": "setting"}
        yield from make_bar(works, total=count, **named, show=self.progress)

    def _remark(self, text: str) -> None:
        if text not in self.remarks:
            self.remarks.append(text)

    def _make_key(self, choice: PointChoice, block: Block) -> str:
        features = self.search.features
        seen = None if features is None else features.extractor.name
        parts = self.parts.model_dump(mode="json")
        return hash_json([choice.identity, block.name, list(block.seeds), seen, parts])

    def _measure(self, choice: PointChoice, block: Block, key: str) -> PointRow | None:
        """Returns the row of a setting; None if it cannot be run, or has no finite ends."""
        try:
            ends, ledger = self._run(choice, block)
        except NonFiniteError:
            return None
        except FewstepError as error:
            self._remark(f"{choice.name} was left out: {error}")
            return None
        if not bool(torch.isfinite(ends).all()):
            return None
        features = self.search.features
        near = square_distances(ends, block)
        seen = None if features is None else features.squares(ends, block)
        columns = Columns(
            distance=Column.of(near), features=None if seen is None else Column.of(seen)
        )
        point = JudgedPoint(
            name=choice.name,
            kind=choice.kind,
            settings=choice.settings,
            cost=describe_cost(ledger, self.parts, self.problem.cfg_scale != 1.0),
            noises=block.name,
            count=len(block),
            columns=columns,
            fd=self._measure_fd(ends),
        )
        squares = None if seen is None else tuple(seen.tolist())
        return PointRow(id=key, point=point, distances=tuple(near.tolist()), features=squares)

    def _run(self, choice: PointChoice, block: Block) -> tuple[Tensor, Ledger]:
        """Returns where a setting takes a block, (n, *), and what that cost."""
        problem, settings = self.problem, choice.settings
        if settings is None:
            return self._run_rival(choice, block)
        given = {name: each for name, each in problem.conditions_of(block.seeds).items() if each}
        sampler = Sampler(replace(problem.network, decode=None))
        call = {"class_labels": block.labels, "batch": problem.batch, **settings.arguments()}
        result = sampler(block.seeds, **given, **call)
        return result.samples, result.ledger

    def _run_rival(self, choice: PointChoice, block: Block) -> tuple[Tensor, Ledger]:
        assert choice.rival is not None
        spec, search = choice.rival
        ends, n = reach_rival_ends(search, spec, block), len(block)
        if ends is None:
            raise NonFiniteError(f"{spec} does not end")
        calls = search.whole_evaluations
        branches = 1 if self.problem.cfg_scale == 1.0 else 2
        return ends, Ledger(images=n, evaluations=calls * n, rows=calls * n * branches)

    def _measure_fd(self, ends: Tensor) -> float | None:
        features = self.search.features
        if features is None or self.real is None or len(ends) < LEAST_FD:
            return None
        seen = features.extract(ends)
        moments = Moments(seen.shape[1])
        moments.update(seen)
        return max(float(frechet(moments.statistics(self.real.origin), self.real)), 0.0)


def describe_judging(search: Search) -> JudgedOn:
    """Returns what quality was measured against."""
    problem, features = search.problem, search.features
    teacher = problem.teacher
    size = f"{teacher.steps} steps" if teacher.nfe is None else f"{teacher.nfe} evaluations"
    grid = "" if teacher.grid is None else f" on {teacher.grid}"
    return JudgedOn(
        reference=f"{teacher.solver}, {size}{grid}",
        size=float(problem.block("test").ends.double().square().mean().sqrt()),
        seeds={name: format_ranges(tuple(problem.seeds_of(name))) for name in BLOCKS},
        extractor=None if features is None else features.extractor.name,
    )
