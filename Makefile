# Set-up and the daily commands. Every target sets up what is missing first; `make` alone prints this help.
PYTHON ?= python3
TORCH ?= auto
HOST ?= 127.0.0.1
HTTP_PORT ?= 8000
GRPC_PORT ?= 8001
METRICS_PORT ?= 8002
GATEWAY_PORT ?= 8080
NANO_STEPS ?= 3000
NANO_COUNT ?= 32
IMAGE ?= localhost/dsv4:latest
SETUP = $(PYTHON) build/setup/main.py --torch $(TORCH)
BIN = .venv/bin
SHELL = /bin/bash
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest

.DEFAULT_GOAL := help
.PHONY: help setup preflight demo serve gateway chat test test-ci test-full test-gpu test-agents nano nano-eval check
.PHONY: format bench bench-gpu validate image push run clean

help: ## Print this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo "  PYTHON=python3.12 chooses the interpreter; CHECKPOINT=DIR the checkpoint (default: the small trained one)"

setup: ## Set everything up: environment, packages, server, kernels
	@$(SETUP)

preflight: ## Say what this machine lacks
	@$(SETUP) --preflight --ports $(HTTP_PORT) $(GRPC_PORT) $(METRICS_PORT)

demo: setup ## Start the server, stream a few chats and a raw prompt through it, stop
	@$(BIN)/dsv4 demo $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)")

serve: ## Serve until Ctrl-C (HTTP_PORT=8000 GRPC_PORT=8001 METRICS_PORT=8002; 0 = any free one)
	@$(SETUP) --ports $(HTTP_PORT) $(GRPC_PORT) $(METRICS_PORT)
	@exec $(BIN)/dsv4 serve --host $(HOST) --http-port $(HTTP_PORT) --grpc-port $(GRPC_PORT) --metrics-port $(METRICS_PORT) $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") $(SERVE_ARGS)

gateway: setup ## Answer OpenAI's and Anthropic's APIs in front of a running server (GATEWAY_PORT=8080)
	@exec $(BIN)/dsv4 gateway --url $(HOST):$(GRPC_PORT) --host $(HOST) --port $(GATEWAY_PORT) $(if $(CHECKPOINT),--checkpoint "$(CHECKPOINT)") $(GATEWAY_ARGS)

validate: setup ## Check a checkpoint without loading it: make validate CHECKPOINT=DIR
	@test -n "$(CHECKPOINT)" || { echo "type: make validate CHECKPOINT=/path/to/checkpoint"; exit 2; }
	@$(BIN)/dsv4 check "$(CHECKPOINT)"

test: setup ## All tests that are not slow (10 minutes on 2 cores)
	@$(PYTEST) -m "not ci and not slow"

test-ci: setup ## Heavier tests on the real server
	@$(PYTEST) -m "ci and not slow"

test-full: setup ## The slow tests, alone; their result goes to tests/results/test-full.txt
	@mkdir -p tests/results; set -o pipefail; $(PYTEST) -m slow -v --color=no 2>&1 | grep -v '^rootdir' | tee tests/results/test-full.txt

test-gpu: setup ## Every GPU kernel against its reference, and the engine against the CPU's, on the GPU that is here
	@DSV4_TEST_GPU=1 $(PYTEST) -m "not slow" $(filter-out %/test_triton_pairs.py,$(wildcard tests/kernels/test_triton_*.py)) \
	  tests/runner/test_gpu_engine.py

test-agents: setup ## openai-node, the NeMo Agent Toolkit and OpenClaw on the real server (npm, network, 1.2 GB in build/cache)
	@OMP_NUM_THREADS=1 $(BIN)/python tests/agents/main.py

nano: setup ## Train the small bundled model and write its checkpoints (hours; resumes) and figures
	@cd build/nano && ../../$(BIN)/python -m nano_train.main train --steps $(NANO_STEPS) && ../../$(BIN)/python -m nano_train.main ship
	@$(MAKE) --no-print-directory nano-eval

nano-eval: setup ## Grade the small bundled model; prints the table of the README
	@$(BIN)/python build/nano/evaluate.py --count $(NANO_COUNT)

check: setup ## Format, lint, strict types, layers and sizes
	@$(BIN)/ruff format --check . && $(BIN)/ruff check . && $(BIN)/mypy
	@$(PYTEST) tests/house

format: setup ## Format the sources
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

bench: setup ## Measure the figures of the README, and on this CPU each operator and whole steps (ten minutes)
	@$(BIN)/python build/bench/run.py
	@$(BIN)/python build/bench/cpu_ops.py && $(BIN)/python build/bench/overlap.py
	@$(BIN)/python build/bench/engine.py --folder build/cache/bench

bench-gpu: setup ## Measure the GPU kernels at the shapes of Flash, and whole steps, on the GPU that is here
	@$(BIN)/python build/bench/gpu_kernels.py --out build/bench/results/gpu/kernels.json
	@$(BIN)/python build/bench/engine.py --device cuda --folder build/cache/bench

image: setup ## Build the NIM-style image (BASE_IMAGE=…: on that base; default: a Debian base that is made here)
	@$(BIN)/python build/image/main.py build --tag $(IMAGE) $(if $(BASE_IMAGE),--base-image "$(BASE_IMAGE)" --python "$(BASE_PYTHON)")

push: setup ## Push it with its bill of materials (SIGN_BY=KEY signs it): make push TARGET=HOST/NAME:TAG
	@test -n "$(TARGET)" || { echo "type: make push TARGET=registry.example/nim/dsv4:0.1.0"; exit 2; }
	@$(BIN)/python build/image/main.py push --tag $(IMAGE) --target "$(TARGET)" $(if $(SIGN_BY),--sign-by "$(SIGN_BY)")

run: setup ## Run the image read-only, without rights, on ports 8000 (API), 8001 (gRPC), 8002, 8080
	@exec $(BIN)/python build/image/main.py run --tag $(IMAGE)

clean: ## Remove the environment and everything that set-up made
	@rm -rf .venv build/cache
