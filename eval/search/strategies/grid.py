"""Named grids with named solvers: what anyone could type, and so the baseline of every search."""

import math
from collections.abc import Iterator

from ....models.errors import FewstepError
from ....models.registry import extend_spec, parse_spec
from ....models.schedule import TimeGrid
from ....samplers.grid import choose_default_grid
from ....samplers.plan import DEFAULT_SOLVER
from ..guided import guide_schedule
from ..placement import list_guided_steps
from ..space import Space, encode_solver, make_grid
from ..trajectories import batch_of
from .base import Proposal, Task
from .named import propose_named

FIRST = ("unipc-3", DEFAULT_SOLVER)  # tried on every grid
GUIDED = ("unipc-3", "dpmpp-2m")  # under rows; the second one on every choice of steps
REST = ("dpmpp-2m", "dpmpp-3m", "ddim", "deis-3", "unipc-3:solver_type=bh1", "dpmpp-2m:kind=taylor")
NAMED = (  # the most promising first, for budgets that end among them
    "uniform",
    "beta:alpha=0.8,beta=0.8",
    "beta",
    "logsnr",
    "karras",
    "quadratic",
    "karras:rho=3",
    "karras:rho=5",
    "karras:rho=10",
    "polyexponential:rho=0.8",
    "polyexponential:rho=1.2",
    "beta:alpha=0.5,beta=0.7",
    "ays-sd15",
    "ays-sdxl",
    "ays-svd",
)
SHIFTED = tuple(f"uniform:shift={k:g}" for k in (0.5, 2.0, 3.0, 5.0))  # on rectified flow
ENDS = (0.02, 0.05, 0.1)  # last nodes before zero: times, of t_max where that is not of EDM
OTHER_END = " to t="
MANY = 10  # evaluations, from which a reference that ends early is followed by ending there too
BEST_GRIDS = 3  # on which the rest of the solvers are tried
UNDER_ROWS = ("logsnr", "beta:alpha=0.8,beta=0.8")


def propose(task: Task) -> Iterator[Proposal]:
    """The default, two solvers on every grid, then all on the best grids; under rows see `_rows`.

    Where the reference ends in one step from a time, grids of many steps end there as well: without
    that they do not come nearer to it than what the network adds below that time.
    Where runs may end in two ways, the second one is tried on the best grids only; on the best of
    all, so are other starts and other last nodes before zero.
    """
    if task.size.unit == "rows":
        yield from _rows(task)
        return
    grids = _grids(task, task.nfe)
    whole = {name: nodes for name, nodes in grids.items() if OTHER_END not in name}
    main = choose_default_grid(task.space.process, task.nfe)
    yield propose_named(task, DEFAULT_SOLVER, whole[main], f"{DEFAULT_SOLVER} on {main}")
    for name, nodes in whole.items():
        for solver in FIRST:
            if (solver, name) != (DEFAULT_SOLVER, main):
                yield propose_named(task, solver, nodes, f"{solver} on {name}")
    for best in _best(task, whole):
        for name in (name for name in grids if name.startswith(best + OTHER_END)):
            for solver in FIRST:
                yield propose_named(task, solver, grids[name], f"{solver} on {name}")
    for solver, name in _pairs(task, whole)[:BEST_GRIDS]:
        for variant, nodes in _vary(task.space, name, task.nfe).items():
            grids[variant] = nodes
            yield propose_named(task, solver, nodes, f"{solver} on {variant}")
    for name in _best(task, grids):
        for solver in REST:
            if (solver, name) == (DEFAULT_SOLVER, main):
                continue  # tried above
            yield propose_named(task, solver, grids[name], f"{solver} on {name}")


def _best(task: Task, grids: dict[str, TimeGrid]) -> list[str]:
    """Returns the grids of the best trials so far, by the label that the trials carry."""
    return list(dict.fromkeys(name for _, name in _pairs(task, grids)))[:BEST_GRIDS]


def _pairs(task: Task, grids: dict[str, TimeGrid]) -> list[tuple[str, str]]:
    """Returns solver and grid of the trials so far, best first."""
    labels = [str(trial.schedule.provenance.get("label", "")) for trial in task.best()]
    parts = [label.partition(" on ") for label in labels]
    return [(solver, name) for solver, _, name in parts if solver in FIRST and name in grids]


