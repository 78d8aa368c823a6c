PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: setup demo docs test test-fast test-oldest lint clean

setup: $(VENV)/.ready

$(VENV)/.ready: pyproject.toml setup.py $(wildcard mcscore/jet/*.cpp mcscore/jet/*.h)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable ".[test]"
	touch $@

demo: setup  ## the whole method on built-in data: a table and pictures in out/
	$(BIN)/python -m mcscore demo --out out

docs: setup  ## the pages of docs/ and the reference, in build/docs/index.html; warnings are errors
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python

test: lint  ## everything, in float64 and once more in float32 as users run it, with the native kernel and without
	$(BIN)/pytest -n 2 --dist worksteal
	MCSCORE_X64=0 $(BIN)/pytest -n 2 --dist worksteal -m "not slow" tests
	MCSCORE_X64=0 MCSCORE_KERNEL=xla $(BIN)/pytest -n 2 -m "not slow and not once" tests/jet tests/flows/test_fields.py tests/mixtures/test_mixture.py

test-fast: setup
	$(BIN)/pytest -n 2 -m "not slow and not once" tests/storage tests/test_schedules.py tests/flows tests/mixtures/test_mixture.py tests/test_structure.py

test-oldest:  ## the oldest versions that pyproject.toml admits, in float32
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint tests/oldest.txt setuptools jax
	.venv-oldest/bin/python -m pip install --quiet --constraint tests/oldest.txt --no-build-isolation --editable ".[test]"
	MCSCORE_X64=0 .venv-oldest/bin/pytest -n 2 --dist worksteal -W ignore::DeprecationWarning -m "not slow" tests

clean:
	rm -rf $(VENV) .venv-oldest out build dist *.egg-info mcscore/jet/_native*.so
