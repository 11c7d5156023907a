# Everything a newcomer types, and everything CI runs. `make help` lists it.
#   PYTHON           interpreter for the virtual environment (3.11 or newer)
#   TORCH_INDEX_URL  where torch comes from; CUDA: https://download.pytorch.org/whl/cu130
#   DEMO             arguments of the demo, e.g. DEMO="--scale ci"
PYTHON ?= python3
TORCH_INDEX_URL ?=
DEMO ?=
TESTS ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
KERNELS := $(wildcard reward_model/kernels/*.[ch])
VLLM_INSTALLED := .venv-vllm/.installed
CPU_INDEX := https://download.pytorch.org/whl/cpu
TORCH := $(shell sed -n 's/^torch==//p' constraints.txt)
PIP := $(BIN)/python -m pip --disable-pip-version-check -q

.PHONY: help install install-vllm install-system demo test test-all smoke lint format audit bench openapi clean
help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(MAKEFILE_LIST) | column -t -s '|'

install: $(INSTALLED) ## the project and its tools, in .venv
$(INSTALLED): pyproject.toml constraints.txt $(KERNELS)
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing torch $(TORCH) and the project into $(VENV): a few minutes the first time"
	@if [ -n "$(TORCH_INDEX_URL)" ]; then $(PIP) install "torch==$(TORCH)" --index-url $(TORCH_INDEX_URL); \
	else $(PIP) install "torch==$(TORCH)+cpu" 2>/dev/null || $(PIP) install "torch==$(TORCH)" --index-url $(CPU_INDEX) || $(PIP) install "torch==$(TORCH)"; fi
	$(PIP) install -c constraints.txt -e '.[service,train,dev]'
	@touch $@

install-vllm: $(VLLM_INSTALLED) ## vLLM for the CPU, in an environment of its own
$(VLLM_INSTALLED): constraints-vllm.txt docker/install-vllm.sh
	PYTHON=$(PYTHON) TORCH_INDEX_URL=$(TORCH_INDEX_URL) bash docker/install-vllm.sh .venv-vllm
	@touch $@

install-system: ## Prometheus and Chromium, for the tests that need them; Debian or Ubuntu, as root
	apt-get update -qq
	RUNLEVEL=1 apt-get install -y -qq --no-install-recommends prometheus chromium chromium-driver

demo: install ## preference pairs to policy, end to end, with a report
	$(BIN)/python -m trainer.demo $(DEMO)

test: install ## the quick tests
	$(BIN)/python -m pytest -m "not integration and not gpu" $(TESTS)

test-all: install install-vllm ## every test, whole processes and real vLLM too
	$(BIN)/python -m pytest $(TESTS)

smoke: install install-vllm ## one short run of every real part: vLLM, Ray, kill and resume
	$(BIN)/python -m pytest -m smoke $(TESTS)

lint: install ## ruff, mypy and, for the kernels, clang-format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(KERNELS)

format: install ## let ruff and clang-format write the tree their way
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(KERNELS)

audit: ## known holes in the pinned versions; asks PyPI, and fails where it cannot
	@test -x .venv-audit/bin/pip-audit || { $(PYTHON) -m venv .venv-audit && .venv-audit/bin/pip -q install pip-audit; }
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints.txt
	.venv-audit/bin/pip-audit --strict --no-deps --disable-pip -r constraints-vllm.txt

bench: install ## the benchmarks, one JSON object each
	$(BIN)/python -m benchmarks.scoring
	$(BIN)/python -m benchmarks.serving
	$(BIN)/python -m benchmarks.engines
	$(BIN)/python -m benchmarks.exactness
	$(BIN)/python -m benchmarks.reward_training
	$(BIN)/python -m benchmarks.rloo_learner
	$(BIN)/python -m benchmarks.rloo_decoding
	$(BIN)/python -m benchmarks.rloo_overlap
	$(BIN)/python -m benchmarks.rloo

openapi: install ## write openapi.yaml from the app
	$(BIN)/python -m service.openapi

clean: ## remove what runs and demos left
	rm -rf runs build *.egg-info
