# make demo   the whole flywheel on a tiny model, ends with runs/demo/report.html
# make test   lint and all tests
# make test-slurm   the job scripts on a real Slurm on this machine (installs Debian's slurm-wlm and munge if missing)
# VENV=DIR uses (and completes) another virtual environment; WORKERS=N runs that many test files at once.
VENV ?= .venv
WORKERS ?= 2
PY := $(VENV)/bin/python
READY := $(VENV)/.megatron-remit-ready

.PHONY: demo test test-slurm lint env clean
.DEFAULT_GOAL := demo

demo: env
	PYTHON=$(PY) bash examples/flywheel_tiny.sh

test: env lint
	$(PY) -m pytest -n $(WORKERS) --dist loadfile

test-slurm: env
	PYTHON=$(abspath $(PY)) tests/slurm/with_cluster.sh $(PY) -m pytest tests/slurm

lint: env
	$(PY) -m ruff check .

env: $(READY)

$(READY): pyproject.toml constraints.txt tools/find_python.sh
	@python="$$(bash tools/find_python.sh)" && [ -x $(PY) ] || "$$python" -m venv $(VENV)
	@echo "> installing into $(VENV) (about 6 GB, 3 to 6 minutes the first time)"
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[flywheel,dev]'
	touch $@

clean:
	rm -rf runs build *.egg-info .pytest_cache .ruff_cache