def _vary(space: Space, name: str, steps: int) -> dict[str, TimeGrid]:
    """Returns a named grid from other starts and with other last nodes before zero, by name."""
    unit = 1.0 if space.process.family == "edm" else space.process.t_max
    settings = [f"start={t:.12g}" for t in space.starts[1:]] + [f"end={t * unit:g}" for t in ENDS]
    variants = {}
    for setting in settings:
        variant = extend_spec(name, setting)
        try:
            variants[variant] = make_grid(space, variant, steps)
        except FewstepError:
            continue  # a table has times of its own, and a last node may lie above the one before
    return variants


def _rows(task: Task) -> Iterator[Proposal]:
    """2M with guidance at some of its steps, each choice of them; more solvers with the best."""
    choices = {
        f"both branches at {','.join(map(str, g))}": (n, g)
        for n, g in list_guided_steps(task.size.amount)
    }
    mains = {n: choose_default_grid(task.space.process, n) for n, _ in choices.values()}
    for label, (steps, guided) in choices.items():
        yield _guide(task, (GUIDED[1], mains[steps]), (steps, guided), label)
    labels = (str(trial.schedule.provenance.get("label", "")) for trial in task.best())
    best = dict.fromkeys(label.partition(", ")[2] for label in labels)
    for label in [each for each in best if each in choices][:BEST_GRIDS]:
        main = mains[choices[label][0]]
        yield _guide(task, (DEFAULT_SOLVER, main), choices[label], label)
        for name in dict.fromkeys((main, *UNDER_ROWS)):
            for solver in GUIDED:
                yield _guide(task, (solver, name), choices[label], label)


def _guide(
    task: Task, how: tuple[str, str], placed: tuple[int, tuple[int, ...]], label: str
) -> Proposal:
    """Proposes a solver with both branches at some steps, the difference held between them."""
    (solver, name), (steps, guided) = how, placed
    base = encode_solver(solver, make_grid(task.space, name, steps))
    made = guide_schedule(base, task.problem.cfg_scale, guided)
    facts = {"label": f"{solver} on {name}, {label}"}
    return Proposal(made.model_copy(update={"provenance": facts}))


def _grids(task: Task, steps: int) -> dict[str, TimeGrid]:
    """Returns every grid that this process has, by name and with each end."""
    grids: dict[str, TimeGrid] = {}
    for end in task.space.ends:
        mark = "" if end == task.space.ends[0] else f"{OTHER_END}{end:g}"
        for name in _list_names(task, steps):
            try:
                grids[name + mark] = make_grid(task.space, name, steps, end)
            except FewstepError:
                continue  # it is of another process
        grids["tan" + mark] = make_tan_grid(task.space, steps, end, _data_std(task))
    return grids


def _list_names(task: Task, steps: int) -> list[str]:
    """Returns the names of the grids to be tried, the most promising first."""
    names = dict.fromkeys((choose_default_grid(task.space.process, steps), *NAMED, *SHIFTED))
    grid = task.problem.teacher.grid
    end = parse_spec(grid)[1].get("end") if grid is not None else None
    if end is None or steps < MANY:
        return list(names)
    pairs = ((extend_spec(name, f"end={end:g}"), name) for name in names)
    return [name for pair in pairs for name in pair]


def make_tan_grid(space: Space, steps: int, end: float, std: float) -> TimeGrid:
    """kappa = std tan(angle), angles evenly spaced: the best times of DDIM for N(0, std^2).

    There one step multiplies the standard deviation's error by cos(a - b) cos b / cos a, so the
    product over the steps is that of the cosines of the angles' differences.
    """
    process, (low, _) = space.process, space.lams
    last = process.at(end)
    top = math.atan(math.exp(-low) / std)
    bottom = 0.0 if last.sigma == 0.0 else math.atan(last.kappa / std)
    angles = [top + (bottom - top) * i / steps for i in range(1, steps)]
    times = [process.at_lam(-math.log(std * math.tan(angle))).t for angle in angles]
    return TimeGrid.of(process, [process.t_max, *times, end])


def _data_std(task: Task) -> float:
    """Of one coordinate of the teacher's ends about their mean."""
    return max(float((batch_of(task).ends - batch_of(task).ends.mean(0)).std()), 1e-3)
