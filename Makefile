# The few commands a newcomer and a contributor need. Each can be run again at any time.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
CORE := $(VENV)/core.installed
WEB := $(VENV)/web.installed
DEV := $(VENV)/dev.installed
DOCS := $(VENV)/docs.installed
PROMPTS := 0 1 2 3 4 5 6 7 8 9 zero one two three four five six seven eight nine
TINY := output/image/digits/tiny

WORKERS ?= 2
PYTEST = $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

.PHONY: install demo test test-slow check docs format clean help

help:
	@echo "make install    an environment in .venv, with what the page needs"
	@echo "make demo       train a tiny model on handwritten digits and draw with it (minutes)"
	@echo "make test       the tests that take seconds (minutes in all)"
	@echo "make test-slow  the others: long runs, many kills, much nonsense, full sizes"
	@echo "make check      lint, format and types"
	@echo "make docs       the site of README, docs and the book, in build/site"
	@echo "make format     rewrite the code in the house format"
	@echo "make clean      remove the environment; trained models in output/ stay"

install: $(WEB)

demo: $(CORE)
	$(BIN)/fluxsmith train configs/image/digits/tiny.yaml --overwrite
	$(BIN)/fluxsmith sample $(TINY) $(foreach p,$(PROMPTS),--prompt $(p)) --filmstrip --gif
	@echo "loss curve  $(TINY)/loss.png"

test: $(DEV)
	$(PYTEST) -m "not slow"

test-slow: $(DEV)
	$(PYTEST) -m slow

check: $(DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(DOCS)
	$(BIN)/python docs/build_site.py

format: $(DEV)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV)

$(CORE): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable .
	@touch $@

$(WEB): $(CORE)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[web]"
	@touch $@

$(DEV): $(CORE)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[dev]"
	@touch $@

$(DOCS): $(CORE)
	$(BIN)/python -m pip install --disable-pip-version-check --constraint constraints.txt --editable ".[docs]"
	@touch $@
