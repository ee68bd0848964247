# `make demo` and `make test` need Python 3.11 or newer and nothing else: each creates .venv and installs what it needs.
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --no-compile --constraint constraints.txt
# pip compiles on one processor, this on all. Rarely used parts are left to their import; a template is no Python.
RARELY := tests?|testing|_inductor|transformers/models|openai/types|pip|setuptools|fontTools|networkx
COMPILE := $(BIN)/python -m compileall -qq -j 0 -x '/($(RARELY))/' .venv/lib || true
PRODUCT := .venv/.installed
TOOLS := .venv/.installed-tools
HOME_OF_DEMO := demo-out

.PHONY: help demo test lint format bench gpu faults matrix attack soak docs browser clean

help:  ## what can be made
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "make %-8s %s\n", $$1, $$2}'

# torch first: whatever needs it must find the pinned one instead of fetching its own.
$(PRODUCT): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Nocturne needs Python 3.11 or newer; set PYTHON=/path/to/python3.11" >&2; exit 1; }
	test -x $(BIN)/pip || $(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable .
	$(COMPILE)
	@touch $@

# What tests, checks and benchmarks need beside the product: a PostgreSQL server, pytest, mypy, ruff, matplotlib …
$(TOOLS): $(PRODUCT) tests/triton.txt
	$(PIP) --editable '.[dev]'
	$(BIN)/python -c 'import triton' 2> /dev/null || $(PIP) --requirement tests/triton.txt
	$(COMPILE)
	@touch $@

demo: $(PRODUCT)  ## the study's prompts over all strategies, then 600 mixed prompts, on the toy model
	@rm -rf $(HOME_OF_DEMO)
	$(BIN)/producer run examples/study.jsonl --model examples/tiny/model --home $(HOME_OF_DEMO) --name study --seed 1 \
		--strategy greedy,sample,nucleus,beam --temperature 0.001,0.1,0.5,1,10 --top-p 0.9,0.15 \
		--num-beams 1,4,8 --length-penalty 0.5,1,2 --max-new-tokens 400 --repeat 3
	$(BIN)/producer run examples/prompts.jsonl --model examples/tiny/model --home $(HOME_OF_DEMO) --name prompts --seed 1
	$(BIN)/producer sql --home $(HOME_OF_DEMO) \
		"select run_name, strategy, count(*) as answers, avg(completion_tokens) as mean_tokens from job_results group by 1, 2"

# The tests start hundreds of processes: what these import is compiled once, whatever the environment says of it.
# Files go to the processes in the order of tests/conftest.py, the longest first.
test: $(TOOLS)  ## all tests that take seconds
	env -u PYTHONDONTWRITEBYTECODE $(BIN)/pytest -n 4 --dist loadfile --no-loadscope-reorder \
		-m "not long and not browser"

faults: $(TOOLS)  ## the faults that take minutes: killed processes, Redis and databases away
	@PATH=$$PATH:/usr/sbin command -v pgbouncer > /dev/null || { echo "installing the system's pgbouncer" >&2; \
		apt-get update -qq && apt-get install -y -qq --no-install-recommends pgbouncer; }
	$(BIN)/pytest -m long

matrix: $(TOOLS)  ## every type of model that Transformers knows, tiny, against generate
	$(BIN)/python -m benchmarks.model_matrix

browser: $(TOOLS)  ## the page of a report in a headless Chromium of the system's packages
	@command -v chromium > /dev/null && command -v chromedriver > /dev/null \
		|| { echo "make browser: installing chromium and chromium-driver from the system's packages" >&2; \
			apt-get update --quiet && apt-get install --yes --quiet --no-install-recommends chromium chromium-driver; }
	$(BIN)/python -c 'import selenium' 2> /dev/null || $(PIP) --requirement tests/browser/requirements.txt
	$(BIN)/pytest tests/browser

attack: $(TOOLS)  ## hostile files, statements, templates and URLs, all of them
	$(BIN)/pytest tests/nights/strangers

lint: $(TOOLS)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(TOOLS)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(TOOLS)  ## the engine beside generate, bare matmuls and its own features, ratios and medians
	$(BIN)/python -m benchmarks.throughput --contenders ours,bound,static,continuous,one
	$(BIN)/python -m benchmarks.throughput --requests 256
	$(BIN)/python -m benchmarks.phases
	$(BIN)/python -m benchmarks.decode_steps --picture docs/pictures/decode.svg
	$(BIN)/python -m benchmarks.ablations
	$(BIN)/python -m benchmarks.features
	$(BIN)/python -m benchmarks.scaling --peer-most 64 --picture docs/pictures/scaling.svg

gpu: $(TOOLS)  ## everything that is claimed of a GPU, on one
	for part in kernels tokens profile whole peers; do $(BIN)/python -m benchmarks.gpu $$part || exit 1; done

soak: $(TOOLS)  ## ten minutes of accidents on each database
	$(BIN)/python -m tests.faults.soak --database sqlite
	$(BIN)/python -m tests.faults.soak --database postgresql

docs: $(TOOLS)  ## docs/help.md from the commands, the pictures of README from a run (the last with Chromium)
	$(BIN)/python -m docs.help_pages
	$(BIN)/python -m docs.pictures_of_pages

clean:
	rm -rf .venv $(HOME_OF_DEMO) build *.egg-info
