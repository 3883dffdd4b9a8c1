# make demo       install into .venv, then generate molecules and graphs and roll out a PDE with the shipped models
# make test       the default test suite;  make test-all  the slow rest as well
# make bench      the benchmarks;          make lint      ruff and pyright
# VENV=folder chooses another virtual environment.

VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install -qq -c constraints.txt
RUN := MPLBACKEND=Agg $(BIN)
WORKERS ?= 2

.PHONY: demo test test-all bench lint install dev

install: $(VENV)/.installed
dev: $(VENV)/.dev

$(BIN)/python:
	@for python in python3 python3.11 python3.12 python3.13 python3.14; do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Creating $(VENV) with $$($$python --version)"; exec $$python -m venv $(VENV); fi; \
	done; echo "scidiff needs Python 3.11 or newer; none was found." >&2; exit 1

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) -e ".[dev]"
	@touch $@ $(VENV)/.installed

demo: $(VENV)/.installed
	@rm -rf runs/demo
	$(RUN)/scidiff generate molecule -n 100 --seed 0 --out runs/demo/molecules
	$(RUN)/scidiff generate graph --from tree -n 16 --seed 0 --out runs/demo/graphs
	$(RUN)/scidiff rollout ks --members 16 --steps 160 --trajectories 4 --seed 0 --out runs/demo/ks
	@echo "Open runs/demo/molecules/report.html, runs/demo/graphs/report.html and runs/demo/ks/report.html."

test: $(VENV)/.dev
	$(RUN)/python -m pytest -q -n $(WORKERS) --dist loadfile

test-all: $(VENV)/.dev
	$(RUN)/python -m pytest -q -n $(WORKERS) --dist loadfile -m "not gpu and not network"

bench: $(VENV)/.installed
	$(RUN)/python benchmarks/solvers.py

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/pyright
