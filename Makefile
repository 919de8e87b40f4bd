# Two commands matter: `make run` and `make test`. Both set everything up on a machine that has
# Python 3.11, make and git, and repeat at once when all is in place.

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

PYTHON ?= python3.11
BIN := $(CURDIR)/.venv/bin

# DVC's stages are `hpgr STAGE`: they must be this environment's.
export PATH := $(BIN):$(PATH)
export PREFECT_HOME ?= $(CURDIR)/.prefect
# Telemetry off from the first import on (the same list as hpgr.runtime.TELEMETRY_OFF).
export PREFECT_SERVER_ANALYTICS_ENABLED := false
export DO_NOT_TRACK := 1
export MLFLOW_DISABLE_TELEMETRY := true
export DVC_NO_ANALYTICS := 1
export GX_ANALYTICS_ENABLED := false

.PHONY: help
help:  ## what there is to call
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

.PHONY: run
run: .venv/ready  ## set up, fetch the log, train, register, recommend; PROFILE=full trains to the end
	hpgr fetch
	hpgr train $(if $(PROFILE),--profile $(PROFILE))
	hpgr result

.PHONY: up
up: .venv/ready  ## start Prefect, MLflow, recommender and worker; HPGR_PREFECT_PORT, HPGR_MLFLOW_PORT
	hpgr up

.PHONY: down
down: .venv/ready  ## stop them; a running flow writes its checkpoint
	hpgr down

.PHONY: worker
worker: .venv/ready  ## on another machine: PREFECT_API_URL=... PREFECT_API_AUTH_STRING=... make worker POOL=gpu
	hpgr worker $(or $(POOL),gpu)

.PHONY: test
test: .venv/ready-dev lint  ## set up, check style, types and layers, run every test
	python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder \
	  --disable-plugin-autoload -p xdist -p hypothesispytest  # other packages' cost seconds each

.PHONY: lint
lint: .venv/ready-dev  ## style, format, types, layers
	ruff check .
	ruff format --check .
	mypy --num-workers 2 || mypy  # on a busy machine its workers can start too late for it
	lint-imports

.PHONY: tree
tree:  ## write README.md's tree from the first line of every docstring
	@'$(PYTHON)' tests/readme_tree.py

.PHONY: lock
lock: .venv/ready-dev  ## write what is installed to requirements.lock; pins for other machines stay
	python -m pip freeze --exclude-editable | sed -E 's/\+cpu$$//' > .venv/installed.txt
	{ sed -n '/^#/p' requirements.lock; \
	  { cat .venv/installed.txt; sed '/^#/d' requirements.lock; } | LC_ALL=C sort -fu -t= -k1,1; \
	} > .venv/requirements.lock
	mv .venv/requirements.lock requirements.lock

# Before anything is written: signs in the folder's path that a tool reads as its own, no git.
.PHONY: folder
folder:
	@"$$([ -x .venv/bin/python ] && echo .venv/bin/python || echo '$(PYTHON)')" -B -m hpgr.folder
	@said=$$(git rev-parse --git-dir 2>&1) || { \
	  echo "error: $$said: DVC and a version's lineage need one. Clone the project, or in a copy run: git init && git add -A && git commit -m 'Copy of hpgr'" >&2; exit 2; }

# Python compiles what it imports, where nothing forbids it; pip would compile all, most for nothing.
export PYTHONDONTWRITEBYTECODE :=
INSTALL := python -m pip install --no-compile --constraint requirements.lock --editable

# Run by every Python of .venv when it starts. The libraries here make hundreds of thousands of
# objects while they are imported, and at its end a process looks through all of them once more:
# fewer collections and none at the end take a fifth to a third off the life of a short command.
STARTUP := import gc, atexit; gc.set_threshold(50_000); atexit.register(gc.freeze)

# A stamp per set of extras: pip runs again only when what it would install may have changed.
.venv/bin/python: | folder
	$(PYTHON) -m venv .venv
	cd .venv/lib/python*/site-packages && echo '$(STARTUP)' > startup.pth
	$@ -m pip install --quiet 'pip>=26'  # the one that comes with Python takes twice as long

.venv/ready: pyproject.toml requirements.lock | folder .venv/bin/python
	$(INSTALL) .
	touch $@

.venv/ready-dev: pyproject.toml requirements.lock | folder .venv/bin/python
	$(INSTALL) '.[dev,spark,team]'
	touch $@ .venv/ready

.PHONY: clean
clean:  ## remove stage outputs and caches; keeps .venv, data/ and the registry
	rm -rf artifacts checkpoints .pytest_cache .ruff_cache .mypy_cache .hypothesis
