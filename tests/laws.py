"""What the solver tests share: laws with known answers, the plainest loop, a textbook executor."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fewstep.models.gaussian import GaussianMixture
from fewstep.models.schedule import (
    EDM,
    Node,
    NoiseSchedule,
    RectifiedFlow,
    TimeGrid,
    VPDiscrete,
    VPLinear,
)
from fewstep.solvers import Solver, SolverSettings, StepSchedule, drive, names
from fewstep.solvers import solver as registered
from fewstep.solvers.base import Split
from fewstep.solvers.exponential import StepSpec
from fewstep.solvers.step_schedule import Compiled
from fewstep.solvers.table import FIRST, Table, rewrite

Law = Callable[[Tensor, Node], Tensor]

PROCESSES: dict[str, NoiseSchedule] = {
    "vp": VPDiscrete(),
    "vp-linear": VPLinear(),
    "edm": EDM(),
    "flow": RectifiedFlow(shift=3.0),
}


def f64(*rows: Any) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


MIXTURE = GaussianMixture(  # the law of the golden numbers
    means=f64([-0.8, 0.3, 0.5, -0.2], [0.6, -0.7, 0.1, 0.9], [0.2, 0.8, -0.9, 0.4]),
    stds=f64([0.15], [0.30], [0.20]),
    weights=f64(0.5, 0.3, 0.2),
)
GAUSSIAN = GaussianMixture.single(f64(0.7, -0.4, 0.2, 1.1), f64(0.04, 0.25, 1.0, 0.5).sqrt())


def unit_noise(shape: tuple[int, ...] = (2, 2, 1, 2)) -> Tensor:
    """z_j = 1.3 sin(1 + 1.7 j): the same numbers everywhere, without a random generator."""
    return f64(*(1.3 * math.sin(1 + 1.7 * j) for j in range(math.prod(shape)))).reshape(shape)


def start(grid: TimeGrid, shape: tuple[int, ...] = (2, 2, 1, 2)) -> Tensor:
    """Noise as a run on this grid starts from it."""
    return unit_noise(shape) * grid.schedule.noise_scale(grid.nodes[0])


def even_in_lam(
    schedule: NoiseSchedule, steps: int, first: float = 20.0, last: float = 0.05
) -> TimeGrid:
    """Nodes evenly spaced in lam from kappa = first to kappa = last."""
    low, high = -math.log(first), -math.log(last)
    lams = [low + (high - low) * i / steps for i in range(steps + 1)]
    return TimeGrid.of(schedule, [schedule.at_lam(lam).t for lam in lams])


NEEDED = {"dpm-solver-v3": {"stats": "data"}}  # settings that a solver cannot do without


def solver(name: str, **settings: Any) -> SolverSettings:
    """The registered solver, with what it cannot do without."""
    return registered(name, **{**NEEDED.get(name, {}), **settings})


def runs(settings: SolverSettings, family: str) -> bool:
    return not settings.info.families or family in settings.info.families


CASES = [(n, p) for n in names() for p in PROCESSES if runs(solver(n), PROCESSES[p].family)]

FIXED = [name for name in names() if not solver(name).info.adaptive]  # the grid is their steps
ONE_BRANCH = [name for name in FIXED if not solver(name).info.guided]  # any network answers them
DETERMINISTIC = [name for name in names() if not solver(name).info.stochastic]
ODE_CASES = [(name, process) for name, process in CASES if name in DETERMINISTIC]


def answering(law: Law, n: int) -> Callable[[Tensor, Node | None], Tensor]:
    """The answers to the queries of step n; its noise is the same in every run."""
    generator = torch.Generator().manual_seed(n)

    def answer(x: Tensor, node: Node | None) -> Tensor:
        if node is None:
            return torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x)
        if isinstance(node, Split):
            return torch.stack([law(x, node.node)] * len(node.branches))
        return law(x, node)

    return answer


def walk(solver: Solver[Any], grid: TimeGrid, x: Tensor, law: Law) -> Iterator[tuple[Tensor, Any]]:
    """(x, state) after each step."""
    state = solver.init()
    for n, (t, s) in enumerate(pairwise(grid.nodes)):
        x, state = drive(solver.step(x, state, t, s), answering(law, n))
        yield x, state


def run(settings: SolverSettings, grid: TimeGrid, x: Tensor, law: Law) -> Tensor:
    """x at the last node."""
    *_, (x, _) = walk(settings.on(grid), grid, x, law)
    return x


def find_end(grid: TimeGrid, x: Tensor) -> Tensor:
    """The end of the exact flow on MIXTURE."""
    return run(registered("ode-dopri8", rtol=1e-9, atol=1e-9), grid, x, MIXTURE.x0)


def compiled(table: Table) -> Compiled:
    """An unguided table as version 1 writes it, in its canonical form."""
    size = len(table.steps)
    steps = rewrite(table, [0] * size).steps
    return Compiled(
        A=tuple(combo.get(FIRST, 0.0) for combo in steps),
        B=tuple(
            tuple(combo.get(("x0", j), 0.0) for j in range(n + 1)) for n, combo in enumerate(steps)
        ),
        tau=tuple(
            node.t if each is None else each.node.t
            for each, node in zip(table.evaluations, table.nodes, strict=False)
        ),
    )


def with_table(schedule: StepSchedule) -> StepSchedule:
    """The schedule with its canonical table beside its steps."""
    table = schedule.compiled or compiled(schedule.table())
    return StepSchedule.model_validate({**schedule.model_dump(), "compiled": table})


class Violations(NamedTuple):
    """How far a table is from one that is exact where the prediction is constant.

    With A_n the weight of x_0 in the state x_n and B_{n,j} those of the predictions,

    state:       max_n |A_n - sigma_n / sigma_0|.
    predictions: max_n |sum_j B_{n,j} - (alpha_n - alpha_0 sigma_n / sigma_0)|; those of the
                 unconditional branch count with the others.
    largest:     max |B_{n,j}|, which multiplies rounding errors of low precisions.
    """

    state: float
    predictions: float
    largest: float


def measure_violations(table: Table) -> Violations:
    """Returns the invariants of consistency of a table, in its canonical form."""
    first, state, predictions, largest = table.nodes[0], 0.0, 0.0, 0.0
    canonical = rewrite(table, [0] * len(table.steps))
    for node, combo in zip(table.nodes[1:], canonical.steps, strict=True):
        ratio = node.sigma / first.sigma
        state = max(state, abs(combo.pop(("x", 0), 0.0) - ratio))
        exact = node.alpha - first.alpha * ratio
        predictions = max(predictions, abs(sum(combo.values()) - exact))
        largest = max(largest, *map(abs, combo.values()), 0.0)
    return Violations(state, predictions, largest)


# The textbook executor. It shares no formula with the one it judges: corrected states are formed,
# derivatives are those of the interpolating polynomial, and every integral is a quadrature.

Point = tuple[Node, Tensor, Tensor]  # a node with the x0 and eps predicted there


def textbook(schedule: StepSchedule, x: Tensor, law: Law) -> Tensor:
    process = schedule.process.schedule()
    nodes = [process.at(t) for t in schedule.t]

    def evaluate(x: Tensor, n: int) -> Point:
        xi = schedule.xi[n] if schedule.xi else 0.0
        edm = schedule.process.family == "edm"
        asked = process.at(schedule.t[n] * math.exp(xi) if edm else schedule.t[n] + xi)
        afs = n == 0 and schedule.afs == "zero"
        x0 = torch.zeros_like(x) if afs else law(x, asked)
        return nodes[n], x0, (x - nodes[n].alpha * x0) / nodes[n].sigma

    history = [evaluate(x, 0)]
    for n, spec in enumerate(schedule.steps):
        counts = spec.est or (spec.order - 1,) * (spec.order - 1)
        start, end = x, nodes[n + 1]
        free = spec.dA * start
        for weight, (_, x0, _) in zip(spec.dB or (), history, strict=False):
            free = free + weight * x0
        x = free + _step(start, end, history, spec, counts, spec.relax, spec.kmul)
        if n + 1 == len(schedule.steps):
            break
        new = evaluate(x, n + 1)
        if spec.corr.on:
            points = [history[0], new, *history[1:]]
            counts = (spec.order,) * spec.order
            relax = spec.corr.relax if spec.order == 1 else "none"
            x = free + _step(start, end, points, spec, counts, relax, None)
        history.insert(0, new)
    return x


def _step(
    x: Tensor,
    t: Node,
    points: Sequence[Point],
    spec: StepSpec,
    counts: Sequence[int],
    relax: str,
    kmul: Sequence[float] | None,
) -> Tensor:
    """y_t = e^{-l h} y_s - int_0^h e^{-l (h-u)} f(u) du, where y = x / alpha, f = e^{(l-1) u} g."""
    s, x0, _ = points[0]
    if t.sigma == 0.0:
        return t.alpha * x0
    l, h = {"data": 1.0, "noise": 0.0, "mixed": spec.mix_l}[spec.pred], t.lam - s.lam  # noqa: E741
    values = []
    for node, x0, eps in points:
        x_node = node.alpha * x0 + node.sigma * eps
        f = (node.sigma * eps - l * x_node) / node.alpha
        values.append(math.exp((1 - l) * (node.lam - s.lam)) * f)
    offsets = [node.lam - s.lam for node, _, _ in points]
    terms = [values[0]]
    for k, count in enumerate(counts, start=1):
        factor = _relaxed(relax, h, (1 - 2 * l) * h, spec.c) if k == 1 else 1.0
        factor *= kmul[k - 1] if kmul else 1.0
        terms.append(factor * _derivative(offsets[: count + 1], values[: count + 1], k))
    places, weights = np.polynomial.legendre.leggauss(30)
    integral = torch.zeros_like(x)
    for u, w in zip((places + 1) * h / 2, weights * h / 2, strict=True):
        g = sum(term * u**k / math.factorial(k) for k, term in enumerate(terms))
        integral += w * math.exp(-l * (h - u) - (1 - l) * u) * g
    return t.alpha * (math.exp(-l * h) * x / s.alpha - integral)


def _relaxed(kind: str, h: float, signed: float, c: float) -> float:
    rest = math.exp(signed) - 1 - signed
    return {
        "none": lambda: 1.0,
        "linear": lambda: 1.0 + c * h,
        "bh1": lambda: signed**2 / 2 / rest,
        "bh2": lambda: signed / 2 * (math.exp(signed) - 1) / rest,
    }[kind]()


def _derivative(offsets: Sequence[float], values: Sequence[Tensor], k: int) -> Tensor:
    """The k-th derivative at 0 of the polynomial through these points."""
    powers = torch.from_numpy(np.vander(offsets, increasing=True))
    coefficients = torch.linalg.solve(powers, torch.stack([v.flatten() for v in values]))
    return math.factorial(k) * coefficients[k].reshape(values[0].shape)
