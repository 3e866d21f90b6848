# Every verb sets up what it needs, once: .venv, then the packages of pyproject.toml.
# The stamps in .venv are older than pyproject.toml only after it changed: then pip runs again.

VENV    := .venv
PY      := $(VENV)/bin/python
RUN     := $(VENV)/.installed-runtime
DEV     := $(VENV)/.installed-dev

# Yours to set, for example `make lab PORT=9000 BROWSER=no` or `make demo ARGS="--data digits"`.
PYTHON  ?=
PORT    ?= 8888
BROWSER ?= yes
ARGS    ?=

# Tests run side by side, one thread each, so that they do not fight for the cores.
QUICK   := LOWRANK_PROFILE=smoke OMP_NUM_THREADS=1 MKL_NUM_THREADS=1
PYTEST  := $(QUICK) $(PY) -m pytest -q -n logical --maxprocesses 4 --dist loadfile
NBVAL   := --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
           --nbval-sanitize-with=tests/nbval_sanitize.cfg

.PHONY: help demo lab test check exercises stats clean

help:
	@echo "make demo       compress ResNet-18 in the terminal, down to the table"
	@echo "make lab        open the course in JupyterLab (PORT=8888, BROWSER=no for a remote machine)"
	@echo "make test       all tests, and every notebook"
	@echo "make check      lint, types and the quick tests"
	@echo "make exercises  make exercises/ again from solutions/"
	@echo "make stats      how long the notebooks and the package are"
	@echo "make clean      remove .venv and what the tools left behind"

demo: $(RUN)
	@$(PY) -m lowrank_course demo $(ARGS)

# JupyterLab would ask each newcomer about news: its settings for the course say no.
lab: $(RUN)
	@$(PY) -m lowrank_course doctor
	@mkdir -p $(VENV)/lab
	@echo '{"@jupyterlab/apputils-extension:notification": {"fetchNews": "false"}}' \
	    > $(VENV)/lab/overrides.json
	$(PY) -m jupyterlab --port=$(PORT) $(if $(filter no,$(BROWSER)),--no-browser) \
	    $(if $(filter 0,$(shell id -u)),--allow-root) --LabApp.app_settings_dir=$(VENV)/lab \
	    --LabApp.default_url=/lab/tree/notebooks/00_start_here.ipynb

test: $(DEV)
	@failed=""; \
	echo "== tests"; $(PYTEST) tests || failed="$$failed tests"; \
	for folder in notebooks solutions exercises; do \
	    echo "== $$folder"; $(PYTEST) $(NBVAL) $$folder || failed="$$failed $$folder"; \
	done; \
	if [ -n "$$failed" ]; then \
	    echo "make test: FAILED in$$failed; the reasons stand above."; exit 1; \
	fi; \
	echo "make test: tests, notebooks, solutions and exercises all passed."

check: $(DEV)
	@$(PY) -m ruff check .
	@$(PY) -m mypy
	@$(PYTEST) tests -m "not slow"

exercises: $(DEV)
	@$(PY) grading.py exercises

stats: $(DEV)
	@$(PY) tests/notebook_stats.py

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name .git -prune -o -type d \( -name __pycache__ -o -name .ipynb_checkpoints \) -prune \
	    -exec rm -rf {} +
	@echo "The data and decoded images outside this folder stay: in ~/.cache/lowrank-course, or where"
	@echo "LOWRANK_CACHE and LOWRANK_DATA say."

$(RUN): pyproject.toml | $(PY)
	@$(call install,.)
	@touch $@

$(DEV): pyproject.toml | $(PY)
	@$(call install,.[dev$(,)grading])
	@touch $(RUN) $@

, := ,
install = echo "Installing into $(VENV), once; a few minutes the first time."; \
	$(PY) -m pip install --disable-pip-version-check --no-compile -e "$(1)" || { \
	    echo "make: the installation stopped, see above. Check the network and the disk (about 10 GB"; \
	    echo "are needed), then give the same command again; 'make clean' starts afresh."; exit 1; }

$(PY):
	@for python in $(PYTHON) python3.11 python3.12 python3.13 python3.14 python3 python; do \
	    $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' \
	        2>/dev/null || continue; \
	    echo "Making $(VENV) with $$($$python --version)."; \
	    $$python -m venv $(VENV) && exit 0; \
	    rm -rf $(VENV); exit 1; \
	done; \
	echo "make: no Python 3.11 or newer with its venv module was found. Install one (on Debian or"; \
	echo "Ubuntu: apt install python3 python3-venv), or name one: make PYTHON=/path/to/python3.12"; \
	exit 1
