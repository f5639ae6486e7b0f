"""Solvers as tables: every step one combination of terms, worked out in float64 before a run.

With nodes n = 0..N, the state x_n at node n, the predictions x0_n (and u0_n of the unconditional
branch) made there and standard normal noise z_n,

    x_{n+1} = sum over terms of weight * term,

where the terms are states and predictions of nodes up to n and the noise of step n. A `Table` says
this as data; `TableSteps` runs it.

A table weighs predictions, whatever the guidance makes of them: dynamic thresholding, which is part
of the guidance, changes what a prediction is and no weight, so tables run under it too.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from ..models.denoiser import Branch
from ..models.errors import ScheduleError
from ..models.schedule import Node

LARGEST_WEIGHT = 1e38  # float32 ends at 3.4e38
BOTH = (Branch.UNCOND, Branch.COND)
SLOPES = ("eps", "v")
# ("x", n), the state at node n; ("x0", n), ("eps", n) and ("v", n) = eps - x0, the prediction there
# in three forms; ("u0", n), that of the unconditional branch; ("z", n), fresh noise of step n; and
# ("tanh:gain=3.0,shift=0.0", n), a function of x0_n, spelled as `spell_function` does.
TERMS = ("x", "x0", "u0", *SLOPES, "z")
Term = tuple[str, int]
Combination = dict[Term, float]


class Evaluation(NamedTuple):
    """Where the network is evaluated, and which branches are answered apart.

    branches: none leaves it to the guidance, which makes one x0 of them.
    """

    node: Node
    branches: tuple[Branch, ...] = ()


@dataclass(frozen=True)
class Table:
    """N steps over N + 1 nodes.

    nodes:       alpha and sigma there give eps and v in terms of x and x0.
    steps:       the combination that is x_{n+1}, for every n.
    evaluations: of each step; None where the network is not asked.
    given:       what x0_n is taken to be where the network is not asked; None is zero.
    """

    nodes: Sequence[Node]
    steps: Sequence[Combination]
    evaluations: Sequence[Evaluation | None]
    given: Tensor | None = None

    @property
    def guided(self) -> bool:
        """True if the table combines the branches of the network itself."""
        return any(each is not None and each.branches for each in self.evaluations)

    @property
    def nfe(self) -> int:
        """Network evaluations of a run; one of several branches counts once."""
        return sum(each is not None for each in self.evaluations)

    @property
    def rows(self) -> int:
        """Network rows per image, where no guidance adds any."""
        return sum(max(1, len(each.branches)) for each in self.evaluations if each is not None)

    @property
    def starts(self) -> tuple[int, ...]:
        """The node whose state each step carries on: the last one that it weighs, or its own."""
        states = (
            [j for (kind, j), weight in combo.items() if kind == "x" and weight]
            for combo in self.steps
        )
        return tuple(max(nodes, default=n) for n, nodes in enumerate(states))

    @property
    def memory(self) -> int:
        """The largest number of tensors that a run keeps at once, beside the state."""
        return max(map(len, find_layouts(write_slopes_out(self.nodes, self.steps))))

    @property
    def functions(self) -> tuple[tuple[str, ...], ...]:
        """The functions of each step's prediction that it or a later step weighs, sorted."""
        used = {term for combo in self.steps for term, weight in combo.items() if weight}
        functions: list[list[str]] = [[] for _ in self.steps]
        for kind, n in sorted(used):
            if kind not in TERMS:
                functions[n].append(kind)
        return tuple(map(tuple, functions))


def check_weights(n: int, weights: Iterable[float]) -> None:
    """Raises ScheduleError for a weight of step n that is beyond float32."""
    for weight in weights:
        if not abs(weight) <= LARGEST_WEIGHT:
            raise ScheduleError(
                f"step {n} has a weight of {weight:.3g}, which float32 states cannot take:"
                " times lie too near to each other, or coefficients are too large"
            )


def add_terms(a: Mapping[Term, float], b: Mapping[Term, float], weight: float = 1.0) -> Combination:
    """Returns a + weight b."""
    out = dict(a)
    for term, value in b.items():
        out[term] = out.get(term, 0.0) + weight * value
    return out


