# Two commands are enough: `make demo` and `make test`. Everything runs from .venv, which the first of them creates.
PYTHON ?= python3.11
BIN := .venv/bin
export OMP_WAIT_POLICY ?= passive
export DO_NOT_TRACK ?= 1
export PREFECT_SERVER_ANALYTICS_ENABLED ?= false

.PHONY: demo test laws parity lint install

demo: .venv/.installed
	$(BIN)/python -m rlhf_data.world demo
	WORLD=demo $(BIN)/rlhf-data run pipelines/world --workspace demo/.rlhf

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadfile -q

# Of `make test`, the laws of the data side on 1,000 cases each and not on 50, those of rules on 200 and not on 10.
laws: .venv/.installed
	RLHF_DATA_LAWS=1000 $(BIN)/python -m pytest -n 2 --dist loadfile -q tests/laws tests/rules/test_rules.py tests/rate/test_bradley_terry.py

# What is held against TRL's trainers: gradients, and whole runs of every rule that both have (`make test` has three).
# Run it after a new TRL or a new rule. RLHF_DATA_PARITY_MODEL=FOLDER[:GGUF] adds a short run of a real model.
parity: .venv/.installed
	RLHF_DATA_PARITY=all $(BIN)/python -m pytest -q tests/training/test_parity.py tests/training/test_parity_of_rules.py tests/training/test_parity_of_runs.py

lint: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright --warnings

install: .venv/.installed

# torch first, by its exact version: a plain `torch`, asked for by another package, is gigabytes of CUDA.
.venv/.installed: pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "no $(PYTHON) on PATH: install Python 3.11, or: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[train,flows,dev]"
	touch $@
