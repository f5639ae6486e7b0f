"""Statistics of features: closed forms, merging, files, and what is refused."""

import warnings

import numpy as np
import pytest
import torch

from fewstep.eval.statistics import (
    FeatureOrigin,
    Moments,
    Statistics,
    StatisticsError,
    frechet,
)
from fewstep.eval.statistics_file import holds_statistics, load_npz, load_output, save_npz

HERE = FeatureOrigin("inception", "abc", "tf1-bilinear-299")


def features(n, dim, seed=0):
    g = torch.Generator().manual_seed(seed)
    mix = torch.randn(dim, dim, generator=g, dtype=torch.float64)
    return torch.randn(n, dim, generator=g, dtype=torch.float64) @ mix + 3.0


def fit(rows, origin=HERE):
    moments = Moments(rows.shape[1])
    moments.update(rows)
    return moments.statistics(origin)


def gaussian(mean, std, n=1000, turn=0.0):
    """A Gaussian in the plane with these standard deviations, turned by an angle."""
    axes = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return Statistics(np.array(mean, float), axes @ np.diag(np.square(std)) @ axes.T, n, HERE)


def test_distance_of_gaussians_in_closed_form():
    """With axes shared: |m|^2 + sum (s1 - s2)^2, whatever the axes are."""
    a, b = gaussian([0, 0], [1, 4], turn=0.7), gaussian([3, 4], [2, 1], turn=0.7)
    assert frechet(a, b) == pytest.approx(25 + 1 + 9, rel=1e-12)
    assert frechet(a, a) == pytest.approx(0.0, abs=1e-12)


def test_distance_of_gaussians_with_crossed_axes():
    """tr (S1 S2)^(1/2) of 2 x 2 matrices is (tr S1 S2 + 2 (det S1 S2)^(1/2))^(1/2)."""
    a, b = gaussian([0, 0], [1, 3]), gaussian([0, 0], [2, 5], turn=1.0)
    product = a.cov @ b.cov
    root = np.sqrt(np.trace(product) + 2 * np.sqrt(np.linalg.det(product)))
    assert frechet(a, b) == pytest.approx(10 + 29 - 2 * root, rel=1e-12)


def test_distance_is_exact_where_a_covariance_is_singular():
    """A point against a line, and two lines: digits get lost in roots of zero eigenvalues."""
    point, line = gaussian([0, 0], [0, 0]), gaussian([0, 2], [3, 0])
    assert frechet(point, line) == pytest.approx(4 + 9, rel=1e-13)
    assert frechet(line, gaussian([0, 0], [5, 0])) == pytest.approx(4 + 4, rel=1e-13)
    rows = features(20, 200)
    with pytest.warns(UserWarning, match="20 images are too few for 200 features"):
        assert frechet(fit(rows), fit(rows)) == pytest.approx(0.0, abs=1e-9)


def test_distance_is_the_one_by_eigenvalues():
    a, b = fit(features(500, 40)), fit(features(500, 40, seed=1))
    roots = np.sqrt(np.linalg.eigvals(a.cov @ b.cov).astype(complex)).real.sum()
    moved = ((a.mu - b.mu) ** 2).sum()
    assert frechet(a, b) == pytest.approx(
        moved + np.trace(a.cov) + np.trace(b.cov) - 2 * roots, rel=1e-10
    )
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-12)


def test_a_root_of_many_images_is_cholesky_s_and_gives_the_same_distance():
    a, b = fit(features(400, 12)), fit(features(300, 12, seed=1))
    assert not np.triu(a.root, 1).any()
    few = [Statistics(each.mu, each.cov, 0, HERE) for each in (a, b)]
    assert np.triu(few[0].root, 1).any()
    assert frechet(a, b) == pytest.approx(frechet(*few), rel=1e-12)


def test_moments_give_mean_and_unbiased_covariance():
    rows = features(100, 7)
    found = fit(rows)
    np.testing.assert_allclose(found.mu, rows.numpy().mean(0), rtol=1e-13)
    np.testing.assert_allclose(found.cov, np.cov(rows.numpy(), rowvar=False), rtol=1e-10)
    assert found.n == 100


def test_moments_do_not_depend_on_batches_parts_or_their_way_through_tensors():
    rows = features(100, 7)
    whole = fit(rows)
    parts = [Moments(7), Moments(7)]
    for moments, part in zip(parts, rows.split([37, 63]), strict=True):
        for batch in part.split(10):
            moments.update(batch)
    added = Moments.from_tensor(parts[0].to_tensor() + parts[1].to_tensor()).statistics(HERE)
    parts[0].merge(parts[1])
    for found in (parts[0].statistics(HERE), added):
        assert found.n == 100
        np.testing.assert_allclose(found.mu, whole.mu, rtol=1e-13)
        np.testing.assert_allclose(found.cov, whole.cov, rtol=1e-10)


