# make run: everything on loopback, with a synthetic county.  make test: all tests that are not long.
SHELL := /bin/sh
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# the JavaScript client is tested where node is; its SM2 takes one npm package
NODE_MODULES := $(if $(and $(shell command -v node),$(shell command -v npm)),tests/clients/node_modules/.installed)

.PHONY: run test lint bench load faults clean

run: $(VENV)/.runtime
	@exec $(BIN)/python -m gateway sandbox

# they start hundreds of processes; where the environment forbids to keep compiled files, each would compile all of them
test faults: export PYTHONDONTWRITEBYTECODE :=

# files in their order, not those of many tests first: the slowest have few, and would run alone in the end
test: $(VENV)/.dev $(NODE_MODULES)
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy config/clients/yikatong.py
	$(BIN)/lint-imports

bench: $(VENV)/.bench
	$(BIN)/python -m loadtests.bench $(BENCH)

# a running gateway (make run) is loaded with the users' mix, then every answer is compared with the feed
load: $(VENV)/.dev
	$(BIN)/locust -f loadtests/locustfile.py --headless -u 50 -r 10 -t 30s --stop-timeout 5 --host http://127.0.0.1:$${PORT:-8080} --only-summary
	$(BIN)/python -m loadtests.reconcile
	$(BIN)/python -m loadtests.loss_delay

faults: $(VENV)/.dev
	FAULT_CYCLES=$${FAULT_CYCLES:-100} $(BIN)/python -m pytest tests/faults tests/contract tests/api/test_effects.py tests/api/test_contract.py --timeout=7200 -s

clean:
	rm -rf $(VENV) tests/clients/node_modules .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or later is needed: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
	  { echo "This Python cannot make virtual environments: install the package python3-venv"; exit 1; }
	@echo "making the virtual environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)

# pip is quiet unless something fails; hashes are checked for every package
$(VENV)/.runtime: requirements.txt | $(BIN)/python
	@echo "installing the packages of requirements.txt (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.txt
	@touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	@echo "installing the packages of requirements-dev.txt (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.txt
	@touch $@

$(VENV)/.bench: requirements-bench.txt $(VENV)/.dev
	@echo "installing the packages of requirements-bench.txt (once)"
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements-bench.txt
	@touch $@

# npm checks the hashes of the lock; no package's own script is run
tests/clients/node_modules/.installed: tests/clients/package-lock.json
	@echo "installing the packages of tests/clients/package-lock.json (once)"
	@npm ci --prefix tests/clients --ignore-scripts --no-audit --no-fund --loglevel=error >/dev/null
	@touch $@
