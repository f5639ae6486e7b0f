"""Search for schedules: a better sampler for one network, found by trying."""
