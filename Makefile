# Stillhouse: `make demo` and `make test` set up all they need in .venv.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

.DEFAULT_GOAL := help
.PHONY: help demo up test proofs chaos bench lint format clean

help:  ## What there is to make
	@grep -E '^[a-z]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet torch --constraint constraints.txt
	$(BIN)/python -m pip install --quiet --editable '.[dev,s3]' --constraint constraints.txt
	touch $@

demo: $(READY)  ## Train, distil and predict on a real table, on a cluster started for it
	$(BIN)/python -m deployments.demo

up: $(READY)  ## Start the service and stay: http://127.0.0.1:8000/docs
	$(BIN)/stillhouse up

test: $(READY)  ## The tests, on a real local cluster where they need one
	$(BIN)/python -m pytest

proofs: $(READY)  ## The longer tests on live clusters, which make test leaves out
	$(BIN)/python -m pytest -m proof

chaos: $(READY)  ## Kill trainers at random under load for two minutes
	CHAOS_SECONDS=120 $(BIN)/python -m pytest tests/cluster/test_chaos.py

bench: $(READY)  ## Measure against the peers; writes benchmarks/README.md
	$(BIN)/python -m pip install --quiet --requirement benchmarks/requirements.txt --constraint constraints.txt
	$(BIN)/python -m benchmarks

lint: $(READY)  ## Style, types and the floors of the house
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY)  ## Rewrite the layout of all files
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:  ## Remove what make set up
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
