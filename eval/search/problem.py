"""The problem of a search: a network, noises, and the samples they should end at.

Three disjoint blocks of seeds: `train` is searched on, `validation` chooses among what was found,
`test` is looked at once. The teacher is the same network run with many evaluations.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from ...models.caching import Policy, caching, find_attachment
from ...models.denoiser import Asks, Denoiser, Network
from ...models.errors import SettingError
from ...models.ledger import Ledger
from ...models.schedule import Node, TimeGrid
from ...samplers.conditions import (
    Branches,
    Conditions,
    check_branches,
    make_branches,
    pick_rows,
)
from ...samplers.guidance import CFG, Guidance, Moment, Unguided
from ...samplers.loop import integrate
from ...samplers.noise import Noise, check_seeds, draw_noise
from ...samplers.plan import make_plan
from ...solvers import Bound, Solver
from ...solvers.artefact import Artefact
from ...solvers.table_steps import brings_guidance
from ..teacher import teacher

BlockName = Literal["train", "validation", "test"]
BLOCKS: tuple[BlockName, ...] = ("train", "validation", "test")
TEACHER_CHUNK = 256  # seeds that are computed and cached together, so that a teacher resumes


@dataclass(frozen=True)
class Teacher:
    """How reference ends are found, as `make_plan` takes it; 200 calls of unipc-3 by default."""

    solver: str = "unipc-3"
    nfe: int | None = 200
    steps: int | None = None
    grid: str | None = None
    final: str = "zero"

    def choices(self) -> dict[str, Any]:
        """Returns the arguments of `make_plan`."""
        named = {"nfe": self.nfe, "steps": self.steps, "grid": self.grid}
        given = {name: value for name, value in named.items() if value is not None}
        return {"solver": self.solver, "final": self.final, **given}


@dataclass(frozen=True)
class Block:
    """Noises and where the teacher takes them.

    seeds:  one per row.
    labels: one per row, or None where there are no classes.
    noise:  (n, *shape) float32, of the process at unit scale.
    ends:   (n, *shape) float32, in the network's own space, before any decoding.
    """

    name: BlockName
    seeds: tuple[int, ...]
    labels: tuple[int, ...] | None
    noise: Tensor
    ends: Tensor

    def __len__(self) -> int:
        return len(self.seeds)

    def first(self, n: int) -> "Block":
        """Returns its first n rows; raises SettingError if it has fewer."""
        if not 1 <= n <= len(self):
            raise SettingError(f"the {self.name} block has {len(self)} noises, not {n}")
        return self.rows(slice(0, n))

    def rows(self, rows: slice) -> "Block":
        """Some of its rows."""
        return self.pick(range(len(self))[rows])

    def pick(self, rows: Sequence[int]) -> "Block":
        """Returns the rows of these numbers."""
        index = torch.tensor(rows)
        seeds = tuple(self.seeds[i] for i in rows)
        labels = None if self.labels is None else tuple(self.labels[i] for i in rows)
        return Block(self.name, seeds, labels, self.noise[index], self.ends[index])


@dataclass(frozen=True, eq=False)
class Problem:
    """A network to be sampled, and the seeds to search on.

    network:   whose ends, before decoding, are to be reached.
    train, validation, test: seeds of the blocks; disjoint.
    labels:    seed s gets labels[s mod len(labels)]; () where there are no classes.
    conditions: further tensors (k, *) that the network is given, by name, such as embedded prompts:
               seed s gets row s mod k. negative: the same for the unconditional branch. By
               default they are the network's.
    cfg_scale: of classifier-free guidance; 1 is off.
    teacher:   where the ends come from.
    cache:     an existing folder that keeps the teacher's ends; None keeps none.
    batch:     noises run at once.
    ledger:    what schedules have cost; the teacher is not counted.
    """

    network: Network
    train: Sequence[int]
    validation: Sequence[int]
    test: Sequence[int]
    labels: tuple[int, ...] = ()
    conditions: Conditions = field(default_factory=dict)
    negative: Conditions | None = None
    cfg_scale: float = 1.0
    teacher: Teacher = Teacher()
    cache: Path | None = None
    batch: int = 32
    ledger: Ledger = field(default_factory=Ledger)
    _blocks: dict[str, Block] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name in BLOCKS:
            seeds = check_seeds(self.seeds_of(name))
            if len(set(seeds)) < len(seeds):
                raise SettingError(f"the {name} block lists a seed twice; list each one once")
        for a, b in combinations(BLOCKS, 2):
            if common := set(self.seeds_of(a)) & set(self.seeds_of(b)):
                raise SettingError(
                    f"the blocks {a} and {b} share seed {min(common)}; give each its own seeds"
                )
        if self.batch < 1:
            raise SettingError(f"batch must be at least 1, not {self.batch}")
        object.__setattr__(self, "conditions", self.conditions or self.network.conditions or {})
        object.__setattr__(self, "negative", self.negative or self.network.negative)
        plan = make_plan(self.network.schedule, **self.teacher.choices())
        branches = self.branches_for(range(len(self.labels) or 1))
        check_branches(self.network, branches, self.guidance, plan.grid)

    @classmethod
    def of(
        cls, network: Network, sizes: tuple[int, int, int] = (1024, 256, 1024), **fields: Any
    ) -> "Problem":
        """Blocks of the given sizes, one behind the other from seed 1,000,000; all classes in turn.

        Seeds that people sample with, 0 and up, are left alone.
        """
        start = 1_000_000
        blocks: dict[str, range] = {}
        for name, size in zip(BLOCKS, sizes, strict=True):
            blocks[name] = range(start, start + size)
            start += size
        labels = tuple(range(network.num_classes))
        return cls(network, **{"labels": labels, **blocks, **fields})

    @property
    def evaluations(self) -> int:
        """Network rows spent on schedules so far."""
        return self.ledger.rows

    @property
    def guidance(self) -> Guidance:
        """The guidance of the teacher, and of schedules that bring none."""
        return Unguided() if self.cfg_scale == 1.0 else CFG(self.cfg_scale)

    def block(self, name: BlockName) -> Block:
        """Returns the block of that name; its teacher runs when it is first asked for."""
        if name not in self._blocks:
            seeds = tuple(self.seeds_of(name))
            noise = draw_noise(Noise(seeds, self.network.shape), self.network.schedule)
            ends = self._teach(seeds)
            self._blocks[name] = Block(name, seeds, self.labels_of(seeds), noise, ends)
        return self._blocks[name]

    def ends(self, schedule: Artefact, block: Block, limit: int | None = None) -> Tensor:
        """Where a schedule takes a block, or its first `limit` rows: (n, *shape) on the CPU.

        Raises:
            ScheduleError: if the schedule is for another process.
            NonFiniteError: if the network returns NaN or infinity.
        """
        block = block if limit is None else block.first(limit)
        parts = [
            self.run(schedule, block.rows(slice(i, i + self.batch)))
            for i in range(0, len(block), self.batch)
        ]
        return torch.cat(parts)

    def run(
        self,
        schedule: Artefact,
        block: Block,
        cache: Policy | None = None,
        note: Callable[[Tensor], object] | None = None,
    ) -> Tensor:
        """Returns the same in one batch, with the cache that the schedule brings, or another.

        note: is given the state after each step.
        """
        plan = make_plan(self.network.schedule, schedule)
        if isinstance(plan.solver, Bound):
            plan.solver.check_network(self.network)
        return self.drive(plan.solver, plan.grid, block, cache or plan.cache, note)

    def drive(
        self,
        solver: Solver[Any],
        grid: TimeGrid,
        block: Block,
        cache: Policy | None = None,
        note: Callable[[Tensor], object] | None = None,
    ) -> Tensor:
        """Returns where a solver takes a block on a grid, in one batch."""
        guidance = Unguided() if brings_guidance(solver) else self.guidance
        denoiser = self.denoiser(block)
        check_branches(self.network, denoiser.conditions, guidance, grid)
        scale = self.network.schedule.noise_scale(grid.nodes[0])
        callback = None if note is None else partial(_note_state, note)
        with torch.no_grad(), nullcontext() if cache is None else caching(self.network, cache):
            denoiser.cache = None if cache is None else find_attachment(self.network)
            x = block.noise.to(self.network.device) * scale
            return integrate(denoiser, solver, grid, x, guidance, callback).cpu()

    def denoiser(self, block: Block) -> Denoiser:
        """Returns the network with the conditions of a block, counted in the ledger."""
        return Denoiser(self.network, self.branches_for(block.seeds), self.ledger)

    def branches_for(self, seeds: Sequence[int]) -> Branches:
        """Labels and conditions of seeds, by branch."""
        given = self.conditions_of(seeds)
        return make_branches(self.network, len(seeds), self.labels_of(seeds), **given)

    def conditions_of(self, seeds: Sequence[int]) -> dict[str, Any]:
        """Returns the conditions of seeds and the negative ones, as `Sampler` takes them."""
        given = {"conditions": self.conditions, "negative": self.negative}
        return {name: each and pick_rows(each, seeds) for name, each in given.items()}

    def answers(self, block: Block, x: Tensor, node: Node, branches: Asks | None) -> list[Tensor]:
        """x0 (n, *) of each branch at states (n, *) of a block, on the CPU; raises as `ends`.

        Without branches it is the one x0 that the guidance makes of its own.
        """
        if branches is None:
            guide, moment = self.guidance.stateless(), Moment(node)
            outputs = self.answers(block, x, node, guide.ask(moment))
            return [guide.combine(outputs, x, moment)]
        parts = []
        for i in range(0, len(block), self.batch):
            rows = slice(i, i + self.batch)
            denoiser = self.denoiser(block.rows(rows))
            with torch.no_grad():
                answers = denoiser.x0(x[rows].to(self.network.device), node, branches)
            denoiser.check()
            parts.append([each.cpu() for each in answers])
        return [torch.cat(each) for each in zip(*parts, strict=True)]

    def labels_of(self, seeds: Sequence[int]) -> tuple[int, ...] | None:
        """Returns the labels of seeds."""
        if not self.labels:
            return None
        return tuple(self.labels[seed % len(self.labels)] for seed in seeds)

    def seeds_of(self, name: BlockName) -> Sequence[int]:
        """Returns the seeds of a block."""
        seeds: Sequence[int] = getattr(self, name)
        return seeds

    def _teach(self, seeds: Sequence[int]) -> Tensor:
        """Chunk by chunk, so that what was computed before an interruption is not lost."""
        chunks = [seeds[i : i + TEACHER_CHUNK] for i in range(0, len(seeds), TEACHER_CHUNK)]
        network = replace(self.network, decode=None)
        guidance = None if self.cfg_scale == 1.0 else self.guidance
        return torch.cat(
            [
                teacher(
                    network,
                    chunk,
                    cache=self.cache,
                    class_labels=self.labels_of(chunk),
                    guidance=guidance,
                    batch=self.batch,
                    **self.teacher.choices(),
                    **{name: each for name, each in self.conditions_of(chunk).items() if each},
                )
                for chunk in chunks
            ]
        )


def _note_state(
    note: Callable[[Tensor], object], n: int, node: Node, x: Tensor, x0: Tensor, ledger: Ledger
) -> None:
    note(x.cpu())
