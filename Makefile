# The Python of .venv; empty: 3.11, 3.12 or 3.13, whichever is there.
PYTHON ?=
VENV := .venv
BIN := $(VENV)/bin
RESULTS ?= results
TABLES := table2 fig5 fig7 fig3 table5 table4 fig6 fig4 fig8 alphaedit gptj steps protocols
# Batches per stream; empty: the proxy streams as the grids have them, which every figure needs.
LIMIT ?=

.PHONY: demo demo-full demo-world demo-world-full tables-proxy tables-standin quick test \
  test-real-model test-all test-newest lint lock docs install install-plain clean

install: $(VENV)/.installed

# What users need and no more, in the same versions.
install-plain: $(VENV)/.installed-plain

# One install of everything in the versions of the lock, each file checked by its hash; repeated only
# when the dependencies change. What is published as source is built by what the lock has for that.
# A CPU build of torch is taken where pip finds one that the lock knows; one with CUDA needs more.
LOCKED := install --quiet --no-deps --no-build-isolation
$(VENV)/.installed: LOCK := dev
$(VENV)/.installed: PROJECT := -e .
$(VENV)/.installed-plain: LOCK := plain
$(VENV)/.installed-plain: PROJECT := .
$(VENV)/.installed $(VENV)/.installed-plain: pyproject.toml $(wildcard requirements/*.txt)
	@sh requirements/venv.sh $(VENV) $(PYTHON)
	$(BIN)/python -m pip $(LOCKED) --require-hashes -r requirements/build.txt
	@$(BIN)/python -m pip $(LOCKED) --require-hashes -r requirements/torch-cpu.txt 2>/dev/null || \
	  echo 'no CPU build of torch in the places of pip: the one of PyPI is taken'
	$(BIN)/python -m pip $(LOCKED) --require-hashes -r requirements/$(LOCK).txt
	@if $(BIN)/python -c 'from importlib import metadata; import sys; \
	  sys.exit("nvidia" not in str(metadata.requires("torch")))'; then \
	  $(BIN)/python -m pip $(LOCKED) --require-hashes -r requirements/cuda.txt; fi
	$(BIN)/python -m pip $(LOCKED) $(PROJECT)
	@$(BIN)/python -m pip check || echo 'warning: packages of your own in $(VENV) do not fit the lock'
	touch $@

# A real model on real facts; where its weights cannot be had, a line says why, and the synthetic
# world is taken. -full: three seeds.
demo: install
	$(BIN)/python -m jobs.demo --results $(RESULTS)

demo-full: install
	$(BIN)/python -m jobs.demo --full --results $(RESULTS)

# A tiny model on a synthetic world, which needs no download.
demo-world: install
	$(BIN)/rledit run jobs/grids/demo-world.yaml --results $(RESULTS)

demo-world-full: install
	$(BIN)/rledit run jobs/grids/demo-world-full.yaml --results $(RESULTS)

# Every published table and figure with proxy models: nothing but weights and data files is missing.
tables-proxy: install
	for grid in $(TABLES); do \
	  $(BIN)/rledit run jobs/grids/$$grid.yaml --scale proxy $(if $(LIMIT),--limit $(LIMIT)) \
	    --results $(RESULTS) || exit 1; \
	done

tables-standin:
	@echo 'make tables-standin is now make tables-proxy; the old name works in this version for the last time'
	$(MAKE) tables-proxy

# Pages from the code: the reference of grid keys, and what works with what.
docs: install
	$(BIN)/python -m tests.unit.docs.grid_page
	$(BIN)/python -m tests.unit.docs.support_page

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy rledit pipeline jobs
	$(BIN)/lint-imports

# Tests keep their byte code whatever the environment says: compiled anew, it takes each worker half
# a minute. Where they share cores, each worker takes tests that follow one another, so that what a
# module shares is made once.
PYTEST := PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/pytest
SHARED := -n 2 --dist worksteal
# A file of these shares one Ray, and waits for it most of the time: two files at once, in their order.
CLUSTER := -n 2 --dist loadfile --no-loadscope-reorder

# What a developer runs all day. How long it takes and what it leaves out stands in CONTRIBUTING.md.
quick: install
	$(BIN)/ruff check .
	$(PYTEST) tests/unit tests/golden $(SHARED) -m 'not slow and not long'

# Everything but the slow tests, and those that start Ray, MLflow or DeepSpeed apart from the others.
test: lint
	$(PYTEST) tests $(SHARED) -m 'not cluster and not slow'
	$(PYTEST) tests/cluster $(CLUSTER) -m 'cluster and not slow'

# SmolLM2 end to end, from its wheel to answers in words; skips where the wheel cannot be had.
test-real-model: install
	$(PYTEST) tests/cluster/test_real_model.py -m slow

test-all: test
	$(PYTEST) tests -m slow

# The versions and hashes of requirements/*.txt from pyproject.toml; ARGS=--upgrade: newer ones.
lock: install
	$(BIN)/python requirements/lock.py $(ARGS)

# The newest allowed versions in an environment of their own: once a week.
test-newest: install
	$(BIN)/python requirements/newest.py $(ARGS)

clean:
	rm -rf $(RESULTS) .pytest_cache .mypy_cache .ruff_cache
