# Each target makes its own virtual environment in .venv and installs what it needs.
# TENSORFLOW=tensorflow installs the build with GPU support; the default serves for trying and testing on a CPU.

PYTHON ?= python3
TENSORFLOW ?= tensorflow-cpu
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs clean

demo: $(VENV)/.runtime
	$(BIN)/python train_cifar.py --arch ResNet-20 --dataset DIGITS --target_rate 0.45 --baseline_epoch 9 \
		--train_epoch 4 --batch_size 16 --search_step 0.4 --train_path runs/demo
	$(BIN)/python test.py --arch ResNet-20 --dataset DIGITS --trained_param runs/demo/trained_param.pkl

test: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(VENV)/.dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r docs/requirements.txt
	$(BIN)/python docs/make_api.py
	$(BIN)/python docs/make_flags.py
	$(BIN)/python docs/make_notebooks.py

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV) || (echo "error: no venv; on Debian: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1)

$(VENV)/.runtime: requirements.txt $(VENV)/bin/python
	sed 's/^tensorflow\b/$(TENSORFLOW)/' requirements.txt > $(VENV)/requirements.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements.txt
	touch $@

$(VENV)/.dev: requirements-dev.txt $(VENV)/.runtime
	grep -v '^-r' requirements-dev.txt > $(VENV)/requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r $(VENV)/requirements-dev.txt
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache
