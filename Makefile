# The project's verbs; .ci/run calls the same ones.  `make` alone lists them.
#
# Everything is installed into .venv once: stamp files inside it remember what was installed from which list, so a
# second run installs nothing.  PPL_MODELS_DATA (a folder of data sets) and JAX_PLATFORMS pass through.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-builtin-rules
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help quickstart test test-slow lint format types bench notebooks wheel pins clean

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
# Hashes pin every file; --no-compile because the two cores below compile in a third of the time.
INSTALL := $(PIP) install -qq --no-deps --no-compile --require-hashes
COMPILE := $(BIN)/python -m compileall -q -j 0 -x '[/\\]tests?[/\\]' $(VENV)/lib
# Processes that share the tests; a file stays together, for its fixtures compile once.
WORKERS ?= 2
# Another interpreter: make PYTHON=/path/to/python3.13 ...
PYTHON ?=

help:
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

quickstart: $(VENV)/.project  ## install what is needed; fit, check and compare two models of handwritten digits
	@$(BIN)/ppl-models quickstart $(ARGS)

test: $(VENV)/.dev  ## install what is needed; run the tests (ARGS='-k fit' chooses)
	@$(BIN)/python -m pytest --numprocesses $(WORKERS) --dist loadfile $(ARGS)

test-slow: $(VENV)/.dev  ## run the tests that train for a minute or more
	@$(BIN)/python -m pytest -m slow $(ARGS)

lint: $(VENV)/.dev  ## check style and format
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .

format: $(VENV)/.dev  ## mend what lint can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

types: $(VENV)/.dev  ## check the types
	@$(BIN)/mypy

bench: $(VENV)/.project  ## run the benchmarks (NAME=one QUICK=1 choose), then print the table
ifneq ($(and $(QUICK),$(if $(NAME),,all)),)
	@$(BIN)/python -m benchmarks run --all --quick --shard 1/2 & first=$$!; \
	$(BIN)/python -m benchmarks run --all --quick --shard 2/2; wait $$first
else
	@$(BIN)/python -m benchmarks run $(or $(NAME),--all) $(if $(QUICK),--quick)
endif
	@$(BIN)/python -m benchmarks table $(if $(QUICK),--quick)

notebooks: $(VENV)/.dev  ## execute every notebook at small size
	@shopt -s nullglob; all=(notebooks/*.py); \
	if [ $${#all[@]} = 0 ]; then echo "notebooks/ holds no notebook: nothing to run"; exit 0; fi; \
	rm -rf build/notebooks; mkdir -p build/notebooks; \
	for one in "$${all[@]}"; do \
	    $(BIN)/jupytext --quiet --to ipynb --output "build/notebooks/$$(basename "$$one" .py).ipynb" "$$one"; done; \
	PPL_MODELS_SMALL=1 $(BIN)/python -m pytest --nbmake --nbmake-timeout=600 build/notebooks

wheel: $(VENV)/.project  ## build the wheel and the source distribution into dist/
	@rm -rf dist
	@$(PIP) wheel -qq --no-deps --no-build-isolation --wheel-dir dist .
	@$(BIN)/python -m hatchling build --target sdist --directory dist >/dev/null
	@ls dist/*.whl dist/*.tar.gz

pins:  ## maintainers: pin all dependencies anew (needs uv)
	@requirements/compile.sh

clean:  ## remove the environment and everything that was built; runs are kept
	rm -rf $(VENV) build dist benchmarks/work .pytest_cache .mypy_cache .ruff_cache *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ------------------------------------------------------------------------------------------------ environment
$(VENV)/.python:
	@found=; for one in $(PYTHON) python3.12 python3 python; do \
	    if "$$one" -c 'import sys; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1; then found=$$one; break; fi; done; \
	if [ -z "$$found" ]; then \
	    echo "Python 3.12 or newer is needed, got: $$(python3 --version 2>&1 || true). Install one (for example" >&2; \
	    echo "'apt-get install python3.12 python3.12-venv' or 'pyenv install 3.12'), or name one: make PYTHON=/path/to/python3.12 ..." >&2; \
	    exit 1; fi; \
	echo "making $(VENV) with $$("$$found" --version)"; \
	"$$found" -m venv $(VENV)
	@touch $@

$(VENV)/.run: requirements/run.txt | $(VENV)/.python
	@echo "installing what the project runs on (once: about half a minute and 300 MB to fetch)"
	@$(INSTALL) -r requirements/run.txt
	-@$(COMPILE)
	@touch $@

$(VENV)/.project: pyproject.toml $(VENV)/.run
	@$(PIP) install -qq --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.project
	@echo "installing what tests and checks need (once)"
	@$(INSTALL) -r requirements/dev.txt
	-@$(COMPILE)
	@touch $@
