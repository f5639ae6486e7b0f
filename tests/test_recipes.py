"""Recipes measure what they say."""

import math
from pathlib import Path

import pytest
import torch
from choose_defaults import choose, compare_features, rate
from compare_distilled import UPDATES, compare, compare_sprint, compare_update
from measure_networks import find_clean_share, format_blocks
from measure_tint import find_background, find_slope
from more_evaluations import compare_with_least, count_worse, format_ratio, format_rows

from fewstep.eval.experiments.distances import Distance, DistantRun
from fewstep.samplers.recipes import list_recipes


def test_every_recipe_and_update_agrees_with_diffusers_as_their_page_says():
    """If the page is stale: make recipes-page."""
    page = (Path(__file__).parents[1] / "docs" / "recipes.md").read_text()
    rows = [compare_sprint() if "sprint" in name else compare(name) for name in list_recipes()]
    for *cells, off in rows + [compare_update(spec) for spec in UPDATES]:
        assert f"| {' | '.join(cells)} |" in page
        assert float(off) < 1e-5, cells[0]


def test_the_clean_share_counts_two_rows_above_and_below():
    pixels = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    assert find_clean_share(pixels) == 1.0
    pixels[:, :, 2:-2] = 200  # the middle does not count
    pixels[0, 0, 1, :16] = 1  # 16 of 256 outer pixels
    assert find_clean_share(pixels) == 1.0 - 16 / 256
    assert find_clean_share(255 - pixels) == 1.0 - 16 / 256
    assert format_blocks([1.0, 2.0, 4.5]) == "2.500 (1.000..4.500)"


def test_the_rule_of_defaults_guards_the_worst_network():
    """Of candidates that are near the best, the one that loses least on any network."""
    candidates = [("unipc-2", "old"), ("unipc-2", "a"), ("unipc-2", "b"), ("unipc-2", "c")]
    figures = ([1.0, 1.0], [0.4, 1.15], [0.48, 0.99], [0.2, 1.3])
    means, worsts = rate([[distance(each) for each in row] for row in figures])
    assert worsts == pytest.approx([1.0, 1.15, 0.99, 1.3])
    assert means[1] == pytest.approx(math.sqrt(2.0 * 1.15 / 0.99))
    assert choose(candidates, means, worsts) == "b", "c is too far away on one network"
    assert choose(candidates, [3.0, 1.0, 1.1, 9.0], worsts) == "a", "b is not near the best"
    assert choose([("unipc-2:coordinate=t", "a")], [1.0], [0.5]) is None
    assert compare_features(distance(0.1, 0.3), distance(0.1, 0.6))[1] == "0.50"
    assert compare_features(distance(0.1), distance(0.1, 0.6)) == ("", "")


def test_more_evaluations_are_worse_where_the_interval_says_so():
    """Every noise twice as far away is worse than the least before it; one of them alone is not."""
    rows = [[4.0] * 9, [1.0] * 9, [4.0] * 9, [1.0] * 8 + [4.0]]
    _, second, third, fourth = compare_with_least(rows)
    assert second == pytest.approx((0.5, 0.5, 0.5))
    assert third == pytest.approx((2.0, 2.0, 2.0))
    assert fourth[1] == 1.0 < fourth[0] < fourth[2]
    assert format_ratio(third) == "**2.00 [2.00, 2.00]**"
    made = [distance(each[0] ** 0.5, each[0]) for each in rows]
    assert count_worse(made) == 2, "in both columns"
    assert "| 5 | `old` | 2.0000 (2.0000..2.0000) | **2.00" in "\n".join(format_rows("net", made))


def distance(rms, features=None):
    run = DistantRun(network="net", process="vp", reference="", noises=3, nfe=5, grid="old")
    seen = None if features is None else (features**2,) * 3
    return Distance(run=run, squares=(rms**2,) * 3, features=seen)


def test_the_share_of_a_tint_is_that_on_the_background():
    images = torch.ones(2, 3, 8, 8)
    images[:, 1, 3:5, 3:5] = 0.2
    where = find_background(images)
    assert int((~where).sum()) == 2 * 3 * 16  # the object, and the pixels around it
    tint = torch.randn(2, 3, 1, 1).expand_as(images)
    left = torch.where(where, 0.4 * tint, 9.0 * tint)
    assert abs(find_slope(tint, left, where) - 0.4) < 1e-6