def test_moments_of_float32_features_are_float64():
    rows = features(50, 3).float() + 1000.0
    found = fit(rows)
    np.testing.assert_allclose(found.cov, np.cov(rows.double().numpy(), rowvar=False), rtol=1e-8)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (torch.full((4, 3), torch.nan), "NaN or infinity"),
        (torch.full((4, 3), torch.inf), "NaN or infinity"),
        (torch.ones(4, 5), r"not \(B, 3\)"),
        (torch.ones(3), r"not \(B, 3\)"),
    ],
)
def test_moments_refuse(rows, message):
    moments = Moments(3)
    with pytest.raises(StatisticsError, match=message):
        moments.update(rows)
    assert moments.n == 0


def test_moments_need_two_images_and_one_dimension():
    moments = Moments(3)
    moments.update(torch.ones(1, 3))
    with pytest.raises(StatisticsError, match="at least 2 images, not 1"):
        moments.statistics()
    with pytest.raises(StatisticsError, match="another dimension"):
        moments.merge(Moments(4))


def test_constant_images_have_no_spread():
    found = fit(torch.full((10, 3), 0.1))
    np.testing.assert_allclose(found.cov, np.zeros((3, 3)), atol=1e-16)


def test_a_file_gives_back_every_bit_and_the_origin(tmp_path):
    found = fit(features(50, 7))
    save_npz(tmp_path / "a.npz", {"pool": found}, {})
    again = load_output(tmp_path / "a.npz")
    assert np.array_equal(found.mu, again.mu)
    assert np.array_equal(found.cov, again.cov)
    assert (again.n, again.origin, again.sha256) == (50, HERE, found.sha256)
    assert fit(features(50, 7, seed=1)).sha256 != found.sha256
    assert Statistics(found.mu, found.cov, 51, HERE).sha256 != found.sha256


def test_files_of_adm_hold_both_kinds(tmp_path):
    pool, spatial = fit(features(50, 5)), fit(features(50, 4))
    np.savez(
        tmp_path / "adm.npz",
        mu=pool.mu.astype(np.float32),
        sigma=pool.cov,
        mu_s=spatial.mu,
        sigma_s=spatial.cov,
        arr_0=np.zeros((2, 4, 4, 3), np.uint8),
    )
    assert np.array_equal(load_output(tmp_path / "adm.npz").cov, pool.cov)
    assert load_output(tmp_path / "adm.npz").mu.dtype == np.float64
    found = load_output(tmp_path / "adm.npz", "spatial")
    assert np.array_equal(found.mu, spatial.mu)
    assert (found.n, found.origin) == (0, None)
    assert holds_statistics(tmp_path / "adm.npz")


def test_files_of_raw_features_are_summed_up(tmp_path):
    rows = features(50, 5).float()
    np.savez(tmp_path / "raw.npz", pool_3=rows.numpy())
    statistics, kept = load_npz(tmp_path / "raw.npz")
    np.testing.assert_allclose(statistics["pool"].cov, fit(rows).cov, rtol=1e-12)
    assert statistics["pool"].n == 50
    assert np.array_equal(kept["pool"], rows.numpy())


def test_statistics_in_a_file_count_more_than_its_rows(tmp_path):
    """Rows may be some of the features that mean and covariance are of."""
    rows, all_rows = features(20, 5), fit(features(50, 5))
    np.savez(tmp_path / "a.npz", pool_3=rows.numpy(), mu=all_rows.mu, sigma=all_rows.cov, n=50)
    statistics, some = load_npz(tmp_path / "a.npz")
    assert np.array_equal(statistics["pool"].cov, all_rows.cov)
    assert (statistics["pool"].n, len(some["pool"])) == (50, 20)


