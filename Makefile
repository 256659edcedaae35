# Each target makes the virtual environment it needs. A stamp is written after pip has succeeded,
# so an interrupted install repairs itself, and a changed setup.py or pyproject.toml is noticed.
PYTHON ?= python3
VENV := .venv
OLDEST := .venv-oldest
SETUP := setup.py pyproject.toml
# A process a core; tests of one file stay together, for what they train is shared within it.
PARALLEL := --numprocesses auto --dist loadfile

.PHONY: train test test-slow test-oldest lint types docs bench bench-cpu bench-gpu clean

train: $(VENV)/.train
	$(VENV)/bin/python -m sparse_engine.train $(ARGS)

test: $(VENV)/.test
	$(VENV)/bin/python -m pytest $(PARALLEL) -m "not slow" $(ARGS)

# The table is written first, so that the test that compares it sees the present one.
test-slow: $(VENV)/.test
	$(VENV)/bin/python -m bench.dev.compile --write
	$(VENV)/bin/python -m pytest $(PARALLEL) $(ARGS)

test-oldest: $(OLDEST)/.test
	$(OLDEST)/bin/python -m pytest $(PARALLEL) -m "not slow" $(ARGS)

lint: $(VENV)/.lint
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

types: $(VENV)/.train
	$(VENV)/bin/pip install --quiet --editable ".[dev]"
	$(VENV)/bin/pyright --pythonpath $(VENV)/bin/python

docs: $(VENV)/.train
	$(VENV)/bin/pip install --quiet --editable ".[docs]"
	$(VENV)/bin/python docs/api.py

bench: $(VENV)/.test
	$(VENV)/bin/python -m bench.dev.masked_path $(ARGS)

# A quarter of an hour on two idle cores; then the README's first table and the figures are made anew.
# The rows of before, of other code, stay in git.
CPU_CASES = --sparsities 0.8 0.9 --blocks 32x32 --threads 1 2 --out build/bench-cpu $(ARGS)
bench-cpu: $(VENV)/.test
	rm -rf build/bench-cpu
	$(VENV)/bin/python -m bench.training --networks wrn16-8 --variants "dense compiled" \
		"dense bf16" slim masked auto $(CPU_CASES)
	$(VENV)/bin/python -m bench.training --networks wrn28-10 --variants "dense compiled" \
		slim auto $(CPU_CASES)
	mv build/bench-cpu/cpu-training.csv bench/reports/
	$(VENV)/bin/python -m bench.report

bench-gpu: $(VENV)/.train
	$(VENV)/bin/python -m bench.gpu --budget 300 $(ARGS)

clean:
	rm -rf $(VENV) $(OLDEST) build *.egg-info .pytest_cache .ruff_cache .hypothesis

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.train: $(SETUP) | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --editable ".[train]"
	touch $@

$(VENV)/.test: $(SETUP) | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet --editable ".[test]"
	touch $@ $(VENV)/.train

$(VENV)/.lint: $(SETUP) | $(VENV)/bin/python
	$(VENV)/bin/pip install --quiet "ruff>=0.9"
	touch $@

$(OLDEST)/.test: $(SETUP)
	test -x $(OLDEST)/bin/python || $(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --editable ".[test]" "torch==2.11.*" "triton==3.6.*" \
		"torchvision==0.26.*" "numpy==1.26.*" # Triton 3.6 cannot interpret kernels with NumPy 2.4
	touch $@
