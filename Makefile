# Everything runs in .venv, which the first target that needs it makes. `make help` lists the targets.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: help demo test fast report lab app workshop film docs export benchmarks gpu clean

# Threads that wait for each other give way soon, which a crowded machine needs; OpenMP reads it when torch is imported.
# Not for app and lab: after the pause between two moves of a slider the threads would have to be woken for each operation.
demo test fast gpu: export GOMP_SPINCOUNT ?= 1000

help: ## list the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.venv/done: settings.ini setup.py
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[dev]"
	@touch .venv/done

demo: .venv/done ## train on real digits, distill, sample, edit, measure; pictures in demo/
	$(BIN)/consistency-models demo

test: .venv/done ## what CI runs: export, clean, notebooks, pytest with a browser
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/browser.sh
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/colab.sh
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/run.sh

fast: .venv/done ## the tests that take less than two seconds each, without a browser, in parallel
	OMP_NUM_THREADS=1 MPLBACKEND=agg $(BIN)/python -m pytest -q -n 2 --dist loadfile -m "not slow" tests

report: .venv/done ## lines over 100 characters and long cells, for whoever tidies up; fails for nothing
	$(BIN)/python tools/report.py

lab: .venv/done ## open JupyterLab on the lessons
	$(BIN)/jupyter lab nbs

app: .venv/done ## show all explorers on one page, in a browser
	$(BIN)/voila nbs/app.ipynb --TagRemovePreprocessor.enabled=True --TagRemovePreprocessor.remove_cell_tags=page

workshop: .venv/done ## the participant's notebook, the teacher's copy and the slides, in workshop/
	$(BIN)/python tools/workshop.py

film: .venv/done ## film the painter for the home page, in a browser
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/browser.sh
	$(BIN)/python tools/film.py

docs: .venv/done ## the site, in _docs/, with its live parts, checked; needs Quarto
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/browser.sh
	PATH="$(CURDIR)/$(BIN):$$PATH" bash tools/docs.sh

export: .venv/done ## write the package and README.md from the notebooks
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python tools/readme.py

benchmarks: .venv/done ## import time and overhead, as ratios; then speed options, sampling, widgets and the site
	$(BIN)/python benchmarks/import_time.py
	$(BIN)/python benchmarks/overhead.py
	$(BIN)/python benchmarks/throughput.py
	$(BIN)/python benchmarks/sampling.py
	$(BIN)/python benchmarks/widgets.py
	$(BIN)/python tools/live.py
	$(BIN)/python benchmarks/live.py

gpu: .venv/done ## GPU tests and speed in one table, within nine minutes; shortened without a GPU
	$(BIN)/python tools/gpu.py $(ARGS)

clean: ## remove the environment and everything made
	rm -rf .venv demo workshop _docs _proc _run build dist *.egg-info nbs/live/models nbs/live/vendor nbs/live/painter.*
