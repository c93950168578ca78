# Every target makes the environment it needs first; `make PYTHON=python3.12 test` picks the interpreter.

PYTHON ?= python3
WORKERS ?= 2  # test processes
DEMO ?= demo_run
# Options of pip for torch alone, for instance the index of its CPU builds (without one, Linux gets
# the CUDA build, which works as well but is large).
PIP_TORCH ?=

VENV := .venv
VENV_OLD := .venv-old
RUN := $(VENV)/bin/python
PIP := -m pip --disable-pip-version-check --quiet install
STAMP := $(VENV)/runtime.stamp
STAMP_DEV := $(VENV)/dev.stamp
STAMP_OLD := $(VENV_OLD)/stamp
TORCH := torch==2.13.0
TORCHVISION := torchvision==0.28.0
OPERATORS := tests/tools/torchvision_operators.py

.PHONY: demo test test-all test-slow test-old lint format clean

demo: $(STAMP)
	$(RUN) data/demo/run_demo.py --out=$(DEMO)

test: $(STAMP_DEV)
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

test-all: test test-slow test-old

# Exhaustive matrices and full-size models.
test-slow: $(STAMP_DEV)
	$(RUN) -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m slow

lint: $(STAMP_DEV)
	$(RUN) -m ruff check .
	$(RUN) -m ruff format --check .

format: $(STAMP_DEV)
	$(RUN) -m ruff check --fix .
	$(RUN) -m ruff format .

# The runtime: no torch.
$(STAMP): requirements.txt pyproject.toml
	@echo "installing the runtime into $(VENV) (one to three minutes)"
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(RUN) $(PIP) --editable .
	touch $@

# torch first, so that nothing after it chooses another build.
$(STAMP_DEV): $(STAMP) requirements-dev.txt $(OPERATORS)
	@echo "installing torch and the test tools into $(VENV) (one to five minutes)"
	$(RUN) $(PIP) $(PIP_TORCH) $(TORCH)
	$(RUN) $(PIP) --requirement requirements-dev.txt
	$(RUN) $(PIP) --no-deps $(TORCHVISION)
	$(RUN) $(OPERATORS)
	touch $@

# The oldest libraries that exports must load in: no JAX here.
$(STAMP_OLD): $(OPERATORS)
	@echo "installing transformers 4.57.1 and peft 0.11.1 into $(VENV_OLD) (one to five minutes)"
	test -x $(VENV_OLD)/bin/python || $(PYTHON) -m venv $(VENV_OLD)
	$(VENV_OLD)/bin/python $(PIP) $(PIP_TORCH) $(TORCH)
	$(VENV_OLD)/bin/python $(PIP) transformers==4.57.1 peft==0.11.1 pillow num2words jinja2
	$(VENV_OLD)/bin/python $(PIP) --no-deps $(TORCHVISION)
	$(VENV_OLD)/bin/python $(OPERATORS)
	touch $@

# Makes exports with the newest libraries and loads them with the oldest.
test-old: $(STAMP_DEV) $(STAMP_OLD)
	OLD_PYTHON=$(VENV_OLD)/bin/python $(RUN) tests/old_libraries/compare.py

clean:
	rm -rf $(VENV) $(VENV_OLD) $(DEMO)
