"""Sampling: the loop, time grids, guidance, pictures."""
