# `make` lists the targets. Every step says what it does and how long it took.
SHELL := /bin/bash
.DEFAULT_GOAL := help

STEP := tools/ci/step
LINT := tools/venv lint
# Found without git: the tree may be a copy without .git, or belong to another user.
FILES := grep -rlIE --exclude-dir=.git --exclude-dir=.tools --exclude-dir=.run --exclude-dir=target
SCRIPTS = $(shell $(FILES) '^\#!.*[/ ](ba)?sh$$' .)
PYTHON = $(shell $(FILES) '' --include='*.py' .; $(FILES) '^\#!.*python3$$' --exclude='*.py' .)

# Options of tools/local/demo.py, for example --auto-ports.
DEMO_FLAGS ?=
# Options of loadtest/run: scenarios and --target.
LOADTEST ?=
# How many steps of `make test` run in parallel.
JOBS ?= 2

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-20s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# --- Running it -------------------------------------------------------------------------------------------------------
.PHONY: demo demo-check loadtest bench

demo: ## three replicas, Redis and nginx on http://localhost:8080, until Ctrl-C (installs what is missing)
	@$(STEP) "Install Redis and nginx if they are missing" tools/local/install.sh
	@$(STEP) "Build the server (release; some minutes the first time)" cargo build --release --locked
	@tools/local/demo.py $(DEMO_FLAGS)

demo-check: ## the same without staying; the exit code is the result
	@$(STEP) "Install Redis and nginx if they are missing" tools/local/install.sh
	@$(STEP) "Build the server (release; some minutes the first time)" cargo build --release --locked
	@$(STEP) "One user through the whole fleet" tools/local/demo.py --check $(DEMO_FLAGS)

loadtest: ## the load-test suite, e.g. LOADTEST="sharing --target local"; without options it lists its scenarios
	@loadtest/run $(LOADTEST)

bench: ## CPU per session check, beside a bare handler and redis-benchmark
	@loadtest/bench

# --- make test: everything that needs a Rust toolchain and apt or Homebrew, nothing else ------------------------------
.PHONY: test test-steps test-parts build format lint environments clippy rustdoc chaos test-unit test-it test-local \
	test-schemathesis test-forward-auth test-litestream test-loadtest test-cost check

test: ## the server, the local fleet, the contract, races, hostile input, load-test proofs; installs what it needs
	@tools/ci/table $(MAKE) --no-print-directory test-steps

test-steps:
	@$(STEP) "Install Redis, nginx, HAProxy and Python's venv if they are missing" tools/local/install.sh --dev
	@$(MAKE) --no-print-directory --keep-going -j$(JOBS) SIDE_BY_SIDE=1 test-parts

# In the order in which they start. All use one build of one profile.
test-parts: build format lint environments test-it test-unit test-schemathesis test-local test-forward-auth \
	test-litestream test-loadtest test-cost clippy rustdoc
export SIDE_BY_SIDE

build:
	@$(STEP) "Build the server and its tests" cargo test --locked --workspace --no-run --lib --bins --test it

format:
	@$(STEP) "Format" cargo fmt --all --check

lint: ## scripts and configuration: shellcheck, ruff, hadolint, nginx -t
	@$(STEP) "Shell scripts" $(LINT) shellcheck $(SCRIPTS)
	@$(STEP) "Python scripts: lints" $(LINT) ruff check $(PYTHON)
	@$(STEP) "Python scripts: format" $(LINT) ruff format --check $(PYTHON)
	@$(STEP) "Dockerfile" $(LINT) hadolint Dockerfile
	@$(STEP) "One version of each image" tools/images check
	@$(STEP) "nginx configuration, with each list of replicas" tests/nginx/run

# These run while the compiler works.
environments:
	@$(STEP) "Python environments" sh -c 'tools/venv schemathesis && tools/venv proxies && tools/venv litestream && tools/venv loadtest'

test-it: build ## the real server on a real Redis; races, outages, hostile clients
	@$(STEP) "Integration tests: the real server on a real Redis" cargo test --locked --test it

chaos: ## revocations while Redis fails over, for CHAOS_SECONDS (default 600) with Sentinel and as long with a cluster
	AUTHFLEET_TEST_NETWORK=required CHAOS_SECONDS=$${CHAOS_SECONDS:-600} cargo test --locked --test it -- --nocapture --test-threads 1 by_a_failover

test-unit: build
	@$(STEP) "Unit and store tests" cargo test --locked --workspace --lib --bins

test-schemathesis: build ## generated requests against the OpenAPI document
	@$(STEP) "Generated requests against the OpenAPI document" tests/schemathesis/run

test-local: build
	@$(STEP) "One user through the local fleet" tools/local/demo.py --check --auto-ports --binary target/debug/authfleet

test-forward-auth: build ## applications behind nginx, Traefik, Caddy, Envoy and HAProxy, with the shipped recipes
	@$(STEP) "Applications behind five real proxies" tests/forward_auth/run --binary target/debug/authfleet

test-litestream: build ## a backup of users in SQLite by the real Litestream, restored after everything was killed
	@$(STEP) "Users backed up by Litestream, and restored" tests/litestream/run --binary target/debug/authfleet

