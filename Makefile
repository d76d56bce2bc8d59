# Everything runs in .venv, which the first target that needs it makes. `make` lists the targets.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MODALITY ?= image
SEED ?= 0
# One process a core, one thread a process: more threads than cores make every test many times slower.
# (nproc itself would obey OMP_NUM_THREADS.)
JOBS ?= $(shell env -u OMP_NUM_THREADS nproc 2>/dev/null || echo 2)

.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-distributed test-faults test-compiled test-lowest parity bench lint format type wheel-test clean

help: ## list the targets
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# The stamps are files, so that an unchanged pyproject.toml installs nothing again.
$(VENV)/.demo: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[plots,speech,text]'
	touch $@

$(VENV)/.dev: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[all,dev]'
	touch $@ $(VENV)/.demo

install: $(VENV)/.dev ## install d2v with every extra and the development tools into .venv

demo: $(VENV)/.demo ## pretrain for minutes on samples that ship, probe, draw pictures (MODALITY=image|speech|text SEED=0)
	$(BIN)/python scripts/demo.py $(MODALITY) --seed $(SEED)

test: $(VENV)/.dev ## run the tests
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal $(PYTEST_ARGS)

test-slow: $(VENV)/.dev ## run the tests that take many seconds: whole commands, programs in documents, installed wheels
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m 'slow and not gpu and not net'

test-distributed: $(VENV)/.dev ## run the tests that start several processes at once
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m distributed

test-faults: $(VENV)/.dev ## run the tests that break runs on purpose
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m faults

test-compiled: $(VENV)/.dev ## run the tests that wait for torch.compile
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m compiled

test-lowest: ## install the lowest versions that pyproject.toml allows, and use them (downloads some gigabytes)
	$(PYTHON) scripts/check_lowest.py --extras plots,text

parity: $(VENV)/.dev ## compare with what the authors' code computed (GOLDEN=tests/golden)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/check_parity.py $(or $(GOLDEN),tests/golden)

bench: $(VENV)/.dev ## has anything become slower? every benchmark in short, against the committed figures
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python scripts/bench/run.py

lint: $(VENV)/.dev ## check style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev ## put style in order
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

type: $(VENV)/.dev ## check types
	$(BIN)/mypy

wheel-test: $(VENV)/.dev ## build the wheel, install it elsewhere, use it there
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m '' tests/test_wheel.py

clean: ## remove what building and testing leave behind
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
