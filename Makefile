# `make demo` and `make test` work in a fresh clone; everything they need comes first.
#   make demo DEMO_ARGS="--drive FILE.csv --kills 3"     make test TEST_ARGS="-k link"
PYTHON ?= python3
VENV ?= .venv
DEMO_ARGS ?=
TEST_ARGS ?=
BENCH_ARGS ?=

BIN := $(VENV)/bin
BUILT := $(VENV)/.built
LINTERS := $(VENV)/.linters

.PHONY: demo test build lint bench clean

demo: $(BUILT)
	$(BIN)/glec-fast demo $(DEMO_ARGS)

test: $(BUILT)
	$(BIN)/python -m pytest $(TEST_ARGS)

build: $(BUILT)

lint: $(LINTERS)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/cython-lint cext

bench: $(BUILT)
	$(BIN)/python benches/bench_flush.py $(BENCH_ARGS)

clean:
	rm -rf $(VENV) build dist *.egg-info glec_fast/*.so

$(BIN)/python:
	.ci/system-packages $(PYTHON)
	$(PYTHON) -m venv $(VENV)

# Editable: changed Python needs no new build, changed Cython does.
$(BUILT): pyproject.toml setup.py $(wildcard cext/*) | $(BIN)/python
	.ci/system-packages $(PYTHON)
	$(BIN)/pip install --quiet --editable '.[cli,test]'
	touch $@

$(LINTERS): pyproject.toml $(BUILT)
	$(BIN)/pip install --quiet --editable '.[cli,test,lint]'
	touch $@
