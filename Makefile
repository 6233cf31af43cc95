# `make demo` and `make test` each set themselves up on a bare machine (Python 3.10 - 3.13 and a
# network to the package index) and run; nothing else needs doing first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CONSTRAINTS := requirements/constraints-cpu.txt
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS)

.PHONY: demo test lint types check clean

$(VENV)/.runtime: setup.py $(CONSTRAINTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if (3, 10) <= v[:2] <= (3, 13) else f"Python 3.10 to 3.13 is needed, this is {v[0]}.{v[1]}; set PYTHON=...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	# torch first and alone: with it in place no other package pulls a CUDA build.
	$(PIP) torch
	$(PIP) -e '.[cpu]'
	touch $@

$(VENV)/.dev: $(VENV)/.runtime
	$(PIP) -e '.[cpu,dev]'
	touch $@

demo: $(VENV)/.runtime
	$(BIN)/opencood train --hypes turbotrain_v2xpnp_tiny.yaml --device cpu

test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q -n 2 --dist loadfile

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(VENV)/.dev
	$(BIN)/mypy

check: lint types test

clean:
	rm -rf $(VENV) build dist *.egg-info
