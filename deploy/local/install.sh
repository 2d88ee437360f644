#!/usr/bin/env bash
# Makes a Debian 12 able to build Lakeward and to run its stack: installs by apt what is missing, and nothing else.
#
#   programs, headers and libraries that are not there -> Debian's packages -> apt-get, as root or by sudo
#
# Rust and Go do not come from Debian, whose releases of them are too old: where they are missing this says so and fails.
# Quiet where there is nothing to do.
set -euo pipefail
SERVER=install
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$HERE/postgres.sh"
. "$HERE/minio.sh"

PACKAGES=()
# unless COMMAND -- PACKAGE...: wants the packages if COMMAND fails.
unless() {
  local probe=()
  while [ "$1" != -- ]; do probe+=("$1"); shift; done
  shift
  "${probe[@]}" >/dev/null 2>&1 || PACKAGES+=("$@")
}
programs() { local p; for p in "$@"; do command -v "$p" || return 1; done; }
has_library() { PATH=$PATH:/sbin ldconfig -p | grep -F "$1"; }
compiles() { # HEADER: a C++ compiler is there, and it finds HEADER
  echo "#include <$1>" | c++ -x c++ -fsyntax-only -
}

# What the stack's scripts use.
unless programs curl -- curl ca-certificates
unless programs setpriv flock setsid realpath -- util-linux coreutils
unless python3 -c 'import ensurepip, venv' -- python3 python3-venv
unless java_17 -- openjdk-17-jre-headless
unless programs mvn -- maven
unless postgres_installed -- postgresql-15 postgresql-client-15
unless has_library libcurl.so.4 -- libcurl4 # mongod
# What the build of Rust crates with C in them uses (librdkafka, OpenSSL, zlib, zstd, SQLite). librdkafka is fetched with its
# crate and needs no curl headers: the OAuth support that would want them is not built.
unless programs git -- git
unless programs make -- make
unless programs ld nm -- binutils
unless compiles string -- g++
unless programs pkg-config -- pkg-config
unless compiles openssl/ssl.h -- libssl-dev
unless compiles zlib.h -- zlib1g-dev

apt() { "${AS_ROOT[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o Dpkg::Use-Pty=0 "$@"; }

# Debian's PostgreSQL makes a cluster and starts it on port 5432 at once. The stack has its own; nobody asked for another.
no_cluster() {
  local conf=/etc/postgresql-common/createcluster.conf
  [[ " ${PACKAGES[*]} " == *" postgresql-15 "* ]] && [ ! -e "$conf" ] || return 0
  apt install -y --no-install-recommends postgresql-common &&
    "${AS_ROOT[@]}" sed -i 's/^#*create_main_cluster.*/create_main_cluster = false/' "$conf"
}

if [ "${#PACKAGES[@]}" -gt 0 ]; then
  command -v apt-get >/dev/null || die "missing, and there is no apt-get to install them with: ${PACKAGES[*]}"
  AS_ROOT=()
  if [ "$EUID" != 0 ]; then
    command -v sudo >/dev/null || die "not root, and no sudo; as root: apt-get install ${PACKAGES[*]}"
    AS_ROOT=(sudo)
  fi
  start=$(now)
  say "installing ${PACKAGES[*]}"
  log=$(mktemp)
  { apt update && no_cluster && apt install -y --no-install-recommends "${PACKAGES[@]}"; } >"$log" 2>&1 ||
    { tail -n 20 "$log" >&2; die "apt-get failed (whole output: $log)"; }
  rm -f "$log"
  say "installed ${#PACKAGES[@]} packages in $(since "$start")"
fi

# Toolchains.
PROBLEMS=()
channel=$(sed -n 's/^channel = "\(.*\)"/\1/p' "$HERE/../../rust-toolchain.toml")
(cd "$HERE" && cargo --version) >/dev/null 2>&1 ||
  PROBLEMS+=("Rust $channel: install rustup and put ~/.cargo/bin in PATH; it then fetches the release that rust-toolchain.toml names")
minio_installed || minio_go || PROBLEMS+=("$MINIO_NEEDS_GO")
[ "${#PROBLEMS[@]}" = 0 ] || {
  for problem in "${PROBLEMS[@]}"; do say "missing: $problem"; done
  exit 1
}
