#!/usr/bin/env bash
# A private Python with the other readers of our tables (PyIceberg, DuckDB) and clients of the sources, for tests and demo.
#
#   requirements.txt (every version pinned) -> $CACHE/python-<its hash> -> the interpreter's path on stdout
#
#   LAKEWARD_TEST_PYTHON=$(deploy/local/python.sh)
set -euo pipefail
SERVER=python
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
REQUIREMENTS=$HERE/requirements.txt

fill() {
  python3 -m venv "$1"
  # Only wheels: nothing is to be compiled on the way to a test.
  "$1/bin/python" -m pip install -q --disable-pip-version-check --only-binary :all: -r "$REQUIREMENTS"
  "$1/bin/python" "$HERE/python_check.py"
}

resolve() {
  local venv
  venv=$(mktemp -d)
  python3 -m venv "$venv"
  "$venv/bin/python" -m pip install -q --disable-pip-version-check --only-binary :all: -r "$HERE/requirements.in"
  { echo "# Made by deploy/local/python.sh --resolve from requirements.in."; "$venv/bin/python" -m pip freeze; } >"$REQUIREMENTS"
  rm -rf "$venv"
}

case ${1:-} in
  '') ;;
  --resolve) resolve; exit ;;
  *) echo "usage: deploy/local/python.sh [--resolve]" >&2; exit 2 ;;
esac
# The interpreter is part of the name: a venv does not survive the Python that it was made with.
name=python-$({ python3 --version; cat "$REQUIREMENTS" "$HERE/python_check.py"; } | sha256sum | head -c 12)
install_once "$name" "a download of about 150 MB" fill
echo "$CACHE/$name/bin/python"
