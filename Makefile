# Two commands matter: `make demo` and `make test`. Both set up .venv/ first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BROWSE ?= 1
PYTEST_ARGS ?=

.PHONY: demo test lint gallery screenshots clean

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

# The pages of docs/ that are made by a command.
gallery: $(VENV)/installed
	$(BIN)/python -m pipelines.gallery runs/demo docs/gallery.md

screenshots: $(VENV)/installed
	$(BIN)/python -m app.screenshots runs/demo docs/images

clean:
	rm -rf $(VENV) runs build *.egg-info
