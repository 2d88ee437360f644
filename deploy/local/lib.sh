# Shared by the scripts beside it; sourced, never run.
#
#   downloads -> $CACHE (programs, one versioned folder each) -> processes -> $STACK/{data,log,run}
#
# $CACHE is the user's, so that a second checkout starts in seconds; $STACK belongs to one checkout (or to one test).

HOST=127.0.0.1
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
CACHE=${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/lakeward

say() { printf '%(%H:%M:%S)T %-9s %s\n' -1 "${SERVER:-stack}" "$*" >&2; }
die() { say "error: $*"; exit 1; }

# Milliseconds since the epoch; and "1.4 s" since such a moment.
now() { local t=${EPOCHREALTIME/[.,]/}; echo $((t / 1000)); }
since() { local ms=$(($(now) - $1)); printf '%d.%d s' $((ms / 1000)) $((ms % 1000 / 100)); }

# ---- installing

# install_once FOLDER NOTE FUNCTION: makes $CACHE/FOLDER by FUNCTION, which fills the folder it is given. The folder appears
# whole or not at all, so an interrupted install is repeated by the next run. One process at a time: others wait for it.
# (FUNCTION stops at its first failure only if this is not called before || or in an if: bash's rule for `set -e`.)
install_once() {
  local target=$CACHE/$1 note=$2 fill=$3 t0 log pid
  [ ! -d "$target" ] || return 0
  mkdir -p "$CACHE/lock" "$CACHE/log"
  # Programs started by FUNCTION inherit the lock: a build that outlives us is waited for, not run into.
  exec 8>"$CACHE/lock/$1"
  flock -n 8 || { say "waiting for another install of $1"; flock 8; }
  if [ ! -d "$target" ]; then
    t0=$(now) log=$CACHE/log/$1.log
    say "installing $1: $note"
    rm -rf "$target.part"
    mkdir -p "$target.part"
    (set -e; "$fill" "$target.part") >"$log" 2>&1 </dev/null &
    pid=$!
    while kill -0 "$pid" 2>/dev/null; do
      sleep 0.2
      [ $((($(now) - t0) / 200 % 150)) != 149 ] || { say "still installing $1 ($(since "$t0"))"; sleep 0.2; }
    done
    wait "$pid" || { tail -n 20 "$log" >&2; die "could not install $1 (whole output: $log)"; }
    mv "$target.part" "$target"
    say "installed $1 in $(since "$t0")"
  fi
  exec 8>&-
}

# The Java to use, JAVA_HOME's or else PATH's; fails unless it is 17 or newer.
java_17() {
  local java=${JAVA_HOME:+$JAVA_HOME/bin/}java version
  version=$("$java" -version 2>&1 | sed -n 's/.* version "\([0-9]*\).*/\1/p' | head -n 1)
  [ "${version:-0}" -ge 17 ] && echo "$java"
}

# maven_jars DIR COORDINATE…: copies the artifacts (group:artifact:version, all pinned) and what they need at run time
# into DIR. `!group:artifact` after a coordinate leaves that dependency of it out.
maven_jars() {
  local dir=$1 coordinate group artifact version
  shift
  mkdir -p "$dir"
  {
    echo '<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>'
    echo '<groupId>lakeward</groupId><artifactId>stack</artifactId><version>1</version><packaging>pom</packaging><dependencies>'
    while [ $# -gt 0 ]; do
      coordinate=$1
      shift
      IFS=: read -r group artifact version <<<"$coordinate"
      echo "<dependency><groupId>$group</groupId><artifactId>$artifact</artifactId><version>$version</version><exclusions>"
      while [[ ${1:-} == !* ]]; do
        IFS=: read -r group artifact <<<"${1#!}"
        echo "<exclusion><groupId>$group</groupId><artifactId>$artifact</artifactId></exclusion>"
        shift
      done
      echo '</exclusions></dependency>'
    done
    echo '</dependencies></project>'
  } >"$dir/pom.xml"
  # -U: Maven remembers a failed look-up for a day, which would turn one network hiccup into a broken day.
  mvn -q -B -ntp -U -f "$dir/pom.xml" org.apache.maven.plugins:maven-dependency-plugin:3.8.1:copy-dependencies \
    -DincludeScope=runtime -DoutputDirectory="$dir"
}

# ---- processes

# A pidfile holds "PID STARTTIME", so that a pid that the system gave to somebody else is never taken for ours.
pidfile() { echo "$STACK/run/$1.pid"; }

# proc_stat PID: sets STATE, PARENT and STARTED from /proc; fails when there is no such process.
proc_stat() {
  local line
  { read -r line <"/proc/$1/stat"; } 2>/dev/null || return 1
  # The command's name, in parentheses, may hold blanks.
  read -ra line <<<"${line##*) }"
  STATE=${line[0]} PARENT=${line[1]} STARTED=${line[19]}
}

pid_of() { local pid _; read -r pid _ <"$(pidfile "$1")" && echo "$pid"; }

# alive SERVER: runs, and is ours. A zombie that nobody has collected yet does not run.
alive() {
  local pid started STATE PARENT STARTED
  { read -r pid started <"$(pidfile "$1")"; } 2>/dev/null || return 1
  proc_stat "$pid" && [ "$STARTED" = "$started" ] && [[ $STATE != [ZX] ]]
}

# spawn SERVER COMMAND…: starts it in a session of its own, output to its log. It survives this shell and its terminal.
spawn() {
  local server=$1 file
  shift
  file=$(pidfile "$server")
  rm -f "$file"
  # $$ stays the pid through exec. Locks (8, 9) are closed: a server must not hold them.
  # shellcheck disable=SC2016  # expanded by the inner shell
  setsid -f bash -c '
    limit=$(ulimit -Hn)
    { [ "$limit" != unlimited ] && [ "$limit" -lt 65536 ]; } || limit=65536
    ulimit -n "$limit"
    read -r line </proc/$$/stat
    line=(${line##*) })
    echo "$$ ${line[19]}" >"$0.new" && mv "$0.new" "$0"
    exec "$@"' "$file" "$@" >>"$STACK/log/$server.log" 2>&1 </dev/null 8>&- 9>&-
  until [ -s "$file" ]; do sleep 0.02; done
}

# wait_ready SERVER SECONDS COMMAND…: until COMMAND succeeds; gives up when the server dies or time is over.
wait_ready() {
  local server=$1 seconds=$2 t0
  shift 2
  t0=$(now)
  until "$@" >/dev/null 2>&1; do
    alive "$server" || { tail -n 20 "$STACK/log/$server.log" >&2; die "died while starting (log: $STACK/log/$server.log)"; }
    [ $((($(now) - t0) / 1000)) -lt "$seconds" ] ||
      { tail -n 20 "$STACK/log/$server.log" >&2; die "not ready after $seconds s (log: $STACK/log/$server.log)"; }
    sleep 0.1
  done
}

# stop SERVER SIGNAL SECONDS LAST: sends SIGNAL, waits, and then sends LAST.
stop() {
  local server=$1 signal=$2 seconds=$3 last=$4 t0 pid
  alive "$server" || { rm -f "$(pidfile "$server")"; return 0; }
  t0=$(now)
  pid=$(pid_of "$server")
  kill -s "$signal" "$pid" 2>/dev/null || true
  while alive "$server"; do
    if [ $((($(now) - t0) / 1000)) -ge "$seconds" ]; then
      say "did not stop within $seconds s: sending SIG$last"
      kill -s "$last" "$pid" 2>/dev/null || true
      seconds=$((seconds + 10)) last=KILL
    fi
    sleep 0.05
  done
  rm -f "$(pidfile "$server")"
  say "stopped in $(since "$t0")"
}

# descendants PID: its children, theirs, and so on.
descendants() {
  local dir child STATE PARENT STARTED
  for dir in /proc/[0-9]*; do
    child=${dir#/proc/}
    proc_stat "$child" && [ "$PARENT" = "$1" ] || continue
    echo "$child"
    descendants "$child"
  done
}

# ---- ports

port_open() { (exec 3<>"/dev/tcp/$HOST/$1") 2>/dev/null; }

# Who listens there, as far as this user may know: " (pid 123, name)".
port_owner() {
  local pid
  pid=$(ss -Hltnp "sport = :$1" 2>/dev/null | sed -n 's/.*pid=\([0-9]*\).*/\1/p' | head -n 1)
  [ -z "$pid" ] || printf ' (pid %s, %s)' "$pid" "$(cat "/proc/$pid/comm" 2>/dev/null)"
}

# A port, and the one after it, that nobody listens on and no server of PORTS has. Below 32768, where Linux picks ports for
# outgoing connections.
free_port() {
  local port
  while :; do
    port=$((23000 + (RANDOM * 32768 + RANDOM) % 4800 * 2))
    [[ " ${PORTS[*]} " == *" $port "* ]] || port_open "$port" || port_open $((port + 1)) || { echo "$port"; return; }
  done
}

# ---- certificates

# certificate SERVER PASSWORD [KEYTOOL-OPTION...]: makes $STACK/run/SERVER.p12, the one certificate of a server that wants TLS and its own
# authority, and $STACK/run/SERVER-ca.pem for clients. Once.
certificate() {
  local server=$1 password=$2 store=$STACK/run/$1.p12 pem=$STACK/run/$1-ca.pem keytool
  shift 2
  [ ! -e "$pem" ] || return 0
  keytool=$(dirname "$(realpath "$(command -v "$(java_17)")")")/keytool
  rm -f "$store"
  {
    "$keytool" -genkeypair -alias "$server" -keyalg EC -groupname secp256r1 -validity 3650 -dname CN=localhost \
      -ext "san=dns:localhost,ip:$HOST" "$@" -storetype PKCS12 -keystore "$store" -storepass "$password" &&
      "$keytool" -exportcert -rfc -alias "$server" -keystore "$store" -storepass "$password" -file "$pem.new"
  } >>"$STACK/log/$server.log" 2>&1 || { tail -n 5 "$STACK/log/$server.log" >&2; die "could not make a certificate"; }
  mv "$pem.new" "$pem"
}