test-loadtest: build ## the load-test suite itself, in short: proofs, broken fleets, restarts
	@$(STEP) "Load-test suite in short, and on fleets broken on purpose" tests/loadtest/run --binary target/debug/authfleet

test-cost: build ## instructions, allocations and system calls of a session check, counted by callgrind
	@$(STEP) "What a session check costs, counted" tests/cost/run --binary target/debug/authfleet

# After the build, because cargo's lock serialises them anyway.
clippy: build
	@$(STEP) "Clippy, warnings denied" cargo clippy --locked --workspace --all-targets -- -D warnings

rustdoc: clippy
	@$(STEP) "Documentation: links lead somewhere" env RUSTDOCFLAGS="-D warnings" cargo doc --locked --workspace --no-deps --document-private-items --quiet
	@$(STEP) "Examples in the documentation" cargo test --locked --workspace --doc

check: ## the quick inner loop: format, lints, unit and store tests
	@$(STEP) "Format" cargo fmt --all --check
	@$(STEP) "Clippy, warnings denied" cargo clippy --locked --workspace --all-targets -- -D warnings
	@$(STEP) "Unit and store tests" cargo test --locked --workspace --lib

# --- make test-bundle: what needs a Docker engine, or minutes of compiling --------------------------------------------
.PHONY: test-bundle bundle-steps test-k8s test-valkey test-prometheus test-grafana test-upgrade test-compose deny audit

test-bundle: ## containers, Kubernetes manifests, Valkey, Prometheus, Grafana, licenses of dependencies (needs a Docker engine)
	@tests/compose/needs
	@tools/ci/table $(MAKE) --no-print-directory bundle-steps

# One after the other, because they check the alerts and dashboards of a quiet fleet. All of them run even if one fails.
bundle-steps:
	@$(STEP) "Install Prometheus, Redis, nginx and Python's venv if they are missing" tools/local/install.sh --bundle
	@$(MAKE) --no-print-directory --keep-going -j1 deny test-k8s test-valkey test-prometheus test-grafana test-upgrade test-compose

deny: ## licenses, banned crates and sources of the dependencies (compiles cargo-deny the first time)
	@$(STEP) "Install cargo-deny into .tools" tools/ci/cargo-deny
	@$(STEP) "Dependencies: licenses, bans, sources" .tools/bin/cargo-deny --locked check --hide-inclusion-graph \
		--deny unmatched-skip --deny unnecessary-skip bans licenses sources

audit: ## known vulnerabilities (fetches RustSec's database from GitHub, or fails)
	@$(STEP) "Install cargo-deny into .tools" tools/ci/cargo-deny
	@$(STEP) "Dependencies: advisories" .tools/bin/cargo-deny --locked check advisories

test-k8s: ## manifests: rendered, checked against schemas, our own rules and real parts
	@$(STEP) "Kubernetes manifests" tests/k8s/run

test-valkey: ## sessions, doctor and the checker of revocations on Valkey instead of Redis
	@$(STEP) "Sessions in Valkey, and its failovers" tests/valkey/run

target/release/authfleet: FORCE
	@$(STEP) "Build the server (release)" cargo build --release --locked
.PHONY: FORCE
FORCE:

test-prometheus: target/release/authfleet ## rules, alerts, objectives, runbook: as files, and on a real fleet
	@$(STEP) "Prometheus: rules, alerts and runbook" tests/prometheus/run

test-grafana: target/release/authfleet ## dashboards: as files, and all their queries on a real fleet
	@$(STEP) "Dashboards and their queries" tests/grafana/run

test-upgrade: target/release/authfleet ## the version before and this one side by side, forwards and back (builds the other one first)
	@$(STEP) "Upgrade and its reverse, under load" tests/upgrade/run --binary target/release/authfleet

test-compose: ## docker-compose.yml as it ships, and what happens when its parts fail (needs a Docker engine)
	@$(STEP) "The fleet in containers, and its drills" tests/compose/run

# --- Housekeeping -----------------------------------------------------------------------------------------------------
.PHONY: docs fmt clean

docs: ## regenerate image versions, .env.example, tables of README, ARCHITECTURE and metrics, runbook page, dashboards, Kubernetes rules (tests compare them)
	@$(STEP) "Image versions of deploy/images.txt" tools/images write
	@$(STEP) ".env.example, README's table of variables" env UPDATE_DOCS=1 cargo test --locked --quiet --lib config::reference
	@$(STEP) "ARCHITECTURE.md's tables" env UPDATE_DOCS=1 cargo test --locked --quiet --lib architecture
	@$(STEP) "docs/metrics.md and metrics.json" env UPDATE_DOCS=1 cargo test --locked --quiet --lib metrics
	@$(STEP) "The runbook as a page" tools/venv prometheus python -B tools/generate/runbook.py
	@$(STEP) "Dashboards" tools/venv grafana python -B tools/generate/dashboards
	@$(STEP) "PrometheusRule" sh -c 'tools/generate/prometheus_rule.py >k8s/components/monitoring/rules.yaml'

fmt: ## format Rust and Python
	cargo fmt --all
	$(LINT) ruff format $(PYTHON)

clean: ## remove build output and data of fleets (not .tools)
	cargo clean
	rm -rf .run
