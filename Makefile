# Every target makes what it needs: `make demo` on a fresh machine installs, runs and reports.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

.PHONY: demo test check browser docs hooks lint bench results clean

demo: $(VENV)/.runtime  ## watch a network grok, then read runs/grokking/report.html
	$(BIN)/grokscope run grokking --out runs/grokking --beside results/grokking-paper

test: $(VENV)/.dev  ## lint, types, architecture, tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m 'not slow'

check: $(VENV)/.dev browser  ## what takes longer: the docs' examples, the pages in a browser, the docs themselves
	$(BIN)/pre-commit run --all-files
	$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m slow
	$(MAKE) docs
	git diff --exit-code -- docs  # the committed pages are those that the code makes

browser:  ## install Chromium and its driver, where that can be done; otherwise its tests are skipped
	@command -v chromedriver > /dev/null || { command -v apt-get > /dev/null && [ "$$(id -u)" = 0 ] \
		&& apt-get update -qq && apt-get install -y -qq chromium chromium-driver > /dev/null; } \
		|| echo 'Chromium and its driver are not installed: the tests of pages in a browser are skipped.'

docs: $(VENV)/.dev  ## write the pages that are made from the code: API, measures, architecture
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/make_measures.py
	$(BIN)/python docs/make_architecture.py

results: $(VENV)/.dev  ## write docs/results.md from results/
	$(BIN)/python docs/make_results.py

hooks: $(VENV)/.dev  ## let git run ruff, mypy and import-linter before each commit
	$(BIN)/pre-commit install

lint: $(VENV)/.dev  ## format, and mend what can be mended
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

bench: $(VENV)/.dev  ## measure, and write docs/benchmarks.md
	$(BIN)/python -m benchmarks

$(VENV)/bin/python:
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'grokscope needs Python 3.11 or newer: make PYTHON=python3.12 ...')"
	$(PYTHON) -m venv $(VENV)

$(VENV)/.runtime: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable .
	touch $@

$(VENV)/.dev: $(VENV)/bin/python pyproject.toml constraints.txt
	$(PIP) --editable '.[dev]'
	touch $@ $(VENV)/.runtime

clean:  ## remove the environment and caches, not the results
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
