# The workflow. `just` lists it; `just ci` is what CI runs, and nothing else.

set positional-arguments := true

skipped := justfile_directory() / "target/skipped.txt"

[private]
default:
    @just --list --unsorted

# Format everything.
fmt:
    cargo fmt --all

# Formatting, lints and documentation, each warning an error.
lint:
    cargo fmt --all --check
    cargo clippy --workspace --all-targets --locked -- -D warnings
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

# All tests. Where nextest is missing, cargo runs them.
test *args:
    #!/usr/bin/env bash
    set -euo pipefail
    rm -f "{{ skipped }}" && mkdir -p "$(dirname "{{ skipped }}")"
    export SKEIN_SKIPPED="{{ skipped }}"
    status=0
    if cargo nextest --version >/dev/null 2>&1; then
        cargo test --workspace --locked --quiet --doc
        cargo nextest run --workspace --locked "$@" || status=$?
    else
        cargo test --workspace --locked "$@" || status=$?
    fi
    if [ -s "{{ skipped }}" ]; then
        printf '%s skipped:\n' "$(wc -l < "{{ skipped }}")"
        cat "{{ skipped }}"
    fi
    exit "$status"

# Only the programs of other people (tests/acceptance).
acceptance *args:
    just test --test acceptance "$@"

# A cluster of N regions in the foreground; Ctrl-C ends it.
testbed regions="iad,lhr,nrt" *args:
    cargo run --locked -- up --regions "$@"

# Measures the optimized program beside its peers (nginx, wrk and taskset must be installed).
bench *args:
    cargo build --release --locked -p skein -p skein-bench
    target/release/skein-bench "$@"

# Licences, sources and bans (deny.toml).
deny:
    cargo deny --locked check bans licenses sources

# What CI runs. The test runner's own summary is its last word.
ci: lint deny
    NEXTEST_PROFILE=ci just test
