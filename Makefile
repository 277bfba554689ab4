# `make demo` and `make test` set everything up by themselves: Python >= 3.10 with venv is all they need.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
OUT ?= demo

.PHONY: setup demo test lint clean

setup: $(VENV)/.ready

# The CPU build of PyTorch first and pinned: a bare `torch` brings gigabytes of GPU libraries on Linux.
$(VENV)/.ready: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

demo: setup
	$(BIN)/lifelong compare recipes/demo.yaml --out $(OUT)

# Where other work takes a core, threads that wait by spinning make small two-threaded tests many times slower.
test: export OMP_WAIT_POLICY ?= passive
test: setup
	$(BIN)/python -m pytest -q

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(OUT) build *.egg-info src/*.egg-info
