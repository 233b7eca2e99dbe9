# Everything runs in .venv, which `make setup` makes. `make demo` and `make test` are all that a newcomer needs.

VENV := .venv
PYTHON := $(VENV)/bin/python
READY := $(VENV)/.ready
READY_FOR_FULL := $(VENV)/.ready-for-full
READY_FOR_TESTS := $(VENV)/.ready-for-tests
MATRIX := tests/xrootd/test_matrix.py tests/xrootd/test_third_party.py tests/xrootd/test_opaques.py

.PHONY: help setup demo demo-full demo-day test test-most test-slow test-sanitized lint format bench clean

help:
	@echo "make demo       tagged transfers between network namespaces, marked and decoded again"
	@echo "make demo-full  from a Rucio rule to the wire: the same by real Rucio, xrootd and clients; needs root"
	@echo "make demo-day   a data challenge's day by the same, scaled down, and what a network reports of it"
	@echo "make test       every test"
	@echo "make lint       ruff and mypy"
	@echo "make bench      what marking, announcing and decoding cost"
	@echo "make setup      what the others need: system packages that are missing, and $(VENV)"

setup: $(READY)

# The compiled programs belong to the installation, so their sources are among what it is made from.
$(READY): pyproject.toml hatch_build.py tools/setup.sh $(wildcard bpf/*)
	tools/setup.sh $(VENV)
	@touch $@

$(READY_FOR_FULL): pyproject.toml hatch_build.py tools/setup.sh $(wildcard bpf/*)
	tools/setup.sh $(VENV) full
	@touch $(READY) $@

$(READY_FOR_TESTS): pyproject.toml hatch_build.py tools/setup.sh $(wildcard bpf/*)
	tools/setup.sh $(VENV) tests
	@touch $(READY) $(READY_FOR_FULL) $@

# The plug-in for xrootd as GCC's sanitizers build it, through all of its tests; `make test` has the matrix of transfers.
test-sanitized: $(READY_FOR_TESTS)
	SCITAGS_SANITIZER=address $(PYTHON) -m pytest tests/xrootd
	SCITAGS_SANITIZER=thread $(PYTHON) -m pytest tests/xrootd

demo: $(READY)
	$(VENV)/bin/scitags demo --output demo-output

demo-full: $(READY_FOR_FULL)
	$(VENV)/bin/scitags demo --full --output demo-output/full

demo-day: $(READY_FOR_FULL)
	$(VENV)/bin/scitags demo --day --output demo-output/day

# Two at a time: Rucio and the sanitizers take long and measure nothing, so they go beside the others.
test: $(READY_FOR_TESTS)
	$(MAKE) --no-print-directory --jobs 2 --keep-going test-most test-slow

test-most:
	$(PYTHON) -m pytest --ignore tests/rucio

test-slow:
	$(PYTHON) -m pytest tests/rucio
	SCITAGS_SANITIZER=address $(PYTHON) -m pytest $(MATRIX)
	SCITAGS_SANITIZER=thread $(PYTHON) -m pytest $(MATRIX)

lint: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(READY)
	$(PYTHON) -m bench

clean:
	rm -rf $(VENV) demo-output dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find agent -name '*.bpf.o' -delete
