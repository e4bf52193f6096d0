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

# The long checks (tests/soak), so many times longer than in CI, with their figures.
soak scale="20" *args:
    #!/usr/bin/env bash
    set -euo pipefail
    SKEIN_SCALE="$1" cargo test --release --locked --test soak -- --nocapture --test-threads 1 "${@:2}"

# A cluster of N regions in the foreground; Ctrl-C ends it.
testbed regions="iad,lhr,nrt" *args:
    cargo run --locked -- up --regions "$@"

# The simulator: one seed (a fresh one, which is printed, when none is given). Its log is stdout.
sim *args:
    cargo run --locked --quiet -p skein-sim -- run "$@"

# Each planted bug must be found by the simulator.
sim-planted:
    cargo run --locked --quiet -p skein-sim --features planted -- planted

# The simulator's models beside the real chitchat and openraft; takes some minutes.
sim-fit *args:
    cargo run --release --locked --quiet -p skein-sim -- fit "$@"

# The simulator's figures, as a table and a plot.
sim-figures:
    cargo run --release --locked --quiet -p skein-sim -- figures --out docs/performance

# Measures the optimized program beside its peers; `just bench --help` lists the rows.
bench *args:
    cargo build --release --locked -p skein -p skein-bench
    target/release/skein-bench "$@"

# Builds the peer that is a library: pingora.
bench-peers:
    cargo build --release --locked --manifest-path bench/peers/pingora/Cargo.toml --target-dir target/peers

# Instructions of core's decisions here and at the parent commit; `--planted` shows that it would be caught.
bench-micro *args:
    #!/usr/bin/env bash
    set -euo pipefail
    base="{{ justfile_directory() }}/target/base"
    [ -d "$base" ] || git worktree add --detach --quiet "$base" HEAD^
    git -C "$base" checkout --detach --quiet "$(git rev-parse HEAD^)"
    cargo build --release --locked -p skein-bench-core
    cargo build --release --locked -p skein-bench-core --manifest-path "$base/Cargo.toml" --target-dir "$base/target"
    target/release/skein-bench-core compare --base "$base/target/release/skein-bench-core" "$@"

# Where the time of a row's requests goes, as docs/performance/<row>.svg (perf, and inferno from crates.io).
bench-flame row="hop":
    #!/usr/bin/env bash
    set -euo pipefail
    rm -rf target/flame && mkdir -p target/flame
    just bench "{{ row }}" --rounds 1 --peers none --profile target/flame
    perf script --no-inline -i target/flame/*.perf 2>/dev/null | inferno-collapse-perf |
        inferno-flamegraph --minwidth 0.2 --title "Skein, {{ row }}" >"docs/performance/{{ row }}.svg"

# Fuzzes one target, or each in turn, for so many seconds; `fuzz/README.md` says what it needs.
fuzz target="all" seconds="60":
    #!/usr/bin/env bash
    set -euo pipefail
    cd fuzz
    # A stable compiler takes the sanitizer's flags only when it is told to.
    export RUSTC_BOOTSTRAP=1
    targets={{ quote(target) }}
    [ "$targets" != all ] || targets=$(cargo fuzz list)
    for name in $targets; do
        mkdir -p "corpus/$name"
        words=()
        case $name in config_*) words=(-dict=config.dict) ;; esac
        cargo fuzz run "$name" "corpus/$name" "seeds/$name" -- \
            -max_total_time={{ quote(seconds) }} -timeout=20 -rss_limit_mb=2048 -print_final_stats=1 "${words[@]}"
    done

# Licences, sources and bans (deny.toml).
deny:
    cargo deny --locked check bans licenses sources

# What CI runs. The test runner's own summary is its last word.
ci: lint deny sim-planted
    NEXTEST_PROFILE=ci just test
