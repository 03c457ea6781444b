# Everything runs in VENV, which the first target that needs it creates. CONSTRAINTS is a file of pip's constraints;
# TRITON is a version of Triton to put beside the installed one. CONTRIBUTING.md says what they are for.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?=
TRITON ?=
BIN := $(VENV)/bin
BESIDE := $(if $(TRITON),$(VENV)/triton-$(TRITON))
PYTEST := OMP_NUM_THREADS=1 $(if $(TRITON),PYTHONPATH=$(abspath $(BESIDE))) $(BIN)/python -m pytest --durations=10
PARALLEL := -n auto --dist worksteal

.PHONY: demo demo-medmoe test test-interpreter gate check lint docs bench clean

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

# What a user runs. The kernels run compiled where there is a GPU, and interpreted on CPU everywhere.
test: $(VENV)/dev $(BESIDE)
	$(PYTEST) $(PARALLEL) -m "not slow and not gate"
	TRITON_INTERPRET=1 $(PYTEST) $(PARALLEL) tests/triton -m "not slow"

# Every kernel through Triton's interpreter, the widest sweeps too.
test-interpreter: $(VENV)/dev $(BESIDE)
	TRITON_INTERPRET=1 $(PYTEST) $(PARALLEL) tests/triton

# The code of every kernel, compiled for four targets without a GPU.
gate: $(VENV)/dev $(BESIDE)
	$(PYTEST) tests/gate -rs

# Everything: what must pass before a change lands.
check: lint docs
	$(PYTEST) $(PARALLEL) -m "not gate"
	$(MAKE) test-interpreter
	$(MAKE) gate

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

docs: $(VENV)/dev
	$(BIN)/mkdocs build --strict

bench: $(VENV)/bench
	$(BIN)/python -m benchmarks moe --preset on-cpu --device cpu --dtype fp32 --out benchmarks/results/cpu.jsonl
	$(BIN)/python -m benchmarks moe --preset cpu-olmoe --skew zipf --device cpu --dtype fp32 --out benchmarks/results/cpu-zipf.jsonl
	$(BIN)/python -m benchmarks report

clean:
	rm -rf $(VENV) site runs build dist

# One stamp per set of extras; a change of pyproject.toml installs again.
$(VENV)/recipes $(VENV)/dev $(VENV)/bench: $(VENV)/%: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("moekit needs Python 3.11 or newer, got " + sys.version.split()[0] + ": make PYTHON=python3.12 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check $(if $(CONSTRAINTS),-c $(CONSTRAINTS)) -e ".[$*]"
	touch $@

# torch asks for one version of Triton; another goes into a folder of its own, without what it depends on.
ifneq ($(TRITON),)
$(BESIDE): $(VENV)/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $@ "triton==$(TRITON).*"
endif
