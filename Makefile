# Commands of the project; `make help` lists them.
#
# The environment is made on first use and reused until pyproject.toml, which
# lists what it holds, changes. All paths are relative, so that a checkout may
# lie anywhere.

PYTHON ?= python3
VENV := .venv
ACCELERATORS := .venv-accelerators
DOCS := .venv-docs
RUN := $(VENV)/bin/python
INSTALL := $(RUN) -m pip install --quiet --disable-pip-version-check
# What was compiled once need not be compiled by the next run.
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/jax

.PHONY: help train detect docs notebooks test test-slow test-accelerators faults lint format clean
.DEFAULT_GOAL := help

help:  ## List the commands.
	@echo 'make train       train an AW-ResNet on embedded digits (< 5 minutes)'
	@echo 'make detect      train a detector on embedded scenes, draw what it finds'
	@echo '                 (< 10 minutes)'
	@echo 'make test        lint, and run the test suite (8 minutes)'
	@echo 'make test-slow   run what takes long: each network with each attention,'
	@echo '                 one step; detectors trained, killed, learning by heart'
	@echo 'make test-accelerators   install the compilers of TPU and CUDA (3 GB),'
	@echo '                 and hold what they say of the kernels'
	@echo 'make faults      have over 1,000 faults befall runs and tools (25 minutes)'
	@echo 'make docs        the documents, every option and every module as a site'
	@echo 'make notebooks   execute the notebooks, which keep what they print and draw'
	@echo 'make lint        check form and types'
	@echo 'make format      bring the code into form'
	@echo 'make clean       remove the environment and the caches, not the runs'
	@echo
	@echo 'PYTHON=...   Python to build the environment with ($(PYTHON))'
	@echo 'CONFIG=... WORKDIR=... ARGS=...   what "make train", "make detect" pass on'

# One check of the version, in words that any Python understands.
$(VENV)/bin/python:
	@command -v '$(PYTHON)' >/dev/null || { \
	  echo "error: there is no '$(PYTHON)'; install Python >= 3.11 and say" \
	    "make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@'$(PYTHON)' -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "error: Python >= 3.11 is needed, but '$(PYTHON)' is" \
	    "$$('$(PYTHON)' --version 2>&1); install a newer one and say" \
	    "make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@echo 'making the virtual environment $(VENV)'
	@'$(PYTHON)' -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

# $(VENV)/train and $(VENV)/test are empty files: the time of the installation.
$(VENV)/train: pyproject.toml requirements.txt | $(VENV)/bin/python
	@echo 'installing requirements.txt (about a minute)'
	@$(INSTALL) -r requirements.txt
	@touch $@

$(VENV)/test: pyproject.toml requirements-test.txt | $(VENV)/bin/python
	@echo 'installing requirements-test.txt (about a minute)'
	@$(INSTALL) -r requirements-test.txt
	@touch $(VENV)/train $@

train: CONFIG ?= configs/digits.py
train: WORKDIR ?= runs/digits
train: $(VENV)/train  ## Train on the embedded digits.
	@echo 'training $(CONFIG), results in $(WORKDIR)'
	@$(RUN) train.py --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)

detect: CONFIG ?= configs/digit_scenes.py
detect: WORKDIR ?= runs/digit_scenes
detect: $(VENV)/train  ## Train on the embedded scenes, and draw.
	@echo 'training $(CONFIG), results in $(WORKDIR)'
	@$(RUN) train.py --config=$(CONFIG) --workdir=$(WORKDIR) $(ARGS)
	@$(RUN) -m awconv_jax.tools.predict --run=$(WORKDIR) \
	  --output=$(WORKDIR)/predictions

test: $(VENV)/test lint  ## Run the test suite.
	@echo 'running the test suite'
	@$(RUN) -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: $(VENV)/test  ## Run what the suite leaves out.
	@$(RUN) -m pytest -n 2 --dist loadgroup -m 'slow and not faults' $(ARGS)

notebooks: $(VENV)/test  ## Execute the notebooks in place.
	@$(VENV)/bin/jupyter-execute --inplace notebooks/*.ipynb

# An environment of its own: these compilers belong to one release of JAX.
$(ACCELERATORS)/test: requirements-accelerators.txt pyproject.toml
	@echo 'installing requirements-accelerators.txt (minutes)'
	@'$(PYTHON)' -m venv $(ACCELERATORS)
	@$(ACCELERATORS)/bin/python -m pip install --quiet \
	  --disable-pip-version-check -r requirements-accelerators.txt
	@touch $@

test-accelerators: $(ACCELERATORS)/test  ## Compile for TPU and CUDA.
	@$(ACCELERATORS)/bin/python -m pytest -m accelerators -rs $(ARGS)

# An environment of its own, as nobody else needs these.
$(DOCS)/docs: pyproject.toml
	@echo 'installing what the site is made with, in $(DOCS) (a minute)'
	@'$(PYTHON)' -m venv $(DOCS)
	@$(DOCS)/bin/python -m pip install --quiet --disable-pip-version-check \
	  -e '.[docs]'
	@touch $@

docs: $(DOCS)/docs  ## Make the site of the documents.
	@rm -rf build/pages build/docs
	@$(DOCS)/bin/python docs/site.py build/pages
	@$(DOCS)/bin/zensical build --strict
	@echo 'the site: build/docs/index.html'

faults: $(VENV)/test  ## Have faults befall runs and tools; count them by kind.
	@echo 'kills, signals, full disks, damaged files, ...: each must end in order'
	@$(RUN) -m pytest -n 2 --dist worksteal -m faults $(ARGS)

lint: $(VENV)/test  ## Check form and types.
	@echo 'checking form and types'
	@$(RUN) -m ruff check --quiet .
	@$(RUN) -m pyink --quiet --check .
	@$(RUN) -m pyrefly check --summary=none

format: $(VENV)/test  ## Bring the code into form.
	@$(RUN) -m ruff check --quiet --fix .
	@$(RUN) -m pyink --quiet .

clean:  ## Remove the environment and the caches.
	@rm -rf $(VENV) $(ACCELERATORS) $(DOCS) .cache .pytest_cache .ruff_cache .hypothesis *.egg-info build
