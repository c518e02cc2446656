# Two targets do everything on a machine that has git, make and Python: `make demo` and `make test`.
SHELL := /bin/bash
.DELETE_ON_ERROR:
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
TESTS := forge_orchestration_tests
# no .pyc of ours is missing at a start: see the byte-compiling below
export PYTHONDONTWRITEBYTECODE := 1

.PHONY: help demo install install-dev system test test-unit vm-image test-all test-vm lint bench bench-dagster bench-neighbours bench-resume bench-executors ui lock clean

help:
	@echo 'make demo      install, build the runtimes, run the main analysis through Dagster, show its results'
	@echo 'make test      install, check and test everything that fits 40 minutes'
	@echo 'make test-all  the same and everything else, the virtual machine included'
	@echo 'make bench     Forge against the alternatives, in the same run'
	@echo 'make bench-dagster   a step and a launch, against Dagster alone'
	@echo 'make bench-neighbours   what PostgreSQL and a web service notice of hostile executions beside them'
	@echo 'make bench-resume   a workflow of 1,000 tasks, run and run again, beside Snakemake; a store with 100,000 executions'
	@echo 'make bench-executors   an execution in a container and on a cluster, beside the engine alone'
	@echo 'make ui        the Dagster UI on http://127.0.0.1:3000'

demo: install
	@scripts/demo

install: $(VENV)/.installed
install-dev: $(VENV)/.installed-dev

system:
	@scripts/system-packages

# uv installs from the hashed lock, at the version that the lock itself names; everything is byte-compiled, our own package too:
# otherwise each start of each process compiles a thousand modules again
$(VENV)/.installed: requirements.lock pyproject.toml scripts/install scripts/system-packages
	@scripts/system-packages
	@scripts/install $(PYTHON) $(VENV) requirements.lock
	@touch $@

$(VENV)/.installed-dev: requirements-dev.lock pyproject.toml scripts/install scripts/system-packages
	@scripts/system-packages
	@scripts/install $(PYTHON) $(VENV) requirements-dev.lock
	@touch $(VENV)/.installed $@

lint: install-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

test: install-dev
	@scripts/prepare-cgroup
	@# what judges no times goes two at a time
	$(MAKE) --jobs=2 --output-sync=target vm-image lint test-unit
	$(BIN)/python -m pytest -m 'together and not slow' --numprocesses 2 --dist loadfile
	$(BIN)/python -m pytest -m 'not together and not slow' --ignore $(TESTS)/unit --ignore $(TESTS)/vm
	$(BIN)/python -m pytest -m 'not slow' $(TESTS)/vm

test-unit: install-dev
	$(BIN)/python -m pytest -m 'not slow' $(TESTS)/unit

# built ahead; where it cannot be, the test that needs it says why
vm-image: install-dev
	-@$(TESTS)/vm/run-in-vm --image --lock requirements-dev.lock .

test-all: install-dev lint
	@scripts/prepare-cgroup
	$(BIN)/python -m pytest
	$(MAKE) test-vm

test-vm: install-dev
	$(BIN)/python -m pytest forge_orchestration_tests/vm --timeout 3600

bench: install-dev
	@scripts/prepare-cgroup
	$(BIN)/python -m forge_orchestration_tests.bench

bench-dagster: install-dev
	@scripts/prepare-cgroup
	$(BIN)/python -m forge_orchestration_tests.bench_dagster

bench-neighbours: install-dev
	@scripts/prepare-cgroup
	$(BIN)/python -m forge_orchestration_tests.bench_neighbours

bench-resume: install-dev
	@scripts/prepare-cgroup
	$(BIN)/python -m forge_orchestration_tests.bench_resume

bench-executors: install-dev
	@scripts/prepare-cgroup
	$(BIN)/python -m forge_orchestration_tests.bench_executors

ui: install
	@scripts/prepare-cgroup
	DAGSTER_HOME=$(CURDIR) $(BIN)/dagster dev --host 127.0.0.1 --port 3000 -w workspace.yaml

lock:
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-annotate --no-emit-index-url \
	  --custom-compile-command 'make lock' pyproject.toml --group install -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --python-version 3.11 --no-annotate --no-emit-index-url \
	  --custom-compile-command 'make lock' -c requirements.lock pyproject.toml --group install --group dev -o requirements-dev.lock

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
