# One command for each thing one does here. Every target makes its environment first: .venv, from the lock of the
# running Python. Choose another with `make test PYTHON=python3.12 VENV=.venv-3.12`; pass arguments on with
# `make test ARGS="-k relu"`.

SUPPORTED := import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python; do \
	$$p -c '$(SUPPORTED)' >/dev/null 2>&1 && echo $$p && break; done)
VENV ?= .venv
JOBS ?= 2
ARGS ?=

PY := $(VENV)/bin/python
BIN := $(VENV)/bin
VERSION := $(or $(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null),none)
LOCK := requirements/lock-$(VERSION).txt
STAMP := $(VENV)/.ready-$(VERSION)
PIP_INSTALL := $(PY) -m pip install --quiet --no-input --disable-pip-version-check
CODE := tensorprog ntk_rules tests examples benchmarks requirements
PYTEST := $(PY) -m pytest

.PHONY: help env demo test long slow doctest format format-check lint types contract benchmark lock lock-check clean
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-13s %s\n", $$1, $$2 }' Makefile

env: $(STAMP) ## make or update .venv from the lock

# The stamp is written last and removed first, so that an interrupted install is begun anew; an environment that was
# complete, of the same Python, is only brought up to date.
$(STAMP): $(LOCK) pyproject.toml
	@echo "tensorprog: setting up $(VENV) with Python $(VERSION) from $(LOCK) (some minutes the first time)"
	@if [ -e $@ ]; then rm -f $@; else \
		$(PYTHON) -m venv --clear $(VENV) || { \
			$(PYTHON) -m venv --clear --without-pip $(VENV) && \
			$(PYTHON) -m pip --python $(PY) install --quiet pip; }; fi # Debian keeps ensurepip apart
	@$(PIP_INSTALL) --requirement $(LOCK)
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

# No lock file of this name: a Python that is not supported, or none at all.
requirements/lock-%.txt:
	@echo "tensorprog: PYTHON='$(PYTHON)' is Python '$(VERSION)'; expected 3.11, 3.12 or 3.13," >&2
	@echo "as in \`make $(MAKECMDGOALS) PYTHON=python3.12\`" >&2
	@exit 1

demo: $(STAMP) ## the handwritten digits, end to end
	$(PY) examples/digits.py $(ARGS)

test: $(STAMP) ## the everyday tests
	$(PYTEST) -n $(JOBS) --dist loadfile $(ARGS)

long: $(STAMP) ## the tests of some ten seconds each, which CI runs too
	$(PYTEST) -n $(JOBS) --dist loadfile -m "long and not slow" $(ARGS)

slow: $(STAMP) ## the slow tests
	$(PYTEST) -n $(JOBS) --dist loadfile -m slow $(ARGS)

# Run as a user would run them: JAX as it starts (32 bits), and in a folder that may be littered.
doctest: $(STAMP) ## the examples in docstrings, README and docs
	@mkdir -p .scratch
	cd .scratch && JAX_PLATFORMS=cpu MPLBACKEND=Agg $(abspath $(PY)) -m pytest -c ../pyproject.toml --rootdir .. \
		-p no:cacheprovider --doctest-modules --doctest-glob='*.md' \
		$(addprefix ../,tensorprog ntk_rules $(wildcard README.md docs)) $(ARGS)

format: $(STAMP) ## write the code in the common format
	$(BIN)/ruff check --select I --fix $(wildcard $(CODE))
	$(BIN)/ruff format $(wildcard $(CODE))

format-check: $(STAMP) ## fail where `make format` would change something
	$(BIN)/ruff format --check $(wildcard $(CODE))

lint: $(STAMP) ## ruff's rules
	$(BIN)/ruff check $(wildcard $(CODE))

types: $(STAMP) ## mypy
	$(PY) -m mypy

contract: $(STAMP) ## which module may import which
	$(BIN)/lint-imports

benchmark: $(STAMP) ## time this project beside its peer; makes the peer's environment itself
	$(PY) -m benchmarks $(ARGS)

lock: ## pin every dependency again; UPGRADE=1 takes the newest versions
	$(PYTHON) requirements/lock.py $(if $(UPGRADE),--upgrade)

lock-check: ## fail when the lock files do not answer to pyproject.toml
	$(PYTHON) requirements/lock.py --check

clean: ## remove environments, caches and outputs
	rm -rf .venv .venv-* .bench .scratch .hypothesis .pytest_cache .mypy_cache .ruff_cache .import_linter_cache \
		build dist *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
