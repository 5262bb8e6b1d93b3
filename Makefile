# The commands of this project. `make` lists them; README.md explains the first two.

VENV      ?= .venv
PYTHON    := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
BASE      ?= python3
ARGS      ?=
WORKERS   ?= 2
# One thread a worker: more would get in each other's way.
PYTEST    = OMP_NUM_THREADS=1 $(PYTHON) -m pytest -n $(WORKERS) --dist worksteal

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format smoke prepare clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(INSTALLED) ## Install everything into .venv (about 6 GB, some minutes; done once)

$(INSTALLED): pyproject.toml constraints.txt
	@$(BASE) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "error: $(BASE) is missing or older than Python 3.11; name a newer one: make setup BASE=python3.12"; exit 1; }
	@echo "installing into $(VENV): about 6 GB, some minutes"
	@$(BASE) -m venv $(VENV)
	@$(PYTHON) -m pip install -qq --disable-pip-version-check -c constraints.txt torch torchvision
	@$(PYTHON) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@
	@echo "installed; next: make demo"

DEMO := method=hs_lora method@method.first=lora dataset=dsprites_loc data=synthetic backbone=vit_nano trainer=cpu \
	name=demo variant=demo protocol.epochs=10 protocol.test_images=2048

demo: setup ## Train HS-LoRA on drawn images, a few minutes on two cores
	@$(PYTHON) train.py $(DEMO) $(ARGS)
	@echo
	@echo "The run's folder: outputs/demo/hs_lora/dsprites_loc/demo/seed-0 (result.json, curve.png, the trained updates)."
	@echo "Run 'make demo' again: it is finished, so its table comes from disk. Next:"
	@echo "  $(PYTHON) scripts/evaluate.py outputs/demo/hs_lora/dsprites_loc/demo/seed-0"
	@echo "  $(PYTHON) scripts/export_merged.py outputs/demo/hs_lora/dsprites_loc/demo/seed-0 --out outputs/demo.safetensors"
	@echo "  $(PYTHON) train.py --help"

test: setup ## Run the tests
	@$(PYTEST) $(ARGS)

check: setup ## Lint, format, types and tests: what every change must pass
	@$(PYTHON) -m ruff check .
	@$(PYTHON) -m ruff format --check .
	@$(PYTHON) -m mypy
	@$(PYTEST)

format: setup ## Rewrite the code in the house style
	@$(PYTHON) -m ruff check --fix .
	@$(PYTHON) -m ruff format .

SMOKE := dataset=dsprites_loc data=synthetic backbone=vit_tiny_random protocol=smoke trainer=cpu root=outputs/smoke

smoke: setup ## Run three methods in miniature, through to their table: does everything work?
	@$(PYTHON) train.py -m method=lora,head_lora,hs_lora $(SMOKE) $(ARGS)
	@$(PYTHON) scripts/make_tables.py --root outputs/smoke --out outputs/smoke/table.md
	@echo "written: outputs/smoke/table.md"

TASKS ?=

prepare: setup ## Get images: make prepare TASKS="svhn cifar100" (or all); without TASKS, say what there is
ifeq ($(strip $(TASKS)),)
	@$(PYTHON) scripts/prepare_vtab.py --status $(ARGS)
else
	@$(PYTHON) -c 'import importlib.util as u, sys; sys.exit(u.find_spec("tensorflow") is None)' || \
		$(PYTHON) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[prepare]'
	@$(PYTHON) scripts/prepare_vtab.py --tasks $(TASKS) $(ARGS)
endif

clean: ## Remove caches and the smoke runs; results stay
	@rm -rf .mypy_cache .pytest_cache .ruff_cache build dist outputs/smoke
	@find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
