"""PFGM++: the noise of `EDM(aug_dim=D)`, what starts from it, and what it refuses."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from laws import GAUSSIAN, MIXTURE, f64
from scipy import stats
from torch import Tensor

from fewstep import (
    EDM,
    Editor,
    FeedbackGuidance,
    Measured,
    Sampler,
    from_module,
    invert,
    reconstruct,
)
from fewstep.eval.search.problem import Problem
from fewstep.models.denoiser import Denoiser
from fewstep.models.errors import FewstepError, SettingError
from fewstep.models.schedule import RectifiedFlow, noise_schedule, process_of, share_path
from fewstep.samplers.noise import Noise, draw_noise, draw_start, spread_noise
from fewstep.samplers.plan import make_plan
from fewstep.solvers import solver

X = f64(0.5, -0.3, 0.2, 0.1).reshape(1, 4, 1, 1)
SHAPE = (4, 1, 1)
QUANTILES = {  # of |x - x0| / sigma at .05, .5 and .95, by (N, D)
    (4, 8): (0.8137, 1.9127, 3.9181),
    (1024, 128): (28.839, 32.073, 35.891),
    (3072, 2048): (53.623, 55.429, 57.303),
}


def law(aug_dim: int | None, mixture=MIXTURE) -> Sampler:
    return Sampler(mixture.network(EDM(aug_dim=aug_dim), SHAPE))


def test_the_network_of_a_mixture_has_its_golden_values():
    golden = {
        4: (0.207416260, -0.284018850, 0.143553150, 0.470409970),
        8: (0.184854740, -0.268560770, 0.144755840, 0.463305660),
        128: (0.155854880, -0.248983450, 0.147458280, 0.452619500),
        None: (0.153550350, -0.247476230, 0.147756460, 0.451707740),
    }
    for aug_dim, expected in golden.items():
        found = Denoiser(law(aug_dim).network).x0(X, EDM().at(0.7))[0].flatten()
        torch.testing.assert_close(found, f64(*expected), atol=1e-8, rtol=0)
    far, limit = (MIXTURE.x0(X, EDM().at(0.7), each) for each in (2**40, None))
    torch.testing.assert_close(far, limit, atol=1e-9, rtol=0)


@pytest.mark.parametrize(("n", "aug_dim"), QUANTILES)
def test_the_radius_of_a_start_has_its_law(n, aug_dim):
    """R^2 / (sigma^2 N) is F(N, D): 4000 seeds lie within the 1 % bound of Kolmogorov's distance,
    and normal noise, whose R^2 is chi^2, does not.
    """
    schedule = EDM(aug_dim=aug_dim)
    start = draw_start(Noise(range(4000), (n,)), schedule, schedule.at(3.0))
    radius = start.double().norm(dim=1).div(3.0).numpy()
    law = stats.f(n, aug_dim)
    assert stats.kstest(radius**2 / n, law.cdf).statistic < 0.0257
    assert stats.kstest(radius**2, stats.chi2(n).cdf).statistic > 0.04
    quantiles = [(n * law.ppf(share)) ** 0.5 for share in (0.05, 0.5, 0.95)]
    assert quantiles == pytest.approx(QUANTILES[n, aug_dim], rel=1e-3)


def test_a_start_is_normal_noise_and_one_number_more():
    noise, schedule = Noise([3, 4], (2, 3)), EDM(aug_dim=8)
    z, x = Noise([3, 4], (2, 3)).draw(), draw_noise(noise, schedule)
    ratio = (x / z).flatten(1)
    torch.testing.assert_close(ratio, ratio[:, :1].expand(2, 6))
    assert float((ratio[0, 0] - ratio[1, 0]).abs()) > 0.01
    torch.testing.assert_close(draw_noise(Noise([4], (2, 3)), schedule), x[1:], rtol=0, atol=0)
    assert torch.equal(draw_noise(Noise([3, 4], (2, 3)), EDM()), z)


def test_many_dimensions_are_edm_to_the_bit():
    """From D = 2^60 on every spread is 1 in float32."""
    sampler = Sampler(MIXTURE.network(EDM(), SHAPE))
    far = Sampler(replace(sampler.network, schedule=EDM(aug_dim=2**60)))
    for name in ("unipc-2", "heun"):
        plain = sampler(range(5), solver=name, nfe=9).samples
        assert torch.equal(far(range(5), solver=name, nfe=9).samples, plain)


@pytest.mark.parametrize("aug_dim", [4, 128])
def test_samples_follow_the_data_only_from_their_own_noise(aug_dim):
    """Shares and variances of the components. From normal noise D = 4 comes out too narrow: the ODE
    maps the law of one radius on the other, R^2 / N ~ F(N, D) on chi^2_N.
    """
    run = {"seeds": range(2000), "batch": 2000, "solver": "unipc-3", "nfe": 30, "grid": "logsnr"}
    shares, ratios = split(law(aug_dim)(**run).samples)
    torch.testing.assert_close(shares, MIXTURE.weights, atol=0.02, rtol=0)
    torch.testing.assert_close(ratios, torch.ones_like(ratios), atol=0.06, rtol=0)
    if aug_dim == 4:
        normal = Sampler(replace(law(aug_dim).network, schedule=EDM()))
        places = (np.arange(1000) + 0.5) / 1000
        narrow = stats.chi2(4).ppf(stats.f(4, 4).cdf(stats.chi2(4).ppf(places) / 4)).mean() / 4
        assert narrow == pytest.approx(0.773, abs=0.002)
        assert float(split(normal(**run).samples)[1].mean()) == pytest.approx(narrow, abs=0.03)


def split(samples: Tensor) -> tuple[Tensor, Tensor]:
    """The share of each component, and its variance over the true one."""
    x = samples.flatten(1).double()
    off = (x[:, None] - MIXTURE.means) / MIXTURE.stds
    nearest = (
        (-0.5 * off.square() - MIXTURE.stds.log()).sum(-1).add(MIXTURE.weights.log()).argmax(1)
    )
    found = [x[nearest == k] for k in range(3)]
    ratios = [each.var(0).mean() / MIXTURE.stds[k] ** 2 for k, each in enumerate(found)]
    return f64(*(len(each) / len(x) for each in found)), torch.stack(ratios).flatten()


def test_an_image_depends_on_its_seed_alone():
    sampler = law(8)
    batch = sampler(range(5), nfe=6).samples
    assert torch.equal(sampler([3], nfe=6).samples[0], batch[3])
    assert torch.equal(sampler(range(5), nfe=6, batch=2).samples, batch)


def test_searches_start_from_the_same_noise():
    problem = Problem.of(law(8).network, (4, 1, 1))
    block, node = problem.block("train"), EDM().at(80.0)
    start = draw_start(Noise(block.seeds, SHAPE), problem.network.schedule, node)
    assert torch.equal(block.noise * 80.0, start)


def test_one_spread_lasts_for_a_whole_picture():
    ones, dice = torch.ones(3, 1, 1), torch.Generator().manual_seed(0)
    spread = spread_noise(ones, EDM(aug_dim=4), [dice] * 3)
    assert spread.shape == ones.shape
    assert len(set(spread.flatten().tolist())) == 3


def test_inversion_leads_back_and_keeps_the_length():
    """The noise of a far sample is far out: its length is part of what it says."""
    sampler = law(4, GAUSSIAN)
    start = draw_start(Noise(range(8), SHAPE), sampler.network.schedule, EDM().at(80.0)).double()
    image = sampler(range(8), nfe=60).samples
    there = invert(sampler, image, solver="rf-solver", steps=60)
    back = reconstruct(sampler, there)
    torch.testing.assert_close(back.samples, image, atol=2e-3, rtol=0)
    found, expected = there.noise.flatten(1).norm(dim=1), start.flatten(1).norm(dim=1)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0)
    assert float(expected.max() / expected.min()) > 2.0


def test_an_edited_image_begins_with_noise_of_one_spread():
    """At full strength and large sigma the data are forgotten, and only that noise is left."""
    sampler, seen = law(8), []
    forward = sampler.network.forward

    def watch(x, node, conditions):
        seen.append((x, node))
        return forward(x, node, conditions)

    watched = Sampler(replace(sampler.network, forward=watch))
    image = torch.zeros(2, *SHAPE)
    Editor(watched, "sdedit:strength=0.5,steps=6")(image, seeds=[5, 6])
    x, node = seen[0]
    noise = draw_noise(Noise([5, 6], SHAPE), EDM(aug_dim=8)) * node.sigma
    assert 0.002 < node.sigma < 80.0
    torch.testing.assert_close(x, noise.double())


@pytest.mark.parametrize(
    "name", ["ddpm", "sde-dpmpp-2", "euler-ancestral", "sa-solver", "heun:s_churn=40", "renoise"]
)
def test_solvers_that_add_noise_are_refused(name):
    with pytest.raises(SettingError, match=r"adds normal noise.*PFGM\+\+ \(aug_dim=8\)"):
        law(8)([0], solver=name, nfe=8 if name != "heun:s_churn=40" else 9)
    if name == "ddpm":
        grid = make_plan(EDM(), name, nfe=4).grid
        with pytest.raises(SettingError, match="this schedule adds normal noise"):
            law(8)([0], solver=solver(name).encode(grid))
        with pytest.raises(SettingError, match="adds normal noise"):
            Editor(law(8), "sdedit:solver=ddpm")(torch.zeros(1, *SHAPE))


def test_guidance_that_takes_the_noise_for_normal_is_refused():
    classes = replace(law(8).network, num_classes=2, null_class=2)
    measured = Measured("blur:1.5", torch.zeros(1, *SHAPE), method="mmps")
    for guidance, name in ((FeedbackGuidance(2.0), "fbg"), (measured, "mmps")):
        with pytest.raises(SettingError, match=f"{name} takes the noise for normal"):
            Sampler(classes)([0], class_labels=0, guidance=guidance, solver="ddim", nfe=4)


def test_there_is_no_score():
    with pytest.raises(SettingError, match="score of normal noise"):
        Denoiser(law(8).network).score(X, EDM().at(0.7))


def test_the_same_schedules_run_and_files_stay_as_they_are():
    """Files that were searched or written for EDM run, and EDM is written as before."""
    assert share_path(EDM(), EDM(aug_dim=8))
    assert "aug_dim" not in process_of(EDM())["params"]
    process = process_of(EDM(aug_dim=8))
    assert noise_schedule(process["family"], **process["params"]) == EDM(aug_dim=8)
    schedule = solver("unipc-2").encode(make_plan(EDM(), "unipc-2", nfe=5).grid)
    sampler = law(8)
    assert torch.equal(
        sampler([0, 1], solver=schedule).samples,
        sampler([0, 1], solver="unipc-2", grid=list(schedule.t)).samples,
    )


def test_the_dimension_is_a_whole_number_from_1_on_of_edm():
    for bad, match in ((0, "1 or more"), (-3, "1 or more"), (2.5, "whole"), (True, "whole")):
        with pytest.raises(SettingError, match=match):
            EDM(aug_dim=bad)
    facts = {"prediction": "edm", "shape": SHAPE}
    for bad, match in (
        ("edm:aug_dim=0", "1 or more"),
        ("edm:aug_dim=x", "whole number"),
        ("edm:augdim=8", "did you mean 'aug_dim'"),
        ("flow:aug_dim=8", "parameter of 'flow'"),
    ):
        with pytest.raises(FewstepError, match=match):
            from_module(torch.nn.Identity(), schedule=bad, **facts)
    network = from_module(torch.nn.Identity(), schedule="edm:aug_dim=128", **facts)
    assert network.schedule == EDM(aug_dim=128)
    assert getattr(RectifiedFlow(), "aug_dim", None) is None
