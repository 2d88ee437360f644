#!/usr/bin/env bash
# Two services, one lake: builds Lakeward, then demo.py tells the story. Started by `make demo` (run.sh embedded) and
# `make demo-stack` (run.sh stack), which bring the servers up.
#
#   LAKEWARD_TEST_* (servers) -> demo.py -> databases, lakeward processes, printed answers -> exit status
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

python=$(deploy/local/python.sh)
# The development build, which `make test` shares: a release build takes more than half an hour on two cores, and a demo on a new
# machine is to be seen sooner.
printf '==> building Lakeward (the first time takes minutes)\n'
start=$SECONDS
if [ -t 2 ]; then cargo build; else cargo build --quiet; fi
printf '    built in %d s\n' $((SECONDS - start))
exec "$python" deploy/demo/demo.py "${CARGO_TARGET_DIR:-target}/debug/lakeward" "${1:-embedded}"
