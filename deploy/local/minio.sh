# MinIO, one drive, built from its pinned Go module. Sourced by stack.sh.
#
#   Go module -> $CACHE/minio-… -> $STACK/data/minio, port $LAKEWARD_MINIO_PORT (console: the port after it)

MINIO_VERSION=v0.0.0-20260212201848-7aac2a2c5b7c
MINIO_HOME=minio-${MINIO_VERSION#v}
MINIO_USER=lakeward
MINIO_PASSWORD=lakeward-secret
MINIO_BUCKET=lake

minio_version() { echo "MinIO ${MINIO_VERSION#v0.0.0-}"; }
minio_url() { echo "http://$HOST:${PORTS[minio]}"; }

MINIO_NEEDS_GO="Go 1.24 or newer in PATH (MinIO is built from source; Debian 12 has only 1.19)"

minio_installed() { [ -d "$CACHE/$MINIO_HOME" ]; }
minio_install() {
  minio_installed || minio_go || die "missing: $MINIO_NEEDS_GO"
  install_once "$MINIO_HOME" "built from source, about 5 minutes on 2 cores" minio_fill
}

minio_go() {
  local minor
  minor=$(go version 2>/dev/null | sed -n 's/.* go1\.\([0-9]*\).*/\1/p')
  [ "${minor:-0}" -ge 24 ]
}

minio_fill() {
  # Its modules and objects take 2 GB. They are kept until the build has succeeded, so that a repeated one goes on where
  # the interrupted one stopped.
  local go=$CACHE/minio-build
  GOBIN=$1 GOPATH=$go GOMODCACHE=$go/mod GOCACHE=$go/cache GOTOOLCHAIN=local GOFLAGS=-modcacherw CGO_ENABLED=0 \
    nice -n 5 go install -trimpath -ldflags '-s -w' "github.com/minio/minio@$MINIO_VERSION"
  "$1/minio" --version
  rm -rf "$go"
}

minio_start() {
  mkdir -p "$STACK/data/minio"
  # HOME: it makes a folder for certificates there, whatever it is told on the command line.
  spawn minio env HOME="$STACK/run" MINIO_ROOT_USER="$MINIO_USER" MINIO_ROOT_PASSWORD="$MINIO_PASSWORD" MINIO_UPDATE=off \
    GOMEMLIMIT=512MiB "$CACHE/$MINIO_HOME/minio" server --quiet --address "$HOST:${PORTS[minio]}" \
    --console-address "$HOST:$((PORTS[minio] + 1))" "$STACK/data/minio"
}

# Ready, and the bucket is there: a PUT of a bucket that one owns already is answered 409 (or 200).
minio_ready() {
  local url status
  url=$(minio_url)
  curl -fsS -o /dev/null -m 5 "$url/minio/health/ready" || return 1
  status=$(curl -sS -o /dev/null -m 10 -w '%{http_code}' -X PUT --user "$MINIO_USER:$MINIO_PASSWORD" \
    --aws-sigv4 aws:amz:us-east-1:s3 "$url/$MINIO_BUCKET")
  [ "$status" = 200 ] || [ "$status" = 409 ]
}

minio_stop() { stop minio TERM 15 KILL; }
