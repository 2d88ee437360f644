#!/usr/bin/env bash
# Two services, one lake: builds Lakeward, then demo.py tells the story. Started by `make demo` (run.sh embedded) and
# `make demo-stack` (run.sh stack), which bring the servers up.
#
#   LAKEWARD_TEST_* (servers) -> demo.py -> databases, lakeward processes, printed answers -> exit status
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=$(deploy/local/python.sh)
printf '==> building Lakeward (the first time takes minutes)\n'
start=$SECONDS
cargo build --release --quiet
printf '    built in %d s\n' $((SECONDS - start))
exec "$python" deploy/demo/demo.py "${CARGO_TARGET_DIR:-target}/release/lakeward" "${1:-embedded}"
