"""Recipes measure what they say."""

import torch
from measure_networks import find_clean_share, format_blocks


def test_the_clean_share_counts_two_rows_above_and_below():
    pixels = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    assert find_clean_share(pixels) == 1.0
    pixels[:, :, 2:-2] = 200  # the middle does not count
    pixels[0, 0, 1, :16] = 1  # 16 of 256 outer pixels
    assert find_clean_share(pixels) == 1.0 - 16 / 256
    assert find_clean_share(255 - pixels) == 1.0 - 16 / 256
    assert format_blocks([1.0, 2.0, 4.5]) == "2.500 (1.000..4.500)"
