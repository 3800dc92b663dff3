# Thin: each target is one tool call in .venv, which is made on first use.
#
# Settings:  make profile RUN=foo PROFILE=stacks WORKLOAD=charlm MAX_DURATION=2ep ARGS="-o lr=0.01 --seed 17"
#   RUN           the run's name; left out, one is generated
#   PROFILE       capture recipe: quick, steady, memory, stacks, off, or a .toml file
#   WORKLOAD      digits, charlm, or your own as my_pkg.train:build
#   MAX_DURATION  2ep, 100ba, 90sec, 1h30m
#   ROOT          folder that holds the runs (runs)
#   RESUME=1      go on with the run;  OVERWRITE=1  replace it
#   PORT          of TensorBoard (6006)
#   BASE          the revision that benchmark-compare holds the working tree against (main)
#   N             how often torture kills a process (200)
#   ARGS          more options, as `harness train --help` lists them; for the tests: pytest's

PYTHON ?= python3
.DEFAULT_GOAL := help
SHELL := /bin/sh

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.installed
MEASURED := build/benchmark.json
SHORT_MEASURED := build/benchmark-short.json
SAVED := benchmarks/results/latest.json
HARNESS := exec $(BIN)/python -m harness

# What the user typed reaches the recipes through the environment, as it is: no $ in it is expanded by make, and
# no quote by the shell. One that was not given is not set; one that was given empty is set and empty.
define as_typed
ifneq ($$(origin $(1)),undefined)
override $(1) := $$(value $(1))
export $(1)
endif
endef
$(foreach name,RUN PROFILE WORKLOAD MAX_DURATION ROOT PORT BASE N,$(eval $(call as_typed,$(name))))

is_on = $(filter-out 0 no false off,$($(1)))
FLAGS := $(if $(call is_on,RESUME),--resume) $(if $(call is_on,OVERWRITE),--overwrite)
GIVEN := $${PROFILE+--profile="$$PROFILE"} $${WORKLOAD+--workload="$$WORKLOAD"} \
	$${MAX_DURATION+--max-duration="$$MAX_DURATION"} $${ROOT+--root="$$ROOT"} $(FLAGS)

.PHONY: help install profile train tensorboard test test-slow test-browser test-gpu torture benchmark benchmark-check benchmark-compare benchmark-peers benchmark-gate lint format typecheck check clean

help: ## Show this
	@echo 'make profile RUN=foo trains the workload `digits` and captures traces of it into runs/foo'
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | \
		while IFS='	' read -r target text; do printf '  %-17s %s\n' "$$target" "$$text"; done
	@sed -n 's/^#   /  /p' $(firstword $(MAKEFILE_LIST))

install: $(READY) ## Make .venv with everything in it

profile: $(READY) ## Train and capture traces: RUN= PROFILE= WORKLOAD= MAX_DURATION= RESUME=1 OVERWRITE=1 ROOT= ARGS=
	@$(HARNESS) profile $(GIVEN) $(ARGS) $${RUN+-- "$$RUN"}

train: $(READY) ## Train without traces; the same settings
	@$(HARNESS) train $(GIVEN) $(ARGS) $${RUN+-- "$$RUN"}

tensorboard: $(READY) ## Serve the runs on this machine: ROOT= PORT=
	@$(HARNESS) tensorboard $${ROOT+--root="$$ROOT"} $${PORT+--port="$$PORT"} $(ARGS)

test: $(READY) ## Run the tests that take seconds
	$(BIN)/python -m pytest $(ARGS)

test-slow: $(READY) ## Run the slow tests
	$(BIN)/python -m pytest -m slow $(ARGS)

test-browser: $(READY) ## Run the tests that drive a headless Chromium
	$(BIN)/python -m pytest -m browser $(ARGS)

test-gpu: $(READY) ## Run the tests that need a CUDA device
	$(BIN)/python -m pytest -m gpu $(ARGS)

torture: $(READY) ## Kill training processes N=200 times at random moments, resume them, and compare every bit
	@$(BIN)/python tests/torture/torture.py --kills="$${N-200}" $(ARGS)

benchmark: $(READY) ## Measure what the harness costs (25 minutes), and write docs/overhead.md
	@mkdir -p build
	$(BIN)/python -m pytest benchmarks --benchmark-enable --benchmark-json=$(MEASURED) --benchmark-quiet $(ARGS)
	$(BIN)/python benchmarks/publish.py $(MEASURED) $(SAVED)
	@$(BIN)/python benchmarks/table.py $(SAVED)
	$(BIN)/python benchmarks/report.py $(SAVED)

benchmark-check: $(READY) ## Hold the budgets against what `make benchmark` saved; SHORT=1 measures a few, with wide limits
ifneq ($(call is_on,SHORT),)
	@mkdir -p build
	$(BIN)/python -m pytest $$($(BIN)/python benchmarks/check.py --short --names) --benchmark-enable \
		--benchmark-json=$(SHORT_MEASURED) --benchmark-quiet --benchmark-max-time=0.3 --processes=2 --steps=600 $(ARGS)
	@$(BIN)/python benchmarks/check.py --short $(SHORT_MEASURED)
else
	@$(BIN)/python benchmarks/check.py $(SAVED) $(ARGS)
endif

benchmark-compare: $(READY) ## Say whether the working tree is slower than BASE=main (or any revision)
	@$(BIN)/python benchmarks/compare.py $(ARGS) -- "$${BASE:-main}"

benchmark-peers: $(READY) ## Measure other frameworks in an environment of their own (hours, gigabytes)
	$(BIN)/python benchmarks/peers/run.py $(ARGS)

benchmark-gate: $(READY) ## Try benchmark-compare out: planted slowdowns, and the tree against itself (an hour)
	$(BIN)/python benchmarks/gate_trials.py $(ARGS)

lint: $(READY) ## Check style and layout
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check

format: $(READY) ## Lay out the code and mend what can be mended
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format

typecheck: $(READY) ## Check types
	$(BIN)/python -m mypy

check: lint typecheck test ## All that must pass before a change is done

clean: ## Remove .venv, caches and build output; runs stay
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamp is written last, so a .venv that was left half made is made again from nothing.
$(READY): pyproject.toml constraints.txt
	@command -v "$(PYTHON)" >/dev/null || \
		{ echo 'error: there is no $(PYTHON); install Python 3.11 or later, or give PYTHON=/path/to/python' >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(PYTHON) is $$("$(PYTHON)" -V 2>&1), and 3.11 or later is needed; give PYTHON=python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo 'error: this Python cannot make virtual environments; on Debian: apt install python3-venv' >&2; exit 1; }
	@test -f $@ && $(BIN)/python -m pip --version >/dev/null 2>&1 || "$(PYTHON)" -m venv --clear $(VENV)
	@rm -f $@
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
