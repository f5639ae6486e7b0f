"""Weights fitted to full runs: the least squares, the ridge, and what chooses it."""

import json

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from fewstep.cli import app
from fewstep.eval import cache_fit
from fewstep.eval.cache_fit import choose_table, fit_predictor, fit_rows
from fewstep.eval.experiments import cache as experiment
from fewstep.models.caching import FirstBlock, FixedMask, take_cache
from fewstep.models.caching.predictors import Fitted, Taylor
from fewstep.models.errors import SettingError
from fewstep.samplers.cache_file import CacheFile

MASK = (0, 1)


def weigh(series, rho, mask=MASK):
    values = np.array(series)
    return {call: weights for call, _, weights in fit_rows(values @ values.T, mask, rho)}


def test_least_squares_find_what_made_the_series_and_a_large_ridge_a_line():
    """Of .9^i a + .5^i b, three calls on: -.45 (a .9 b .5) and 1.4 make (-.63, 1.51)."""
    a, b = np.random.default_rng(1).normal(size=(2, 7))
    series = [0.9**i * a + 0.5**i * b for i in range(4)]
    assert weigh(series, 0.0)[3] == pytest.approx((1.51, -0.63), abs=1e-5)
    assert weigh(series, 1e9)[3] == pytest.approx((3.0, -2.0), abs=1e-5)
    assert weigh(series, np.inf)[3] == (3.0, -2.0)
    shrunk = weigh(series, 1e-2)[3]
    assert 1.51 < shrunk[0] < 3.0
    assert weigh(series, np.inf, (0,))[1] == (1.0,)


def test_rows_look_at_the_last_four_full_calls():
    values = np.random.default_rng(2).normal(size=(9, 30))
    rows = fit_rows(values @ values.T, (0, 1, 2, 4, 5, 7), 1e-3)
    assert [(call, times) for call, times, _ in rows] == [
        (3, (2, 1, 0)),
        (6, (5, 4, 2, 1)),
        (8, (7, 5, 4, 2)),
    ]
    assert take_cache(f"taylorseer:predictor=fitted:rows={json.dumps(rows)}").keep.predictor == (
        Fitted(rows=rows)
    )


def test_a_table_must_beat_the_line_by_more_than_one_standard_error():
    tables = [((1, (0,), (float(k),)),) for k in range(3)]
    noise = np.array([0.1, -0.1, 0.2, -0.2])

    def measure(shift):
        return lambda rows: 1.0 - shift * rows[0][2][0] + noise * (1.0 + rows[0][2][0])

    assert choose_table(tables, measure(0.2)) == tables[2]
    assert choose_table(tables, measure(0.02)) == tables[0]
    assert choose_table(tables, measure(-0.2)) == tables[0]


def test_full_calls_too_far_apart_for_any_weights_are_refused(monkeypatch):
    """A line over eighteen calls weighs 19 and -18, and least squares grow as much here."""
    values = np.arange(20.0)[:, None] * [[1.0, 2.0]] + 1.0
    monkeypatch.setattr(cache_fit, "record_gram", lambda policy, run: values @ values.T)
    monkeypatch.setattr(cache_fit, "RIDGES", (0.0,))
    with pytest.raises(SettingError, match="too far apart; skip fewer in a row"):
        fit_predictor(FixedMask(MASK), lambda seeds, policy: torch.ones(len(seeds), 1), range(40))


def test_a_network_whose_features_decay_is_fitted_and_gates_are_refused(monkeypatch):
    """Where lines are wrong by construction, the fit is not."""
    monkeypatch.setattr(cache_fit, "FIT", 6)
    gram = np.array([[0.5 ** (a + b) for a in range(5)] for b in range(5)])
    monkeypatch.setattr(cache_fit, "record_gram", lambda policy, run: gram)

    def draw(seeds, policy):
        """An image of call 4 as the policy's forecasts make it."""
        value = 0.5**4
        if policy is not None:
            value = policy.keep.predictor.weights(4, (1, 0))
            value = value[0] * 0.5 + value[1]
        return torch.full((len(seeds), 1), value) * torch.tensor([[1.0 + s] for s in seeds])

    chosen = fit_predictor(FixedMask(MASK), draw, range(10))
    assert draw([0], chosen) == pytest.approx(0.0625, abs=0.02)
    assert draw([0], FixedMask(MASK, predictor=Taylor())) == -1.0
    with pytest.raises(SettingError, match="by a gate"):
        fit_predictor(FirstBlock(), draw, range(10))


def test_calibrate_writes_weights_that_sample_takes_for_this_run_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(experiment, "FIT_SEEDS", range(100, 104))
    monkeypatch.setattr(cache_fit, "FIT", 2)
    out = tmp_path / "c.json"
    words = ["calibrate", "fashion-dit", "--solver", "ddim", "--nfe", "6", "--images", "2"]
    words += ["--reference-nfe", "8"]
    words += ["--cache", "taylorseer:interval=2,level=last-block", "--predictor", "fitted"]
    done = CliRunner().invoke(app, [*words, "--quality", "psnr=3", "--out", str(out)])
    assert done.exit_code == 0, done.output
    policy = take_cache(CacheFile.load(out).cache)
    assert [row[0] for row in policy.keep.predictor.rows] == [2, 4]
    drawn = ["sample", "fashion-dit", "--solver", "ddim", "--classes", "3", "--per-class", "1"]
    drawn += ["--out", str(tmp_path / "a.png")]
    assert CliRunner().invoke(app, [*drawn, "--nfe", "6", "--cache", str(out)]).exit_code == 0
    refused = CliRunner().invoke(app, [*drawn, "--nfe", "8", "--cache", str(out)])
    assert refused.exit_code == 2
    forced = CliRunner().invoke(app, [*drawn, "--nfe", "8", "--cache", str(out), "--force"])
    assert "there are no fitted weights for call 6" in forced.output
