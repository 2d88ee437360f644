#!/usr/bin/env bash
# The servers that Lakeward is developed, tested and shown on, without containers: PostgreSQL, MongoDB, Kafka, MinIO
# and a schema registry.
#
#   command -> {postgres,mongodb,kafka,minio,registry}.sh -> processes on 127.0.0.1, state in $LAKEWARD_STACK_DIR
#
# Says what it does on stderr; what a caller may want to read (status, env) goes to stdout.
set -euo pipefail

SERVERS=(postgres mongodb kafka minio registry)

usage() {
  cat <<'TEXT'
usage: deploy/local/stack.sh [--dir DIR] [--free-ports] COMMAND [SERVER...]

  up [SERVER...]      install what is missing, start, wait until ready (all servers if none is named)
  down [SERVER...]    stop; the data stay
  start SERVER...     the same as up, for servers that must be named
  kill SERVER...      SIGKILL, as a crash would
  status [SERVER...]  a line for each; exit status 0 if all of them run
  env                 print `export LAKEWARD_TEST_...=...` lines for the tests
  run [--with SERVER,SERVER] COMMAND...
                      up (all, or these), COMMAND with that environment, then stop what was not running before; COMMAND's exit
                      status
  kafka-tool CLASS [ARGUMENT...]
                      one of Kafka's own tools, such as org.apache.kafka.tools.TopicCommand
  kafka-connect [WORKER CONNECTOR...]
                      a Kafka Connect worker (standalone) with Debezium's transforms and these files of properties, until a signal;
                      without files it is only installed
  clean               down, then delete the data, logs and chosen ports
  clean --all         the same, and delete the installed servers (~/.cache/lakeward)

  SERVER is postgres, mongodb, kafka, minio or registry.
  --dir DIR      where data, logs and pidfiles are; default LAKEWARD_STACK_DIR, or .stack in the checkout. Another DIR with
                 other ports is a second stack.
  --free-ports   choose unused ports for servers that have none yet (also: LAKEWARD_STACK_FREE_PORTS=1)

  Ports: LAKEWARD_PG_PORT 22415, LAKEWARD_MONGO_PORT 22017, LAKEWARD_KAFKA_PORT 22092 (and the next one, the controller's),
  LAKEWARD_MINIO_PORT 22090 (and the next one, the console's), LAKEWARD_REGISTRY_PORT 22081 (and the next one). A stack keeps its ports until `clean`.
  LAKEWARD_KAFKA_SASL: not empty: Kafka takes TLS and the user lakeward (lakeward-secret) only; its certificate is DIR/run/kafka-ca.pem
  LAKEWARD_REGISTRY_TLS: not empty: the schema registry takes TLS only; its certificate is DIR/run/registry-ca.pem
  LAKEWARD_MONGO_SET rs0: the replica set's name; empty: a standalone mongod, which nothing can be captured from
TEXT
}

. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
. "$HERE/postgres.sh"
. "$HERE/mongodb.sh"
. "$HERE/kafka.sh"
. "$HERE/minio.sh"
. "$HERE/registry.sh"
. "$HERE/connect.sh"

declare -A PORTS
declare -A PORT_VARIABLE=([postgres]=LAKEWARD_PG_PORT [mongodb]=LAKEWARD_MONGO_PORT [kafka]=LAKEWARD_KAFKA_PORT [minio]=LAKEWARD_MINIO_PORT
  [registry]=LAKEWARD_REGISTRY_PORT)
declare -A PORT_DEFAULT=([postgres]=22415 [mongodb]=22017 [kafka]=22092 [minio]=22090 [registry]=22081)
# How many ports in a row each listens on.
declare -A PORT_COUNT=([postgres]=1 [mongodb]=1 [kafka]=2 [minio]=2 [registry]=2)

# ---- what is to be done, decided once, before anything is

# Fills PORTS for every server: the environment's, else the one its data were made with, else a free or the default one.
choose_ports() {
  local server given saved
  for server in "${SERVERS[@]}"; do
    given=${PORT_VARIABLE[$server]}
    given=${!given:-}
    saved=$(cat "$STACK/run/$server.port" 2>/dev/null || true)
    if [ -n "$given" ] && [ -n "$saved" ] && [ "$given" != "$saved" ] && alive "$server"; then
      SERVER=$server die "runs on port $saved, but ${PORT_VARIABLE[$server]} is $given; stop it first (stack.sh down $server)"
    fi
    PORTS[$server]=${given:-${saved:-$(default_port "$server")}}
    [[ ${PORTS[$server]} =~ ^[1-9][0-9]*$ ]] && [ $((PORTS[$server] + PORT_COUNT[$server])) -le 65536 ] ||
      SERVER=$server die "${PORT_VARIABLE[$server]} is not a port: ${PORTS[$server]}"
  done
}

default_port() { if [ "$FREE_PORTS" = 1 ]; then free_port; else echo "${PORT_DEFAULT[$1]}"; fi; }

# Sets NAMED to the servers in the arguments, all if there are none.
named() {
  local name
  for name in "$@"; do
    [ -n "${PORT_DEFAULT[$name]:-}" ] || die "no server is called $name (${SERVERS[*]})"
  done
  NAMED=("${@:-${SERVERS[@]}}")
}

# Sets IDLE to those of NAMED that do not run.
idle() {
  local server
  IDLE=()
  for server in "${NAMED[@]}"; do alive "$server" || IDLE+=("$server"); done
}

check_ports_free() {
  local server i port variable
  for server in "${IDLE[@]}"; do
    for ((i = 0; i < PORT_COUNT[$server]; i++)); do
      port=$((PORTS[$server] + i)) variable=${PORT_VARIABLE[$server]}
      ! port_open "$port" ||
        SERVER=$server die "port $port is taken by something else$(port_owner "$port"); set $variable$([ $i = 0 ] || printf ' (this is the port after it)') to another one"
    done
  done
}

# ---- doing it

# Two commands on one stack take turns.
lock() {
  mkdir -p "$STACK/data" "$STACK/log" "$STACK/run"
  exec 9>"$STACK/run/lock"
  flock -n 9 || { say "waiting for another command on $STACK"; flock 9; }
}
unlock() { exec 9>&-; }

# Runs FUNCTION for each server at the same time, each in a process group of its own so that an interrupt can end all that it
# started. Ends with an error if one of them failed. (Never call it, or what calls it, before || or in an if: bash would
# then ignore `set -e` in all of FUNCTION.)
JOBS=()
each() { # FUNCTION SERVER...
  local function=$1 job failed=0
  shift
  set -m
  for SERVER in "$@"; do
    (trap - EXIT; set +m; "$function" "$SERVER") </dev/null &
    JOBS+=($!)
  done
  set +m
  unset SERVER
  for job in "${JOBS[@]}"; do wait "$job" || failed=1; done
  JOBS=()
  [ "$failed" = 0 ] || die "not done for every server (see above)"
}

start_one() {
  local t0
  "$1_install"
  t0=$(now)
  # The log of this start, and the one before: kept short, and no old line is taken for a new one.
  [ ! -e "$STACK/log/$1.log" ] || mv "$STACK/log/$1.log" "$STACK/log/$1.log.1"
  echo "${PORTS[$1]}" >"$STACK/run/$1.port"
  "$1_start"
  wait_ready "$1" 120 "$1_ready"
  say "ready in $(since "$t0"): $("$1_version"), $("$1_url")"
}

up() { # SERVER...
  local t0 server
  t0=$(now)
  lock
  choose_ports
  named "$@"
  idle
  check_ports_free
  for server in "${NAMED[@]}"; do
    [[ " ${IDLE[*]} " == *" $server "* ]] || SERVER=$server say "already running: $("${server}_url")"
  done
  if [ "${#IDLE[@]}" -gt 0 ]; then
    # shellcheck disable=SC2016  # expanded when the trap fires
    on_signal 'say "interrupted; stopping what was started"; end_jobs; stop_servers "${IDLE[@]}"'
    each start_one "${IDLE[@]}"
    trap - INT TERM HUP
    say "${#IDLE[@]} started in $(since "$t0")"
  fi
  unlock
}

# Runs CODE at an interrupt, then ends as the signal would have.
on_signal() {
  local signal
  for signal in INT TERM HUP; do
    # shellcheck disable=SC2064  # CODE and the signal's name are fixed now
    trap "trap '' INT TERM HUP; $1; trap - EXIT $signal; kill -s $signal \$\$" "$signal"
  done
}

end_jobs() {
  local job
  for job in "${JOBS[@]}"; do kill -TERM -- "-$job" 2>/dev/null || true; done
  wait
  # A server that was just being started writes its pidfile itself, a moment later.
  sleep 0.3
  JOBS=()
}

stop_one() { "$1_stop"; }
stop_servers() { [ $# = 0 ] || each stop_one "$@"; }

down() { # SERVER...
  lock
  named "$@"
  stop_servers "${NAMED[@]}"
  unlock
}

# SIGKILL to the server and to every process it started: nothing of it is left to tidy up after itself.
kill_one() {
  local pid all
  alive "$1" || die "does not run"
  pid=$(pid_of "$1")
  all=$(descendants "$pid")
  # shellcheck disable=SC2086  # one word for each pid
  kill -KILL "$pid" $all 2>/dev/null || true
  while alive "$1"; do sleep 0.02; done
  rm -f "$(pidfile "$1")"
  say "killed"
}

status() { # SERVER...
  local server state failed=0
  choose_ports
  named "$@"
  for server in "${NAMED[@]}"; do
    state=stopped
    if alive "$server"; then
      state="not ready"
      ! port_open "${PORTS[$server]}" || state=running
    fi
    [ "$state" = running ] || failed=1
    printf '%-9s %-9s %-6s %-28s %s\n' "$server" "$state" "${PORTS[$server]}" "$("${server}_version")" "$STACK/log/$server.log"
  done
  return $failed
}

print_env() {
  printf 'export %s=%q\n' \
    LAKEWARD_TEST_POSTGRES "$(postgres_url)" \
    LAKEWARD_TEST_MONGODB "$(mongodb_url)" \
    LAKEWARD_TEST_KAFKA "$(kafka_url)" \
    LAKEWARD_TEST_S3 "$(minio_url)" \
    LAKEWARD_TEST_REGISTRY "$(registry_url)"
}

IDLE_BEFORE=()
run() { # [--with SERVER,SERVER] COMMAND...
  local result=0 with=()
  if [ "${1:-}" = --with ]; then
    IFS=, read -r -a with <<<"${2:?--with needs servers}"
    shift 2
  fi
  [ $# -gt 0 ] || die "run: which command?"
  named "${with[@]}"
  idle
  IDLE_BEFORE=("${IDLE[@]}")
  trap 'down_again' EXIT
  up "${with[@]}"
  eval "$(print_env)"
  "$@" || result=$?
  return $result
}

# The end of `run`, whatever ended it. (A trap sees no function's local variables.)
down_again() {
  local status=$?
  # COMMAND and what it started, if it is us that were told to end. Servers are no longer children of anybody here.
  # shellcheck disable=SC2046  # one word for each pid
  kill -TERM $(descendants $$) 2>/dev/null || true
  [ "${#IDLE_BEFORE[@]}" = 0 ] || down "${IDLE_BEFORE[@]}"
  exit $status
}

clean() {
  case ${1:-} in '' | --all) ;; *) die "clean: unknown option $1" ;; esac
  down
  # Only what this script made: DIR may hold other things.
  rm -rf "$STACK/data" "$STACK/log" "$STACK/run"
  rmdir "$STACK" 2>/dev/null || true
  say "deleted the data in $STACK"
  [ "${1:-}" != --all ] || { rm -rf "$CACHE"; say "deleted $CACHE"; }
}

STACK=${LAKEWARD_STACK_DIR:-$HERE/../../.stack}
FREE_PORTS=${LAKEWARD_STACK_FREE_PORTS:-0}
while [[ ${1:-} == -* ]]; do
  case $1 in
    --dir) STACK=${2:?--dir needs a folder}; shift ;;
    --free-ports) FREE_PORTS=1 ;;
    -h | --help) usage; exit 0 ;;
    *) usage >&2; exit 2 ;;
  esac
  shift
done
STACK=$(realpath -m "$STACK")

command=${1:-}
[ $# = 0 ] || shift
case $command in
  up) up "$@" ;;
  start) [ $# -gt 0 ] || die "start: which server?"; up "$@" ;;
  down) down "$@" ;;
  kill) [ $# -gt 0 ] || die "kill: which server?"; lock; named "$@"; each kill_one "${NAMED[@]}" ;;
  status) status "$@" ;;
  env) choose_ports; print_env ;;
  run) run "$@" ;;
  kafka-tool) kafka_install; kafka_tool "$@" ;;
  kafka-connect) connect_install; connect_standalone "$@" ;;
  clean) clean "$@" ;;
  help) usage ;;
  *) usage >&2; exit 2 ;;
esac
