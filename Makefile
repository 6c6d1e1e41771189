# Needs Python 3.11 or later with venv and pip, g++, make and perl. Everything else goes into .venv.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
READY := .venv/.ready

# The matrices are small: threads of one product would only wait for each other.
export OMP_NUM_THREADS ?= 1
export OPENBLAS_NUM_THREADS ?= 1

.PHONY: help demo test lint fuzz bench bitstreams docs format clean

help:  ## print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY)  ## compile the example, run it on every engine, compare: build/demo
	$(BIN)/python -m examples.demo

test: lint  ## all checks: format, rules, types, layers, tests
	$(BIN)/python -m pytest -n 2

lint: $(READY)  ## all checks but the tests
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

fuzz: $(READY)  ## damaged files, bad links, killed compiles, random models: only errors, nothing wrong; half an hour
	$(BIN)/python -m tests.fuzz --count 5000 --seed 0
	$(BIN)/python -m tests.faults --count 100000 --seed 0
	$(BIN)/python -m tests.kill --count 500 --seed 0
	$(BIN)/python -m tests.modules --count 500 --seed 0

bench: $(READY)  ## the reference workload on four machines, the HLS side, scaling; hours: benchmarks/results
	$(BIN)/python -m benchmarks.area
	$(BIN)/python -m benchmarks.run
	$(BIN)/python -m patchloom.sim.cycles check --count 50 --output benchmarks/results/cycles.json
	$(BIN)/python -m benchmarks.scaling
	$(BIN)/python -m benchmarks.hls
	$(BIN)/python -m benchmarks.core
	$(BIN)/python -m benchmarks.vendor
	$(BIN)/python -m benchmarks.soc

zoo: $(READY)  ## models that others wrote, what compiles of them and how well; fetches 40 MB; half an hour: docs/models.md
	$(INSTALL) --editable '.[zoo]'
	$(BIN)/python -m benchmarks.zoo
	$(BIN)/python -m benchmarks.zoo.real
	$(BIN)/python -m docs.models

bitstreams: $(READY)  ## route the small machine for two boards with two seeds each; an hour: benchmarks/results
	$(BIN)/python -m benchmarks.bitstreams

docs: $(READY)  ## write the tables and figures of docs/, but those of `make bench`
	$(BIN)/python -m docs.tables
	$(BIN)/python -m docs.core
	$(BIN)/python -m docs.boards
	$(BIN)/python -m docs.models
	$(BIN)/python -m docs.figures
	$(BIN)/python -m docs.accuracy
	$(BIN)/python -m examples.picture

format: $(READY)  ## rewrite the sources as `make lint` wants them
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

clean:  ## remove what was built; .venv stays
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -not -path './.venv/*' -exec rm -rf {} +

# torch first and alone: no other package may choose another one.
INSTALL := $(BIN)/pip install --constraint requirements.txt

$(READY): pyproject.toml requirements.txt tests/host/pynq.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) torch==2.13.0
	$(INSTALL) --editable '.[dev]'
	rm -rf .venv/pynq
	$(BIN)/pip install --no-deps --target .venv/pynq --requirement tests/host/pynq.txt
	touch $@
