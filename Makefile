# Two commands matter: `make export` and `make test`. Each does its own set-up in .venv.
PYTHON ?= python3
PIP_ARGS ?=
JOBS ?= 2
ZOO ?= ../shared/zoo
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)

.PHONY: help export plugin test test-pythons test-triton lint format train minimal bench gpu-check engine-check clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1|/' | column -t -s '|'
	@echo "PIP_ARGS='...' passes options to pip, for instance an index with CPU-only builds of torch."

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than 3.10: choose another with make PYTHON=python3.11 ..."; exit 2; }
	$(PYTHON) -m venv .venv

# The stamps say which extras are installed; they are renewed when the requirements change.
$(BIN)/.installed-export: pyproject.toml | $(BIN)/python
	@echo "installing into .venv; torch is a download of about 3 GB unless pip has it (PIP_ARGS may name a CPU-only index)"
	$(PIP) -q -e '.[torch,rtx]'
	@touch $@

$(BIN)/.installed-test: $(BIN)/.installed-export
	$(PIP) -q -e '.[torch,rtx,models,test,lint,plugin,lean,serve]'
	@touch $@

$(BIN)/.installed-bench: $(BIN)/.installed-export
	$(PIP) -q -e '.[torch,rtx,bench,serve]'
	@touch $@

$(BIN)/.installed-plugin: pyproject.toml | $(BIN)/python
	@echo "installing into .venv; the CUDA compiler is a download of about 270 MB"
	$(PIP) -q -e '.[plugin]'
	@touch $@

export: $(BIN)/.installed-export ## export every recipe of export/, validate, print a table
	$(BIN)/msconv export --force --json build/export/report.json

test: $(BIN)/.installed-test ## lint, type-check and run all tests
	$(MAKE) --no-print-directory lint
	$(BIN)/python -m pytest -n $(JOBS)

test-triton: $(BIN)/.installed-test ## the client suite against a real Triton core, in build/triton-venv; exit 3 where it cannot be had
	$(BIN)/python tests/serving/real_triton.py

test-pythons: $(BIN)/.installed-test ## the torch-free install with its tests on every Python from 3.10 to 3.13
	$(BIN)/python tests/torch_free.py

CXX_FILES = $(shell find plugins -name '*.cu' -o -name '*.cpp' -o -name '*.h')

lint: $(BIN)/.installed-test ## ruff, mypy and clang-format
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: $(BIN)/.installed-test ## let ruff and clang-format format the code
	$(BIN)/ruff check --fix
	$(BIN)/ruff format
	$(BIN)/clang-format -i $(CXX_FILES)

plugin: $(BIN)/.installed-plugin ## compile the TensorRT plugin for all architectures; PLUGIN_ARGS='--tensorrt 10 --arch 90' for others
	$(BIN)/msconv plugin build --force $(PLUGIN_ARGS)

train: $(BIN)/.installed-test ## train the reference model and its baselines anew, write the data sheet (half an hour)
	OMP_WAIT_POLICY=passive $(BIN)/python -m models.raw_denoiser.train --study
	$(BIN)/python -m models.raw_denoiser.evaluate

minimal: $(BIN)/.installed-export ## write the seeded checkpoint of models/minimal anew
	$(BIN)/python models/minimal/network.py

bench: $(BIN)/.installed-bench ## speed of optimized models, of the optimizer itself, of operators and of serving (about an hour)
	$(BIN)/python benchmarks/speed.py --others
	if [ -f $(ZOO)/manifest.json ]; then $(BIN)/python benchmarks/speed.py $(ZOO) --others; fi
	$(BIN)/python benchmarks/large_graph.py --sizes
	$(BIN)/python benchmarks/operators.py
	$(BIN)/python benchmarks/serving.py
	$(BIN)/python benchmarks/include_results.py

# On the GPU machine's own Python where this checkout has no .venv: nothing is installed and no network is used.
ON_GPU = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

gpu-check: ## the plugin's kernels on a GPU: every path against float64, compute-sanitizer, timing; needs nvcc and PyTorch
	$(ON_GPU) benchmarks/gpu_check.py $(GPU_ARGS)

engine-check: ## TensorRT engines on a GPU: precision, agreement, timing; needs TENSORRT_ROOT, make export, make plugin
	$(ON_GPU) benchmarks/engine_check.py $(ENGINE_ARGS)

clean: ## remove what was built, not .venv
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
