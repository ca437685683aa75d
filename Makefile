# What a person and CI run. Everything happens in .venv, which `make setup` builds.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check -qq
# Bytecode is kept whatever the shell says: hundreds of processes would compile the package anew.
export PYTHONDONTWRITEBYTECODE :=
# Two processes share the work; one thread each, since some figures depend on the number of threads.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest
# A file stays in one process, for what its tests share; tests/conftest.py puts the longest files first.
SHARED := -n 2 --dist loadfile --no-loadscope-reorder
# These wait for servers, schedules and kills part of their time.
WAITING := -n 3 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help setup demo test slow e2e faults lint bench schema docs dist clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## build .venv with the package and its tools
	@:

# Runs again only when the declared dependencies change. setuptools is installed first and the build
# not isolated, so that it too is the pinned one.
$(STAMP): pyproject.toml constraints.txt
	@PYTHON=$(PYTHON) ./.ci/system-packages
	@echo "building $(VENV): a few minutes at the first time"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt setuptools
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[dev,images,torch,s3,azure,gcs,sql,delta,iceberg,lance,excel,dask,ray]'
	@touch $@

demo: setup ## rebalance the built-in table and images, end to end
	@$(BIN)/prefect-augment demo

test: setup ## the fast tests: no server, no training, no whole run
	@$(PYTEST) $(SHARED) -m "not slow and not e2e and not faults"

slow: setup ## the rest of them: Prefect's harness, networks that are trained, whole runs
	@$(PYTEST) $(SHARED) -m "slow and not e2e and not faults"

# Only files that name the marker are collected, which takes the others their half minute. pytest exits
# with 5 where it finds no test of a kind.
define run_marked
	@$(PYTEST) $(WAITING) -m $(1) $$(grep -rl --include='test_*.py' 'mark\.$(1)\b' tests) || { code=$$?; [ $$code -eq 5 ] || exit $$code; \
	echo "make $(1): THERE IS NO TEST MARKED $(1) YET, NOTHING WAS TESTED"; }
endef

e2e: setup ## the tests that start real servers on loopback
	$(call run_marked,e2e)

faults: setup ## the tests that kill, fill and break things, and talk to real object stores
	@PYTHON=$(PYTHON) ./tests/faults/servers/install
	$(call run_marked,faults)

lint: setup ## formatting, lint, types, layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: setup ## list the benchmarks and how to run one
	@$(BIN)/python -c 'import ast, pathlib; \
	paths = sorted(pathlib.Path("benchmarks").glob("[a-z]*.py")); \
	docs = [ast.get_docstring(ast.parse(p.read_text())) or "" for p in paths]; \
	[print(f"$(BIN)/python {p} [--quick] [--json FILE]\n    {d.splitlines()[0] if d else str()}") for p, d in zip(paths, docs)]; \
	paths or print("there is no benchmark in benchmarks/ yet")'

schema: setup ## write anew what is made of the code: the schema of report.json, the page of parameters, the picture of folders
	@$(BIN)/python -m prefect_augment.report.json src/prefect_augment/report/report.schema.json
	@$(BIN)/python -m prefect_augment.params.reference docs/parameters.md
	@$(BIN)/python docs/draw_folders.py

docs: setup ## build the pages of docs/ into site/
	@$(PIP) install --constraint constraints.txt --no-build-isolation --editable '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "site/index.html"

dist: ## build the wheel and the source distribution into dist/, in a small environment of its own
	@PYTHON=$(PYTHON) ./.ci/system-packages
	@$(PYTHON) -m venv build/venv
	@build/venv/bin/python -m pip --disable-pip-version-check -qq install --constraint constraints.txt build setuptools
	@build/venv/bin/python -m build --no-isolation

clean: ## remove what was built, except .venv and .servers
	@rm -rf build dist site src/*.egg-info .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	@find . -name __pycache__ -type d -not -path './$(VENV)/*' -not -path './.servers/*' -prune -exec rm -rf {} +
