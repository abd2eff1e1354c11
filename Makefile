# Every command of this project. `make` alone lists them.

PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

# Only what PyPI itself serves may give a hash to a lock: a wheel that one machine keeps beside it is no one else's.
ONLY_PYPI := env -u PIP_FIND_LINKS -u PIP_EXTRA_INDEX_URL -u PIP_INDEX_URL PIP_CONFIG_FILE=/dev/null \
	CUSTOM_COMPILE_COMMAND="make lock"
PIP_COMPILE := $(ONLY_PYPI) $(BIN)/pip-compile --quiet --generate-hashes --no-emit-index-url --no-emit-find-links \
	--strip-extras --allow-unsafe

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help .venv demo test faults faults-measure bench check format generate lock clean

help: ## List the targets
	@sed -n 's/^\([.a-z-]*\):.*## /\1\t/p' $(firstword $(MAKEFILE_LIST)) | while IFS="$$(printf '\t')" read -r name what; \
		do printf '  make %-14s %s\n' "$$name" "$$what"; done

.venv: $(READY) ## Make the environment that the others use, from the lock

demo: $(READY) ## Record, sync and show a call, with its own Postgres and S3 (KEEP=1 leaves them up)
	$(BIN)/edge-recorder demo $(if $(KEEP),--keep)

test: $(READY) ## Run the tests (ARGS="-k spool -x" goes to pytest)
	$(BIN)/pytest $(ARGS)

bench: $(READY) ## Measure what capture costs, beside other ways to record (ARGS="--quick")
	$(BIN)/python benchmarks/capture.py $(ARGS)

faults: $(READY) ## Run the long tests: every crash point, every refusal, stalled and full disks (15 minutes)
	$(BIN)/pytest -m faults $(ARGS)

faults-measure: $(READY) ## Measure what a crash takes, on this disk (ARGS="--directory DIR")
	$(BIN)/python tests/faults/measure.py $(ARGS)

check: $(READY) ## Lint, formatting, types and the arrows between the rooms; changes nothing
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(READY) ## Format, and fix what can be fixed by itself
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

generate: $(READY) ## Write the files that are made from the model
	$(BIN)/python tests/generate.py

lock: ## Resolve pyproject.toml anew into requirements/ (UPGRADE=1 moves every version)
	@test -x $(BIN)/pip-compile || $(MAKE) .venv
	@$(BIN)/python -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and \
		"make lock: lock with Python 3.11, the oldest supported, so that the result installs on all of them")'
	$(PIP_COMPILE) $(if $(UPGRADE),--upgrade) --output-file requirements/base.txt pyproject.toml
	$(PIP_COMPILE) $(if $(UPGRADE),--upgrade) --extra sync --output-file requirements/sync.txt pyproject.toml
	$(PIP_COMPILE) $(if $(UPGRADE),--upgrade) --extra dev --output-file requirements/dev.txt pyproject.toml
	@# The extras name one another through the project itself, and pip-compile then pins it as a path of this machine.
	sed -i -e '/^# WARNING: pip install will require/,+1d' -e '/^edge-recorder @ file:/,/# via/d' requirements/dev.txt
	@! grep -nE '(file|https?)://' requirements/*.txt || { echo 'make lock: an address got into a lock file' >&2; exit 1; }

clean: ## Remove the environment and everything made by a run
	rm -rf .venv build dist .hypothesis .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): requirements/dev.txt pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo 'make: no $(PYTHON) here; install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3' >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "make: Python 3.11 or newer is needed, and \
	$(PYTHON) is " + sys.version.split()[0] + "; name another: make PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo 'make: $(PYTHON) cannot make environments; on Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
	$(BIN)/python -c '' 2>/dev/null || $(PYTHON) -m venv --clear .venv
	$(BIN)/python -m pip install --require-hashes -r requirements/dev.txt
	$(BIN)/python -m pip install --no-deps --no-build-isolation -e .
	@touch $@
