# `make demo` and `make test` are the two commands; each does all its set-up.
# `make help` lists the others.  PYTHON=/path/to/python3 chooses the interpreter of a new .venv.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
# Debian keeps mosquitto in /usr/sbin, which is not on a user's PATH.
export PATH := $(PATH):/usr/sbin:/sbin
# The tests start hundreds of processes: each would compile all sources again without their caches.
unexport PYTHONDONTWRITEBYTECODE

BIN := .venv/bin
PACKAGES := mm_model livemigration source_node dest_node predump
PYTEST_ARGS ?=
FUZZ_EXAMPLES ?= 5000
FUZZ_SECONDS ?= 600
AGREE_OPERATIONS ?= 100000
SEARCH_SEEDS ?= 10
SOAK_MINUTES ?= 10
SOAK_SEED ?=

.PHONY: help demo test tests setup setup-dev warm lint format types imports stubs unit proto lock bench fuzz \
	fuzz-criu-images fuzz-criu-rpc fuzz-jit fuzz-page-server mutate-hunks search-hunks shortest faults soak \
	picture compose compose-test compose-clean clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: setup ## migrate 256 MiB twice, the second time with a hunk of the patch off
	@$(BIN)/predump demo

test: setup-dev ## every check and the whole test suite
	@echo 'checking the sources and compiling the model (some minutes where it is not cached yet) ...'
	@$(MAKE) --no-print-directory -j 2 --output-sync=target lint types warm
	@$(MAKE) --no-print-directory tests
	@echo 'make test: all passed'

setup:
	@scripts/setup.sh run

setup-dev:
	@scripts/setup.sh dev

warm: setup-dev
	@$(BIN)/python scripts/warm.py --tests

lint: setup-dev stubs imports ## ruff, import directions, generated stubs
	@echo '== ruff'
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: setup-dev ## let ruff rewrite the sources
	@$(BIN)/ruff check --fix-only .
	@$(BIN)/ruff format .

types: setup-dev ## mypy --strict
	@echo '== mypy --strict'
	@$(BIN)/mypy --strict

imports: setup-dev
	@echo '== import directions'
	@$(BIN)/lint-imports

stubs: setup-dev
	@echo '== stubs'
	@$(BIN)/python scripts/gen_protos.py --check

unit: warm ## the tests alone (PYTEST_ARGS=... is passed on)
	@$(MAKE) --no-print-directory tests

tests: setup-dev
	@scripts/tests.sh $(PYTEST_ARGS)

proto: setup-dev ## regenerate the stubs from proto/
	@$(BIN)/python scripts/gen_protos.py

lock: ## renew the lock files from pyproject.toml (LOCK_ARGS=--upgrade takes the newest)
	@scripts/lock.sh $(LOCK_ARGS)

bench: setup-dev ## benchmarks, with their targets
	@$(BIN)/python -m bench

fuzz: warm ## property tests with fresh seeds and FUZZ_EXAMPLES (5000) examples each
	@FUZZ_EXAMPLES=$(FUZZ_EXAMPLES) $(BIN)/python -m pytest -n 2 tests/property --timeout 3600 \
		--hypothesis-profile=fuzz --hypothesis-show-statistics $(PYTEST_ARGS)

fuzz-criu-images: warm ## damaged CRIU image directories for FUZZ_SECONDS (600)
	@$(BIN)/python -m tests.fuzz.criu_images --seconds $(FUZZ_SECONDS)

fuzz-criu-rpc: warm ## hostile clients of CRIU's RPC for FUZZ_SECONDS (600)
	@$(BIN)/python -m tests.fuzz.criu_rpc --seconds $(FUZZ_SECONDS)

fuzz-jit: warm ## AGREE_OPERATIONS (100000) random operations, compiled and as plain Python
	@AGREE_OPERATIONS=$(AGREE_OPERATIONS) $(BIN)/python -m pytest -s --timeout 7200 $(PYTEST_ARGS) \
		tests/property/test_compiled_agrees.py

fuzz-page-server: warm ## hostile peers of CRIU's page server, for FUZZ_SECONDS (600)
	@$(BIN)/python -m tests.fuzz.page_server --seconds $(FUZZ_SECONDS)

mutate-hunks: warm ## take each hunk out of the model: some test must fail each time
	@$(BIN)/python scripts/mutate_hunks.py

search-hunks: warm ## search finds what each hunk's recordings show, with SEARCH_SEEDS (10) seeds
	@SEARCH_SEEDS=$(SEARCH_SEEDS) $(BIN)/python -m pytest -n 2 --timeout 7200 $(PYTEST_ARGS) \
		tests/unit/predump/test_hunks.py -k with_and_without_the_hunk

shortest: warm ## search for the scenarios that `predump hunks` shows, and keep them
	@$(BIN)/python -m predump.conform.shortest

picture: ## one migration and its picture in results/, without containers: SCENARIO=quickstart
	@scripts/picture.sh $(SCENARIO)

# More for it by name: TLS, LINK, DEST, RESULTS, PREDUMP_ARGS, BUILD ...
compose: ## one migration in containers: SCENARIO=quickstart, TLS=1, LINK=200mbit (docs/compose.md)
	@scripts/compose.sh $(SCENARIO)

soak: warm ## migrations back and forth with faults by chance, SOAK_MINUTES (10), SOAK_SEED (by chance)
	@$(BIN)/predump faults soak --minutes $(SOAK_MINUTES) $(if $(SOAK_SEED),--seed $(SOAK_SEED))

# With DOCKER=1 nothing but Docker is needed.
faults: $(if $(DOCKER),,warm) ## every fault of scenarios/faults, or FAULTS=name; DOCKER=1: in containers
	@$(if $(DOCKER),scripts/compose-faults.sh,$(BIN)/predump faults run) $(or $(FAULTS),all)

compose-test: setup-dev ## the compose tests alone
	@$(BIN)/python -m pytest -m compose -v $(PYTEST_ARGS)

compose-clean: ## remove the engine cache that the compose tests keep in ~/.cache
	@tests/compose/engine.sh clean

clean: ## remove .venv, caches and results
	@rm -rf .venv build dist results .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache *.egg-info
	@find $(PACKAGES) bench scripts tests -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
