"""Sampling inside diffusers pipelines: a scheduler and guidance for them."""
