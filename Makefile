# `make` lists the targets. Every step says what it does and how long it took.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo demo-check test check lint deny audit docs hostile monitoring-test loadtest loadtest-test bench k8s-test compose-test fmt clean

STEP := tools/ci/step
LINT := tools/venv lint
SCRIPTS := $(shell git grep -lE '^\#!.*[/ ](ba)?sh$$')
PYTHON := $(shell git ls-files '*.py'; git grep -lE '^\#!.*python3$$' -- ':!*.py')

# Options of tools/local/demo.py, for example --auto-ports.
DEMO_FLAGS ?=
# Options of loadtest/run: scenarios and --target.
LOADTEST ?=

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "%-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## three replicas, Redis and nginx on http://localhost:8080, until Ctrl-C (installs what is missing)
	@$(STEP) "Install Redis and nginx if they are missing" tools/local/install.sh
	@$(STEP) "Build the server (release; some minutes the first time)" cargo build --release --locked
	@tools/local/demo.py $(DEMO_FLAGS)

demo-check: ## the same without staying; the exit code is the result
	@$(STEP) "Install Redis and nginx if they are missing" tools/local/install.sh
	@$(STEP) "Build the server (release; some minutes the first time)" cargo build --release --locked
	@$(STEP) "One user through the whole fleet" tools/local/demo.py --check $(DEMO_FLAGS)

test: ## everything that must hold before a change is merged; installs what it needs
	@$(STEP) "Install Redis, nginx and Python's venv if they are missing" tools/local/install.sh --dev
	@$(STEP) "Install the checkers into .tools" tools/ci/tools.sh
	@$(STEP) "Format" cargo fmt --all --check
	@$(MAKE) --no-print-directory lint deny
	@$(STEP) "Clippy, warnings denied" cargo clippy --locked --all-targets -- -D warnings
	@$(STEP) "Unit and store tests" cargo test --locked --lib --bins
	@$(STEP) "Examples in the documentation" cargo test --locked --doc
	@$(STEP) "Documentation of every public item" env RUSTDOCFLAGS="-D warnings" cargo doc --locked --no-deps --quiet
	@$(STEP) "Integration tests: the real server on a real Redis" cargo test --locked --test it
	@$(MAKE) --no-print-directory demo-check DEMO_FLAGS=--auto-ports
	@$(MAKE) --no-print-directory hostile monitoring-test loadtest-test k8s-test compose-test

check: ## the quick inner loop: format, lints, unit and store tests
	@$(STEP) "Format" cargo fmt --all --check
	@$(STEP) "Clippy, warnings denied" cargo clippy --locked --all-targets -- -D warnings
	@$(STEP) "Unit and store tests" cargo test --locked --lib

lint: ## scripts and configuration: shellcheck, ruff, hadolint, nginx -t
	@$(STEP) "Shell scripts" $(LINT) shellcheck $(SCRIPTS)
	@$(STEP) "Python scripts: lints" $(LINT) ruff check $(PYTHON)
	@$(STEP) "Python scripts: format" $(LINT) ruff format --check $(PYTHON)
	@$(STEP) "Dockerfile" $(LINT) hadolint Dockerfile
	@$(STEP) "nginx configuration, with each upstream list" tests/nginx/run

deny: .tools/bin/cargo-deny ## licenses, banned crates and sources of the dependencies
	@$(STEP) "Dependencies: licenses, bans, sources" .tools/bin/cargo-deny --locked check --hide-inclusion-graph bans licenses sources

audit: .tools/bin/cargo-deny ## known vulnerabilities (fetches RustSec's database from GitHub, or fails)
	@$(STEP) "Dependencies: advisories" .tools/bin/cargo-deny --locked check advisories

.tools/bin/cargo-deny:
	@$(STEP) "Install the checkers into .tools" tools/ci/tools.sh

hostile: ## schemathesis: generated requests against the OpenAPI document
	@$(STEP) "Generated requests against the OpenAPI document" tests/schemathesis/run

monitoring-test: ## rules, alerts, objectives, runbook, dashboards: as files, and on a real fleet with a real Prometheus
	@$(STEP) "Prometheus: rules, alerts and runbook" tests/prometheus/run
	@$(STEP) "Dashboards, and every query of theirs" tests/grafana/run

loadtest: ## the load-test suite, e.g. LOADTEST="sharing --target local"; without options it lists its scenarios
	@loadtest/run $(LOADTEST)

loadtest-test: ## the load-test suite itself, in short: proofs, broken fleets, restarts
	@$(STEP) "Load-test suite in short, and on fleets broken on purpose" tests/loadtest/run

bench: ## CPU per session check, beside a bare handler and redis-benchmark
	@loadtest/bench

k8s-test: ## manifests: rendered, checked against schemas, our own rules and real parts
	@$(STEP) "Kubernetes manifests" tests/k8s/run

compose-test: ## docker-compose.yml as it ships, and what happens when its parts fail (needs a Docker engine)
	@$(STEP) "The fleet in containers, and its drills" tests/compose/run

docs: ## write anew what is generated: .env.example, README's and metrics' tables, runbook page, dashboards, Kubernetes' rules (tests compare them)
	@$(STEP) ".env.example, README's table of variables" env UPDATE_DOCS=1 cargo test --locked --quiet --lib config::reference
	@$(STEP) "docs/metrics.md" env UPDATE_DOCS=1 cargo test --locked --quiet --lib metrics
	@$(STEP) "The runbook as a page" tools/venv prometheus python -B tools/generate/runbook.py
	@$(STEP) "Dashboards" tools/venv grafana python -B tools/generate/dashboards
	@$(STEP) "PrometheusRule" sh -c 'tools/generate/prometheus_rule.py >k8s/components/monitoring/rules.yaml'

fmt: ## format Rust and Python
	cargo fmt --all
	$(LINT) ruff format $(PYTHON)

clean: ## remove what was built and what fleets left behind (not .tools)
	cargo clean
	rm -rf .run
