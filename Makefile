# One virtual environment, two stamps: .venv/.core is what a user installs, .venv/.dev adds the tools.
SHELL := /bin/bash
.DEFAULT_GOAL := help

VENV := .venv
BIN := $(VENV)/bin
VLLM_VENV := .venv-vllm
SAMPLE := docs/samples/03-mountains-fireworks.png
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: help quickstart install test test-fast test-vllm test-full-width quality docs docs-build pages notebooks bench study \
	study-check build clean

help:  ## list these targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## +/\1|/' | while IFS='|' read -r name text; do \
		printf '  make %-15s %s\n' "$$name" "$$text"; done

quickstart: $(VENV)/.core  ## install the package and read the emotion of a sample image
	$(BIN)/emo-r3 predict $(SAMPLE)

install: $(VENV)/.dev  ## install the package with the development tools into .venv

# Compiled tests are kept, whatever the environment says: to compile them takes each process four seconds.
test test-fast: export PYTHONDONTWRITEBYTECODE :=

# One more than there are cores: tests wait for servers, browsers and pauses too.
PROCESSES = $(shell expr $$(getconf _NPROCESSORS_ONLN) + 1)

test: $(VENV)/.dev  ## run the whole test suite, in one process more than there are cores
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder

test-fast: $(VENV)/.dev  ## the same without what takes more than a second or two
	$(BIN)/python -m pytest --numprocesses $(PROCESSES) --dist loadfile --no-loadscope-reorder -m 'not slow'

# torch compiles nothing (minutes for a few tokens), and one thread is the quickest for a model of this size.
test-vllm: $(VLLM_VENV)/.ready  ## run the tests of training and serving with a real vLLM, in an environment of its own
	$(VLLM_VENV)/bin/python -m pytest tests/models/test_families.py -k mistral3  # needs torchvision, which is here
	OMP_NUM_THREADS=1 TORCHDYNAMO_DISABLE=1 $(VLLM_VENV)/bin/python -m pytest -m vllm tests/with_vllm

test-full-width: $(VENV)/.dev  ## train each recipe for two steps on models as wide as published ones: hours, 20 GiB
	$(BIN)/python -m pytest --full-width --capture=no -v tests/full_width

quality: $(VENV)/.dev  ## lint, check the format and the types, build the site
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy
	@$(MAKE) --no-print-directory docs-build

# Material for MkDocs advertises its successor at each start.
docs docs-build: export NO_MKDOCS_2_WARNING := 1

docs: $(VENV)/.dev  ## serve the documentation as a site on this machine
	$(BIN)/python -m mkdocs serve

docs-build: $(VENV)/.dev  ## build the site into site/, and fail on any warning
	$(BIN)/python -m mkdocs build --strict --quiet

pages: $(VENV)/.dev  ## make the pages of rewards and methods again, and the verdicts and images of the README
	$(BIN)/python docs/make_rewards.py
	$(BIN)/python docs/make_methods.py
	$(BIN)/python docs/make_verdicts.py
	@for what in prediction demo terminal; do $(BIN)/python docs/make_pictures.py $$what || exit 1; done

notebooks: $(VENV)/.dev  ## run the notebooks and keep what they show: about 15 minutes
	$(BIN)/python docs/make_notebooks.py

bench: $(VENV)/.dev  ## print the speed ratios
	@for script in tests/benchmarks/bench_*.py; do echo "== $$script"; $(BIN)/python "$$script" || exit 1; done

study: $(VENV)/.dev  ## run what the study lacks, write its report and what pages quote of it: hours; it goes on where it was stopped
	$(BIN)/emo-r3 study recipes/study.yaml
	$(BIN)/python docs/make_verdicts.py
	$(BIN)/python docs/make_methods.py

study-check: $(VENV)/.dev  ## make the study's tables and figures again from its results, and fail on any difference
	$(BIN)/emo-r3 study recipes/study.yaml --check

build: $(VENV)/.dev  ## build the wheel into dist/
	$(BIN)/python -m build --wheel --no-isolation

clean:  ## remove the environments and everything built
	rm -rf $(VENV) $(VLLM_VENV) build dist site .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find emo_r3 tests -name __pycache__ -type d -prune -exec rm -rf {} +

# The first interpreter that is new enough and can make environments (Debian ships ensurepip apart: python3-venv). The
# system's own is tried before others: without the optimizations that pyenv leaves out, Python code takes a third longer.
$(BIN)/python:
	@for python in $(PYTHON) /usr/bin/python3 python3 python3.14 python3.13 python3.12 python3.11; do \
		if $$python -c 'import ensurepip, sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "$$python -m venv $(VENV)"; exec $$python -m venv $(VENV); fi; done; \
	echo "No Python >= 3.11 with venv found. Install one (Debian: apt install python3-venv) or: make PYTHON=/path/to/python3.11" >&2; exit 1

$(VENV)/.core: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.core
	$(PIP) --editable '.[dev]'
	@touch $@

$(VLLM_VENV)/.ready: pyproject.toml constraints-vllm.txt tests/with_vllm/environment.py | $(BIN)/python
	$(BIN)/python tests/with_vllm/environment.py $(VLLM_VENV)
	@touch $@
