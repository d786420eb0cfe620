# make          environment, default preset, report, comparison with results/reference
# make test     environment, tests
# make smoke    six tiny models and their report, about two minutes
PYTHON ?= python3
PRESET ?= cpu
CORES ?= all
BIN := .venv/bin
export TOKENIZERS_PARALLELISM := false

.PHONY: all env test smoke lint clean

all: env
	$(BIN)/python -m workflows.start --cores $(CORES) --config preset=$(PRESET)
	@echo "report: reports/$(PRESET).html"
	@if [ "$(PRESET)" = cpu ]; then \
	    echo "this run against results/reference; in full: results/cpu/compare/compare.html"; \
	    $(BIN)/python -m evals.compare results/cpu results/reference --out results/cpu/compare || [ $$? -eq 1 ]; \
	fi

env: .venv/.installed

.venv/.installed: requirements.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "error: Python 3.11 or newer is needed; run make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
	$(BIN)/python -m kernels.cpu.build
	touch $@

test: env
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --durations 30 --durations-min 5

smoke:
	$(MAKE) all PRESET=smoke

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflows

clean:
	rm -rf .snakemake .cache .pytest_cache .ruff_cache .mypy_cache
