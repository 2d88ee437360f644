#!/usr/bin/env bash
# Lakeward's figures beside the limits of the same machine: release build -> run.py. Started by `make bench`, which brings the
# servers up.
#
#   LAKEWARD_TEST_* (servers) -> run.py -> ratios on stdout, raw runs in docs/bench/<date>-<entry>/
#
#   bench/run.sh [snapshot] [changes] [mongo-snapshot] [codecs] [log] [--rows N] [--changes N] [--documents N] [--codec-changes N] [--runs N]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=$(deploy/local/python.sh)
cargo build --release --quiet
exec "$python" bench/run.py --binary "${CARGO_TARGET_DIR:-target}/release/lakeward" "$@"
