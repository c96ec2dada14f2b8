# `make` alone prints this page.
# Every target sets up what it needs: uv, .venv from pins with hashes, the Delta JARs. Set-up is done once.

VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
JARS := .jars/.ready
S3_SERVER := .s3-server/.ready
UV := $(shell command -v uv || echo .tools/bin/uv)
PYTHON := $(shell command -v python3.11 || command -v python3)
# One busy neighbour makes a training step 40 times slower with threads that spin while they wait.
export OMP_WAIT_POLICY := passive
export PYTHONSAFEPATH := 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-airflow test-breaking test-s3 test-real bench bench-ingest bench-transitions bench-loader bench-learner bench-quality bench-curves check format doctor pins clean

help: ## print this page
	@echo "Nightjar: nightly recommendations from raw interaction logs."
	@echo
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'
	@echo
	@echo "KEEP=1 leaves the demo's Airflow running. ARGS='--users 500 --days 10' changes the demo's world."

setup: $(READY) $(JARS) ## make .venv and fetch the Delta JARs; the other targets do it by themselves

demo: setup ## 30 days of a simulated world, its last night through a real Airflow, and the truth beside the result
	@$(BIN)/nightjar demo $(if $(KEEP),--keep) $(ARGS)

test: setup ## run the tests
	@$(BIN)/python -m pytest --ignore=tests/real --ignore=tests/airflow --ignore=tests/breaking --ignore=tests/s3 $(ARGS)

test-airflow: setup ## compare Airflow's backfill with nightjar's: a Spark session a task, so some minutes
	@$(BIN)/python -m pytest tests/airflow $(ARGS)

test-breaking: setup ## kill Spark steps and set them upon each other: a Spark session a process, so some minutes
	@$(BIN)/python -m pytest tests/breaking $(ARGS)

test-s3: setup $(S3_SERVER) ## run the chain, races and failures on an S3 server of its own; fetches 700 MB of JARs once
	@$(BIN)/nightjar jars --s3
	@$(BIN)/python -m pytest tests/s3 $(ARGS)

test-real: setup ## run the whole chain on the real data sets of ../shared/data
	@if [ -d ../shared/data ]; then $(BIN)/python -m pytest tests/real -s $(ARGS); \
	elif [ -n "$$CI" ]; then echo "make test-real: ../shared/data is missing; in CI that is a failure." >&2; exit 1; \
	else echo "make test-real: there is no ../shared/data here, so there is nothing to run."; fi

bench: setup ## measure one night of the demo world
	@$(BIN)/python -m tests.benchmarks.night $(ARGS)

bench-ingest: setup ## measure landing to silver against DuckDB alone: 10 million events, 7 GB of disk
	@$(BIN)/python -m tests.benchmarks.ingest $(ARGS)

bench-loader: setup ## measure the loader against the plain way to a sorted table: 20 million transitions, 4 GB of memory
	@$(BIN)/python -m tests.benchmarks.loader bench $(ARGS)

bench-learner: setup ## measure the learner against TorchRL's: 1,000 to 1,000,000 items
	@$(BIN)/python -m tests.benchmarks.learner bench $(ARGS)

bench-quality: setup ## measure how well the learner ranks the logs of ../shared/data, beside popularity, repeats, EASE and cloning
	@$(BIN)/python -m tests.benchmarks.quality $(ARGS)

bench-curves: setup ## measure what helps the learner on 1%, 10% and 100% of the users of those logs
	@$(BIN)/python -m tests.benchmarks.curves $(ARGS)

bench-transitions: setup ## measure silver to transitions against DuckDB and the usual way with Spark: 20 million events
	@$(BIN)/python -m tests.benchmarks.transitions $(ARGS)

check: $(READY) ## lint, form, types, SQL
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/sqlfluff lint sql

format: $(READY) ## put the code into form
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .
	@$(BIN)/sqlfluff fix sql

doctor: $(READY) ## say whether this machine is fit
	@$(BIN)/nightjar doctor

pins: ## compile the pins anew from pyproject.toml
	@$(MAKE) --no-print-directory $(UV)
	@for name in local airflow spark train; do \
	  extras=$$([ $$name = local ] && echo "--all-extras --group dev" || echo "--extra $$name -c requirements/local.txt"); \
	  $(UV) pip compile pyproject.toml --python-version 3.11 $$extras --generate-hashes --no-emit-index-url \
	    --no-annotate --no-header --quiet -o requirements/$$name.txt; done
	@$(UV) pip compile --python-version 3.11 --group pyproject.toml:s3-server --generate-hashes --no-emit-index-url \
	  --no-annotate --no-header --quiet -o requirements/s3-server.txt

clean: ## remove what the targets made, .venv and JARs included
	@rm -rf $(VENV) .tools .jars .s3-server demo .mypy_cache .pytest_cache .ruff_cache .hypothesis

.tools/bin/uv: requirements/uv.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' \
	  || { echo "Nightjar needs Python 3.11, and there is none on PATH (Debian: apt-get install python3.11 python3.11-venv)." >&2; exit 1; }
	@echo "Getting uv …"
	@$(PYTHON) -m venv .tools && .tools/bin/python -m pip install --quiet --require-hashes -r $<
	@touch $@

$(READY): requirements/local.txt pyproject.toml | $(filter .tools/bin/uv,$(UV))
	@echo "Making $(VENV) …"
	@$(UV) venv --quiet --clear --python $(PYTHON) --no-python-downloads $(VENV)
	@$(UV) pip install --quiet --compile-bytecode --python $(BIN)/python --require-hashes -r requirements/local.txt
	@$(UV) pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

# An environment of its own: botocore holds python-dateutil below 3, and no test may decide what the images hold.
$(S3_SERVER): requirements/s3-server.txt | $(filter .tools/bin/uv,$(UV))
	@$(UV) venv --quiet --clear --python $(PYTHON) --no-python-downloads $(@D)
	@$(UV) pip install --quiet --python $(@D)/bin/python --require-hashes -r $<
	@touch $@

$(JARS): jobs/operate/jars.py $(READY)
	@$(BIN)/nightjar jars
	@mkdir -p $(@D) && touch $@
