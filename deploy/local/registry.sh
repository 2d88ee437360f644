# Apicurio Registry 2.6.13, a schema registry that speaks Confluent's API. Sourced by stack.sh.
#
#   Maven archive -> $CACHE/registry-… -> $STACK/data/registry (an H2 file), port $LAKEWARD_REGISTRY_PORT (and the one after it,
#   by which its transaction manager knows itself)

# The last line that runs on Java 17, which is Debian 12's; 3.x wants 21.
REGISTRY_VERSION=2.6.13.Final
REGISTRY_HOME=registry-2.6.13-1
# Of the file with its certificate, where LAKEWARD_REGISTRY_TLS asks for one.
REGISTRY_PASSWORD=lakeward-secret

registry_version() { echo "Apicurio Registry 2.6.13"; }
registry_url() { echo "http${LAKEWARD_REGISTRY_TLS:+s}://$HOST:${PORTS[registry]}/apis/ccompat/v7"; }

registry_install() {
  java_17 >/dev/null || die "Java 17 or newer is needed; run deploy/local/install.sh"
  install_once "$REGISTRY_HOME" "a download of about 140 MB" registry_fill
}

registry_fill() {
  # Without a project the plugin leaves its markers in a folder of the working directory: let that be the one that is filled.
  (cd "$1" && mvn -q -B -ntp -U org.apache.maven.plugins:maven-dependency-plugin:3.8.1:unpack \
    "-Dartifact=io.apicurio:apicurio-registry-app:$REGISTRY_VERSION:tar.gz:all" "-DoutputDirectory=$1")
  # shellcheck disable=SC2016  # that folder's very name
  rm -rf "$1/"'${project.basedir}'
  [ -e "$1/apicurio-registry-app-$REGISTRY_VERSION-runner.jar" ]
}

registry_start() {
  local listen=("-Dquarkus.http.port=${PORTS[registry]}")
  mkdir -p "$STACK/data/registry"
  if [ -n "${LAKEWARD_REGISTRY_TLS:-}" ]; then
    # Not an authority's certificate (no `bc`): rustls takes none for a server's.
    certificate registry "$REGISTRY_PASSWORD"
    listen=("-Dquarkus.http.ssl-port=${PORTS[registry]}" -Dquarkus.http.insecure-requests=disabled
      "-Dquarkus.http.ssl.certificate.key-store-file=$STACK/run/registry.p12" -Dquarkus.http.ssl.certificate.key-store-file-type=PKCS12
      "-Dquarkus.http.ssl.certificate.key-store-password=$REGISTRY_PASSWORD")
  fi
  # A file, not memory: ids must mean the same after a restart. WRITE_DELAY: what was answered survives kill -9.
  spawn registry env REGISTRY_DATASOURCE_URL="jdbc:h2:file:$STACK/data/registry/registry;WRITE_DELAY=0" REGISTRY_DATASOURCE_USERNAME=sa \
    "$(java_17)" -Xms64m -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xss512k -Djava.awt.headless=true \
    "-Dquarkus.http.host=$HOST" "${listen[@]}" \
    "-Dcom.arjuna.ats.arjuna.common.CoreEnvironmentBean.socketProcessIdPort=$((PORTS[registry] + 1))" \
    -jar "$CACHE/$REGISTRY_HOME/apicurio-registry-app-$REGISTRY_VERSION-runner.jar"
}

registry_ready() {
  curl -fsS -o /dev/null -m 5 ${LAKEWARD_REGISTRY_TLS:+--cacert "$STACK/run/registry-ca.pem"} "$(registry_url)/subjects"
}

registry_stop() { stop registry TERM 15 KILL; }
