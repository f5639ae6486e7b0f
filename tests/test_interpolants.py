"""The trigonometric path under every solver."""

from laws import DETERMINISTIC, GAUSSIAN, run, runs, solver, start

from fewstep import Trigonometric
from fewstep.samplers.plan import make_plan

TRIGONOMETRIC = Trigonometric()


def test_every_deterministic_solver_takes_the_trigonometric_path_from_pure_noise():
    for name in DETERMINISTIC:
        settings = solver(name)
        if runs(settings, TRIGONOMETRIC.family):
            size = {} if settings.info.adaptive else {"steps": 40, "grid": "uniform"}
            grid = make_plan(TRIGONOMETRIC, settings, **size).grid
            x, ends = start(grid), grid.nodes[:: grid.steps]
            wrong = run(settings, grid, x, GAUSSIAN.x0) - GAUSSIAN.flow_map(x, *ends)
            assert float(wrong.abs().max()) < 0.08, name
