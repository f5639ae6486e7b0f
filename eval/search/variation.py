"""How evolution draws, changes and crosses schedules of a space (arXiv:2312.07243).

Every product is a valid `StepSchedule` of the process. Times live in lam, where a change of the
same size means the same everywhere.
"""

from collections.abc import Callable
from random import Random
from typing import Any

from ...models.errors import SettingError
from ...models.schedule import Node
from ...solvers import StepSchedule
from ...solvers.exponential import Corrector, StepSpec
from .draft import Draft, project
from .space import Space

ORDERS, ORDER_WEIGHTS = (1, 2, 3, 4), (0.2, 0.4, 0.3, 0.1)
RELAX = ("none", "bh1", "bh2", "linear")
FIELDS = (("order", "est", "kmul", "relax", "c"), ("pred", "mix_l"), ("corr",))  # crossed as one
WIDTHS = (0.005, 0.02, 0.06)  # of a moved node, as shares of the range of lam
RESHUFFLES = 50  # tries to draw something valid that differs from its parent


class Exhausted(SettingError):
    """There is nothing left to draw."""


def draw_schedule(space: Space, nfe: int, rng: Random) -> StepSchedule:
    """Returns a schedule of random decisions, with the frequencies of the published search."""

    def draw() -> StepSchedule | None:
        afs = rng.choice((None, *space.afs)) if "afs" in space.free else None
        steps = nfe + (afs is not None)
        low, high = space.lams
        nodes = [space.process.at_lam(rng.uniform(low, high)) for _ in range(steps - 1)]
        specs = [_draw_step(rng) for _ in range(steps)]
        start, end = rng.choice(space.starts), rng.choice(space.ends)
        return Draft(nodes, start, end, specs, afs, [0.0] * steps).build(space)

    return _until_valid(draw)


def mutate(space: Space, schedule: StepSchedule, rng: Random) -> StepSchedule:
    """Returns a neighbour of the same NFE: some nodes moved, some decisions drawn again."""
    parent = schedule.schedule_id

    def draw() -> StepSchedule | None:
        draft = Draft.of(schedule)
        if "afs" in space.free and rng.random() < 0.15:
            _toggle_afs(draft, space, rng)
        if "ends" in space.free and rng.random() < 0.1:
            draft.start, draft.end = rng.choice(space.starts), rng.choice(space.ends)
        for i in range(len(draft.steps)):
            _mutate_step(draft, i, space, rng)
        child = draft.build(space)
        return None if child is None or child.schedule_id == parent else child

    return _until_valid(draw)


def cross(space: Space, a: StepSchedule, b: StepSchedule, rng: Random) -> StepSchedule:
    """Returns a child of two: each field from either, and half of the time each step from either.

    Parents that differ in their number of steps cannot be crossed; then it is the first one.
    """
    first, second = Draft.of(a), Draft.of(b)
    if len(first.steps) != len(second.steps) or (first.afs is None) != (second.afs is None):
        return project(space, a)
    if rng.random() < 0.5:
        first.nodes, first.shifts = second.nodes, second.shifts
        first.start, first.end = second.start, second.end
    groups = [names for names in FIELDS if rng.random() < 0.5]
    deep = rng.random() < 0.5
    for i, other in enumerate(second.steps):
        taken = {name: getattr(other, name) for names in groups for name in names}
        mixed = first.steps[i].model_copy(update=taken)
        first.steps[i] = other if deep and rng.random() < 0.5 else mixed
    return first.build(space) or project(space, a)


def resize_schedule(space: Space, schedule: StepSchedule, nfe: int, rng: Random) -> StepSchedule:
    """Returns the schedule with steps inserted or deleted until it takes that many evaluations."""

    def draw() -> StepSchedule | None:
        draft = Draft.of(schedule)
        steps = nfe + (draft.afs is not None)
        while len(draft.steps) > steps:
            _delete(draft, rng)
        while len(draft.steps) < steps:
            _insert(draft, space, rng)
        return draft.build(space)

    return _until_valid(draw)


def _until_valid(draw: Callable[[], StepSchedule | None]) -> StepSchedule:
    for _ in range(RESHUFFLES):
        schedule = draw()
        if schedule is not None:
            return schedule
    raise Exhausted(
        f"{RESHUFFLES} draws in a row gave nothing new; free more decisions, or search a larger NFE"
    )