def save_what_is_no_covariance(folder):
    """Files whose second moments are none, and what is said of each."""
    skew = np.array([[1.0, 0.5], [-0.5, 1.0]])
    cases = {
        "negative": (np.zeros(2), -np.eye(2), "negative eigenvalues"),
        "one_negative": (np.zeros(2), np.diag([1.0, -0.01]), "negative eigenvalues"),
        "skew": (np.zeros(2), skew, "not symmetric"),
        "off": (np.zeros(2), np.array([[1.0, 0.5], [0.49, 1.0]]), "not symmetric"),
        "complex": (np.zeros(2), np.eye(2) + 1j * np.eye(2), "sigma must hold real numbers"),
        "complex_mean": (np.zeros(2) + 1j, np.eye(2), "mu must hold real numbers, not complex128"),
        "words": (np.array(["a", "b"]), np.eye(2), "mu must hold real numbers"),
        "infinite": (np.zeros(2), np.diag([1.0, np.inf]), "NaN or infinity"),
        "square": (np.zeros((2, 2)), np.eye(2), r"must be \(D,\)"),
        "empty": (np.zeros(0), np.zeros((0, 0)), r"must be \(D,\)"),
    }
    for name, (mean, cov, _) in cases.items():
        np.savez(folder / f"{name}.npz", mu=mean, sigma=cov)
    np.savez(folder / "count.npz", mu=np.zeros(2), sigma=np.eye(2), n=-3)
    np.savez(folder / "rows.npz", pool_3=np.ones((3, 2), complex))
    np.savez(folder / "deep.npz", mu=np.zeros(2), sigma=np.eye(2), origin="[" * 100_000)
    others = {"count": "not -3", "rows": "pool_3 must hold real", "deep": "not a readable npz"}
    return {name: says for name, (_, _, says) in cases.items()} | others


def test_a_covariance_that_was_rounded_is_one(tmp_path):
    """Of fewer images than features it is singular: rounding alone makes eigenvalues negative."""
    exact = fit(features(20, 200))
    for dtype in (np.float32, np.float64):
        np.savez(tmp_path / "a.npz", mu=exact.mu.astype(dtype), sigma=exact.cov.astype(dtype))
        found = load_output(tmp_path / "a.npz")
        assert np.linalg.eigvalsh(found.cov)[0] < 0.0
        assert np.array_equal(found.cov, exact.cov.astype(dtype))


def test_files_that_are_none(tmp_path):
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((2, 4, 4, 3), np.uint8))
    np.savez(tmp_path / "pickled.npz", mu=np.array([{}]), sigma=np.zeros((1, 1)))
    np.savez(tmp_path / "shapes.npz", mu=np.zeros(3), sigma=np.zeros((2, 2)))
    np.savez(tmp_path / "nan.npz", mu=np.full(2, np.nan), sigma=np.zeros((2, 2)))
    np.savez(tmp_path / "flat.npz", pool_3=np.zeros(5))
    np.savez(tmp_path / "origin.npz", mu=np.zeros(2), sigma=np.zeros((2, 2)), origin="{")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "shapes.npz").read_bytes()[:100])
    np.savez(tmp_path / "good.npz", mu=np.zeros(2), sigma=np.eye(2))
    messages = {
        "images": "no statistics; it needs the keys mu and sigma",
        "pickled": "not a readable npz",
        "shapes": r"must be \(D,\) and \(D, D\)",
        "nan": "NaN",
        "flat": r"must be \(n, D\)",
        "origin": "not a readable npz",
        "cut": "not a readable npz",
        "missing": "no file",
        **save_what_is_no_covariance(tmp_path),
    }
    for name, message in messages.items():
        with pytest.raises(StatisticsError, match=message):
            load_output(tmp_path / f"{name}.npz")
    with pytest.raises(StatisticsError, match="no statistics of spatial features, only of pool"):
        load_output(tmp_path / "good.npz", "spatial")
    assert not holds_statistics(tmp_path / "images.npz")
    assert not holds_statistics(tmp_path / "missing.npz")


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (
            FeatureOrigin("clip", "abc", "tf1-bilinear-299"),
            "differ in extractor: 'inception' and 'clip'",
        ),
        (FeatureOrigin("inception", "abd", "tf1-bilinear-299"), "differ in weights"),
        (FeatureOrigin("inception", "abc", "bicubic"), "differ in resize"),
    ],
)
def test_sets_of_another_origin_are_refused(other, message):
    with pytest.raises(StatisticsError, match=message):
        frechet(fit(features(50, 3)), fit(features(50, 3), other))


def test_sets_of_another_dimension_are_refused():
    with pytest.raises(StatisticsError, match="3 features per image and the other 4"):
        frechet(fit(features(50, 3)), fit(features(50, 4)))


def test_an_unknown_origin_and_too_few_images_are_warned_of():
    rows = features(50, 3)
    with pytest.warns(UserWarning, match="unknown origin"):
        frechet(fit(rows), fit(rows, None))
    with pytest.warns(UserWarning, match="3 images are too few for 3 features"):
        frechet(fit(rows[:3]), fit(rows))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        frechet(fit(rows), fit(rows[:4]))
