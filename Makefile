# The front door: every target makes what it needs, so that each can be the first command.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
LOCK := infra/requirements.lock
READY := $(VENV)/.ready
ARGS ?=
PROCESSES ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup run test lint types ui docs bench compile image server-image stack deploy-check lock clean

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## (.*)/\1\t\2/' | while IFS="$$(printf '\t')" read -r target text; do printf '  make %-13s %s\n' "$$target" "$$text"; done

setup: $(READY) ## make .venv from the lock file

$(READY): pyproject.toml $(LOCK)
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { echo "error: Python 3.11 or newer is wanted: set PYTHON to it"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint $(LOCK) --editable '.[dev]'
	@touch $@

run: $(READY) ## the whole pipeline on the built-in glyphs (more options: ARGS="--learner protonet")
	$(BIN)/metalearn run $(ARGS)

test: $(READY) ## the test suite, two files at a time (a part of it: ARGS=tests/pipelines)
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder $(ARGS)

lint: $(READY) ## ruff: style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(READY) ## mypy, strict for metalearn_core
	$(BIN)/mypy

ui: $(READY) ## MLflow's page on what was run
	$(BIN)/metalearn ui $(ARGS)

docs: $(READY) ## the documentation as pages, in build/docs/index.html
	$(BIN)/python -m sphinx -q -W --keep-going docs build/docs

bench: $(READY) ## the benchmarks, as tables (see docs/benchmarks.md); installs the peers: higher and torchopt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps higher torchopt optree graphviz
	$(BIN)/python -m benchmarks $(ARGS)

compile: $(READY) ## the pipeline as YAML, in build/few_shot.yaml
	$(BIN)/metalearn compile -o build/few_shot.yaml

image: $(READY) ## the image of all steps, with Docker or podman (TORCH_INDEX=… for another build of torch)
	PYTHON=$(BIN)/python ./infra/images/build

server-image: $(READY) ## the image of the team's MLflow server
	PYTHON=$(BIN)/python ./infra/images/build server

stack: $(READY) ## the team's servers on this machine: PostgreSQL, S3, MLflow (ARGS=status, ARGS=down)
	@$(BIN)/python -m infra.local $(or $(ARGS),up)

deploy-check: $(READY) ## build the Kubernetes overlays, and check them
	@$(BIN)/python -m infra.kubernetes

lock: ## resolve the dependencies anew into the lock file
	PYTHON=$(PYTHON) ./infra/lock $(LOCK)

clean: ## remove .venv, caches and built files (.metalearn stays: it holds your runs)
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
