"""Experiments on top of `eval.bench`, one file each, and the parts of some of them."""
