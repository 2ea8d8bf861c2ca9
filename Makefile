# Two commands matter: `make demo` and `make test`. Both set up .venv/ first.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BROWSE ?= 1
PYTEST_ARGS ?=

.PHONY: demo test test-gpu torture lint peers peer-sae-lens bench bench-quality bench-recovery bench-harvest gallery screenshots clean

demo: $(VENV)/installed
ifeq ($(BROWSE),0)
	$(BIN)/sae demo --no-browse
else
	$(BIN)/sae demo
endif

test: $(VENV)/installed
	$(BIN)/python -m pytest $(PYTEST_ARGS)

# What only a CUDA device can show; without one all of it is skipped, which is said.
test-gpu: $(VENV)/installed
	$(BIN)/python -m pytest -m gpu -rs tests/kernels tests/training $(PYTEST_ARGS)

# Kills, damage, full disks and changed files at random, with tables of what came of them; TORTURE=full
# for more.
torture: $(VENV)/installed
	$(BIN)/python -m pytest -m torture tests/torture $(PYTEST_ARGS)

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

# The peers that benchmarks (and one test) compare with, each in an environment of its own.
# torchvision comes with dictionary-learning, in a build that torch's CPU build does not load.
PEERS := .venv-peers
PEER_sae_lens := sae-lens==6.54.12
PEER_sparsify := eai-sparsify==1.3.3
PEER_dictionary_learning := dictionary-learning==0.1.0
peers: $(PEERS)/sae_lens/installed $(PEERS)/sparsify/installed $(PEERS)/dictionary_learning/installed
peer-sae-lens: $(PEERS)/sae_lens/installed
$(PEERS)/%/installed:
	test -x $(@D)/bin/python || $(PYTHON) -m venv $(@D)
	$(@D)/bin/python -m pip install --quiet --constraint constraints.txt torch
	$(@D)/bin/python -m pip install --quiet torch==2.13.0 $(PEER_$*)
	$(if $(filter dictionary_learning,$*),$(@D)/bin/python -m pip uninstall --quiet --yes torchvision)
	touch $@

# Side by side with the peers; options in BENCH_ARGS, as `make bench BENCH_ARGS=--quick`.
BENCH_ARGS ?=
bench: $(VENV)/installed peers
	$(BIN)/python -m benchmarks.train_step $(BENCH_ARGS)

bench-quality: $(VENV)/installed peers
	$(BIN)/python -m benchmarks.quality $(BENCH_ARGS)

bench-recovery: $(VENV)/installed peers
	$(BIN)/python -m benchmarks.recovery --peers $(PEERS) $(BENCH_ARGS)

bench-harvest: $(VENV)/installed peer-sae-lens
	$(BIN)/python -m benchmarks.harvest --peers $(PEERS) $(BENCH_ARGS)

# The pages of docs/ that are made by a command.
gallery: $(VENV)/installed
	$(BIN)/python -m pipelines.gallery docs/gallery.md runs/demo runs/books

screenshots: $(VENV)/installed
	$(BIN)/python -m app.screenshots runs/demo docs/images

clean:
	rm -rf $(VENV) build *.egg-info
