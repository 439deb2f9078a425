PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A file of tests stays in one process, which keeps what its tests share.
SIDE_BY_SIDE := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder
ROOMS := tests/nightfold tests/tasks tests/flows tests/benchmarks tests/hostile

.DEFAULT_GOAL := help
.PHONY: help setup run test coverage lint fast hostile chaos fuzz load format lock clean

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.ready ## virtual environment in .venv, locked dependencies, byte code compiled

$(VENV)/.ready: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; (3, 11) <= v < (3, 14) or sys.exit("Nightfold needs Python 3.11, 3.12 or 3.13; this is %d.%d. Choose another with: make PYTHON=python3.12 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --requirement requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(BIN)/python -m compileall -q -j 0 $(VENV)/lib nightfold tasks flows || true
	@touch $@

run: setup ## the main job: cross-validate, report, fit and promote a model on the shipped MNIST
	$(BIN)/nightfold retrain

test: lint ## lint, types, import contract and all tests
	$(BIN)/pytest $(SIDE_BY_SIDE) $(ROOMS)
	$(BIN)/pytest $(SIDE_BY_SIDE) tests/acceptance

coverage: setup ## all tests, and what they leave out (a third longer)
	$(BIN)/pytest $(SIDE_BY_SIDE) --cov --cov-report= --cov-fail-under=0 $(ROOMS)
	$(BIN)/pytest $(SIDE_BY_SIDE) --cov --cov-append tests/acceptance

lint: setup ## lint, types and import contract alone
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fast: setup ## the tests that need no training and no server
	$(BIN)/pytest -m "not slow"

load: setup ## the full load on PostgreSQL, and a night that is lost with its machine (an hour)
	NIGHTFOLD_LOAD=full $(BIN)/pytest -m long -s --timeout 0 tests/acceptance/test_load.py tests/acceptance/test_automations.py

hostile: setup ## give the corpus of hostile input to every reader and print the table
	$(BIN)/python -m tests.hostile

fuzz: setup ## damage every format under coverage guidance for a quarter of an hour (Linux)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "atheris>=3"
	$(BIN)/python -m tests.fuzz

chaos: setup ## kill nights 200 times, compare each with an undisturbed one (an hour)
	$(BIN)/pytest -m long tests/acceptance/chaos
	$(BIN)/python -m tests.acceptance.chaos --fresh

format: setup ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: ## resolve the dependencies anew (needs uv)
	uv pip compile --universal --python-version 3.11 --generate-hashes --no-emit-index-url \
	    --no-emit-find-links --no-annotate --no-header --extra dask --extra dev pyproject.toml -o requirements.lock

clean: ## remove the virtual environment and everything that runs wrote
	rm -rf $(VENV) .coverage .mypy_cache .pytest_cache .ruff_cache
	find artifacts -mindepth 1 ! -name README.md -delete
