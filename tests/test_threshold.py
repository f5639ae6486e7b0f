"""Dynamic thresholding."""

from dataclasses import replace

import pytest
import torch

from fewstep import CFG, GaussianMixture, RectifiedFlow, Sampler, Thresholded
from fewstep.models.errors import SettingError
from fewstep.samplers.guidance.base import BOTH, Moment

NODE = RectifiedFlow().at(0.5)


def test_each_sample_is_clamped_at_its_own_quantile_and_rescaled():
    small = torch.linspace(-0.9, 0.9, 11)
    large = torch.linspace(-4.0, 4.0, 11)
    x0 = torch.stack([small, large]).reshape(2, 1, 1, 11)
    found = Thresholded(quantile=0.7).clip(x0)
    q = torch.quantile(large.abs(), 0.7)
    assert torch.equal(found[0], x0[0])
    torch.testing.assert_close(found[1, 0, 0], large.clamp(-q, q) / q)
    assert 1.0 < q < 4.0
    assert float(x0[1].max()) == 4.0


def test_quantile_one_divides_by_the_largest():
    x0 = torch.tensor([-2.0, 1.0, 4.0]).reshape(1, 1, 1, 3)
    found = Thresholded(quantile=1.0).clip(x0)
    assert found.flatten().tolist() == [-0.5, 0.25, 1.0]


def test_it_thresholds_what_the_guidance_gives():
    uncond, cond = torch.zeros(1, 1, 1, 4), torch.full((1, 1, 1, 4), 0.8)
    policy = Thresholded(CFG(3.0))
    guide = policy.stateless()
    assert guide.ask(Moment(NODE)) == BOTH
    assert guide.combine([uncond, cond], cond, Moment(NODE)).flatten().tolist() == [1.0] * 4


def test_latents_are_refused_unless_meant():
    law = GaussianMixture.single(torch.zeros(4), torch.full((4,), 3.0))
    network = law.network(RectifiedFlow(), (1, 2, 2))
    latent = Sampler(replace(network, decode=lambda x: x))
    with pytest.raises(SettingError, match="latents=True"):
        latent([0], nfe=3, guidance=Thresholded())
    kept = latent([0], nfe=3, guidance=Thresholded(latents=True)).samples
    assert kept.abs().max() <= 1.0
    assert torch.equal(kept, Sampler(network)([0], nfe=3, guidance=Thresholded()).samples)


@pytest.mark.parametrize("settings", [{"quantile": 0.0}, {"quantile": 1.1}, {"floor": 0.0}])
def test_bad_settings(settings):
    with pytest.raises(SettingError, match="usual"):
        Thresholded(**settings)
