PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
RESULTS ?= results
TABLES := table2 table4 table5 fig3 fig4 fig5 fig6 fig7 fig8 gptj steps protocols
# Batches per stream; empty: the proxy streams as the grids have them, which every figure needs.
LIMIT ?=

.PHONY: demo demo-full tables-standin test test-all lint docs install clean

install: $(VENV)/.installed

# One install of everything; repeated only when the dependencies change.
$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -e '.[dev]'
	touch $@

demo: install
	$(BIN)/rledit run jobs/grids/demo.yaml --results $(RESULTS)

demo-full: install
	$(BIN)/rledit run jobs/grids/demo-full.yaml --results $(RESULTS)

# Every published table and figure with proxy models: nothing but weights and data files is missing.
tables-standin: install
	for grid in $(TABLES); do \
	  $(BIN)/rledit run jobs/grids/$$grid.yaml --scale standin $(if $(LIMIT),--limit $(LIMIT)) \
	    --results $(RESULTS) || exit 1; \
	done

# The reference of grid keys, docs/grid.md, from the code.
docs: install
	$(BIN)/python -m tests.unit.docs.grid_page

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy rledit pipeline jobs
	$(BIN)/lint-imports

# Fast tests in parallel, then those that start Ray, MLflow or DeepSpeed one after another.
test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -n 2 -m 'not cluster and not slow'
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -m 'cluster and not slow'

test-all: test
	OMP_NUM_THREADS=1 $(BIN)/pytest tests -m slow

clean:
	rm -rf $(RESULTS) .pytest_cache .mypy_cache .ruff_cache
