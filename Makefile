# The main job on embedded data is `make`; the same on your own photographs is
# `make train compress export DATA=path/to/folder MODEL=tf_efficientnet_lite0`.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/
DATA =
MODEL =
WEIGHTS =
RECIPE = $(if $(DATA),folder,quickstart)
FLAGS := --recipe $(RECIPE) $(if $(DATA),--data "$(DATA)") $(if $(MODEL),--model $(MODEL))

.PHONY: all setup train compress export table test check soak serve bench clean
.NOTPARALLEL:
.DEFAULT_GOAL := all

all: train compress export table

# Installs what pyproject.toml asks for, at the pinned versions, whenever either file changes.
setup: $(VENV)/.installed
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(RUN)python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[all,dev]'
	@touch $@

train: setup
	$(RUN)pocketzoo train $(FLAGS) $(if $(WEIGHTS),--weights "$(WEIGHTS)")

compress: setup
	$(RUN)pocketzoo compress $(FLAGS)

export: setup
	$(RUN)pocketzoo export --int8 $(FLAGS)

# Test accuracy and latency of whatever was not measured yet, then the table.
table: setup
	$(RUN)pocketzoo bench accuracy --missing
	$(RUN)pocketzoo bench latency --missing
	$(RUN)pocketzoo list

bench: setup
	$(RUN)pocketzoo bench accuracy
	$(RUN)pocketzoo bench latency
	$(RUN)pocketzoo list

serve: setup
	$(RUN)bentoml serve

test: setup
	$(RUN)python -m pytest

check: setup
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)mypy
	$(RUN)lint-imports
	$(MAKE) test

# Every fault that the server must survive, in its long form (about half an hour): malformed requests by the ten thousand,
# killed workers, swaps under load, and what `pocketzoo ship` writes, installed into an empty environment.
soak: setup
	$(RUN)python -m bench.soak.run
	POCKETZOO_FUZZ_EXAMPLES=2000 $(RUN)python -m pytest tests/serve/test_fuzz.py
	POCKETZOO_SOAK=1 $(RUN)python -m pytest tests/serve/test_shipping.py tests/serve/test_shipping_manifests.py

clean:
	rm -rf $(VENV)
