# PostgreSQL 15 from Debian (install.sh gets it), one private cluster with logical decoding. Sourced by stack.sh.
#
#   /usr/lib/postgresql/15/bin -> $STACK/data/postgres, port $LAKEWARD_PG_PORT, superuser postgres, password lakeward

POSTGRES_BIN=/usr/lib/postgresql/15/bin
POSTGRES_PASSWORD=lakeward

postgres_version() { echo "PostgreSQL 15"; }
postgres_url() { echo "postgresql://postgres:$POSTGRES_PASSWORD@$HOST:${PORTS[postgres]}/postgres"; }

postgres_installed() { [ -x "$POSTGRES_BIN/postgres" ] && [ -x "$POSTGRES_BIN/pg_isready" ]; }
postgres_install() { postgres_installed || die "PostgreSQL 15 is not installed; run deploy/local/install.sh"; }

# Sets AS: what goes before a command so that it runs as a user under whom the server starts (it refuses root).
postgres_user() {
  AS=()
  [ "$EUID" = 0 ] || return 0
  local user=postgres base caps
  id -u postgres >/dev/null 2>&1 || user=nobody
  base=(setpriv "--reuid=$user" "--regid=$(id -gn "$user")" --clear-groups)
  # A checkout below a home that only root may enter: one capability lets the server pass, and only that.
  for caps in "" +dac_read_search; do
    AS=("${base[@]}" ${caps:+"--inh-caps=$caps" "--ambient-caps=$caps"} --)
    # Not `test -x`: access(2) judges by the user alone and leaves the capability out.
    "${AS[@]}" stat "$STACK/data/." >/dev/null 2>&1 && return 0
  done
  die "user $user cannot enter $STACK; set LAKEWARD_STACK_DIR to a folder that it can"
}

postgres_init() {
  local part=$STACK/data/postgres.part
  rm -rf "$part"
  mkdir -m 700 "$part"
  [ "${#AS[@]}" = 0 ] || chown "$("${AS[@]}" id -u)" "$part"
  # shellcheck disable=SC2016  # expanded by the inner shell, which runs as the server's user
  "${AS[@]}" bash -c '
    set -e
    umask 077
    printf %s "$3" >"$2/password"
    "$1" -D "$2/data" -U postgres -E UTF8 --locale=C.UTF-8 -A scram-sha-256 --pwfile="$2/password" --no-sync
    echo "include_dir = '\''conf.d'\''" >>"$2/data/postgresql.conf"
    mkdir "$2/data/conf.d"' _ "$POSTGRES_BIN/initdb" "$part" "$POSTGRES_PASSWORD" >>"$STACK/log/postgres.log" 2>&1 ||
    { tail -n 20 "$STACK/log/postgres.log" >&2; die "initdb failed"; }
  mv "$part/data" "$STACK/data/postgres"
  rm -rf "$part"
}

postgres_start() {
  local data=$STACK/data/postgres AS
  postgres_user
  [ -d "$data" ] || postgres_init
  # Written at every start, so that a newer checkout's settings reach old data. Tests may still use ALTER SYSTEM.
  "${AS[@]}" tee "$data/conf.d/lakeward.conf" >/dev/null <<CONF
listen_addresses = '$HOST'
unix_socket_directories = ''
max_connections = 300
shared_buffers = 128MB
wal_level = logical
max_replication_slots = 100
max_wal_senders = 100
wal_sender_timeout = 10s
max_prepared_transactions = 10
track_commit_timestamp = off
logging_collector = off
log_checkpoints = off
log_replication_commands = off
log_min_messages = warning
log_min_error_statement = panic
CONF
  postgres_forget_dead "$data"
  (cd / && spawn postgres "${AS[@]}" "$POSTGRES_BIN/postgres" -D "$data" -p "${PORTS[postgres]}")
}

# The server refuses to start while the pid in its lock file exists, even as a zombie that nobody has collected yet. The file
# may go once no process works in the data folder any more: every process of a server does, until its end.
postgres_forget_dead() { # DATA
  local dir t0
  t0=$(now)
  for dir in /proc/[0-9]*/cwd; do
    while [ "$dir" -ef "$1" ]; do
      [ $(($(now) - t0)) -lt 15000 ] || die "process $(basename "$(dirname "$dir")") still works in $1"
      sleep 0.05
    done
  done
  rm -f "$1/postmaster.pid"
}

postgres_ready() { "$POSTGRES_BIN/pg_isready" -q -h "$HOST" -p "${PORTS[postgres]}" -t 2; }

# INT: fast shutdown. QUIT: immediate, for a reader that does not take its last WAL.
postgres_stop() { stop postgres INT 20 QUIT; }
