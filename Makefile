# Needs Python 3.11 or newer, make and a C++ compiler; every target installs the rest into .venv.
# After `make install`, `source .venv/bin/activate` is for the commands of README.md and docs/.
PYTHON ?= python3
BIN := .venv/bin
# What bench-quality trains on: enwik8, or a file with its first bytes.
TEXT ?= data/enwik8

.PHONY: install sweep test test-unit test-extended test-cluster test-faults check docs bench check-gpu bench-sweep \
  bench-startup bench-cluster bench-gate bench-studies bench-quality mutants

install: .venv/.installed

.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --requirement requirements.lock
	$(BIN)/pip install --quiet --no-deps --editable .
	touch $@

sweep: install
	$(BIN)/python pipelines/sweep.py

test: install
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

test-unit: install
	$(BIN)/python -m pytest -m "unit and not extended" --numprocesses 2 --dist loadfile --no-loadscope-reorder

test-extended: install
	$(BIN)/python -m pytest -m "extended and not faults and not cluster" --numprocesses 3 --dist loadfile \
	  --no-loadscope-reorder

test-cluster: install
	$(BIN)/python -m pytest -m cluster

test-faults: install
	$(BIN)/python -m pytest -m faults
	$(BIN)/python -m pytest --hypothesis-profile full tests/pipelines/experiment/test_properties.py \
	  tests/pipelines/data/test_overlap.py tests/pipelines/console/test_secrets.py

mutants: install
	$(BIN)/python tests/mutants.py

docs: install
	$(BIN)/python docs/generate.py

bench: .venv/.bench
	$(BIN)/python -m benchmarks.model

# Needs none of what install does: a machine with a GPU may have PyTorch and no network.
check-gpu:
	$(or $(wildcard $(BIN)/python),$(PYTHON)) -m benchmarks.check_gpu

bench-sweep: install
	$(BIN)/python benchmarks/sweep.py

bench-startup: install
	$(BIN)/python benchmarks/startup.py

bench-cluster: install
	$(BIN)/python benchmarks/cluster.py

bench-gate: install
	$(BIN)/python -m benchmarks.gate

bench-studies: install
	$(BIN)/python -m benchmarks.studies

bench-quality: .venv/.bench
	$(BIN)/python -m benchmarks.quality --text $(TEXT)

.venv/.bench: .venv/.installed
	$(BIN)/pip install --quiet --constraint requirements.lock --editable '.[bench]'
	touch $@

check: install
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
