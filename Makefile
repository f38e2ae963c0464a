# Two commands, each of which works on a fresh clone: `make demo` and `make test`.
# They make .venv themselves; a stamp file in it tells whether its packages are still the ones pyproject.toml asks for.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check

# Models and tests are small: more threads than this only get into each other's way.
export OMP_NUM_THREADS ?= 1
JOBS ?= 2

.PHONY: demo test
.DEFAULT_GOAL := demo

demo: .venv/.demo
	$(BIN)/python examples/01_optimize.py

test: .venv/.dev
	$(BIN)/python -m pytest -n $(JOBS)

.venv/.demo: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --editable '.[cpu,export]'
	touch $@

# What the tests need contains what the demo needs.
.venv/.dev: pyproject.toml setup.py
	$(PYTHON) -m venv .venv
	$(PIP) install --quiet --editable '.[dev]'
	touch .venv/.demo $@
