# Every check that CI makes, one target each. PYTHON is the interpreter of an environment that has
# `pip install -c constraints.txt -e '.[dev]'` in it.
PYTHON ?= python

.PHONY: dev lint types test slow wheel bench docs fd-small check

dev:
	$(PYTHON) -m pip install -c constraints.txt -e '.[dev]'

lint:
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

types:
	mkdir -p .typing && ln -sfn .. .typing/fewstep
	$(PYTHON) -m mypy

test:
	$(PYTHON) -m pytest -m 'not slow'

slow:
	$(PYTHON) -m pytest -m slow

wheel:
	rm -rf build dist
	$(PYTHON) -m build --wheel

bench:
	fewstep bench overhead
	fewstep bench command

docs:
	$(PYTHON) -m fewstep.eval.docs docs/solvers

# The small feature network and its reference: about ten minutes on one core.
fd-small:
	fewstep data fashion-mnist
	$(PYTHON) recipes/train_fd_small.py
	$(PYTHON) recipes/measure_fd_small.py

check: lint types test slow
