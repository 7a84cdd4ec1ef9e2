# make demo | make test | make lint: each sets up .venv first if that is missing or out of date.
PYTHON ?= $(shell for p in python3.11 python3.12 python3.13 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo-run
JOBS ?= 2
export AXOLOTL_DO_NOT_TRACK := 1

# A Python of the other Axolotl that untax supports: 0.21 where .venv has 0.19, and the other way round.
OTHER_PYTHON ?= $(shell old=$$($(PYTHON) -c 'import sys; print(int(sys.version_info < (3, 12)))'); \
	for p in python3.12 python3.13 python3.11 $$(pyenv root 2>/dev/null)/versions/3.1[123].*/bin/python; do \
	$$p -c "import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14) or int(sys.version_info < (3, 12)) == $$old)" \
	2>/dev/null && echo $$p && break; done)
OTHER := .venv-other

.PHONY: demo test test-slow test-reruns test-other lint format recipes docs clean help

help:
	@echo "make demo       the whole job on a bundled 260k-parameter model, into ./$(DEMO) (CPU, minutes)"
	@echo "make test       the tests        make test-slow   the long ones too"
	@echo "make test-other the recipes' tests, with the other Axolotl that is supported (in $(OTHER); some GB)"
	@echo "make lint       ruff and mypy    make format      reformat the code"
	@echo "make recipes    write recipes/ and mergekit_configs/ again"
	@echo "make docs       write docs/cli.md and docs/hooks.md again"

demo: $(READY)
	@echo "== untax demo: base, vanilla, DTM, PAFT and their comparisons into ./$(DEMO)"
	$(BIN)/untax demo --out $(DEMO)

test: $(READY)
	@echo "== tests, $(JOBS) at a time (the long ones: make test-slow)"
	$(BIN)/python -m pytest -n $(JOBS) --dist loadgroup

test-slow: $(READY)
	@echo "== all tests, the long ones too"
	$(BIN)/python -m pytest -m ""

test-reruns: $(READY)
	@echo "== one of the long tests: what runs again after which change, with real trainings"
	$(BIN)/python -m pytest -m slow tests/end_to_end/test_reruns.py

test-other:
	@if [ -z "$(OTHER_PYTHON)" ]; then echo "== NOT RUN: no Python for the other Axolotl (3.11 has 0.19; 3.12 and 3.13 have 0.21)"; exit 0; fi; \
	if $(MAKE) --no-print-directory $(OTHER)/.ready; then \
		echo "== the recipes' tests, with $$($(OTHER)/bin/python -m pip list 2>/dev/null | grep -i '^axolotl ')"; \
		$(OTHER)/bin/python -m pytest tests/recipes; \
	else echo "== NOT RUN: the other Axolotl could not be installed"; fi

$(OTHER)/.ready: pyproject.toml constraints.txt
	@echo "== installing untax and the other Axolotl into $(OTHER) with $(OTHER_PYTHON) (some GB the first time)"
	@rm -rf $(OTHER) && $(OTHER_PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(OTHER)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

lint: $(READY)
	@echo "== ruff and mypy"
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

recipes: $(READY)
	$(BIN)/python -m untax.recipes.presets

docs: $(READY)
	$(BIN)/python docs/build.py

$(READY): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "untax needs Python 3.11, 3.12 or 3.13: install one, or run make PYTHON=/path/to/python"; exit 1; }
	@$(BIN)/python -c '' 2>/dev/null || { echo "== creating $(VENV) with $(PYTHON)"; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@echo "== installing untax and what it needs into $(VENV) (some GB the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV) $(OTHER) $(DEMO) last_run_prepared .pytest_cache .ruff_cache .mypy_cache .hypothesis
