#!/usr/bin/env bash
# Installs the checkers at their pinned versions into .tools: linters from PyPI, cargo-deny from crates.io (compiled
# once, some minutes). Does nothing where they are there already.
set -euo pipefail
cd "$(dirname "$0")/../.."

cargo_deny=0.20.2

tools/venv lint

if [ "$(.tools/bin/cargo-deny --version 2>/dev/null)" != "cargo-deny $cargo_deny" ]; then
    if [ "$(cargo-deny --version 2>/dev/null)" = "cargo-deny $cargo_deny" ]; then
        mkdir -p .tools/bin
        ln -sf "$(command -v cargo-deny)" .tools/bin/cargo-deny
    else
        echo "  cargo-deny $cargo_deny into .tools/bin, compiled here: several minutes"
        nice cargo install --quiet --locked --root .tools --version "$cargo_deny" cargo-deny
    fi
fi
