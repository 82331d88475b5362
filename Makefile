# The kit's commands. `make` prints them.
PROFILE  ?= demo
OUTPUT   ?= runs/$(PROFILE)
NOTEBOOK ?=
STORE    ?=
EXECUTOR ?= serial
WORKERS  ?=
SCHEDULE ?=
PRECISION ?=
MINUTES  ?= 10
N        ?=
PYTHON   ?= python3

# An active conda environment is used as it is; otherwise everything lives in .venv.
ifdef CONDA_PREFIX
ENV := $(CONDA_PREFIX)
else
ENV := .venv
endif
PY    := $(ENV)/bin/python
# Threads share one heap, whose pages are kept: see salkit/models/folding.py.
export MALLOC_ARENA_MAX ?= 1
READY := $(ENV)/.salkit-ready

.DEFAULT_GOAL := help
.PHONY: help env reproduce verify study runs plan test test-fast test-faults test-portable test-notebooks record readme bench lab lint clean

help:  ## this list
	@echo "usage: make TARGET [PROFILE=smoke|demo|overnight|paper] [NOTEBOOK=03] [OUTPUT=runs/demo] [STORE=FOLDER] [EXECUTOR=dask WORKERS=2] [SCHEDULE=settled] [PRECISION=auto]"; echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

env: $(READY)  ## make the environment: .venv, or the active conda environment
	@echo "environment: $(ENV) ($$($(PY) --version))"

$(READY): pyproject.toml constraints.txt
	@$(if $(CONDA_PREFIX),echo "using the active conda environment $(CONDA_PREFIX)",$(PYTHON) -m venv $(ENV))
	$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[notebooks,test,dist]"
	@touch $@

reproduce: $(READY)  ## execute the notebooks and write OUTPUT/index.html; goes on where a run was stopped
	$(PY) -m salkit reproduce --profile $(PROFILE) --output $(OUTPUT) --executor $(EXECUTOR) \
	  $(if $(NOTEBOOK),--notebook $(NOTEBOOK)) $(if $(STORE),--store $(STORE)) $(if $(WORKERS),--workers $(WORKERS)) \
	  $(if $(SCHEDULE),-p schedule=$(SCHEDULE)) $(if $(PRECISION),-p precision=$(PRECISION))

verify: $(READY)  ## compute a random sample of the recorded study again and compare (MINUTES=10 or N=cells); exit code 1 if a number is wrong
	TQDM_DISABLE=1 $(PY) -m salkit verify --minutes $(MINUTES) $(if $(N),--n $(N)) $(if $(WORKERS),--workers $(WORKERS))

study: $(READY)  ## compute the recorded study, about ten hours on two cores, and write data/recorded; goes on where it was stopped
	TQDM_DISABLE=1 $(PY) -m salkit study $(if $(STORE),--store $(STORE))

runs: $(READY)  ## what the store of a run holds: progress, size, age
	$(PY) -m salkit runs --store $(or $(STORE),$(OUTPUT)/store)

plan: $(READY)  ## passes and estimated hours of a profile on this device (PROFILE)
	$(PY) -m salkit plan --profile $(PROFILE)

test: test-fast test-notebooks  ## everything that must pass: unit tests, then nbval over the notebooks

test-fast: $(READY)  ## unit tests and the examples in the docstrings, about a minute on two cores
	$(PY) -m pytest -n 2 --dist loadfile

test-faults: $(READY)  ## 50 kills at random moments and other faults of a real run, about five minutes
	$(PY) -m pytest -o addopts="" -m faults tests -s

test-portable: $(READY)  ## the tests that depend on kernels, under five combinations of instruction sets and threads, a line each
	$(PY) tests/portable.py

test-notebooks: $(READY)  ## re-execute the notebooks (demo) and compare with their committed outputs
	rm -rf runs/notebook
	TQDM_DISABLE=1 $(PY) -m pytest -o addopts="" -o filterwarnings=default --nbval --nbval-current-env \
	  --nbval-sanitize-with tests/nbval.cfg --nbval-cell-timeout 3000 notebooks

record: $(READY)  ## run the notebooks in place and record their outputs and expected values (after a change of numbers)
	rm -rf runs/notebook
	TQDM_DISABLE=1 SALKIT_RECORD=1 $(PY) -m jupyter nbconvert --to notebook --execute --inplace notebooks/0*.ipynb
	$(PY) -m ruff format --quiet notebooks

readme: $(READY)  ## copy recorded numbers and the first figure into README.md and docs/ (after make record or make bench)
	$(PY) -m salkit.report.readme

bench: $(READY)  ## speed and memory beside the bare net, the released code's way and torch-cam, about 13 minutes: runs/bench
	-$(PY) -m pip install --quiet --disable-pip-version-check -c constraints.txt torchcam
	$(PY) -m benchmarks --out runs/bench

lab: $(READY)  ## open the notebooks in JupyterLab
	$(PY) -m jupyter lab notebooks

lint: $(READY)  ## ruff (notebooks too), mypy, and the direction of imports
	$(PY) -m ruff check . && $(PY) -m ruff format --check . && $(PY) -m mypy && $(ENV)/bin/lint-imports --no-cache

clean:  ## remove runs, caches and .venv (downloads are kept)
	rm -rf runs .venv .mypy_cache .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
