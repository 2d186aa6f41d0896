# Everything a contributor types. `make` alone lists it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
ARGS   ?=

# uv does not read pip's settings: hand it the folder of wheels, the mirror and the certificates that pip is told of.
ifneq ($(PIP_FIND_LINKS),)
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif
ifneq ($(PIP_INDEX_URL),)
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifneq ($(PIP_CERT),)
export SSL_CERT_FILE ?= $(PIP_CERT)
endif

.DEFAULT_GOAL := help
.PHONY: help install demo test gpu lint format check base-install constraints clean

help: ## List these targets
	@awk -F':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(STAMP) ## Make the environment in .venv; again only when what it should hold has changed
	@echo "The environment is ready in $(VENV)."

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || { \
	  echo "make: there is no '$(PYTHON)'. Luthier needs Python 3.11, 3.12 or 3.13: make install PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || { \
	  echo "make: '$(PYTHON)' is $$($(PYTHON) --version 2>&1). Luthier needs Python 3.11, 3.12 or 3.13: make install PYTHON=python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' cannot make an environment with pip in it. On Debian and Ubuntu: apt install python3-venv" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@if [ -x $(BIN)/uv ] || $(BIN)/python -m pip install --quiet uv; then \
	  set -x; $(BIN)/uv pip install --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[engine,postgres,quantised]' --group dev; \
	else \
	  echo "make: uv could not be installed; going on with pip, which takes longer." >&2; set -x; \
	  $(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' && \
	  $(BIN)/python -m pip install --quiet -c constraints.txt -e '.[engine,postgres,quantised]' --group dev; \
	fi
	@touch $@

demo: install ## Fine-tune the embedded model and talk to it; ARGS=--exit ends when that is done, ARGS=--short sees only that it works
	$(BIN)/luthier demo --data .luthier $(ARGS)

gpu: install ## On a machine with a GPU: its kernels beside our own operations, then tokens a second; needs the extra gpu
	$(BIN)/pytest -q tests/gpu
	$(BIN)/python -m benchmarks.training --device cuda --shape 1b --data mixed --precision bf16 --rounds 1 --peer luthier

test: install ## All tests on two cores: those that start few servers, the others, then what must happen within seconds
ifeq ($(ARGS),)
	$(BIN)/pytest -q -n 2 --dist loadfile tests/unit tests/contract
	$(BIN)/pytest -q -n 2 --dist loadfile --ignore tests/journey/test_crashes.py tests/compat tests/journey
	$(BIN)/pytest -q tests/journey/test_crashes.py
else
	$(BIN)/pytest -q $(ARGS)
endif

lint: install ## Style, format, types and import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

format: install ## Put the code into the one format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

check: lint test ## What CI checks: lint, then all tests

base-install: install ## Install without the engine on each Python found here, and import it
	.ci/base-install $(BIN)/uv

constraints: install ## Pin again what pyproject.toml asks for; ARGS=--upgrade takes newer versions
	echo 'torch==2.13.0' | env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(BIN)/uv pip compile pyproject.toml -c - -o constraints.txt \
	  --quiet --all-extras --group dev --universal --python-version 3.11 --no-header --no-annotate $(ARGS)

clean: ## Remove the environments and the caches; the demo's data in .luthier stays
	rm -rf $(VENV) .clients dist build .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
