"""The settings that determine a search, and its result."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...models.errors import SettingError
from ...samplers.guidance import Moment
from ...solvers import Schedule
from ..experiments.rival_grid import FINALISTS
from .budget import Budget
from .last_row import SHARES
from .objective import FeatureError, Objective
from .placement import check_rows
from .problem import Problem
from .reference_end import ReferenceEnd
from .size import SearchSize
from .space import Space
from .strategies import AUTO, HAND_MADE, STRATEGIES, strategies_of

SHORTLIST = 10  # best by training score that are scored on validation
OF_EACH = 3  # best of each strategy that are scored there too
RIVALS = 60  # settings of diffusers' schedulers that are tried, about
LEAST_FEW, MOST_FEW = 4, 16  # noises that they are tried on


@dataclass(frozen=True, kw_only=True)
class Search:
    """Everything that decides a search.

    problem, objective, space: see there.
    features:   what compares images in the choice; None compares ends alone.
    end:        how the end of the reference was chosen; None where it was given.
    rival_seconds: that the choice among diffusers' schedulers may take, about.
    looks:      at the test block once; False leaves that to whoever chooses among results.
    size:       of the schedule wanted.
    strategies: names, in turn.
    budget:     for this size.
    folder:     of the log; made if it does not exist.
    seed:       of everything random.
    scored:     training noises on which a candidate is scored; gradients see all of them.
    settings:   of the strategies.
    """

    problem: Problem
    objective: Objective
    space: Space
    size: SearchSize
    strategies: tuple[str, ...] = AUTO
    budget: Budget
    folder: Path
    seed: int = 0
    scored: int = 256
    settings: Mapping[str, Any] = field(default_factory=dict)
    features: FeatureError | None = None
    end: ReferenceEnd | None = None
    rival_seconds: float = math.inf
    looks: bool = True

    @property
    def noises(self) -> int:
        """Training noises that a candidate is scored on."""
        return min(self.scored, len(self.problem.train))

    @property
    def base_id(self) -> str:
        """The id of the run whose evaluations in full are searched."""
        return Schedule.of_steps(self.space.base(self.size.nfe)).schedule_id

    @property
    def candidate_rows(self) -> int:
        """Network rows of one candidate."""
        branches = 1 if self.size.unit == "rows" else self._branches
        return self.noises * self.size.evaluations * branches

    @property
    def evaluations(self) -> int:
        """Evaluations of the guided network that one candidate takes for a noise, about."""
        return -(-self.size.amount // (self._branches if self.size.unit == "rows" else 1))

    @property
    def _branches(self) -> int:
        somewhere = Moment(self.problem.network.schedule.at(0.5))
        return len(self.problem.guidance.stateless().ask(somewhere))

    @property
    def whole_evaluations(self) -> int:
        """Evaluations of the guided network, of which there are no more than the size allows."""
        return self.size.amount // (self._branches if self.size.unit == "rows" else 1)

    @property
    def has_baseline(self) -> bool:
        """True where it is compared with the best hand-made solver: where it tries any."""
        return self.size.unit != "full" and any(name in HAND_MADE for name in self.strategies)

    def choice_cost(self, validation: int, test: int) -> int:
        """Returns evaluations that the choice among trials takes at most, on so many noises."""
        judged = SHORTLIST + OF_EACH * (len(self.strategies) - 1) + len(SHARES)
        test = test if self.looks else 0
        rivals = OF_EACH * test if self.has_baseline else 0
        return self.evaluations * (judged * validation + (2 + OF_EACH) * test + rivals)

    def rival_cost(self, validation: int) -> int:
        """Returns evaluations that the choice among diffusers' schedulers takes at most."""
        if not self.has_baseline:
            return 0
        few = self.count_few(validation)
        return self.evaluations * (RIVALS * few + FINALISTS * validation)

    def count_few(self, validation: int) -> int:
        """Returns validation noises that the finalists of diffusers' schedulers are chosen on."""
        return min(validation, max(LEAST_FEW, min(MOST_FEW, validation // 8)))

    def check(self) -> None:
        """Raises SettingError for what cannot be searched, before any work is done."""
        if self.size.amount < 1:
            raise SettingError(f"{self.size.unit} must be at least 1, not {self.size.amount}")
        if self.scored < 1:
            raise SettingError(f"a candidate is scored on at least 1 noise, not {self.scored}")
        rows = [STRATEGIES.get(name) for name in self.strategies]
        self._check_size()
        for row in rows:
            if row.check is not None:
                row.check(tuple(self.problem.network.shape), self.size.evaluations)
        least = {"candidates": 1.0, "evals": float(self.candidate_rows), "seconds": 0.0}
        if self.budget.amount < least[self.budget.kind]:
            raise SettingError(
                f"a budget of {self.budget} is too small for one candidate, which takes"
                f" {self.candidate_rows} network rows at {self.size}"
            )

    def _check_size(self) -> None:
        """Rows and masks are searched by strategies of their own, and rows under guidance."""
        able = strategies_of(self.size.unit, beyond=True)
        if wrong := [name for name in self.strategies if name not in able]:
            what = {"nfe": "an NFE", "rows": "network rows", "full": "full evaluations"}
            raise SettingError(
                f"{wrong[0]} cannot search {what[self.size.unit]}; {', '.join(able)} can"
            )
        if self.size.unit != "rows":
            self.space.base(self.size.evaluations)
        if self.size.unit == "full" and self.size.amount > self.size.nfe:
            raise SettingError(
                f"a run of {self.size.nfe} evaluations has at most {self.size.nfe} in full, not"
                f" {self.size.amount}"
            )
        if self.size.unit != "rows":
            return
        if self.problem.cfg_scale == 1.0:
            raise SettingError(
                "rows are searched under guidance; give a guidance scale other than 1, or an NFE"
            )
        check_rows(self.size.amount)


@dataclass(frozen=True)
class SearchResult:
    """The result of a search.

    schedule: the best on validation, with its provenance.
    scores:   of it on train, validation and, where the search looks there, test.
    baseline: name and test score of the best named solver on its best grid, if any was tried there.
    """

    schedule: Schedule
    scores: Mapping[str, float]
    baseline: tuple[str, float] | None
