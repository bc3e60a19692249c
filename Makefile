# `make help` prints what can be done here; each line comes from the comment beside its target.

SHELL := /bin/bash
.DEFAULT_GOAL := help
VENV := .venv
BIN := $(VENV)/bin
COMPOSE := docker compose -f docker-compose.worker.yml
WORKERS := worker-primary worker-document worker-ai worker-scheduled
TESTS := tests/unit tests/contract tests/integration tests/acceptance tests/simulation tests/chaos
# The addresses of the local stack, or those that the environment gives instead.
WITH_STACK := set -e; addresses="$$($(BIN)/python -m devstack env)"; eval "$$addresses";

# Tests and demo start hundreds of processes, and each would compile this project once more.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## Print this
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: install
install: $(VENV)/.installed ## Make the virtual environment and install all packages

$(VENV)/.installed: pyproject.toml .ci/make-venv
	@bash .ci/make-venv $(VENV)
	@echo "Installing packages into $(VENV) ..."
	@$(BIN)/python -m pip install --disable-pip-version-check --editable '.[dev]' >$(VENV)/install.log 2>&1 \
	  || { tail -n 40 $(VENV)/install.log; exit 1; }
	@touch $@

.PHONY: demo
demo: install ## Run everything once on real input; KEEP=1 leaves it running
	@$(BIN)/python -m demo $(if $(KEEP),--keep)

.PHONY: up
up: install ## Start Kafka, Redis and PostgreSQL on this machine
	@$(BIN)/python -m devstack up

.PHONY: down
down: ## Stop every local stack and what runs in it; CLEAN=1 removes the data
	@for folder in .run/*/; do \
	  test ! -e "$$folder/stack.json" || $(BIN)/python -m devstack down --data "$$folder" $(if $(CLEAN),--clean) || exit; \
	done

.PHONY: prepare
prepare: up ## Make or check all topics and tables in the local stack
	@$(WITH_STACK) $(BIN)/streams topics ensure; $(BIN)/streams db upgrade

.PHONY: test
test: lint ## Check style, types and layers, then run all tests
	@$(BIN)/python -m pytest $(wildcard $(TESTS))

.PHONY: test-unit
test-unit: install ## Run the tests that need nothing running
	@$(BIN)/python -m pytest tests/unit

.PHONY: lint
lint: install ## Check style, types and layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: format
format: install ## Put all code in its format
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

.PHONY: workers
workers: ## Run all four workers in this terminal (after `make prepare`)
	@$(MAKE) --no-print-directory -j4 $(WORKERS)

.PHONY: worker
worker: install ## Run the worker that WORKER_TYPE names
	@$(WITH_STACK) exec $(BIN)/streams worker

.PHONY: $(WORKERS)
worker-primary: install ## Run the primary worker: critical, reports, e-mails, webhooks, integrations
worker-document: install ## Run the document worker: OCR and document analysis
worker-ai: install ## Run the ai worker: ML and AI
worker-scheduled: install ## Run the scheduled worker: schedules and maintenance
$(WORKERS):
	@$(WITH_STACK) exec $(BIN)/streams worker --type $(@:worker-%=%)

.PHONY: tracking
tracking: install ## Run the sink that fills the store with what happened
	@$(WITH_STACK) exec $(BIN)/streams tracking

.PHONY: schemas
schemas: install ## Write the Avro schemas from the payload models
	@$(BIN)/streams schemas write

.PHONY: bench
bench: install ## Measure how fast one worker drains a backlog
	@$(BIN)/python -m bench.drain

.PHONY: chaos
chaos: install ## Hurt real processes in every way of the catalogue, and judge: FAULT=name SEED=7
	@$(BIN)/python -m tests.chaos $(if $(FAULT),--fault $(FAULT),--all --stacks 2) $(if $(SEED),--seed $(SEED))

.PHONY: simulate
simulate: install ## Run the core in worlds made up from seeds: SEEDS=1000 FIRST=0
	@$(BIN)/python -m tests.simulation --seeds $(or $(SEEDS),1000) --first $(or $(FIRST),0)

.PHONY: docker-up
docker-up: ## Build the image and start everything in containers (needs .env)
	@$(COMPOSE) up --build --detach --wait

.PHONY: docker-down
docker-down: ## Stop the containers; CLEAN=1 removes their volumes
	@$(COMPOSE) down $(if $(CLEAN),--volumes)

.PHONY: docker-logs
docker-logs: ## Follow the logs of the containers
	@$(COMPOSE) logs --follow --tail=100
