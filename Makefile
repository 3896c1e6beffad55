# make run    serve on 127.0.0.1:5000 with the built-in defaults
# make test   everything that CI runs: format, lint, types, import contract, tests, real clients
# make check  of these: format, lint, types, import contract
# make fix    format, and fix what the linter can
# make soak   minutes of faults, kills and restarts; SOAK_SECONDS, SOAK_SEED (CONTRIBUTING.md)
# make fuzz   look for inputs that break the parsers, FUZZ_SECONDS (60) for each target
# make bench  measure against peers, side by side (bench/README.md)

PYTHON ?= python3
FUZZ_SECONDS ?= 60
VENV := .venv
BIN := $(VENV)/bin

.PHONY: run test check fix soak fuzz bench clean

run: $(VENV)/run.done
	$(BIN)/mirror serve

test: check
	tests/real/install.sh
	$(BIN)/pytest -m 'not alone' --numprocesses 4 --dist worksteal
	$(BIN)/pytest -m alone --numprocesses 2 --dist loadfile

check: $(VENV)/dev.done
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fix: $(VENV)/dev.done
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

soak: $(VENV)/dev.done
	$(BIN)/python -m tests.soak

fuzz: $(VENV)/dev.done
	$(BIN)/pip install --quiet --group fuzz
	mkdir -p .fuzz
	for target in requests challenges; do $(BIN)/python -m tests.fuzz $$target .fuzz/$$target \
		-max_total_time=$(FUZZ_SECONDS) -artifact_prefix=.fuzz/$$target- || exit 1; done

bench: $(VENV)/dev.done
	PYTHON=$(BIN)/python bench/install.sh
	mkdir -p bench/results
	$(BIN)/python -m bench --json bench/results/run.json --svg bench/results/run.svg

clean:
	rm -rf $(VENV) .tools .fuzz

$(VENV)/run.done: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable .
	touch $@

# Dependency groups want a pip of 2025.
$(VENV)/dev.done: $(VENV)/run.done
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/pip install --quiet --group dev
	touch $@
