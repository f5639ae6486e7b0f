"""A guidance policy followed where another program calls the network once per evaluation."""

from collections.abc import Iterator, Sequence
from itertools import groupby

from torch import Tensor

from ..models.denoiser import Branch
from ..models.prediction import Prediction
from ..models.schedule import Node, NoiseSchedule, TimeGrid
from ..samplers.guidance import Guidance, Moment
from ..samplers.guidance.unbound import begin_unbound, check_whole_batches, take_unbound
from ..solvers import SolverSettings, dry_run, take_solver
from ..solvers.artefact import Artefact
from .host import Path
from .run import make_process, plan_sigmas

CALLER = "sample with fewstep.Sampler"


def take_policy(given: Guidance | str) -> Guidance:
    """Returns a policy given as such or as a text.

    Raises:
        FewstepError: for texts that name none, and for policies that drive the solver, have a
            second network, or evaluate some images of a batch alone.
    """
    policy = take_unbound(given, "calling program", CALLER)
    check_whole_batches(policy, "the calling program evaluates")
    return policy


def list_moments(
    sigmas: Sequence[float], path: Path, solver: str | SolverSettings | Artefact | None = None
) -> list[Moment]:
    """Returns where each evaluation of a run is.

    sigmas: falling, one more than there are steps.
    solver: one of ours with fixed steps; any other is taken to evaluate once a step.
    """
    values = tuple(sigma for sigma, _ in groupby(sigmas))
    if len(values) < 2:
        return []
    if solver is not None:
        known = solver if isinstance(solver, Artefact) else take_solver(solver)
        plan = plan_sigmas(path, known, values)  # type: ignore[arg-type]
        if not plan.adaptive:
            steps = dry_run(plan.solver, plan.grid.nodes)
            return list(_list_asked([[n for n in step if isinstance(n, Node)] for step in steps]))
    process = make_process(path, values)
    return [Moment(process.at(sigma), step) for step, sigma in enumerate(values[:-1])]


def _list_asked(steps: Sequence[Sequence[Node]]) -> Iterator[Moment]:
    for step, nodes in enumerate(steps):
        for stage, node in enumerate(nodes):
            yield Moment(node, step, stage)


class GuidedRun:
    """One run of a policy; `ask` and `combine` are called in turns, once per evaluation.

    Args:
        policy: as `take_policy` returns it.
        sigmas: (N + 1,) of the run, falling.
        images: of the batch.
        path: of the model.
        solver: one of ours, whose evaluations are known, so that they are counted; None for any
            other, where the sigma of each evaluation is read, for which the host waits.

    Raises:
        FewstepError: if the policy cannot guide this run.
    """

    def __init__(
        self,
        policy: Guidance,
        sigmas: Tensor,
        images: int,
        path: Path,
        solver: str | SolverSettings | Artefact | None = None,
    ) -> None:
        values = [sigma for sigma, _ in groupby(sigmas.tolist())]
        self.process: NoiseSchedule = make_process(path, values)
        grid = TimeGrid.of(self.process, values)
        self.guide = begin_unbound(policy, grid, images, Prediction.X0, "the model")
        self.starts = values[:-1]
        self.moment: Moment | None = None
        self._planned = iter(list_moments(values, path, solver) if solver is not None else ())

    def ask(self, sigma: Tensor) -> tuple[Branch, ...]:
        """Returns the branches to evaluate, from the x0 of which `combine` makes one.

        sigma: (B,) that the model is asked at.
        """
        self.moment = next(self._planned, None) or self._read(sigma)
        return tuple(ask.branch for ask in self.guide.ask(self.moment))

    def combine(self, outputs: Sequence[Tensor], x: Tensor) -> Tensor:
        """Returns the guided x0 (B, *) from one x0 per branch asked, at the state x (B, *)."""
        assert self.moment is not None
        return self.guide.combine(outputs, x, self.moment)

    def _read(self, sigma: Tensor) -> Moment:
        """Returns where an evaluation is that no plan knows of."""
        value, last = float(sigma.flatten()[0]), self.moment
        step = max((n for n, start in enumerate(self.starts) if value <= start), default=0)
        stage = last.stage + 1 if last is not None and last.step == step else 0
        return Moment(self.process.at(value), step, stage)
