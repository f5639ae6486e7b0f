"""The accuracy benchmark: its measures against closed forms, its figures against known ones."""

import math

import pytest
import torch

from fewstep.eval.experiments import accuracy
from fewstep.models.schedule import EDM
from fewstep.samplers.plan import make_plan

BUDGETS = (5, 6, 8, 10, 12, 15, 20, 25, 50)
KNOWN = {  # root mean square error on the mixture, worked out by independent code
    "ddim": (0.2333, 0.2022, 0.1529, 0.1259, 0.1082, 0.0907, 0.0716, 0.0592, 0.0331),
    "dpmpp-2m": (0.1636, 0.1074, 0.0772, 0.0589, 0.0442, 0.0314, 0.0204, 0.0127, 0.0023),
    "dpmpp-3m": (0.1636, 0.1381, 0.1257, 0.0587, 0.0319, 0.0204, 0.0103, 0.0061, 0.0012),
    "dpmpp-3m:third_order=exact": (
        *(0.1636, 0.1528, 0.1430, 0.0631, 0.0361, 0.0226, 0.0117, 0.0067, 0.0011),
    ),
    "unipc-2": (0.1617, 0.1034, 0.0736, 0.0506, 0.0341, 0.0233, 0.0104, 0.0059, 0.0012),
    "unipc-3": (0.1617, 0.1506, 0.1293, 0.0560, 0.0376, 0.0207, 0.0099, 0.0052, 0.0005),
}


def test_frechet_distance_of_known_gaussians():
    """Means 3 apart and standard deviations 1 and 2 in each of two dimensions: 9 + 2."""
    z = torch.randn(100_000, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    z = (z - z.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(z.T.cov(correction=0))).T
    moved = 2.0 * z + torch.tensor([3.0, 0.0])
    assert accuracy.frechet(z, moved) == pytest.approx(11.0, rel=1e-9)
    assert accuracy.frechet(z, z) == pytest.approx(0.0, abs=1e-9)


def test_rmse():
    assert accuracy.rmse(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 0.0])) == pytest.approx(
        math.sqrt(4.5)
    )


def test_exact_flow_is_the_closed_one_for_a_single_gaussian():
    law = accuracy.GaussianMixture.single(torch.tensor([0.5]), torch.tensor([0.3]))
    law = accuracy.GaussianMixture(*(each.double() for each in (law.means, law.stds, law.weights)))
    t, s = EDM().at(80.0), EDM().at(0.002)
    x = torch.tensor([[70.0], [-31.0]], dtype=torch.float64)
    found = accuracy.solve(law, x, make_plan(EDM(), accuracy.EXACT, final="sigma_min"))
    torch.testing.assert_close(found, law.flow_map(x, t, s), rtol=1e-9, atol=1e-9)


@pytest.mark.slow
def test_the_mixture_gives_the_known_figures():
    problem = accuracy.make_toy()
    for name, figures in KNOWN.items():
        late = name + ("," if ":" in name else ":") + "lower_order_final=always"
        solver = late if name.startswith("dpmpp") else name
        found = [accuracy.rmse(problem.ends(solver, nfe), problem.exact) for nfe in BUDGETS]
        assert found == pytest.approx(figures, abs=6e-5)


def test_report_has_a_row_per_solver_and_dashes_for_impossible_budgets(monkeypatch):
    monkeypatch.setattr(accuracy, "REFERENCE", 6)
    header, ddim, heun, euler = accuracy.report("fashion-dit", ["ddim", "heun", "euler"], [3, 4])
    assert header.split() == ["NFE", "3", "4"]
    assert len(ddim.split()) == len(euler.split()) == 3
    assert heun.split()[2] == "-"
