# Every target sets up its requirements first.
VENV   ?= .venv
PYTHON ?= python3
BIN    := $(VENV)/bin
READY  := $(VENV)/.ready

export MLFLOW_DISABLE_TELEMETRY = true

.DEFAULT_GOAL := help
.PHONY: help setup demo test ray mutants chaos lint docs format bench gpu clean

help: ## Show this help
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 10

setup: $(READY) ## Create the virtual environment in .venv

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): a few minutes, about 7 GB"
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: $(READY) ## Compare STOP with its baselines on the embedded data: a table in minutes
	$(BIN)/stop benchmark
	@echo 'stop is in $(BIN): source $(BIN)/activate'

# With bytecode, or each process would compile the rewritten tests again.
test: $(READY) ## Run all tests that this machine supports
	OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

ray: ## Run the tests of the pipelines on the oldest and the newest Ray that pyproject.toml allows
	.ci/ray oldest
	.ci/ray newest

mutants: $(READY) ## Plant 300 faults in the core modules, and count those that the tests notice
	$(BIN)/python tests/mutants.py

chaos: $(READY) ## Interrupt all commands at random moments, 100 times, and compare the results
	$(BIN)/python tests/pipelines/chaos_all.py --kills 100

lint: $(READY) ## Check format, style and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

docs: $(READY) ## Build the documentation into site/; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

format: $(READY) ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(READY) ## Measure the speed of this machine against named floors
	$(BIN)/python benchmarks/step.py
	$(BIN)/python benchmarks/read.py
	$(BIN)/python benchmarks/train.py

gpu: $(READY) ## Check and measure one GPU against the CPU and named floors: a page in 8 minutes
	$(BIN)/python benchmarks/gpu.py

clean: ## Remove the virtual environment and tool caches; outputs/ stays
	rm -rf $(VENV) .venv-ray site .mypy_cache .ruff_cache .pytest_cache .hypothesis *.egg-info
