# Two commands matter: `make demo` and `make test`. Both set up .venv/ first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BROWSE ?= 1
PYTEST_ARGS ?=

.PHONY: demo test lint peers bench-harvest gallery screenshots clean

demo: $(VENV)/installed
ifeq ($(BROWSE),0)
	$(BIN)/sae demo --no-browse
else
	$(BIN)/sae demo
endif

test: $(VENV)/installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

# Versions are pinned by constraints.txt, the ones that CI tests. torch comes first and alone, so
# that the build that fits this machine (see README) is not replaced by another package's wish.
$(VENV)/installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

# SAELens lives in an environment of its own: tests and benchmarks compare with it.
PEERS := .venv-peers
peers: $(PEERS)/installed
$(PEERS)/installed:
	test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(PEERS)/bin/python -m pip install --quiet torch==2.13.0 sae-lens==6.54.12
	touch $@

bench-harvest: $(VENV)/installed peers
	$(BIN)/python -m benchmarks.harvest --peers $(PEERS)/bin/python

# The pages of docs/ that are made by a command.
gallery: $(VENV)/installed
	$(BIN)/python -m pipelines.gallery docs/gallery.md runs/demo runs/books

screenshots: $(VENV)/installed
	$(BIN)/python -m app.screenshots runs/demo docs/images

clean:
	rm -rf $(VENV) runs build *.egg-info
