# Two commands for a fresh machine: `make demo` and `make test`. Both install into .venv first if needed, as do
# `make demo-sdf`, `make demo-voxel` and `make demo-image`.
# Needs Python 3.10 to 3.12, make and a C compiler; uses uv where it is, else venv and pip.

VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := nerfstudio,all,dev
MINIMAL ?= .venv-minimal
# Of the suite, what trains, samples, exports and evaluates with the core alone.
CORE_TESTS := $(wildcard $(patsubst %,tests/test_%*.py,errors imports files train stage1 priors latents model_folder \
	generation mesh_export evaluation grid_store))

# The first interpreter that really starts and is of a supported version (version managers leave dead shims).
PYTHON ?= $(shell for p in python3.11 python3.12 python3.10 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))' >/dev/null 2>&1 && echo $$p && break; done)

# Tests run in so many processes of one thread each; the tests of a file stay together, which share what they train.
WORKERS ?= 2

.PHONY: install demo demo-sdf demo-voxel demo-image demo-signal evaluate test test-minimal lint bench clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@test -n "$(PYTHON)" || { echo "error: no Python 3.10 to 3.12 found; install one or run make PYTHON=/path/to/python."; exit 1; }
	@echo "Installing into $(VENV) (about 6 GB with PyTorch; a few minutes)"
	@if command -v uv >/dev/null 2>&1; then \
		uv venv --allow-existing --quiet --python "$(PYTHON)" $(VENV) && \
		uv pip install --quiet --python $(BIN)/python -c constraints.txt -e ".[$(EXTRAS)]"; \
	else \
		$(PYTHON) -m venv $(VENV) && \
		$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[$(EXTRAS)]"; \
	fi
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/mnif-demo

demo-sdf: $(STAMP)
	$(BIN)/mnif-demo --modality sdf

demo-voxel: $(STAMP)
	$(BIN)/mnif-demo --modality voxel

demo-image: $(STAMP)
	$(BIN)/mnif-demo --modality image

demo-signal: $(STAMP)
	$(BIN)/mnif-demo --modality signal

# The small protocol on the demos' models, those that are there (make them with the targets above).
evaluate: $(STAMP)
	@found=0; for run in outputs/demo/mnif-lite outputs/demo-sdf/mnif-sdf-lite outputs/demo-voxel/mnif-voxel-lite outputs/demo-image/mnif-image-lite; do \
		if [ -f $$run/run/model/config.json ]; then \
			found=1; $(BIN)/mnif-eval --load-config $$run/run/config.yml || exit 1; \
		fi; \
	done; [ $$found = 1 ] || { echo "error: no demo model in outputs/; run make demo, demo-sdf, demo-voxel or demo-image first."; exit 1; }

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# The core as `pip install mnif_nerf` gives it, without nerfstudio and without extras.
test-minimal: $(STAMP)
	$(BIN)/python .ci/minimal.py $(MINIMAL)
	MNIF_MINIMAL=1 $(MINIMAL)/bin/python -m pytest -p no:cacheprovider $(CORE_TESTS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(STAMP)
	$(BIN)/python benchmarks/train_step.py
	$(BIN)/python benchmarks/time_to_psnr.py
	$(BIN)/python benchmarks/render.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/meta_step.py
	$(BIN)/python benchmarks/adaptation.py --seconds 60

clean:
	rm -rf build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
