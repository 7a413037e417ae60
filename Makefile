# `make` alone lists the targets. Those that need the environment create it, and renew it when pyproject.toml changes.

VENV ?= .venv
TF ?= tf-cpu
ARGS ?=

# The first interpreter that is supported and can make an environment; an exact 3.11 is preferred.
PYTHON ?= $(shell for p in python3.11 python3 python3.12 python3.13; do \
	$$p -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)

# For long tests: no limit, and no dump of stacks after a while, which may crash a process that is at work.
UNHURRIED := --timeout 0 -o faulthandler_timeout=0

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help venv demo test fuzz peers soak truth costs overlap lint format types check check-all matrix bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  Variables: ARGS='-k name' is passed on to the tool; TF=tf installs tensorflow instead of tensorflow-cpu;"
	@echo "  PYTHON=python3.12 picks the interpreter of the environment; VENV=dir its place."

# Legacy Keras asks for the package tensorflow, which would be put over tensorflow-cpu.
$(INSTALLED): pyproject.toml
	@test -n "$(PYTHON)" || { echo "no Python 3.11 to 3.13 with the venv module found; set PYTHON=..." >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(TF),dev]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps "tf-keras==$$($(BIN)/python tools/legacy_keras.py)"
	@touch $@

venv: $(INSTALLED) ## create the environment in .venv

demo: $(INSTALLED) ## one program under terra-run and in plain eager: step times, and that the numbers are equal
	$(BIN)/python tools/demo.py $(ARGS)

test: $(INSTALLED) ## run the tests, two at a time
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

fuzz: $(INSTALLED) ## random programs, eager and co-executed: 10,000, or PROGRAMS=n; Ctrl-C at 500 places, or PLACES=n
	FUZZ_PROGRAMS=$(or $(PROGRAMS),10000) $(BIN)/python -m pytest tests/fuzz -s $(UNHURRIED) $(ARGS)
	FUZZ_PLACES=$(or $(PLACES),500) $(BIN)/python -m pytest tests/run/test_faults.py -k any_moment $(UNHURRIED) $(ARGS)

# TensorFlow Graphics asks for packages that exist for no Python of ours (OpenEXR, tensorflow-addons); its tests do not.
peers: $(INSTALLED) ## the tests that Sonnet and TensorFlow Graphics carry, in eager and co-executed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(TF),dev,peers]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps tensorflow-graphics==2021.12.3
	$(BIN)/python tools/peers.py $(ARGS)

soak: $(INSTALLED) ## 100,000 steps of a program that keeps changing: memory, graphs, tensors and files must not grow
	SOAK_STEPS=$(or $(STEPS),100000) $(BIN)/python -m pytest tests/test_soak.py -s $(UNHURRIED) $(ARGS)

truth: $(INSTALLED) ## each metric of a profile against what a program measures itself; parts of a step add up to the step
	PROFILE_TRUTH=1 $(BIN)/python -m pytest tests/profile/test_truth.py -s $(UNHURRIED) $(ARGS)

lint: $(INSTALLED) ## check style and format with ruff
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED) ## rewrite to the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED) ## check types with mypy
	$(BIN)/mypy

check-all: lint types test ## lint, types and test

check: $(INSTALLED) ## run the programs eager and co-executed, and compare every value that reached Python
	$(BIN)/terra-cx check programs --steps 60 $(ARGS)

matrix: $(INSTALLED) ## the quick tests under every supported Python and TensorFlow (environments in .matrix)
	$(BIN)/python tools/matrix.py $(ARGS)

costs: $(INSTALLED) ## what a validated op, a read, a write, a tape cost Python, beside eager
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[$(TF),dev,costs]'
	$(BIN)/python -m pytest benchmarks --benchmark-columns=median,iqr,rounds $(ARGS)
	$(BIN)/python tools/profile_costs.py

overlap: $(INSTALLED) ## a step whose NumPy augmentation takes as long as its graph, in eager, tf.function and co-executed
	$(BIN)/python benchmarks/overlap.py

bench: $(INSTALLED) ## step times of the programs at small scale, in every mode
	$(BIN)/terra-cx bench programs --steps 150 $(ARGS) -- --scale small

clean: ## remove environments and caches
	rm -rf $(VENV) .matrix build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
