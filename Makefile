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
.PHONY: help setup demo test check format reproduce-tables smoke prepare report docs clean

help: ## List the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

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

# What the papers show: each experiment is run as far as it is missing, then its tables are written. A failed run leaves an
# empty cell and an exit status that is not 0; with -k the others go on.
OWN         := heart_twins heart_variants
PAPERS      := $(filter-out $(OWN),$(patsubst conf/experiment/%.yaml,%,$(wildcard conf/experiment/hs_*.yaml conf/experiment/heart_*.yaml)))
KNOWN       := $(patsubst conf/experiment/%.yaml,%,$(wildcard conf/experiment/*.yaml))
EXPERIMENTS ?= $(PAPERS)
ROOT        ?= outputs
FORMS       ?= md tex csv json
# Those whose curves are drawn as well, into ROOT/figures; CURVES= draws none.
CURVES      ?= $(EXPERIMENTS)

reproduce-tables: $(EXPERIMENTS:%=$(ROOT)/tables/%.md) ## Run what is missing of the papers' tables and figures: ARGS="data.root=PATH"

ifneq ($(words $(ROOT)),1)
$(error ROOT names one folder, without blanks; got '$(ROOT)')
endif

# RUN_x: the experiment behind x; NAME_x: of its runs; ARGS_x: of its own. All are x itself, or empty, but for those below.
$(ROOT)/tables/%.md: FORCE | setup
	@mkdir -p $(@D) || exit 1; status=0; \
	$(PYTHON) train.py experiment=$(or $(RUN_$*),$*) root=$(ROOT) $(ARGS_$*) $(ARGS) $(if $(QUIET),> $(basename $@).log 2>&1) \
		|| { status=1; $(if $(QUIET),grep -E '^(failed|error)' $(basename $@).log | head -20 >&2;) echo "failed: $*" >&2; }; \
	for form in $(FORMS); do \
		$(PYTHON) scripts/make_tables.py $(or $(NAME_$*),$*) --root $(ROOT) --out $(basename $@).$$form --force && \
			echo "written: $(basename $@).$$form" || status=1; \
	done; \
	$(if $(filter $*,$(CURVES)),$(PYTHON) scripts/analyse.py curves --root $(ROOT) --name $(or $(NAME_$*),$*) \
		--out $(ROOT)/figures/$* --force || status=1;) exit $$status

NAME_heart_twins := heart_variants

FORCE:

# The same in miniature: every experiment with one task of each group, every method with one task, and the papers' two methods
# on all 19 tasks; what is done to a method's update does not depend on the task. Numbers mean nothing.
SMOKE_METHODS := methods_1 methods_2
SMOKE         := $(SMOKE_METHODS) $(filter-out methods,$(patsubst conf/experiment/%.yaml,%,$(wildcard conf/experiment/*.yaml)))
SMOKE_ARGS    := backbone=vit_nano data=synthetic protocol=smoke trainer=cpu trainer.threads=1 trainer.progress=false seed=0

smoke: setup ## Every experiment and every method in miniature, through to their tables: does everything work?
	@start=$$(date +%s); status=0; \
	OMP_NUM_THREADS=1 $(MAKE) --no-print-directory -k -j $(WORKERS) reproduce-tables QUIET=1 FORMS=md ROOT=outputs/smoke SMALL=1 \
		EXPERIMENTS="$(SMOKE)" || status=$$?; \
	echo "smoke: $$(( $$(date +%s) - start )) s; tables and logs in outputs/smoke/tables"; exit $$status

ifdef SMALL
override ARGS       := $(SMOKE_ARGS) $(ARGS)
CURVES              := heart_fig2 heart_fig3
TASKS3              := dataset=svhn,eurosat,dsprites_loc logger.pictures=false
HEADS               := ne=ne0,ne1,ne5
RATES               := 'protocol.search.fields={every.lr:[0.001,0.01]}'
RUN_methods_1       := methods
RUN_methods_2       := methods
NAME_methods_1      := methods
NAME_methods_2      := methods
MINIATURE           := protocol.epochs=2 logger.pictures=false
ARGS_methods_1      := 'method=glob(*)' dataset=eurosat $(MINIATURE)
ARGS_methods_2      := method=hs_lora,heart_lora 'dataset=glob(*)' $(MINIATURE)
ARGS_hs_table2      := $(TASKS3)
ARGS_hs_controls    := $(TASKS3) method@method.first=pissa,cara
ARGS_hs_head_only   := $(TASKS3)
ARGS_hs_fused       := $(TASKS3)
ARGS_hs_rank        := $(TASKS3) rank=r16_h1,r16_h4
ARGS_heart_table1   := $(TASKS3)
ARGS_heart_table2   := $(TASKS3)
ARGS_heart_table3   := $(TASKS3)
ARGS_heart_table4   := $(TASKS3)
ARGS_heart_table5   := $(TASKS3)
ARGS_heart_table6   := $(TASKS3)
ARGS_heart_fig2     := dataset=fewshot/pets shots=1,2 draw=0 protocol.search=null
ARGS_heart_fig3     := $(TASKS3) $(HEADS)
ARGS_heart_fig4     := $(TASKS3) $(HEADS)
ARGS_heart_fig8     := $(TASKS3) $(HEADS)
ARGS_heart_twins    := protocol.epochs=2 ne.warmup=0.1 protocol.precision=fp32
ARGS_heart_variants := protocol.epochs=2 ne.warmup=0.1 protocol.precision=fp32
ARGS_standins       := protocol.epochs=2
ARGS_pays           := dataset=svhn method=hs_lora,hs_control_lora $(RATES)
ARGS_pays_standins  := protocol.epochs=2 protocol.test_images=32 $(RATES)
ARGS_rank_effect    := protocol.epochs=2 protocol.test_images=32 method.rank=1,4 protocol.lr=0.001,0.01
ARGS_methods_standins := method=lora,head_lora,peft/oft protocol.epochs=2 protocol.test_images=32
ARGS_gallery        := protocol.epochs=2 protocol.test_images=32
ARGS_lossy          := protocol.epochs=2 protocol.test_images=32
ARGS_nano_worth     := protocol.epochs=2 protocol.test_images=32
endif

# before the environment is installed for it
ifneq ($(filter reproduce-tables,$(MAKECMDGOALS)),)
$(foreach x,$(EXPERIMENTS),$(if $(wildcard conf/experiment/$(or $(RUN_$x),$x).yaml),,$(error unknown experiment '$x'; there are: $(KNOWN))))
endif

TASKS ?=

prepare: setup ## Get images: make prepare TASKS="svhn cifar100" (or all); without TASKS, say what there is
ifeq ($(strip $(TASKS)),)
	@$(PYTHON) scripts/prepare_vtab.py --status $(ARGS)
else
	@$(PYTHON) scripts/prepare_vtab.py --dry-run --tasks $(TASKS) $(ARGS)
	@$(PYTHON) -c 'import importlib.util as u, sys; sys.exit(u.find_spec("tensorflow") is None)' || \
		$(PYTHON) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[prepare]'
	@$(PYTHON) scripts/prepare_vtab.py --tasks $(TASKS) $(ARGS)
endif

report: setup ## One page of all results: outputs/report.html; ARGS="--name EXPERIMENT" for some
	@$(PYTHON) scripts/make_report.py --out outputs/report.html --force $(ARGS)

docs: setup ## The site of docs/, in outputs/site; opens from disk, loads nothing from elsewhere
	@$(PYTHON) -c 'import importlib.util as u, sys; sys.exit(u.find_spec("mkdocstrings") is None)' || \
		$(PYTHON) -m pip install -qq --disable-pip-version-check -c constraints.txt -e '.[docs]'
	@NO_MKDOCS_2_WARNING=1 $(PYTHON) -m mkdocs build --strict --quiet $(ARGS)
	@echo "written: outputs/site/index.html"

clean: ## Remove caches and the smoke runs; results stay
	@rm -rf .mypy_cache .pytest_cache .ruff_cache build dist outputs/smoke
	@find src tests scripts -name __pycache__ -type d -prune -exec rm -rf {} +
