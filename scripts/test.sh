#!/usr/bin/env bash
# The whole check: format, lints, documentation, tests, benches once. CI runs this very file.
set -euo pipefail
cd "$(dirname "$0")/.."

scripts/setup.sh --test

step() {
  local start=$SECONDS name=$1
  shift
  echo "=== $name"
  "$@"
  echo "=== $name: $((SECONDS - start)) s"
}

# openh264 drops its assembler without a word when nasm is missing: three times the CPU time.
step "nasm is there" command -v nasm
step "format" cargo fmt --all --check
step "lints" cargo clippy --workspace --all-targets --locked -- -D warnings
step "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
# The integration tests drive the binaries of both packages.
step "binaries" cargo build --workspace --locked --quiet
step "tests" cargo test --workspace --locked
step "benches, once" cargo bench --workspace --locked --quiet -- --test
step "acceptance" scripts/acceptance_standalone.sh
step "faults" scripts/fault_suite.sh
if command -v cargo-deny >/dev/null; then step "licences and sources" cargo deny check; else echo "note: cargo-deny is not here: licences and sources unchecked"; fi
