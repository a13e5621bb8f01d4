# Everything sets itself up: `make demo`, `make test`, `make bench ROOM=...`, `make comfy`, from a clean clone.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
READY := $(VENV)/.ready
COMFYUI_PATH ?= $(HOME)/ComfyUI
DATASET ?=
ROOM ?= start
WORKERS ?= 2
TESTS = OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) --dist loadfile
export COMFYUI_PATH

.PHONY: demo test bench comfy check fix faces clean

$(READY): pyproject.toml scripts/setup.py
	$(PYTHON) scripts/setup.py $(VENV)
	touch $@

demo: $(READY)
	$(PY) __main__.py demo --out demo $(if $(DATASET),--dataset "$(DATASET)")

test: $(READY)
	$(TESTS)

bench: $(READY)
	$(PY) -m benchmarks $(ROOM)

comfy: $(READY)
	$(PY) scripts/comfy.py

check: $(READY)
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(TESTS)

fix: $(READY)
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

faces: $(READY)
	$(PY) tests/faces.py

clean:
	rm -rf demo .comfy
