# `make demo` shows the main job, `make test` proves it; both set up all they need.

PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test style types unit asterisk fuzz bench bench-capacity bench-asterisk faults sample-config clean

demo: .venv/installed
	$(BIN)/python -m testbed.demo

test: style types .venv/installed
	$(BIN)/python -m pytest

style: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: .venv/installed
	$(BIN)/mypy

unit: .venv/installed
	$(BIN)/python -m pytest -m "not asterisk"

# `make asterisk ASTERISK=PREFIX` takes the build that is installed there, and tells what it skips.
ifdef ASTERISK
asterisk: export AUDIOFORK_TESTBED_ASTERISK = $(ASTERISK)
endif
asterisk: .venv/installed
	$(if $(ASTERISK),$(BIN)/python -m testbed.asterisk get)
	$(BIN)/python -m pytest -m asterisk$(if $(ASTERISK), -rs)

fuzz: .venv/installed
	$(BIN)/python -m tests.fuzz.million

faults: .venv/installed
	$(BIN)/python -m testbed.faults

# `make bench BASE=REV` compares with a revision.
bench: .venv/installed
	$(BIN)/python -m $(if $(BASE),bench.ab --base $(BASE),bench.run)

bench-capacity: .venv/installed
	$(BIN)/python -m bench.capacity

bench-asterisk: .venv/installed
	$(BIN)/python -m bench.beside_asterisk

sample-config: .venv/installed
	$(BIN)/python -c "from audiofork import config; print(config.sample(), end='')" > etc/audiofork.ini

.venv/installed: setup.cfg pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed; name one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -m venv .venv || \
	  { echo "No virtual environment: apt install python3-venv"; exit 1; }
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

clean:
	rm -rf .venv build *.egg-info recordings .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
