# Each target does its own set-up; a second run only does what changed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: demo test oldest newest faults benchmarks check lint types docs package weights clean

# What the tests need.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing telecine, PyTorch and what the tests need in $(VENV): this may take minutes.'
	$(PIP) --editable '.[train,demo,dev]'
	touch $@

# What the demo needs.
$(VENV)/.demo: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing telecine and PyTorch in $(VENV): this may take minutes.'
	$(PIP) --editable '.[train,demo,diffusers]'
	touch $@

# An independent implementation that the tests compare with; without it those tests are skipped and say so.
$(VENV)/.reference: $(VENV)/.installed
	-$(PIP) 'magvit2-pytorch>=0.5'
	touch $@

# The report is tested in Debian's Chromium; where it cannot be installed those tests are skipped and say so.
$(VENV)/.browser: $(VENV)/.installed
	command -v chromium || { [ "$$(id -u)" = 0 ] && command -v apt-get && \
		apt-get update -qq && apt-get install -qq --yes --no-install-recommends chromium; } || \
		echo 'Chromium could not be installed: the tests of the report in a browser will be skipped.'
	touch $@

weights: $(VENV)/.installed
	$(BIN)/telecine weights fetch

demo: $(or $(wildcard $(VENV)/.installed),$(VENV)/.demo)
	$(BIN)/telecine weights fetch
	$(BIN)/telecine train

# Compiled files are kept, so that the processes that tests start do not compile everything again.
TEST_ENV := PYTHONDONTWRITEBYTECODE=

# Each process gets whole files, and sets up once what a file's tests share; `tests/conftest.py` decides their order. One
# process more than two cores: tests also wait, for a browser, a worker that is stopped, or a server that does not answer.
PROCESSES ?= 3
test: weights $(VENV)/.reference $(VENV)/.browser
	$(TEST_ENV) $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

# The fast tests with the oldest and with the newest releases that pyproject.toml allows. Old ones warn of each other.
oldest: PYTHON := python3.10
oldest: RELEASES := --resolution lowest-direct
oldest: PYTEST := -W default
newest: PYTHON := python3.13
newest: RELEASES := --upgrade
oldest newest:
	$(PYTHON) -m venv --clear $(VENV).$@
	$(VENV).$@/bin/python -m pip install --quiet --disable-pip-version-check uv
	$(VENV).$@/bin/uv pip install --quiet --python $(VENV).$@ $(RELEASES) --editable '.[train,demo,dev]'
	$(VENV).$@/bin/telecine weights fetch
	$(TEST_ENV) $(VENV).$@/bin/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow and not faults and not benchmarks' $(PYTEST)

# Runs that are killed, stopped and given damaged files, see docs/reliability.md.
faults: weights
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m faults tests/faults

# The scripts of benchmarks/, at small sizes.
benchmarks: weights
	$(TEST_ENV) $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m benchmarks tests/benchmarks

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.installed
	$(BIN)/mypy

# The site of the documentation, in site/: it needs no server and no network.
$(VENV)/.docs: $(VENV)/.installed
	$(PIP) --editable '.[train,docs]'
	touch $@

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet
	@echo 'site/index.html; for the search, $(BIN)/python -m http.server -d site'

# The wheel and the source archive, in dist/; and the files that hosts and containers read.
$(VENV)/.release: $(VENV)/.installed
	$(PIP) --editable '.[release]'
	touch $@

package: $(VENV)/.release
	rm -rf dist
	$(BIN)/python -m build --no-isolation --outdir dist >/dev/null
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/hadolint Dockerfile
	$(BIN)/check-jsonschema --builtin-schema vendor.github-workflows .github/workflows/*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/[!c]*.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.github-issue-config .github/ISSUE_TEMPLATE/config.yml
	$(BIN)/check-jsonschema --builtin-schema vendor.citation-file-format CITATION.cff

check: lint types docs package test faults benchmarks

clean:
	rm -rf $(VENV) $(VENV).* runs site dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
