# Two commands matter: `make run` and `make test`. `make help` lists the others.
PYTHON ?= python3
BIN := .venv/bin
NOTEBOOKS := train.ipynb test.ipynb super_resolution.ipynb
CONVERT := $(BIN)/jupyter nbconvert --to notebook --inplace --ExecutePreprocessor.record_timing=False

.PHONY: help run test lint format notebooks bench ablations soak clean
.DEFAULT_GOAL := help

help: ## show this list
	@grep -E '^[a-z]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 12

.venv/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "$(PYTHON) needs Python 3.10 or later; name another: make PYTHON=python3.12"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements.txt
	touch $@

.venv/installed-dev: .venv/installed requirements-dev.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -r requirements-dev.txt
	touch $@

run: .venv/installed ## the three notebooks on scikit-image's photographs, into runs/ (ten minutes on two cores)
	$(BIN)/python -m tools.run_notebooks quick

test: .venv/installed-dev ## the test suite
	$(BIN)/python -m pytest

soak: .venv/installed-dev ## the long checks: killed and resumed at many moments
	$(BIN)/python -m pytest -m slow

lint: .venv/installed-dev ## ruff, over modules and notebooks
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: .venv/installed-dev ## let ruff lay the code out
	$(BIN)/ruff format .

notebooks: .venv/installed ## run the committed notebooks on the data in data/, in place (training goes on where it stopped)
	$(CONVERT) --execute $(NOTEBOOKS)
	$(CONVERT) --coalesce-streams $(NOTEBOOKS)  # of each progress bar its last line

bench: .venv/installed-dev ## speed, side by side with the usual ways: one table (ten minutes on two cores)
	$(BIN)/python benchmarks/table.py

ablations: .venv/installed ## what each idea of the recipe is worth, into results/ablations.csv (half an hour on two cores)
	$(BIN)/python benchmarks/ablations.py

clean: ## remove what `make run` made and the environment; data/ and checkpoints/ of your own stay
	rm -rf .venv runs results/quick checkpoints/quick data/embedded .pytest_cache .ruff_cache
	find . -name __pycache__ -prune -exec rm -rf {} +