def _insert(draft: Draft, space: Space, rng: Random) -> None:
    """One step more: a random node, and a random step from it."""
    low, high = space.lams
    draft.nodes.append(space.process.at_lam(rng.uniform(low, high)))
    place = rng.randrange(len(draft.steps) + 1)
    draft.steps.insert(place, _draw_step(rng))
    draft.shifts.insert(place, 0.0)


def _delete(draft: Draft, rng: Random) -> None:
    place = rng.randrange(len(draft.nodes))
    del draft.nodes[place], draft.steps[place], draft.shifts[place]


def _toggle_afs(draft: Draft, space: Space, rng: Random) -> None:
    """The first evaluation is left out and a step won, or the other way round: the NFE stays."""
    if draft.afs is None:
        draft.afs = rng.choice(space.afs)
        _insert(draft, space, rng)
    elif len(space.afs) > 1 and rng.random() < 0.5:
        draft.afs = rng.choice(space.afs)
    else:
        draft.afs = None
        _delete(draft, rng)


def _draw_step(rng: Random) -> StepSpec:
    """Before it is fitted to its place; so it may hold more than the place can take."""
    order, relax = rng.choices(ORDERS, ORDER_WEIGHTS)[0], rng.choice(RELAX)
    return StepSpec.model_construct(
        order=order,
        est=_draw_points(rng, order),
        pred=rng.choice(("data", "noise")),
        relax=relax,
        c=rng.gauss(0.0, 0.05) if relax == "linear" else 0.0,
        corr=_draw_corrector(rng, rng.random() < 0.5),
    )


def _draw_points(rng: Random, order: int) -> tuple[int, ...]:
    """Most often all points; else the first derivative from one or two."""
    return _draw_low_points(rng, order) if rng.random() < 0.3 else ()


def _draw_low_points(rng: Random, order: int) -> tuple[int, ...]:
    """Returns the first derivative from one or two points, the others from all."""
    return (rng.choice((1, 2)), *[order - 1] * (order - 2)) if order > 1 else ()


def _draw_corrector(rng: Random, on: bool) -> Corrector:
    return Corrector(on=on, relax=rng.choice(("none", "bh1", "bh2")))


def _mutate_step(draft: Draft, i: int, space: Space, rng: Random) -> None:
    """Each decision of step i with its own chance; what is not free is put back when built."""
    if i < len(draft.nodes) and rng.random() < 0.3:
        draft.nodes[i] = _move(draft.nodes[i], space, rng)
    if "xi" in space.free and rng.random() < 0.2:
        draft.shifts[i] += _shift_unit(draft, i, space) * rng.gauss(0.0, 0.05)
    values: dict[str, Any] = {}
    if rng.random() < 0.2:
        order = rng.choices(ORDERS, ORDER_WEIGHTS)[0]
        values |= {"order": order, "est": _draw_points(rng, order), "kmul": None}
    elif rng.random() < 0.2:
        values["est"] = _draw_low_points(rng, draft.steps[i].order)
    if rng.random() < 0.2:
        values |= _draw_prediction(space, rng)
    if rng.random() < 0.2:
        values |= _draw_relax(draft.steps[i], rng)
    if rng.random() < 0.2:
        values["corr"] = _draw_corrector(rng, not draft.steps[i].corr.on)
    draft.steps[i] = draft.steps[i].model_copy(update=values)


def _move(node: Node, space: Space, rng: Random) -> Node:
    """Returns the node moved in lam, or where it was if that would carry it out of range."""
    low, high = space.lams
    lam = node.lam + rng.gauss(0.0, rng.choice(WIDTHS) * (high - low))
    return space.process.at_lam(lam) if low < lam < high else node


def _shift_unit(draft: Draft, i: int, space: Space) -> float:
    """xi is a factor on t for edm, else added to t: then in shares of the node's own time."""
    if space.process.family == "edm" or not 0 < i <= len(draft.nodes):
        return 1.0
    return sorted(node.t for node in draft.nodes)[-i]


def _draw_prediction(space: Space, rng: Random) -> dict[str, Any]:
    if "mixed" in space.free and rng.random() < 0.4:
        return {"pred": "mixed", "mix_l": rng.random()}
    return {"pred": rng.choice(("data", "noise")), "mix_l": 1.0}


def _draw_relax(step: StepSpec, rng: Random) -> dict[str, Any]:
    if step.relax == "linear" and rng.random() < 0.7:
        return {"c": step.c + rng.gauss(0.0, 0.05)}
    return {"relax": rng.choice(RELAX), "c": 0.0}
