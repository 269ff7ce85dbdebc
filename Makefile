# Two commands: make demo, make test. Each makes the environment first.
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
KIT := $(BIN)/mclip-kit
export HF_HUB_OFFLINE ?= 1

.PHONY: demo test lint docs results methods bench bench-peers install

install: $(VENV)/.installed

$(VENV)/.installed: setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[demo,dev]'
	touch $@

demo: install  ## prepare, train both quickstarts and score them, offline
	$(KIT) prepare
	$(KIT) train recipes/quickstart.yaml --resume
	@if [ ! -e encoders/e5-small ]; then $(KIT) import e5 || echo "multilingual-e5-small is not available: the quickstart's encoder is used instead"; fi
	@if [ -e encoders/e5-small ]; then encoder=hf:encoders/e5-small; else encoder=hf:runs/quickstart/model/encoder; fi; \
	  $(KIT) train recipes/quickstart_trikd.yaml --resume --set encoder=$$encoder
	$(KIT) eval runs/quickstart/model runs/quickstart_trikd/model --out runs/demo
	@echo; echo "Search the pictures in a browser:  $(KIT) demo runs/quickstart_trikd/model --images data/emoji --open"

test: install  ## every test; one worker for each core, one thread for each worker
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy mclip_kit

docs: install  ## the documentation site, into build/site; nothing is fetched
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "read it, with its search:  $(BIN)/python -m http.server -d build/site"

results: install  ## docs/results.md, three seeds; about an hour on two cores
	$(BIN)/python benchmarks/results.py

methods: install  ## the figures of docs/methods.md, from the teachers that `make results` trained
	$(BIN)/python benchmarks/losses.py
	$(BIN)/python benchmarks/unpaired_results.py
	$(BIN)/python benchmarks/methods.py

bench: install bench-peers  ## every figure of docs/performance.md that is missing; hours on two idle cores
	$(BIN)/python benchmarks/bench.py

bench-peers: install  ## the programs that we are compared with, each in an environment of its own, build/peers/NAME
	$(BIN)/python benchmarks/peers.py
