# The two commands of the README are `make run` and `make test`. Both install what they need first, and both do nothing
# twice: what is installed is installed again only when pyproject.toml has changed.

VENV := .venv
# The first of these names that is Python 3.11 or later; set PYTHON to choose another.
PYTHON ?= $(shell for name in python3.11 python3 python; do \
	$$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$name && break; done)
# Where Maven and npm are, a test lane that cannot run is a failure. Set it to nothing for "skip and say so". A browser,
# which not everybody may install, is asked of nobody who has none.
ALL_LANES := kafka,timescale,promtool,prometheus,compose
FLEETPULSE_TEST_REQUIRE ?= $(if $(and $(shell command -v mvn),$(shell command -v npm)),$(ALL_LANES))
PROGRAMS_FOLDER := .test/programs

.DEFAULT_GOAL := help
.PHONY: help install run test lint format docs bench-ingest bench-control bench-proxy load-test clean test-programs

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

test: export PATH := $(CURDIR)/$(PROGRAMS_FOLDER)/usr/bin:$(PATH)
test: lint test-programs  ## Check style and types, and run all tests
	browser=$$(command -v chromium >/dev/null && echo ,chromium); lanes="$(FLEETPULSE_TEST_REQUIRE)"; \
	FLEETPULSE_TEST_REQUIRE="$$lanes$${lanes:+$$browser}" $(VENV)/bin/python -m pytest -n 2 --dist loadfile

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

bench-proxy: $(VENV)/.installed-dev  ## Measure the proxy beside other gateways (QUICK=1: under 4 minutes)
	$(VENV)/bin/python bench/proxy

load-test: $(VENV)/.installed-dev  ## Drive the embedded stack with many agents and report (QUICK=1: under 4 minutes)
	$(VENV)/bin/python bench/load

# Debian's packages are unpacked rather than installed: their programs are wanted, services that run are not. A browser
# needs more libraries than that, and is installed where we may.
test-programs:
	@set -e; \
	if ! command -v apt-get >/dev/null; then echo "no apt-get: lanes whose programs are missing do not run"; exit 0; fi; \
	missing=; \
	for pair in promtool:prometheus amtool:prometheus-alertmanager chromium:chromium; do \
		command -v "$${pair%%:*}" >/dev/null || missing="$$missing $${pair#*:}"; done; \
	if [ -z "$$missing" ]; then exit 0; fi; \
	as_root=; if [ "$$(id -u)" != 0 ]; then as_root="sudo -n"; $$as_root true 2>/dev/null || as_root=false; fi; \
	$$as_root apt-get update -qq || true; \
	mkdir -p $(PROGRAMS_FOLDER); \
	for package in $$missing; do \
		if [ "$$package" = chromium ]; then \
			$$as_root env DEBIAN_FRONTEND=noninteractive apt-get install -qq --no-install-recommends chromium >/dev/null \
				|| echo "chromium is missing, and could not be installed"; \
		elif (cd $(PROGRAMS_FOLDER) && apt-get download -qq "$$package") 2>/dev/null; then \
			dpkg-deb --fsys-tarfile $(PROGRAMS_FOLDER)/"$$package"_*.deb | tar -x -C $(PROGRAMS_FOLDER) --wildcards './usr/bin/*'; \
			rm $(PROGRAMS_FOLDER)/"$$package"_*.deb; \
		else echo "$$package is missing, and apt-get does not have it: apt-get update and install it"; fi; \
	done

clean:  ## Remove what install, run, test and bench made
	rm -rf $(VENV) .fleetpulse .test dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
