# `make run` and `make test` do all set-up on a fresh machine; see README.md.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BIND ?= 127.0.0.1:8080
PYTEST_FLAGS ?=

.PHONY: run demo test check bench soak fuzz lock clean

run: $(VENV)/run.done
	RECEIVER_DATA_DIR=$${RECEIVER_DATA_DIR:-receiver-data} exec $(BIN)/receiver serve --bind $(BIND)

demo: $(VENV)/run.done
	exec $(BIN)/receiver demo

test: $(VENV)/test.done check
	tests/install-tools
	tests/install-helm
	tests/install-axe
	$(BIN)/python -m pytest $(PYTEST_FLAGS)

check: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/test.done
	tests/install-tools
	$(BIN)/python tests/benchmarks/bench.py

soak: $(VENV)/test.done
	$(BIN)/python tests/chaos/kills.py --kills 2000
	$(BIN)/python tests/chaos/replicas.py --seconds 900

# Other examples each time; `make test` has a short run, the same each time.
fuzz: $(VENV)/test.done
	RECEIVER_FUZZ_EXAMPLES=$${RECEIVER_FUZZ_EXAMPLES:-5000} $(BIN)/python -m pytest tests/fuzz tests/web/test_document.py tests/journal/test_machine.py

# New locked versions of everything, from the ranges in setup.cfg.
lock:
	tests/lock-versions $(PYTHON)

$(VENV)/bin/pip:
	$(PYTHON) -m venv $(VENV)

$(VENV)/run.done: $(VENV)/bin/pip setup.cfg constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

$(VENV)/test.done: $(VENV)/bin/pip setup.cfg constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[postgres,test]'
	touch $(VENV)/run.done $@

clean:
	rm -rf $(VENV) receiver-data
