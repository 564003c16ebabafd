# The two commands of the README are `make run` and `make test`. Both install what they need first, and both do nothing
# twice: what is installed is installed again only when pyproject.toml has changed.

VENV := .venv
# The first of these names that is Python 3.11 or later; set PYTHON to choose another.
PYTHON ?= $(shell for name in python3.11 python3 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
# Where Maven and npm are, a test lane that cannot run is a failure. Set it to nothing for "skip and say so".
ALL_LANES := kafka,timescale,promtool
FLEETPULSE_TEST_REQUIRE ?= $(if $(and $(shell command -v mvn),$(shell command -v npm)),$(ALL_LANES))
PROMTOOL_FOLDER := .test/promtool

.DEFAULT_GOAL := help
.PHONY: help install run test lint format docs bench-ingest bench-control clean promtool

help:  ## Show the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

# One stamp for what running takes, one for what developing takes besides.
$(VENV)/.installed-local $(VENV)/.installed-dev: $(VENV)/.installed-%: pyproject.toml
	@test -n "$(PYTHON)" || { echo "Python 3.11 or later is not on the PATH: install it, or say where it is: make PYTHON=…"; exit 1; }
	@$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

install: $(VENV)/.installed-local  ## Install into .venv

run: $(VENV)/.installed-local  ## Start the embedded stack and show the fleet
	@$(VENV)/bin/fleetpulse up

test: export PATH := $(CURDIR)/$(PROMTOOL_FOLDER)/usr/bin:$(PATH)
test: export FLEETPULSE_TEST_REQUIRE := $(FLEETPULSE_TEST_REQUIRE)
test: lint promtool  ## Check style and types, and run all tests
	$(VENV)/bin/python -m pytest

lint: $(VENV)/.installed-dev  ## Check style and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(VENV)/.installed-dev  ## Format the code
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

docs: $(VENV)/.installed-dev  ## Write the generated pages of docs/
	$(VENV)/bin/python -m fleetpulse.documentation

bench-ingest: $(VENV)/.installed-dev  ## Measure the way from message to row (QUICK=1: under 3 minutes)
	$(VENV)/bin/python bench/ingest.py

bench-control: $(VENV)/.installed-dev  ## Measure control's answers and jobs (QUICK=1: under 3 minutes)
	$(VENV)/bin/python bench/control

# Debian's prometheus package is unpacked rather than installed: promtool is wanted, a Prometheus that runs is not.
promtool:
	@set -e; \
	if command -v promtool >/dev/null; then exit 0; fi; \
	if ! command -v apt-get >/dev/null; then echo "promtool is missing: install Prometheus"; exit 0; fi; \
	if [ "$$(id -u)" = 0 ]; then apt-get update -qq || true; \
	elif sudo -n true 2>/dev/null; then sudo -n apt-get update -qq || true; fi; \
	mkdir -p $(PROMTOOL_FOLDER); cd $(PROMTOOL_FOLDER); \
	if apt-get download -qq prometheus 2>/dev/null; then \
		dpkg-deb --fsys-tarfile prometheus_*.deb | tar -x ./usr/bin/promtool; rm prometheus_*.deb; \
	else echo "promtool is missing, and apt-get does not have it: apt-get update and install prometheus"; fi

clean:  ## Remove what install, run, test and bench made
	rm -rf $(VENV) .fleetpulse .test dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
