# `make up` and `make test` are all that a fresh machine needs.
SHELL := /bin/bash
PYTHON := .venv/bin/python
LONGSHORE := .venv/bin/longshore
# Parallel test workers: state is kept apart by a network and mount namespace a worker.
WORKERS ?= $(shell nproc)

.PHONY: up down status setup test check docs format bench

up:            ## install what is missing, start the cluster, run the sample application
	@scripts/setup run
	@$(LONGSHORE) up
	@$(LONGSHORE) demo

down:          ## stop everything; nothing is left behind but the state (longshore down --purge takes that too)
	@$(LONGSHORE) down

status:
	@$(LONGSHORE) status

setup:
	@scripts/setup test

check: setup   ## format, lint, types, import rules
	.venv/bin/ruff format --check src tests bench
	.venv/bin/ruff check src tests bench
	.venv/bin/mypy
	.venv/bin/lint-imports --no-cache
	$(PYTHON) scripts/compatibility.py --check

test: check    ## everything that CI runs
	$(PYTHON) -m pytest -n $(WORKERS) --dist loadfile tests

docs: setup    ## the compatibility page, from the code
	$(PYTHON) scripts/compatibility.py

format:
	.venv/bin/ruff format src tests bench
	.venv/bin/ruff check --fix src tests bench

bench: setup
	$(PYTHON) -m bench
