"""Running an experiment: what is missing is measured, kept at once, and never measured again."""

from collections.abc import Iterator, Sequence

from ...models.errors import FewstepError
from ...models.progress import make_bar
from .cell import C, Experiment, R


def run_cells(experiment: Experiment[C, R], progress: bool = False) -> Iterator[Sequence[R]]:
    """Measures what is missing and yields the rows of each cell once they are in the store.

    In a team all processes iterate, and the first one alone yields and writes.

    Raises:
        FewstepError: if a cell cannot be measured and the experiment does not go on without it;
            the rows of those before it are kept.
    """
    team, cells = experiment.team, experiment.cells()
    waiting = team.lead(lambda: [cell for cell in cells if not experiment.is_done(cell)])
    for cell in cells:
        if cell not in waiting:  # a process that was killed after its row has left its part
            experiment.clear(cell)
    work = sum(map(experiment.weigh, waiting)) / team.size
    scaled = experiment.unit == "row"
    show = progress and team.leads
    with make_bar(total=round(work), unit=experiment.unit, unit_scale=scaled, show=show) as bar:
        for cell in _take_turns(experiment, waiting):
            bar.set_description(experiment.describe(cell))
            end = bar.n + experiment.weigh(cell) / team.size
            try:
                rows = experiment.measure(cell, bar.update)
            except FewstepError as error:
                experiment.leave_out(cell, error)
                continue
            bar.update(max(0.0, end - bar.n))
            if team.leads:
                experiment.store.append(*rows)
                yield rows
            experiment.clear(cell)


def run_all(experiment: Experiment[C, R], progress: bool = False) -> None:
    """Measures what is missing; see `run_cells`."""
    for _ in run_cells(experiment, progress):
        pass


def _take_turns(experiment: Experiment[C, R], waiting: Sequence[C]) -> Iterator[C]:
    """Yields the cells that are this team's to measure: its first process claims them."""
    turns = experiment.store.turns(waiting, experiment.identify, experiment.is_done)
    while (mine := experiment.team.lead(lambda: next(turns, None))) is not None:
        yield mine
