# The main job on embedded data is `make`; the same on your own photographs is
# `make train compress export DATA=path/to/folder MODEL=tf_efficientnet_lite0`.

PYTHON ?= python3
VENV := .venv
RUN := $(VENV)/bin/
DATA =
MODEL =
WEIGHTS =
RECIPE = $(if $(DATA)$(MODEL),,quickstart)
FLAGS := $(if $(RECIPE),--recipe $(RECIPE)) $(if $(DATA),--data "$(DATA)") $(if $(MODEL),--model $(MODEL))

.PHONY: all setup train compress export table test check soak serve bench pictures docs clean
.NOTPARALLEL:
.DEFAULT_GOAL := all

# Training, pruning, export, quantization and measurement in one, with what to do next.
all: setup
	$(RUN)pocketzoo run $(FLAGS) $(if $(WEIGHTS),--weights "$(WEIGHTS)")

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

# Measures everything anew, beside what else there is to pick (about half an hour), keeps the rows and writes the README's
# tables from them.
SHAPES := --rounds 6 --seconds 0.3
bench: setup
	$(RUN)pocketzoo bench accuracy
	$(RUN)pocketzoo bench latency
	$(RUN)pocketzoo bench compare
	$(RUN)pocketzoo bench shapes resnet18 resnet50 tf_efficientnet_lite0 --round-to 16 $(SHAPES)
	$(RUN)pocketzoo bench shapes vit_tiny_patch16_224 --macs 0.6 $(SHAPES)
	$(RUN)pocketzoo bench publish
	$(RUN)pocketzoo list

# The pictures that the README shows, of the quickstart's artefacts.
PICTURES := bench/results/pictures
OF_DIGIT := $(PICTURES)/digit.png --out $(PICTURES)
EXPLAIN := $(RUN)pocketzoo explain
pictures: setup
	@mkdir -p $(PICTURES)
	$(RUN)python -c "from zoo.data.catalogue import open_dataset as o; import sys; \
	  sys.stdout.buffer.write(o('mnist5k').splits['validation'][3].read())" > $(PICTURES)/digit.png
	$(EXPLAIN) predictions output/vit-lora --out $(PICTURES)/predictions.png
	$(EXPLAIN) confusion output/vit-lora --out $(PICTURES)/confusion.png
	$(EXPLAIN) pairs output/vit-lora --out $(PICTURES)/pairs.png
	$(EXPLAIN) losses output/vit-lora --out $(PICTURES)/losses.png
	$(EXPLAIN) changes output/resnet-pruned/model.onnx --out $(PICTURES)/changes.png
	$(EXPLAIN) filters output/resnet --out $(PICTURES)/filters.png
	$(EXPLAIN) features output/resnet $(OF_DIGIT)/features.png --layer layer1
	$(EXPLAIN) guided output/resnet $(OF_DIGIT)/guided.png --layer layer2
	$(EXPLAIN) gradcam output/resnet $(OF_DIGIT)/gradcam.png
	$(EXPLAIN) attention output/vit-digits output/vit-full output/vit-lora --image $(OF_DIGIT)/attention.png
	$(RUN)python -c "from skimage import data, io; [io.imsave(f'output/{n}.png', getattr(data, n)()) for n in ('chelsea', 'coffee')]"
	$(EXPLAIN) gradcam output/lite0-imagenet output/chelsea.png output/coffee.png --out $(PICTURES)/photographs.png
	$(RUN)pocketzoo report output/vit-lora-pruned
	cp output/vit-lora-pruned/report.html $(PICTURES)/report.html

# The site below site/, from docs/ and the docstrings.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(RUN)python -m mkdocs build --strict

serve: setup
	$(RUN)bentoml serve

# A process per core; a test that takes five minutes hangs (the first one that needs the chain makes it).
TESTS := $(RUN)python -m pytest -n logical --maxprocesses 8 --dist worksteal --timeout 300

test: setup
	$(TESTS)

# What CI runs.
check: setup
	$(RUN)ruff format --check .
	$(RUN)ruff check .
	$(RUN)mypy
	$(RUN)lint-imports
	NO_MKDOCS_2_WARNING=1 $(RUN)python -m mkdocs build --strict
	$(TESTS) --cov

# Every fault that the server must survive, in its long form (about half an hour): malformed requests by the ten thousand,
# killed workers, swaps under load, attacks beside honest load, and what `pocketzoo ship` writes, installed into an empty
# environment; then every family of timm's networks (another hour).
soak: setup
	$(RUN)python -m tests.soak.run
	$(RUN)python -m tests.soak.attacks
	$(RUN)python -m pytest -m hypothesis --hypothesis-profile soak
	POCKETZOO_FUZZ_EXAMPLES=2000 $(RUN)python -m pytest tests/serve/test_fuzz.py
	POCKETZOO_SOAK=1 $(RUN)python -m pytest tests/serve/shipping \
		tests/invariants/test_timm_families.py

clean:
	rm -rf $(VENV)
