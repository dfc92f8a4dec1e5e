# make demo     set up, then the whole workflow on this machine's CPU: pre-train, p-tune, evaluate, collect
# make check    set up, then lint, format, import order, types and every test
# make gpu      tests and measurements on this machine's GPUs, with its own torch (WHEELS=folder: no network)
# make wheels   fills WHEELS with what `make gpu` may miss there (GPU_PYTHON=3.12: of that Python)
# make cluster  a Slurm of four nodes on this machine, to try things on (Ctrl-C stops it)

PYTHON ?= python3
VENV ?= .venv
# One CPU build of torch for every machine that has no GPU; TORCH=torch takes whatever the index offers.
TORCH ?= torch==2.13.0

BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO_DATA := demo-data

.PHONY: demo check lint types test slurm gpu wheels cluster clean

demo: $(READY) $(DEMO_DATA)/train.jsonl
	$(BIN)/hpclm submit recipes/demo.yaml --wait
	$(BIN)/hpclm collect --pred-file test-results.txt

$(DEMO_DATA)/train.jsonl: $(READY)
	$(BIN)/hpclm data demo --out $(DEMO_DATA)

$(READY): pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "hpclm needs Python 3.10 or newer: make PYTHON=python3.11 …")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$(TORCH)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[all,dev]"
	touch $(READY)

check: lint types test

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/shellcheck launch/*.sh containers/*.sh tests/*.sh .ci/run

types: $(READY)
	$(BIN)/mypy

# Everything, the slow tests (real engine over several processes) and the cluster's (real Slurm) included: one folder more
# at a time than there are cores, for the cluster's tests wait half of their time; the longest first, each in a pytest of
# its own whose words are shown when it ends.
AT_ONCE ?= $(shell expr $$(nproc) + 1)
LONGEST := tests/worker tests/cluster tests/engine_hf tests/traces tests/test_fine_tuning_road.py tests/test_demo.py \
  tests/fuzz
OTHERS = $(filter-out $(LONGEST) tests/support tests/__pycache__,$(patsubst %/,%,$(wildcard tests/*/)) \
  $(wildcard tests/test_*.py))
export BIN
# DeepSpeed compiles its operators where they are first used: with torch's headers read once, in half of the time.
QUICK := $(CURDIR)/tests/support/compiler/g++
ifneq ($(wildcard /usr/bin/g++),)
test: export CXX := $(QUICK)
endif

test: $(READY) slurm
	@if command -v slurmctld >/dev/null; then chosen=""; else chosen="not cluster"; \
	  echo "LEFT OUT: the tests on a real Slurm, for slurmctld is not installed (Debian: apt-get install slurm-wlm)"; \
	fi; \
	printf '%s\n' $(LONGEST) $(OTHERS) | CHOSEN="$$chosen" xargs -P $(AT_ONCE) -n 1 tests/run_folder.sh

# Slurm for the tests, and what they build and sandbox with, where this user may install it.
SLURM_PACKAGES := slurm-wlm libslurm-dev gcc g++ libc6-dev bubblewrap libaio-dev

slurm:
	@if command -v slurmctld >/dev/null && command -v gcc >/dev/null && command -v bwrap >/dev/null \
	    && [ -e /usr/include/slurm/spank.h ] && [ -e /usr/include/libaio.h ]; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq $(SLURM_PACKAGES) >/dev/null; \
	else \
	  echo "some of $(SLURM_PACKAGES) is missing, and this user cannot install it (needs root and apt-get)"; \
	fi

# Not in $(VENV): its torch is for CPUs.
gpu:
	$(PYTHON) launch/gpu.py $(if $(WHEELS),--wheels $(WHEELS))

GPU_PYTHON ?= 3.12
wheels:
	$(PYTHON) launch/gpu.py --fill-wheels $(or $(WHEELS),wheels) --python-version $(GPU_PYTHON)

cluster: $(READY) slurm
	$(BIN)/python launch/dev_cluster.py

clean:
	rm -rf $(VENV) $(DEMO_DATA) runs test-results.txt .mypy_cache .pytest_cache .ruff_cache
