"""A group of settings that cost as much: judged on few noises, on more, and once on test noises."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain, takewhile
from typing import Any

from ...samplers.plan_file import Asked, JudgedPoint, Kind, PlanCost, Spread
from .cached_points import JointPoints
from .choice import (
    SIMPLE,
    RowChoice,
    choose_row,
    compare_columns,
    describe_ratios,
    is_better,
    rank,
)
from .costs import RunTimer
from .judge import PointChoice, PointJudge, PointRow
from .points import SearchedSize, list_plain, list_points
from .report import Part, PartsComparison
from .sizes import OVER, PlanSizes

FEW = 32  # validation noises that all are judged on
KEPT = 5  # best of them that are judged on all validation noises,
TRIED, REFIT, VALIDATED, TESTED = 0.9, 0.93, 0.96, 0.99  # shares of a budget of time
REFITTED = 3  # best masks whose tables are fitted to them
UNUSED = 0.9  # of a time, below which the plan says why it does not take more
OF_KINDS = 1  # with so many of each kind
PARTS: dict[Part, tuple[Kind, ...]] = {"cache": ("cache", "joint"), "joint": ("joint",)}
JudgedChoice = tuple[PointChoice, PointRow]


@dataclass(frozen=True)
class ChosenPoint:
    """A point that was chosen, on test noises and with its measured time; and why."""

    point: JudgedPoint
    rivals: tuple[JudgedPoint, ...]
    verdict: str

    @property
    def distance(self) -> float:
        """Its distance from the converged sampler."""
        assert self.point.columns is not None
        return self.point.columns.distance.value

    def facts(self) -> dict[str, Any]:
        """Returns the fields of a plan that are its own."""
        return {"point": self.point, "rivals": self.rivals, "verdict": self.verdict}


@dataclass
class PlanGroup:
    """The settings for one budget.

    judge:    of all groups.
    batch:    whose time is measured.
    asked:    the budget that was typed; None on a front, where sizes are all there is.
    searched: the searches of these sizes.
    verdicts: what was found beside the choice; compared: whether its parts pay.
    """

    judge: PointJudge
    batch: int
    asked: Asked | None
    sizes: PlanSizes
    searched: Sequence[SearchedSize]
    verdicts: list[str] = field(default_factory=list)
    compared: list[PartsComparison] = field(default_factory=list)
    _known: dict[str, JudgedPoint] = field(default_factory=dict)

    def points(self) -> list[JudgedPoint]:
        """Returns all that was judged, each on the block that it was judged on last."""
        return list(self._known.values())

    def choose(self) -> ChosenPoint:
        """Returns the recommended point of the group.

        One that is measured above the time that was asked for is left, with all that was predicted
        to take as long, where something quicker was judged.
        """
        all_choices = list_points(self.sizes, self.searched)
        if self.asked is not None and self.asked.unit == "ms":  # a quicker one, if need be
            problem = self.judge.problem
            less = max(self.sizes.nfe - 1, 0)
            all_choices += list_plain(problem.network.schedule, less, problem.cfg_scale)
        few = self._note(self.judge.judge(all_choices, "validation", FEW, TRIED))
        few += self._note(self.judge.judge(self._join(few), "validation", FEW, REFIT))
        while True:
            chosen = self._choose_among(few)
            cost = chosen.point.cost
            if self._fits(chosen.point) or cost.ms is None or cost.predicted is None:
                return chosen
            quicker = [each for each in few if _is_quicker(each[1].point, cost.predicted)]
            if not any(row.point.settings is not None for _, row in quicker):
                return chosen
            few = quicker

    def _choose_among(self, few: Sequence[JudgedChoice]) -> ChosenPoint:
        """Returns the best of the settings that were judged on few noises, with its time."""
        finalists = [each for each, _ in _shorten(few)]
        judged = self._note(self.judge.judge(finalists, "validation", until=VALIDATED))
        choice = choose_row([row for _, row in judged])
        pairs = list(self._pair_parts([row for _, row in judged], choice))
        first = [choice.row, choice.beaten, *(row for pair in pairs for row in pair[1:])]
        names = [row.point.name for row in first if row is not None]
        order = sorted(judged, key=lambda each: _place(names, each[0]))
        tested = self._note(self.judge.judge([each for each, _ in order], "test", until=TESTED))
        looks = {row.point.name: row for _, row in tested}
        own = looks.get(choice.row.point.name, choice.row)
        rivals = sorted(
            (row for row in looks.values() if row.point.name != own.point.name), key=rank
        )
        beaten = None if choice.beaten is None else looks.get(choice.beaten.point.name)
        reason = f"{choice.reason}{self._confirm(own, beaten, rivals)}"
        self.compared = [_compare(part, a, b, looks, own) for part, a, b in pairs]
        timed = self._time(own.point, [each.point for each in rivals])
        return ChosenPoint(timed, tuple(each.point for each in rivals), reason)

    def _pair_parts(
        self, rows: Sequence[PointRow], choice: RowChoice
    ) -> Iterator[tuple[Part, PointRow, PointRow]]:
        """Yields the best setting that has a part and the best that has not, for each part."""
        ranked = sorted((each for each in rows if each.point.settings is not None), key=rank)
        for part, kinds in PARTS.items():
            having = [each for each in ranked if each.point.kind in kinds]
            others = [each for each in ranked if each.point.kind not in kinds]
            if having and others:
                best = choice.row if choice.row in having else having[0]
                yield part, best, choose_row(others).row

    def _confirm(self, own: PointRow, beaten: PointRow | None, rivals: Sequence[PointRow]) -> str:
        """Returns what test noises say of the choice, in words; notes a rival that is better."""
        for rival in rivals:
            if rival.point.kind == "rival" and is_better(rival, own):
                self.verdicts.append(
                    f"{rival.point.name}, which no plan can run, is better than {own.point.name}:"
                    f" {describe_ratios(rival, own)}"
                )
        return "" if beaten is None else f"; test noises: {describe_ratios(own, beaten)}"

    def _join(self, judged: Sequence[JudgedChoice]) -> list[PointChoice]:
        """Returns tables and masks together, as far as there is time to fit them."""
        ranked = [each for each, _ in sorted(judged, key=lambda each: rank(each[1]))]
        cached = [each for each in ranked if each.kind == "cache"][:REFITTED]
        joint = JointPoints(self.searched[0].search)
        parts = [joint.fit_masks(cached)] if self.sizes.masked else []
        for guided in (False, True) if self.sizes.masked else ():
            best = next((each for each in ranked if _is_plain_table(each, guided)), None)
            parts += [] if best is None else [joint.extend(best, self.sizes.masked)]
        return list(takewhile(lambda _: self.judge.left(TRIED) > 0.0, chain(*reversed(parts))))

    def _note(self, judged: Sequence[JudgedChoice]) -> list[JudgedChoice]:
        """Returns those that fit into the budget, noted."""
        fitting = [each for each in judged if self._fits(each[1].point)]
        self._known.update({row.point.name: row.point for _, row in fitting})
        return fitting

    def _fits(self, point: JudgedPoint) -> bool:
        if self.asked is None:
            return True
        amount = point.cost.amount(self.asked.unit)
        return amount is not None and amount <= OVER * self.asked.amount

    def _time(self, own: JudgedPoint, rivals: Sequence[JudgedPoint]) -> JudgedPoint:
        """Returns the plan with its milliseconds, measured in turns with a simple run."""
        assert own.settings is not None
        runs, beside = {"plan": own.settings}, None
        for each in rivals:
            if beside is None and each.kind in SIMPLE and each.settings is not None:
                beside, runs["simple"] = each, each.settings
        times = RunTimer(self.judge.problem, self.batch).time_all(runs)
        cost = own.cost.model_copy(update={"ms": times["plan"]})
        if self.asked is not None and self.asked.unit == "ms":
            self.verdicts.append(self._describe_time(cost, beside, times))
        timed = own.model_copy(update={"cost": cost})
        self._known[own.name] = timed
        return timed

    def _describe_time(
        self, cost: PlanCost, beside: JudgedPoint | None, times: Mapping[str, Spread]
    ) -> str:
        """Returns the plan's time and that of the run beside it, and why some is left, in words."""
        assert self.asked is not None
        text = (
            f"asked for {self.asked}: the plan was predicted to take {cost.predicted:.3g} ms and"
            f" measured at {times['plan']}"
        )
        if times["plan"].median < UNUSED * self.asked.amount:
            parts = self.judge.parts
            whole = parts.row if self.judge.problem.cfg_scale == 1.0 else parts.pair or parts.row
            text += (
                f"; one more evaluation takes {whole}, and nothing that fills the rest is better"
            )
        if beside is not None:
            text += (
                f"; {beside.name}, in turns with it, at {times['simple']} for"
                f" {beside.cost.predicted:.3g} ms"
            )
        return text


def _is_plain_table(choice: PointChoice, guided: bool) -> bool:
    """Returns whether a setting is a table without a cache, and guides by itself or does not."""
    table = None if choice.settings is None else choice.settings.schedule
    return table is not None and table.cache is None and table.guided == guided


def _is_quicker(point: JudgedPoint, ms: float) -> bool:
    return point.cost.predicted is not None and point.cost.predicted < ms


def _place(names: Sequence[str], choice: PointChoice) -> int:
    """Returns how early a setting is judged on test noises."""
    if choice.name in names:
        return names.index(choice.name)
    return len(names) + (choice.kind not in SIMPLE)


def _compare(
    part: Part, mine: PointRow, theirs: PointRow, looks: Mapping[str, PointRow], own: PointRow
) -> PartsComparison:
    """Returns two settings compared on test noises, or where one is not known there as they are."""
    pair = [looks.get(each.point.name) for each in (mine, theirs)]
    if pair[0] is not None and pair[1] is not None:
        mine, theirs = pair[0], pair[1]
    distance, *features = compare_columns(mine, theirs)
    return PartsComparison(
        part=part,
        mine=mine.point.name,
        theirs=theirs.point.name,
        effective=mine.point.cost.effective,
        distance=distance,
        features=next(iter(features), None),
        noises=mine.point.noises,
        count=mine.point.count,
        pays=is_better(mine, theirs),
        chosen=mine.point.name == own.point.name,
    )


def _shorten(judged: Sequence[JudgedChoice]) -> list[JudgedChoice]:
    """Returns the best, the best simple one, then the next, and the best of each kind."""
    ranked = sorted(judged, key=lambda each: rank(each[1]))
    simple = [each for each in ranked if each[0].kind in SIMPLE]
    chosen = [*ranked[:1], *simple[:1], *ranked[1:KEPT]]
    for kind in dict.fromkeys(row.point.kind for _, row in ranked):
        chosen += [each for each in ranked if each[1].point.kind == kind][:OF_KINDS]
    return list({each[1].point.name: each for each in chosen}.values())
