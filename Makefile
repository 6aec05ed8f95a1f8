# `make` lists the targets. Every step says what it does and how long it took.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo demo-check test check lint deny audit fmt clean

STEP := deploy/ci/step
BIN := .tools/venv/bin
SCRIPTS := .ci/run deploy/ci/step deploy/ci/tools.sh deploy/local/install.sh deploy/nginx/check.sh
PYTHON := deploy/local/fleet.py deploy/local/demo.py

# Options of deploy/local/demo.py, for example --auto-ports.
DEMO_FLAGS ?=

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## three replicas, Redis and nginx on http://localhost:8080, until Ctrl-C (installs what is missing)
	@$(STEP) "Install Redis and nginx if they are missing" deploy/local/install.sh
	@$(STEP) "Build the server (release; some minutes the first time)" cargo build --release --locked
	@deploy/local/demo.py $(DEMO_FLAGS)

demo-check: ## the same without staying; the exit code is the result
	@$(STEP) "Install Redis and nginx if they are missing" deploy/local/install.sh
	@$(STEP) "Build the server (release; some minutes the first time)" cargo build --release --locked
	@$(STEP) "One user through the whole fleet" deploy/local/demo.py --check $(DEMO_FLAGS)

test: ## everything that must hold before a change is merged; installs what it needs
	@$(STEP) "Install Redis, nginx and Python's venv if they are missing" deploy/local/install.sh --dev
	@$(STEP) "Install the checkers into .tools" deploy/ci/tools.sh
	@$(STEP) "Format" cargo fmt --all --check
	@$(MAKE) --no-print-directory lint deny
	@$(STEP) "Clippy, warnings denied" cargo clippy --locked --all-targets -- -D warnings
	@$(STEP) "Unit and store tests" cargo test --locked --lib --bins
	@$(STEP) "Examples in the documentation" cargo test --locked --doc
	@$(STEP) "Documentation of every public item" env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet
	@$(STEP) "Integration tests: real Redis, nginx and server" cargo test --locked --test it
	@$(MAKE) --no-print-directory demo-check DEMO_FLAGS=--auto-ports

check: ## the quick inner loop: format, lints, unit and store tests
	@$(STEP) "Format" cargo fmt --all --check
	@$(STEP) "Clippy, warnings denied" cargo clippy --locked --all-targets -- -D warnings
	@$(STEP) "Unit and store tests" cargo test --locked --lib

lint: .tools/venv/installed.txt ## scripts and configuration: shellcheck, ruff, nginx -t
	@$(STEP) "Shell scripts" $(BIN)/shellcheck $(SCRIPTS)
	@$(STEP) "Python scripts: lints" $(BIN)/ruff check $(PYTHON)
	@$(STEP) "Python scripts: format" $(BIN)/ruff format --check $(PYTHON)
	@$(STEP) "nginx configuration, with each upstream list" deploy/nginx/check.sh

deny: .tools/bin/cargo-deny ## licenses, banned crates and sources of the dependencies
	@$(STEP) "Dependencies: licenses, bans, sources" .tools/bin/cargo-deny --locked check --hide-inclusion-graph bans licenses sources

audit: .tools/bin/cargo-deny ## known vulnerabilities (fetches RustSec's database from GitHub, or fails)
	@$(STEP) "Dependencies: advisories" .tools/bin/cargo-deny --locked check advisories

.tools/venv/installed.txt .tools/bin/cargo-deny:
	@$(STEP) "Install the checkers into .tools" deploy/ci/tools.sh

fmt: .tools/venv/installed.txt ## format Rust and Python
	cargo fmt --all
	$(BIN)/ruff format $(PYTHON)

clean: ## remove what was built and what fleets left behind (not .tools)
	cargo clean
	rm -rf .run
