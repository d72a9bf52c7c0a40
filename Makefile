# `make run` and `make test` do all set-up on a fresh machine; see README.md.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
BIND ?= 127.0.0.1:8080
PYTEST_FLAGS ?=
# Without bytecode, each process of pytest compiles all tests again: 2 s of each.
PYTEST := env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest

.PHONY: run demo unit check test lint bench soak fuzz lock clean

run: $(VENV)/run.done
	RECEIVER_DATA_DIR=$${RECEIVER_DATA_DIR:-receiver-data} exec $(BIN)/receiver serve --bind $(BIND)

demo: $(VENV)/run.done
	exec $(BIN)/receiver demo

# The loop: less than a minute, without a network, apt or npm.
unit: $(VENV)/test.done
	$(PYTEST) -m unit -n 2 --dist worksteal --hypothesis-profile dev $(PYTEST_FLAGS) tests/unit tests/restart_service

check: lint unit

# Four at a time on two cores, because most tests wait. The slowest files come first.
test: lint
	tests/install-tools
	tests/install-helm
	tests/install-axe
	$(PYTEST) -n 4 --dist loadfile --no-loadscope-reorder $(PYTEST_FLAGS)

lint: $(VENV)/test.done
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(VENV)/test.done
	tests/install-tools
	$(BIN)/python -m tests.benchmarks.bench

soak: $(VENV)/test.done
	$(BIN)/python -m tests.soak.kills --kills 2000
	$(BIN)/python -m tests.soak.replicas --seconds 900

# Other examples each time; `make test` has a short run, the same each time.
fuzz: $(VENV)/test.done
	RECEIVER_FUZZ_EXAMPLES=$${RECEIVER_FUZZ_EXAMPLES:-5000} $(PYTEST) tests/unit/fuzz tests/journal/fuzz tests/journal/web/test_document.py tests/journal/test_machine.py

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
