# make quickstart   the whole study on the shipped models          make test   linters, type checks and tests
# Both make .venv and install what they need; a second call installs nothing.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
SOURCES := src circuits jobs tests benchmarks notebooks run_circuit_analysis.py run_directions.py run_patching.py run_analysis.py

.PHONY: quickstart test lint clean

quickstart: $(VENV)/.installed
	$(BIN)/python run_circuit_analysis.py --config configurations/quickstart.yaml

# Three workers on two cores: the tests of clusters and kills mostly wait.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/mypy

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is older. Try: make PYTHON=python3.11 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: requirements.txt pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) build dist src/*.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis
