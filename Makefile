PYTHON ?= python3
LOWEST_PYTHON ?= python3.11
BIN := .venv/bin
LOWEST := .venv-lowest

.PHONY: help search test test-lowest stress notebooks docs lint format clean

help:
	@echo "make search       install, then train 100 highway and 100 plain networks of depth 50 on the digits"
	@echo "make test         install, then run the tests"
	@echo "make test-lowest  run the tests with Python 3.11 and the lowest versions that setup.py allows, in .venv-lowest"
	@echo "make stress       install, then kill searches, damage their files, and check that they resume"
	@echo "make notebooks    install, then run the notebooks and save their outputs"
	@echo "make docs         install, then build the site; a broken link or an undocumented public name fails"
	@echo "make lint         install, then check style and types"
	@echo "make format       format the code"
	@echo "make clean        remove the virtual environments"

search: .venv/installed
	$(BIN)/python -m experiments.search --config=digits_depth50 --workdir=runs/digits_depth50

test: .venv/installed-test
	$(BIN)/python -m pytest -n auto --dist worksteal

test-lowest: $(LOWEST)/installed
	$(LOWEST)/bin/python -m pytest -n auto --dist worksteal

stress: .venv/installed-test
	$(BIN)/python -m tests.faults
	$(BIN)/python -m tests.hosts

notebooks: .venv/installed-test
	$(BIN)/python -m notebooks.execute

docs: .venv/installed-docs
	rm -rf site
	$(BIN)/python -m sphinx --fail-on-warning --keep-going --fresh-env --quiet -c docs . site/html

lint: .venv/installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf .venv $(LOWEST) site *.egg-info

$(BIN)/python:
	@echo "installing into .venv, about half a minute"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "highway-jax needs Python 3.11 or newer; name one with: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv .venv

# Without --no-compile, pip compiles every module of every package, which doubles the time.
.venv/installed: setup.py | $(BIN)/python
	$(BIN)/pip install --no-compile --quiet --disable-pip-version-check --editable .
	@touch $@

.venv/installed-%: setup.py | $(BIN)/python
	$(BIN)/pip install --no-compile --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@ .venv/installed $(if $(filter dev,$*),.venv/installed-test)  # dev includes test

$(LOWEST)/installed: setup.py .ci/lowest.py
	$(LOWEST_PYTHON) -m venv --clear $(LOWEST)
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --no-deps --editable .
	$(LOWEST)/bin/python .ci/lowest.py > $(LOWEST)/constraints.txt
	$(LOWEST)/bin/pip install --quiet --disable-pip-version-check --constraint $(LOWEST)/constraints.txt --editable '.[test]'
	@touch $@
