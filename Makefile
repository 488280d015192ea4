# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test lab export readme benchmarks clean

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/done: settings.ini setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch .venv/done

demo: .venv/done ## train on real digits, sample, edit, measure; pictures in demo/
	$(BIN)/consistency-models demo

test: .venv/done ## what CI runs: export, clean, notebooks, pytest
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tests/run.sh

lab: .venv/done ## open JupyterLab on the lessons
	$(BIN)/jupyter lab nbs

export: .venv/done ## write the package and README.md from the notebooks
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tests/readme.py

benchmarks: .venv/done ## import time and overhead, as ratios
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/overhead.py

clean: ## remove the environment and everything made
	rm -rf .venv demo _docs _proc build dist *.egg-info
