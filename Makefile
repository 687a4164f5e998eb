# make demo: train, sample and evaluate on the embedded digits.   make test: the fast suite.   make docs: the site.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
TESTS := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile  # a process a core, each of one thread: most tests are small

.PHONY: demo test slow lint types docs install install-dev
demo: install
	$(BIN)/undiffuse demo

test: install-dev
	$(TESTS)

slow: install-dev
	$(TESTS) -m slow

lint: install-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install-dev
	$(BIN)/mypy

docs: .venv/installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict  # the variable: no notice of the theme's makers

install: .venv/installed
install-dev: .venv/installed-dev

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) -e .
	@touch $@

.venv/installed-docs: .venv/installed
	$(PIP) -e ".[docs]"
	@touch $@

.venv/installed-dev: .venv/installed
	$(PIP) -e ".[dev]"
	$(PIP) --no-deps k-diffusion==0.1.1.post1  # its own requirements are not needed by what is tested against
	$(PIP) --no-deps torch-fidelity==0.4.0  # nor is its torchvision
	@touch $@
