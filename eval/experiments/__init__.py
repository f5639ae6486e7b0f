"""What is measured: one experiment each on top of `eval.bench`, and the parts of some of them."""
