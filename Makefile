.DEFAULT_GOAL := help
.PHONY: help run test bench fmt lint deps build

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-6s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

run:  ## Start everything in .demo/ with sample events, until Ctrl-C
	@scripts/run.sh

test:  ## Format, lints, licences, all tests, doc tests: what CI runs
	@scripts/deps.sh test
	@scripts/test.sh

bench:  ## Measure the pipeline beside what Redis alone can do
	@scripts/deps.sh run
	cargo build --release --locked
	target/release/joelclaw bench

fmt:  ## Format the code
	cargo fmt --all

lint:  ## Clippy with warnings as errors, on everything
	cargo clippy --locked --all-targets -- -D warnings

deps:  ## Install what is missing: a Redis server, a C compiler, cargo-nextest, cargo-deny, Node.js, the SDKs
	@scripts/deps.sh test

build:  ## target/release/joelclaw
	cargo build --release --locked
