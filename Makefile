# Everything runs in .venv, made from constraints.txt on first use; nothing else is needed but Python 3.11 or newer.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: help compare test test-full regression lint types benchmark clean

help:
	@echo "make compare    compare every operator (ARGS=\"--operators ema,non_local\" for options)"
	@echo "make test       the test suite"
	@echo "make test-full  with the tests that take minutes"
	@echo "make regression MACs, parameters, peaks and rough latency against the committed reference"
	@echo "make lint       ruff: rules and format"
	@echo "make types      mypy --strict"
	@echo "make benchmark  pytest-benchmark over every operator, as JSON in .benchmarks/"

$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

compare: $(VENV)/.ready
	$(BIN)/python scripts/compare.py $(ARGS)

test: $(VENV)/.ready
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m "not full" $(ARGS)

test-full: $(VENV)/.ready
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(ARGS)

# Another machine than the reference's: its ratios may differ by much, its exact figures by nothing.
regression: $(VENV)/.ready
	rm -rf results/local/regression
	$(BIN)/python scripts/compare.py --preset regression --output results/local/regression \
		--against results/reference/xeon-2c/regression --margin-latency 4 --margin-elsewhere 9 $(ARGS)

lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.ready
	$(BIN)/mypy

benchmark: $(VENV)/.ready
	mkdir -p .benchmarks
	$(BIN)/python -m pytest tests/test_benchmark.py --benchmark-enable --benchmark-only --benchmark-json=.benchmarks/benchmark.json $(ARGS)

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .benchmarks build *.egg-info
