# Every target does its own set-up: on a fresh machine `make demo` is the first thing to type.
#   PYTHON=...      another interpreter (3.11 or newer, with venv)
#   PIP_FLAGS=...   extra arguments for every `pip install`
#   DEMO_FLAGS=...  arguments of `rematch-ray demo`, for example --quick or --fresh
#   BENCH_FLAGS=... arguments of every benchmark, for example --quick
#   TEST_FLAGS=...  arguments of pytest, for example -k maxsim

SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
BENCH_INSTALLED := $(VENV)/.bench-installed

# the first interpreter that is new enough and can make an environment
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	if $$p -c 'import sys, ensurepip, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	then command -v $$p; break; fi; done)
PIP := $(BIN)/python -m pip install -qq --disable-pip-version-check $(PIP_FLAGS)

.PHONY: help demo serve test test-all check format bench clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s%s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(INSTALLED) ## train, embed, index, evaluate and search the shipped corpus
	$(BIN)/rematch-ray demo $(DEMO_FLAGS)

# the whole demo's where there is one, the quick one's otherwise
SERVED = $(patsubst %/index,%,$(firstword $(wildcard demo-run/index demo-run/quick/index)))
serve: $(INSTALLED) ## serve what the demo built
	@test -n "$(SERVED)" || { echo "nothing to serve yet: make demo builds it" >&2; exit 2; }
	$(BIN)/rematch-ray serve --index $(SERVED)/index --media-root $(SERVED)/data

test: check ## what CI runs: check, then every test that is neither slow, gpu nor browser
	$(BIN)/python -m pytest -m 'not slow and not gpu and not browser' $(TEST_FLAGS)

test-all: check ## the same with the slow tests, and what a GPU or a browser allows
	$(BIN)/python -m pytest $(TEST_FLAGS)

check: $(INSTALLED) ## lint, format, types and doctests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --doctest-modules rematch_ray

format: $(INSTALLED) ## let ruff rewrite what it can
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(BENCH_INSTALLED) ## run every benchmark, peers beside us
	@set -e; for program in benchmarks/*.py; do \
		echo "== $$program"; $(BIN)/python $$program $(BENCH_FLAGS); done

clean: ## remove the environment, caches and what the demo wrote
	rm -rf $(VENV) demo-run build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -f rematch_ray/index/_maxsim*.so
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# torch first and by its exact version: resolved together with the rest, a newer build may win and
# bring several gigabytes of CUDA libraries
$(INSTALLED): pyproject.toml constraints.txt setup.py $(wildcard rematch_ray/index/*.[ch])
	@test -n "$(PYTHON)" || { echo "no Python 3.11 or newer with venv found: install one, or say make PYTHON=/path/to/python" >&2; exit 2; }
	@$(BIN)/python -c '' 2>/dev/null || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	@echo "installing into $(VENV) (once; minutes on a first run)"
	@$(PIP) -c constraints.txt torch==2.13.0 setuptools
	@$(PIP) -c constraints.txt --no-build-isolation --editable '.[cpu,dev]'
	@touch $@

$(BENCH_INSTALLED): $(INSTALLED)
	@$(PIP) -c constraints.txt --no-build-isolation --editable '.[cpu,dev,bench]'
	@touch $@
