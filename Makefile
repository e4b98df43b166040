# Everything happens in .venv beside this file. Only relative paths, so that the path of the checkout may hold spaces.
# What set-up says goes to stderr: `make up ARGS="--json"` prints its answer and nothing else.

.PHONY: setup up test lint bench quality chaos soak mutations fuzz clean lock
.DEFAULT_GOAL := setup
ARGS ?=
PYTHON ?=
RUN := .venv/bin/python -m
LOCKS := requirements.lock requirements-dev.lock

setup: ## .venv with the locked dependencies and the project; instant when nothing has changed
	@set -e; exec >&2; \
	key="$$(cat $(LOCKS) pyproject.toml | cksum) $$PWD"; \
	if [ "$$(cat .venv/installed 2>/dev/null)" = "$$key" ]; then exit 0; fi; \
	found=""; fits='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'; \
	for python in $(or $(PYTHON),python3.12 python3.11 python3 python3.13); do \
		if "$$python" -c "$$fits" 2>/dev/null; then found="$$python"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "headrace needs Python 3.11, 3.12 or 3.13; none is on PATH, or the one named does not fit. Install one, or name it: make PYTHON=/path/to/python"; \
		exit 1; \
	fi; \
	if ! "$$found" -c 'import ensurepip, venv' 2>/dev/null; then \
		echo "$$found cannot make virtual environments. On Debian and Ubuntu: apt-get install python3-venv"; \
		exit 1; \
	fi; \
	if command -v ldconfig >/dev/null 2>&1 && ! ldconfig -p | grep -q 'libgomp\.so\.1'; then \
		echo "LightGBM needs OpenMP of the system, libgomp.so.1. On Debian and Ubuntu: apt-get install libgomp1"; \
		exit 1; \
	fi; \
	echo "Setting up .venv with $$("$$found" --version) (once; a minute or two)"; \
	"$$found" -m venv --clear .venv; \
	$(RUN) pip install --quiet --disable-pip-version-check --require-hashes -r requirements-dev.lock; \
	$(RUN) pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .; \
	$(RUN) features.warm; \
	echo "$$key" > .venv/installed

up: setup ## history, models, servers, worker and live view: make up ARGS="--duration 30 --json"
	@.venv/bin/headrace up $(ARGS)

lint: setup ## linter, formatter and type checker
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy

test: lint ## everything above and the tests: make test ARGS="-k redis"
	$(RUN) pytest $(ARGS)

bench: setup ## the benchmark, on real Kafka and Redis: make bench ARGS="--quick --out bench.json"
	@$(RUN) bench $(ARGS)

HANDBOOK ?= ../shared/data/handbook/transactions.parquet
BACKTEST := .venv/bin/headrace backtest fraud --transactions "$(HANDBOOK)" --schema examples/handbook.toml --seeds 3
REPORTS := build/quality

quality: setup ## the table of docs/quality.md, with a report each below build/quality: make quality HANDBOOK=file
	@mkdir -p $(REPORTS)
	@$(BACKTEST) --test-start 2018-08-08 --train-days 7 --out $(REPORTS)/week.parquet --report $(REPORTS)/week
	@$(BACKTEST) --test-start 2018-08-08 --train-days all --out $(REPORTS)/all.parquet --report $(REPORTS)/all
	@$(BACKTEST) --test-start 2018-07-25 --folds 1 --out $(REPORTS)/july.parquet --report $(REPORTS)/july

SEED ?= 1
ROUNDS ?= 1
FAULTS ?=
OUT ?=
CHAOS := $(RUN) chaos --seed $(SEED) $(if $(OUT),--out $(OUT)) $(ARGS)

chaos: setup ## faults on real Kafka and Redis: make chaos ROUNDS=3 SEED=1 FAULTS=1,2,3 OUT=chaos.json
	@$(CHAOS) --rounds $(ROUNDS) --faults "$(FAULTS)"

soak: setup ## fault 25 for 30 minutes
	@CHAOS_SOAK_S=1800 $(CHAOS) --faults 25

mutations: setup ## every mutation of the source must be caught by its fault: make mutations OUT=mutations.json
	@$(RUN) chaos.mutations $(if $(OUT),--out $(OUT)) $(ARGS)

fuzz: setup ## coverage-guided search for records and schemas that break something: make fuzz ARGS="--seconds 600"
	@$(RUN) fuzz $(ARGS)

clean: ## removes what set-up and tests have made
	rm -rf .venv build dist headrace.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find features trainer stream tests bench chaos fuzz -name __pycache__ -type d -prune -exec rm -rf {} +

# Resolved on the oldest Python, because what installs there has wheels for the newer ones too; the reverse is not so.
# PIP_FIND_LINKS is unset so that the hashes are those of the public registry.
COMPILE := env -u PIP_FIND_LINKS CUSTOM_COMPILE_COMMAND="make lock" build/lock/bin/pip-compile --quiet \
	--generate-hashes --allow-unsafe --strip-extras --no-emit-index-url --no-emit-trusted-host --no-emit-find-links

lock: ## writes both locks anew from pyproject.toml
	python3.11 -m venv --clear build/lock
	env -u PIP_FIND_LINKS build/lock/bin/python -m pip install --quiet pip-tools==7.6.2
	rm -f $(LOCKS)
	$(COMPILE) --output-file requirements.lock pyproject.toml
	$(COMPILE) --extra dev --extra tune --constraint requirements.lock --output-file requirements-dev.lock pyproject.toml