def write_slopes_out(nodes: Sequence[Node], combos: Sequence[Combination]) -> list[Combination]:
    """Writes eps and v in terms of x and x0 where that is cheaper.

    That is in the step of their own node, where both are at hand; and in tables that use each of
    them in one later step, as eps takes two operations to make, and x and x0 none to keep.
    """
    late = [
        term
        for n, combo in enumerate(combos)
        for term, weight in combo.items()
        if term[0] in SLOPES and term[1] < n and weight
    ]
    once = len(set(late)) == len(late)
    out = []
    for n, combo in enumerate(combos):
        for term, weight in list(combo.items()):
            if term[0] in SLOPES and weight and (term[1] == n or once):
                a, b = split_term(nodes[term[1]], term[0])
                parts = {("x", term[1]): a, ("x0", term[1]): b}
                combo = add_terms({**combo, term: 0.0}, parts, weight)
        out.append({term: weight for term, weight in combo.items() if weight != 0.0})
    return out


def find_layouts(combos: Sequence[Combination]) -> list[list[Term]]:
    """Returns what the steps from n on use of the nodes before n, newest first; n = 0..N."""
    used: set[Term] = set()
    layouts: list[list[Term]] = [[]]
    for n in range(len(combos) - 1, -1, -1):
        used = {term for term in used.union(combos[n]) if term[0] != "z" and term[1] < n}
        layouts.append(sorted(used, key=lambda term: (-term[1], term[0])))
    return layouts[::-1]


def split_term(node: Node, kind: str) -> tuple[float, float]:
    """Returns the weights of the state and of the x0 of its node that a term stands for.

    eps = (x - alpha x0) / sigma and v = eps - x0 = (x - (alpha + sigma) x0) / sigma.
    """
    if kind in SLOPES:
        scale = node.alpha if kind == "eps" else node.alpha + node.sigma
        return 1.0 / node.sigma, -scale / node.sigma
    return (1.0, 0.0) if kind == "x" else (0.0, 1.0)


FIRST = ("x", 0)


def rewrite(table: Table, starts: Sequence[int]) -> Table:
    """Returns the table whose step n carries on the state of node starts[n], and of no other.

    All zeros give the canonical form, in which every state is written in the first one and in the
    predictions; 0, 1, 2, ... go back to steps from each node to the next. The runs are the same up
    to rounding.

    Raises:
        ScheduleError: for a table that adds noise: a run keeps no noise of earlier steps.
    """
    states, steps = _expand(table), []
    for n, start in enumerate(starts):
        end, base = states[n + 1], states[start]
        carried = base.get(FIRST, 0.0)
        weight = end.get(FIRST, 0.0) / carried if carried else 0.0
        rest = add_terms(end, base, -weight)
        if carried:
            rest[FIRST] = 0.0
        steps.append(add_terms(rest, {("x", start): weight}))
    return replace(table, steps=steps)


def _expand(table: Table) -> list[Combination]:
    """Returns every state in terms of the first one and the predictions x0 and u0."""
    states: list[Combination] = [{FIRST: 1.0}]
    for combo in table.steps:
        state: Combination = {}
        for term, weight in combo.items():
            if weight:
                state = add_terms(state, _in_first(table, term, states), weight)
        states.append(state)
    return states


def _in_first(table: Table, term: tuple[str, int], states: Sequence[Combination]) -> Combination:
    kind, n = term
    if kind == "z":
        raise ScheduleError("a solver that adds noise has no canonical table")
    if kind in SLOPES:
        a, b = split_term(table.nodes[n], kind)
        return add_terms({("x0", n): b}, states[n], a)
    return states[n] if kind == "x" else {term: 1.0}


def mirror_nodes(nodes: Sequence[Node]) -> list[Node]:
    """Returns the nodes of the mirrored process: alpha and sigma change places, lam its sign."""
    return [Node(node.t, node.sigma, node.alpha, -node.lam) for node in nodes]


def mirror(table: Table) -> Table:
    """Returns a table of the mirrored process as one of the process itself, and the other way.

    With alpha' = sigma, sigma' = alpha and x0' = eps the flow has the same form, so a table over
    mirrored nodes, which rise to the noise, is one over the true ones in which x0 and eps change
    places, and v its sign.

    Raises:
        ScheduleError: for a table with branches of its own, or that leaves an evaluation out.
    """
    if table.guided or None in table.evaluations:
        raise ScheduleError("only a table whose every step asks for one prediction can be reversed")
    swap = {"x0": ("eps", 1.0), "eps": ("x0", 1.0), "v": ("v", -1.0)}
    steps = []
    for combo in table.steps:
        terms = [(*swap.get(kind, (kind, 1.0)), n, weight) for (kind, n), weight in combo.items()]
        steps.append({(kind, n): sign * weight for kind, sign, n, weight in terms})
    asked = [each.node for each in table.evaluations if each is not None]
    return Table(mirror_nodes(table.nodes), steps, list(map(Evaluation, mirror_nodes(asked))))
