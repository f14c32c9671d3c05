# `make` alone lists the targets. PYTHON=python3.12 chooses an interpreter, 3.11 to 3.14.
.DEFAULT_GOAL := help
PYTHON ?= python3
BIN := .venv/bin
# Three workers on the two cores that CI has, as tests wait more than they work; a file stays on one worker, as its tests share servers.
# In the order of their names: by the number of their tests, files with few that take long would be the last, and most workers idle.
WORKERS ?= 3
PYTEST := $(BIN)/python -m pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: run
run: install-run ## Install what is needed and start everything on this machine; Ctrl-C ends it
	@exec $(BIN)/bulkhead up $(ARGS)

.PHONY: test
test: install-test lint ## Every test that needs nothing but Python packages
	$(PYTEST) -m "not system"

.PHONY: test-system
test-system: install-test ## The tests that need Debian packages, which it installs, or take long
	$(BIN)/python scripts/install_debian.py
	PATH="$$PATH:/usr/sbin:/sbin" $(BIN)/python -m pytest -q -m system

.PHONY: lint
lint: install-test ## Style, import rules, protos, generated code, the API against the last release
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-logo
	$(BIN)/buf lint
	$(BIN)/python scripts/gen_protos.py --check
	$(BIN)/python scripts/gen_config_reference.py --check
	$(BIN)/python -m scripts.check_api

.PHONY: format
format: install-test ## Bring the code into the one style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

.PHONY: protos
protos: install-test ## Generate the Python code of protos/
	$(BIN)/python scripts/gen_protos.py

.PHONY: reference
reference: install-test ## Write docs/configuration.md from the settings classes
	$(BIN)/python scripts/gen_config_reference.py

.PHONY: api-release
api-release: install-test ## Take the API as it is now for that of the last release: run when a release is made
	$(BIN)/python -m scripts.check_api --release

.PHONY: bench
bench: install-test ## Measure, print side by side and write build/bench/*.json; leave the machine alone meanwhile
	$(BIN)/python -m scripts.bench

.PHONY: bench-runs
bench-runs: install-test ## Measure durable runs; ARGS="--soak 100000 --peers" for memory over many runs and for other platforms
	$(BIN)/python -m scripts.bench.durable $(ARGS)

.PHONY: bench-api
bench-api: install-test ## Measure what the product gateway adds; leave the machine alone meanwhile
	$(BIN)/python -m scripts.bench api

.PHONY: bench-llm
bench-llm: install-test ## Measure the LLM gateway alone; ARGS="--litellm --soak" for the comparison and the ten minutes
	$(BIN)/python -m scripts.bench.llm $(ARGS)

.PHONY: soak
soak: install-test ## Race the LLM gateway's money for MINUTES=10 with kills and faults; prints whether books and memory are right
	MINUTES=$${MINUTES:-10} $(BIN)/python -m scripts.soak_llm

.PHONY: chaos
chaos: install-test ## Strike orchestrators at random under load, KILLS=1000 times with RUNS=24 at once; prints whether all promises held
	KILLS=$${KILLS:-1000} RUNS=$${RUNS:-24} $(BIN)/python -m scripts.chaos

.PHONY: install-run
install-run: check-python
	@$(PYTHON) scripts/install.py run

.PHONY: install-test
install-test: check-python
	@$(PYTHON) scripts/install.py test

.PHONY: check-python
check-python:
	@command -v $(PYTHON) >/dev/null || { echo "$(PYTHON) missing: Python 3.11 to 3.14 is needed (apt-get install python3 python3-venv)" >&2; exit 1; }
