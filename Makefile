# The task list: `make help` prints it. The first run on a fresh machine makes .venv and builds the kernels; later runs
# rebuild what changed. Another Python: `make PYTHON=/path/to/python3.11 test`.
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

CHECK := import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))
PYTHON ?= $(firstword $(foreach p,python3 python3.12 python3.11 python3.10,$(shell $(p) -c '$(CHECK)' 2>&- && echo $(p))))
BIN := .venv/bin
PIP := $(BIN)/pip --disable-pip-version-check -q install
CONFIGURE = $(BIN)/cmake -S . -B build -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python -DALIBI_WERROR=ON
JOBS := $(shell nproc)
CXX_FILES = $(shell find csrc tests benchmarks -name '*.cc' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.cpp')

.PHONY: help demo test test-slow test-cuda-model test-ascend test-neon sanitize build lint format types bench docs clean

help:       ## print this list
	@sed -nE 's/^([a-z-]+):.*## (.*)/make \1|\2/p' Makefile | column -t -s '|'

demo: build ## quickstart, a small benchmark, and "train short, test long" on real text, in about five minutes
	GLOG_v=3 $(BIN)/python -m alibi.demo  # MindSpore logs errors only

test: build ## all tests but the slow ones
	$(BIN)/pytest

test-slow: build ## the long tests
	$(BIN)/pytest -m slow

test-cuda-model: build ## the CUDA kernels on the CPU model of a GPU: every shape and the mutants
	$(BIN)/pytest tests/cuda -m "slow or not slow"

test-ascend: build ## the Ascend kernels on the CPU model of an NPU: every shape and the mutants
	$(BIN)/pytest tests/ascend -m "slow or not slow"

test-neon: build ## the NEON kernels, cross-compiled and run under qemu
	$(BIN)/pytest tests/neon

sanitize: build ## the tests of the CPU kernels under the address and undefined-behaviour sanitizers
	CMAKE_ARGS=-DALIBI_SANITIZE=ON $(PIP) --no-build-isolation --no-deps --upgrade --target build/sanitize .
	LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libstdc++.so)" ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitize $(BIN)/pytest --import-mode=append tests/native

build: .venv/package | build/CMakeCache.txt ## the kernel libraries, into alibi_kernels/
	@MAKEFLAGS=--no-print-directory $(BIN)/cmake --build build --parallel $(JOBS)

lint: .venv/tools types ## style and types: ruff, mypy, clang-format
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/clang-format --dry-run -Werror $(CXX_FILES)

format: .venv/tools ## rewrite the sources in the house style
	$(BIN)/ruff check --fix . && $(BIN)/ruff format . && $(BIN)/clang-format -i $(CXX_FILES)

types: .venv/tools ## mypy on both packages
	$(BIN)/mypy

bench: build .venv/bench ## the benchmark against other implementations, 45 minutes; BENCH="--ggml PATH", "--suites a,b", "--resume"
	$(BIN)/cmake -S . -B build -DALIBI_WITH_BENCH=ON && $(BIN)/cmake --build build --target alibi_ceilings
	$(BIN)/python benchmarks/run.py $(BENCH) && $(BIN)/python benchmarks/report.py

docs: build ## fill the README's table of measurements from the last `make demo`
	$(BIN)/python docs/fill_readme.py

clean:      ## remove everything that was built, .venv included
	rm -rf .venv build dist demo *.egg-info alibi_kernels/_lib alibi_kernels/_native*.so

.venv/tools: requirements/dev.txt
	@'$(PYTHON)' -c '$(CHECK)' || { echo "No Python 3.10, 3.11 or 3.12 with venv here (MindSpore 2.10 needs one; tried '$(PYTHON)'). Install one, on Debian and Ubuntu with 'apt-get install python3 python3-venv python3-dev', or name it: make PYTHON=/path/to/python3.11" >&2; exit 1; }
	'$(PYTHON)' -m venv .venv
	$(PIP) -r $<
	@touch $@

.venv/bench: requirements/bench.txt .venv/tools
	$(PIP) -r $<
	@touch $@

build/CMakeCache.txt: | .venv/package
	$(CONFIGURE)

.venv/package: pyproject.toml setup.py .venv/tools
	$(CONFIGURE)
	MAKEFLAGS=--no-print-directory $(BIN)/cmake --build build --parallel $(JOBS)
	$(PIP) --no-build-isolation --no-deps -e .
	@touch $@
