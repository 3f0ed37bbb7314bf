# The first of these that is at least 3.11 and can make virtual environments; override with `make setup PYTHON=...`.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo $$p; break; }; done)
# Extra arguments of `pip install torch`, for instance the index of another build.
TORCH_ARGS ?=

DEMO_STRUCTURE ?= examples/data/5nrl_every10th_atom.npz
DEMO_N ?= 4000
DEMO_BOX ?= 128
DEMO_PIXEL_SIZE ?= 4.25
DEMO_SNR_DB ?= -10
DEMO_SHIFT_SD ?= 20
DEMO_RESOLUTION ?= 12
DEMO_SEED ?= 1
DEMO_FINAL_BOX ?= 64

VENV := .venv
PY := $(VENV)/bin/python
# Test files side by side, each worker with one thread; `make test WORKERS=0` runs them one after the other.
WORKERS ?= auto
PYTEST = $(PY) -m pytest -n $(WORKERS) --maxprocesses 4 --dist worksteal
NUMERICAL_TESTS = $(addprefix tests/,maths physics models tasks metrics refinement training simulation \
	data/test_preprocess.py data/test_particle_stack.py data/test_coefficients.py)
STAMP := $(VENV)/.stamp

# Idle OpenMP threads that spin starve the others on a shared machine.
export OMP_WAIT_POLICY = PASSIVE

.DEFAULT_GOAL := help
.PHONY: help setup python demo test test-slow test-arithmetic lint bench paper bench-speed docs notebook site clean

help: ## show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | while IFS='|' read -r name what; do printf '  make %-10s %s\n' "$$name" "$$what"; done

setup: $(STAMP) ## build .venv (every other target does this by itself)

python:
	@python='$(PYTHON)'; \
	if [ -z "$$python" ]; then \
		echo "ace-em needs Python 3.11 or newer with its venv module; none was found as python3.11, python3.12 or python3." >&2; \
		echo "On Debian: apt-get install python3-venv. Elsewhere: make setup PYTHON=/path/to/python" >&2; exit 1; fi; \
	version=$$("$$python" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])') || { echo "$$python does not run" >&2; exit 1; }; \
	"$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "ace-em needs Python 3.11 or newer; $$python is $$version" >&2; exit 1; }; \
	"$$python" -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "$$python has no venv module; on Debian: apt-get install python3-venv" >&2; exit 1; }

$(STAMP): pyproject.toml constraints.txt
	@$(MAKE) --no-print-directory python
	@$(PY) -m pip --version >/dev/null 2>&1 || { rm -rf $(VENV) && $(PYTHON) -m venv $(VENV); }
	$(PY) -m pip install --quiet -c constraints.txt $(TORCH_ARGS) torch
	$(PY) -m pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $@

demo: $(STAMP) ## simulate a spliceosome stack, reconstruct it, score it
	rm -rf demo
	$(VENV)/bin/ace-em simulate $(DEMO_STRUCTURE) -o demo/data --n $(DEMO_N) --box $(DEMO_BOX) \
		--pixel-size $(DEMO_PIXEL_SIZE) --snr-db $(DEMO_SNR_DB) --shift-sd $(DEMO_SHIFT_SD) \
		--resolution $(DEMO_RESOLUTION) --seed $(DEMO_SEED)
	$(VENV)/bin/ace-em reconstruct demo/data/particles.star -o demo/run --final-box $(DEMO_FINAL_BOX) --overwrite
	$(VENV)/bin/ace-em evaluate demo/run --truth demo/data
	@echo
	@echo "map:    demo/run/volume.mrc"
	@echo "report: demo/run/report.html"

test: $(STAMP) ## run the tests, apart from the slow ones
	$(PYTEST) -m "not slow" $(ARGS)

test-slow: $(STAMP) ## run the slow tests
	$(PYTEST) -m slow $(ARGS)

# What a processor without AVX-512, AVX2 or bfloat16 units would compute, and one with them.
test-arithmetic: $(STAMP) ## repeat the numerical tests under other arithmetic
	ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=AVX2 MKL_CBWR=COMPATIBLE \
		$(PYTEST) -m "not slow" $(NUMERICAL_TESTS) --threads 2 --factors bfloat16 $(ARGS)
	ATEN_CPU_CAPABILITY=avx2 $(PYTEST) -m "not slow" $(NUMERICAL_TESTS) --threads 1 --factors float32 $(ARGS)

lint: $(STAMP) ## ruff and mypy
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

bench: $(STAMP) ## run the standing benchmark
	$(PY) benchmarks/run.py $(ARGS)

paper: $(STAMP) ## the paper's tables and figures (ARGS="--data DATA --only table4")
	$(PY) benchmarks/paper.py $(ARGS)

bench-speed: $(STAMP) ## how close the inner loops run to the machine's limits
	$(PY) benchmarks/speed.py $(ARGS)

docs: $(STAMP) ## check the links and the code blocks of README and docs
	$(PY) -m pytest tests/test_docs.py

notebook: $(STAMP) ## run examples/notebook.ipynb, two minutes, and keep its outputs
	$(PY) -m nbconvert --to notebook --execute --inplace --ExecutePreprocessor.record_timing=False --coalesce-streams \
		examples/notebook.ipynb

site: $(STAMP) ## build the documentation site in site/
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict

clean: ## remove the demo, caches and built packages; .venv stays
	rm -rf demo site build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests docs examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +
