"""`fewstep tune`: from what is typed to plans and their report."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from ...models.arguments import parse_ranges
from ...models.errors import SettingError
from ...models.files import (
    check_apart,
    check_folder,
    check_writable,
    hold_file,
    make_folder,
    write_bytes,
)
from ...models.network import Network
from ...models.probe import sketch
from ...models.reading import load_kept
from ...models.user_code import lend
from ...models.weights import hash_weights
from ...samplers.plan_file import Asked, MeasuredAt, PlanFile
from ..bench.rows import machine, versions
from ..options import make_request
from ..search.budget import Budget
from ..search.command import make_log_folder, start_searches
from ..search.identity import check_memory
from ..search.prepare import TEACHER, prepare_searches
from ..search.progress import Progress
from ..search.run import run
from ..search.search import Search
from ..tune_request import TuneRequest
from .costs import measure_parts
from .group import ChosenPoint, PlanGroup
from .judge import PointJudge, describe_judging
from .page import check_page, write_page
from .points import SearchedSize
from .report import CostParts, TuneReport, WrittenPlan
from .searches import QUICKLY, is_brief, list_searches, make_search_request
from .sizes import PlanSizes, read_asked

MEASURED = 0.02  # of a budget of time, in which the costs of the parts are measured


def tune(network: str | Network, *, progress: bool = False, **options: Any) -> TuneReport:
    """Finds the best plan for a cost and writes it, as `fewstep tune` does.

    >>> report = fewstep.tune("fashion-dit", nfe=5, budget="60s", out="plan.json")
    >>> Sampler.from_pretrained("fashion-dit")(range(8), plan=report.plans[0].plan)

    Args:
        network: what `load` takes by name, or a `Network`.
        progress: shows how far it is.
        options: the fields of `TuneRequest`; without ms, nfe, rows, effective and flops it draws
            the whole front, and writes a plan for each of its points.

    Raises:
        FewstepError: for anything that cannot be tuned, before any work where possible.
    """
    with lend(network) as name:
        return run_tune(make_request(TuneRequest, network=name, **options), progress)


def run_tune(request: TuneRequest, progress: bool = False) -> TuneReport:
    """Returns the report of a request, once it and its plans are written.

    Raises:
        FewstepError: for anything that cannot be tuned, before any work where possible.
    """
    asked = read_asked(request)
    numbers = [] if asked else parse_ranges(request.points)
    _check_places(request)
    (first,) = prepare_searches(make_search_request(request))
    started = time.perf_counter()  # a budget of time is none of loading or training the network
    first = replace(first, looks=False, settings=QUICKLY if is_brief(request) else {})
    asks = [asked] if asked else [Asked(unit="effective", amount=each) for each in numbers]
    with make_log_folder(request.folder):
        parts, sizes = _size_plans(request, first, asks)
    make_folder(request.folder / TEACHER)
    tuning = Tuning(request, first, parts, progress, started)
    searches = [each for size in sizes for each in list_searches(request, first, size)]
    searched = tuning.search(searches)
    return tuning.finish(asked, sizes, searched)


def open_judge(request: TuneRequest, progress: bool = False) -> PointJudge:
    """Returns what judges settings as the run of a request does, with what its folder keeps.

    Raises:
        FewstepError: as `run_tune`.
    """
    _check_places(request)
    typed = make_search_request(request)
    (first,) = prepare_searches(typed)
    make_folder(request.folder / TEACHER)
    parts, _ = _size_plans(request, first, [])
    search = next(start_searches([first], typed))
    return PointJudge(search, parts, request.folder, lambda share: math.inf, progress)


def _check_places(request: TuneRequest) -> None:
    """Raises SettingError for places that cannot be written to, before anything is computed."""
    check_folder(request.folder)
    check_memory(request.folder)
    outputs = [request.out, request.report_path]
    for path in outputs:
        check_writable(path, ".json")
    if request.html is not None:
        check_page(request.html)
    check_apart([*outputs, request.html], [request.weights])


def _size_plans(
    request: TuneRequest, search: Search, asks: Sequence[Asked]
) -> tuple[CostParts, list[PlanSizes]]:
    """Returns the costs that a folder keeps for this setting, or measures them, and what fits.

    Costs that nothing fits are not kept.
    """
    budget = Budget.parse(request.budget)
    seconds = MEASURED * budget.amount if budget.kind == "seconds" else 0.0
    name = f"costs-{request.device}-{request.dtype}-{request.batch}-{request.cfg_scale:g}"
    path = request.folder / f"{name.replace(':', '')}.json"
    with hold_file(request.folder / "costs.lock"):
        kept = load_kept(CostParts, path, "give another --log")
        parts = kept or measure_parts(search.problem, request.batch, seconds)
        sizes = [PlanSizes.of(each, parts, request.cfg_scale != 1.0) for each in asks]
        if kept is None:
            write_bytes(path, parts.model_dump_json().encode())
    return parts, sizes


@dataclass
class Tuning:
    """A request on its way, with what is the same for all its plans.

    first:   the search that others are made of, of no size that matters.
    started: from where a budget of time counts, as `time.perf_counter` tells it.
    """

    request: TuneRequest
    first: Search
    parts: CostParts
    progress: bool
    started: float

    def search(self, searches: Sequence[Search]) -> dict[str, SearchedSize]:
        """Returns the results of searches by the mark of their sizes; each runs once."""
        if not searches:
            raise SettingError("no table of so few rows is searched; ask for 2 rows or more")
        single = {each.size.mark: each for each in searches}
        done: dict[str, SearchedSize] = {}
        for each in single.values():
            each.check()
        typed = make_search_request(self.request)
        for search in start_searches(list(single.values()), typed, self.started):
            watch = Progress(None, self.progress)
            try:
                done[search.size.mark] = SearchedSize(search, run(search, watch))
            finally:
                watch.close()
        return done

    def finish(
        self, asked: Asked | None, sizes: Sequence[PlanSizes], searched: dict[str, SearchedSize]
    ) -> TuneReport:
        """Returns the report, once it and the plans are written."""
        some = next(iter(searched.values())).search
        judge = PointJudge(some, self.parts, self.request.folder, self._count_left, self.progress)
        groups = [
            PlanGroup(judge, self.request.batch, asked, size, self._pick(size, searched))
            for size in sizes
        ]
        chosen = [each.choose() for each in groups]
        if asked is None:
            chosen = _drop_dominated(chosen)
        report = self._make_report(asked, judge, groups, chosen)
        for each in report.plans:
            each.plan.write(self.request.out.with_name(each.file))
        report.write(self.request.report_path)
        if self.request.html is not None:
            write_page(report, judge.problem, self.request.html)
        return report

    def _count_left(self, share: float) -> float:
        """Returns the seconds until a share of the budget is gone; infinite if it is no time."""
        budget = Budget.parse(self.request.budget)
        if budget.kind != "seconds":
            return math.inf
        return share * budget.amount - (time.perf_counter() - self.started)

    def _pick(self, sizes: PlanSizes, searched: dict[str, SearchedSize]) -> list[SearchedSize]:
        searches = list_searches(self.request, self.first, sizes)
        return [searched[each.size.mark] for each in searches]

    def _make_report(
        self,
        asked: Asked | None,
        judge: PointJudge,
        groups: Sequence[PlanGroup],
        chosen: Sequence[ChosenPoint],
    ) -> TuneReport:
        request, problem = self.request, judge.problem
        network = problem.network
        facts: dict[str, Any] = {
            "network": network.name,
            "sketch": sketch(network),
            "weights": hash_weights(request.network),
            "asked": asked,
            "where": MeasuredAt(
                batch=request.batch,
                device=request.device,
                dtype=request.dtype,
                machine=machine(),
                versions=versions(),
            ),
            "judged": describe_judging(judge.search),
            "seconds": round(time.perf_counter() - self.started, 1),
            "searched": problem.evaluations,
        }
        plans = [
            WrittenPlan(file=self._name_file(each, asked), plan=PlanFile(**each.facts(), **facts))
            for each in chosen
        ]
        points = {each.name: each for group in groups for each in group.points()}
        remarks = [each for group in groups for each in group.verdicts]
        return TuneReport(
            command=request.command,
            parts=self.parts,
            points=tuple(points.values()),
            plans=tuple(sorted(plans, key=lambda each: each.plan.point.cost.effective)),
            compared=tuple(each for group in groups for each in group.compared),
            verdicts=tuple(dict.fromkeys([*remarks, *judge.remarks])),
            **facts,
        )

    def _name_file(self, chosen: ChosenPoint, asked: Asked | None) -> str:
        out = self.request.out
        if asked is not None:
            return out.name
        return f"{out.stem}-{chosen.point.cost.effective:g}{out.suffix}"


def _drop_dominated(chosen: Sequence[ChosenPoint]) -> list[ChosenPoint]:
    """Returns the points that nothing cheaper is as near as, cheapest first."""
    front: list[ChosenPoint] = []
    for each in sorted(chosen, key=lambda each: each.point.cost.effective):
        if not front or each.distance < front[-1].distance:
            front.append(each)
    return front
