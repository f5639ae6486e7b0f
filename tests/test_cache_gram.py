"""Inner products of full runs, and what they say of forecasts without the network."""

import numpy as np
import pytest
import torch

from fewstep.eval.cache_gram import record_gram
from fewstep.eval.search.masks import forecast_error, list_errors
from fewstep.models.caching import DeepCache, FirstBlock, FixedMask, TaylorSeer, find_attachment
from fewstep.models.caching.predictors import take_predictor
from fewstep.models.load import load
from fewstep.samplers.sampler import Sampler

CALLS, SEEDS = 6, range(4)
LABELS = [0, 1, 2, 3]
MASK = (0, 2, 3)


def draw(network, cache, nfe=CALLS, **call):
    return Sampler(network)(SEEDS, class_labels=LABELS, cache=cache, nfe=nfe, **call)


@pytest.fixture(scope="module")
def dit():
    return load("fashion-dit")


def test_inner_products_are_those_of_what_is_stored(dit):
    """Batches add up, and what the network draws is what it draws without a cache."""
    features = []

    def note(*_):
        (track,) = find_attachment(dit).engines[0].tracks.values()
        features.append(track.stores["image"].stored[0].clone().flatten().double())

    with pytest.warns(UserWarning, match="skipped none"):
        draw(dit, FixedMask(tuple(range(CALLS)), order=0), batch=4, solver="ddim", callback=note)
    rows = torch.stack(features)
    runs = []

    def run(cache):
        runs.append(draw(dit, cache, batch=3, solver="ddim").samples)

    gram = record_gram(FixedMask(MASK), run)
    np.testing.assert_allclose(gram, (rows @ rows.T).numpy(), rtol=1e-6)
    assert torch.equal(runs[0], draw(dit, None, batch=3, solver="ddim").samples)


@pytest.mark.parametrize("policy", [TaylorSeer(), FirstBlock(), TaylorSeer(level="last-block")])
def test_every_kind_of_cache_is_recorded(dit, policy):
    gram = record_gram(policy, lambda cache: draw(dit, cache, solver="ddim"))
    assert gram.shape == (CALLS, CALLS)
    assert np.linalg.eigvalsh(gram).min() > -1e-9 * np.trace(gram)
    assert (gram.diagonal() > 0).all()


def test_stages_of_a_step_and_unets_are_recorded(dit):
    heun = record_gram(TaylorSeer(), lambda cache: draw(dit, cache, nfe=7, solver="heun"))
    assert heun.shape == (4, 4)
    unet = load("fashion-unet")
    gram = record_gram(DeepCache(), lambda cache: draw(unet, cache, solver="ddim"))
    assert (gram.diagonal() > 0).all()


@pytest.mark.parametrize("spec", ["reuse", "taylor:order=2", "newton", "hermite"])
def test_the_quadratic_form_is_the_error_of_the_forecast(spec):
    predictor, calls = take_predictor(spec), 9
    values = torch.randn(calls, 40, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    gram = (values @ values.T).numpy()
    errors = list_errors(gram, MASK, lambda call, times: predictor.weights(call, times, calls))
    memory = predictor.make_memory(calls)
    for call in range(calls):
        if call in MASK:
            memory.update(values[call], call)
            assert errors[call] == 0.0
            continue
        direct = (memory.forecast(call) - values[call]).square().sum() / values[call].square().sum()
        assert errors[call] == pytest.approx(float(direct), rel=1e-12)
    assert forecast_error(gram, 4, (4,), (1.0,)) == 0.0
