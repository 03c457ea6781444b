# Everything runs in .venv, which the first target that needs it creates.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo demo-medmoe test lint docs bench clean

demo: $(VENV)/recipes
	rm -rf runs/demo
	$(BIN)/python -m recipes.medvlmoe train --preset tiny --out runs/demo
	$(BIN)/python -m recipes.medvlmoe evaluate runs/demo
	$(BIN)/python -m recipes.medvlmoe report runs/demo
	@echo "The demo is done. Open runs/demo/report.html in a browser."

demo-medmoe: $(VENV)/recipes
	rm -rf runs/demo-medmoe
	$(BIN)/python -m recipes.medmoe pretrain --preset tiny --out runs/demo-medmoe
	$(BIN)/python -m recipes.medmoe zero-shot runs/demo-medmoe
	$(BIN)/python -m recipes.medmoe retrieve runs/demo-medmoe
	$(BIN)/python -m recipes.medmoe probe runs/demo-medmoe
	$(BIN)/python -m recipes.medmoe explain runs/demo-medmoe
	$(BIN)/python -m recipes.medmoe report runs/demo-medmoe
	@echo "The demo is done. Open runs/demo-medmoe/report.html in a browser."

# The second line runs the Triton kernels on CPU, interpreted; where there is a GPU the first runs them compiled.
test: $(VENV)/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --dist worksteal
	OMP_NUM_THREADS=1 TRITON_INTERPRET=1 $(BIN)/python -m pytest tests/triton -n auto --dist worksteal

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

docs: $(VENV)/dev
	$(BIN)/mkdocs build --strict

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks.moe --preset on-cpu --device cpu --dtype fp32 --out benchmarks/results/cpu.jsonl
	$(BIN)/python -m benchmarks.moe --preset cpu-olmoe --skew zipf --device cpu --dtype fp32 --out benchmarks/results/cpu-zipf.jsonl
	$(BIN)/python -m benchmarks.report

clean:
	rm -rf $(VENV) site runs build dist

# One stamp per set of extras; a change of pyproject.toml installs again.
$(VENV)/recipes $(VENV)/dev $(VENV)/bench: $(VENV)/%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("moekit needs Python 3.11 or newer, got " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e ".[$*]"
	touch $@
