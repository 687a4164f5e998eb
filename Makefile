# make demo: train, sample and evaluate on the embedded digits.   make test: the fast suite.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: demo test slow lint types install install-dev
demo: install
	$(BIN)/undiffuse demo

# a process a core, each of one thread: most tests are small
test: install-dev
	$(BIN)/python -m pytest -n 2 --dist loadfile

slow: install-dev
	$(BIN)/python -m pytest -m slow

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

install: .venv/installed
install-dev: .venv/installed-dev

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps k-diffusion==0.1.1.post1  # its own requirements are not needed by what is tested against
	$(PIP) --no-deps torch-fidelity==0.4.0  # nor is its torchvision
	@touch $@
