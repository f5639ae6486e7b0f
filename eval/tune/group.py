"""A group of settings that cost as much: judged on few noises, on more, and once on test noises."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ...samplers.plan_file import Asked, JudgedPoint
from .choice import SIMPLE, choose_row, compare_columns, describe_ratios, is_better, rank
from .costs import RunTimer
from .judge import PointChoice, PointJudge, PointRow
from .points import SearchedSize, list_points, refit_masked
from .sizes import OVER, PlanSizes

FEW = 32  # validation noises that all are judged on
KEPT = 5  # best of them that are judged on all validation noises,
TRIED, REFIT, VALIDATED, TESTED = 0.9, 0.93, 0.96, 0.99  # shares of a budget of time
REFITTED = 3  # best masks whose tables are fitted to them
OF_KINDS = 1  # with so many of each kind
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
    verdicts: what was found beside the choice.
    """

    judge: PointJudge
    batch: int
    asked: Asked | None
    sizes: PlanSizes
    searched: Sequence[SearchedSize]
    verdicts: list[str] = field(default_factory=list)
    _known: dict[str, JudgedPoint] = field(default_factory=dict)

    def points(self) -> list[JudgedPoint]:
        """Returns all that was judged, each on the block that it was judged on last."""
        return list(self._known.values())

    def choose(self) -> ChosenPoint:
        """Returns the recommended point of the group."""
        all_choices = list_points(self.sizes, self.searched)
        few = self._note(self.judge.judge(all_choices, "validation", FEW, TRIED))
        if self.judge.left(TRIED) > 0.0:
            few += self._note(self.judge.judge(self._refit(few), "validation", FEW, REFIT))
        self._say_of_caches(few)
        finalists = [each for each, _ in _shorten(few)]
        judged = self._note(self.judge.judge(finalists, "validation", until=VALIDATED))
        chosen, verdict = choose_row([row for _, row in judged])
        order = sorted(judged, key=lambda each: (each[1] is not chosen, each[0].kind not in SIMPLE))
        tested = self._note(self.judge.judge([each for each, _ in order], "test", until=TESTED))
        ranked = sorted((row for _, row in tested), key=rank)
        own = next(each for each in ranked if each.point.name == chosen.point.name)
        rivals = [each for each in ranked if each is not own]
        verdict = f"{verdict}{self._confirm(own, rivals)}"
        timed = self._time(own.point, [each.point for each in rivals])
        return ChosenPoint(timed, tuple(each.point for each in rivals), verdict)

    def _confirm(self, own: PointRow, rivals: Sequence[PointRow]) -> str:
        """Returns what test noises say of the choice, in words; notes a rival that is better."""
        for rival in rivals:
            if rival.point.kind == "rival" and is_better(rival, own):
                self.verdicts.append(
                    f"{rival.point.name}, which no plan can run, is better than {own.point.name}:"
                    f" {describe_ratios(rival, own)}"
                )
        simple = next((each for each in rivals if each.point.kind in SIMPLE), None)
        if own.point.kind in SIMPLE or simple is None:
            return ""
        return f"; test noises: {describe_ratios(own, simple)}"

    def _refit(self, judged: Sequence[JudgedChoice]) -> list[PointChoice]:
        """Returns the best cached settings with tables that are fitted to their masks."""
        cached = [each for each in judged if each[0].kind == "cache"]
        best = sorted(cached, key=lambda each: rank(each[1]))[:REFITTED]
        search = self.searched[0].search
        return [made for choice, _ in best for made in refit_masked(search, choice)]

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

    def _say_of_caches(self, judged: Sequence[JudgedChoice]) -> None:
        """Notes whether caches pay, where some were tried."""
        ranked = sorted((row for _, row in judged), key=rank)
        cached = next((each for each in ranked if each.point.kind == "cache"), None)
        plain = next((each for each in ranked if each.point.kind != "cache"), None)
        if cached is None or plain is None:
            return
        (ratio, low, high), *_ = compare_columns(cached, plain)
        paying = "pays" if is_better(cached, plain) else "does not pay"
        self.verdicts.append(
            f"at {cached.point.cost.effective:.3g} effective evaluations a cache {paying}: the best"
            f" ({cached.point.name}) has {ratio:.2f} [{low:.2f}, {high:.2f}] of the distance of the"
            f" best without ({plain.point.name}), on {cached.point.count} noises"
        )

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
            self.verdicts.append(
                f"asked for {self.asked}: the plan was predicted to take {cost.predicted:.3g} ms"
                f" and measured at {times['plan']}"
            )
            if beside is not None:
                self.verdicts[-1] += (
                    f"; {beside.name}, in turns with it, at {times['simple']} for"
                    f" {beside.cost.predicted:.3g} ms"
                )
        timed = own.model_copy(update={"cost": cost})
        self._known[own.name] = timed
        return timed


def _shorten(
    judged: Sequence[JudgedChoice],
) -> list[JudgedChoice]:
    """Returns the best, the best simple one, then the next, and the best of each kind."""
    ranked = sorted(judged, key=lambda each: rank(each[1]))
    simple = [each for each in ranked if each[0].kind in SIMPLE]
    chosen = [*ranked[:1], *simple[:1], *ranked[1:KEPT]]
    for kind in dict.fromkeys(row.point.kind for _, row in ranked):
        chosen += [each for each in ranked if each[1].point.kind == kind][:OF_KINDS]
    return list({each[1].point.name: each for each in chosen}.values())
