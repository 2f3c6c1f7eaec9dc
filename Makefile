# Everything from a fresh clone: Python >= 3.11, a Rust toolchain, make and a C compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.built
SOURCES := Cargo.toml Cargo.lock pyproject.toml $(shell find rust proto -type f -not -path '*/target/*')

.PHONY: demo test test-rust test-loom test-miri test-python test-long bench lint fmt build clean

build: $(STAMP)

$(BIN)/maturin: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'maturin>=1.16,<2'
	touch $@

$(STAMP): $(BIN)/maturin $(SOURCES)
	PIP_QUIET=1 VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --quiet --release --extras dev
	touch $@

demo: build
	$(BIN)/bursar demo

test: build test-rust test-loom test-python

test-rust:
	cargo test --quiet --workspace --exclude bursar-py

# Every interleaving of the words that admission changes, with bounded preemptions.
test-loom:
	RUSTFLAGS="--cfg bursar_loom" LOOM_MAX_PREEMPTIONS=$${LOOM_MAX_PREEMPTIONS:-2} \
		cargo test --quiet --release --target-dir target/loom -p bursar-ledger -p bursar-lease --lib loom_

# The lease pages under Miri, where a nightly toolchain has it.
test-miri:
	MIRIFLAGS="-Zmiri-ignore-leaks -Zmiri-many-seeds=0..8" \
		cargo +nightly miri test --quiet --target-dir target/miri -p bursar-lease --lib -- frame:: pages::

# Tests with random input print their seed; BURSAR_SEED=… plays one again.
test-python: build
	$(BIN)/python -m pytest -q

# Soaks, hundreds of kills, millions of operations: most of an hour.
test-long: build
	LOOM_MAX_PREEMPTIONS=3 $(MAKE) test-loom
	if cargo +nightly miri --version; then $(MAKE) test-miri; else echo "skipped: Miri is not installed"; fi
	BURSAR_LONG=1 PROPTEST_CASES=5000 cargo test --release --workspace --exclude bursar-py
	BURSAR_LONG=1 $(BIN)/python -m pytest -q --timeout 3000

# Peers are found in BURSAR_PEERS and on PATH; plots need matplotlib, of the extra `bench`.
bench: build
	$(BIN)/python tests/benchmarks/run.py

lint: build
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: build
	cargo fmt --all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf target $(VENV)
