# Kafka Connect 4.3.1 with Debezium's transforms: a reader of our topics that is not ours. Sourced by stack.sh; no server of
# the stack, but a worker in the foreground that whoever needs it starts and ends.
#
#   Maven jars -> $CACHE/connect-… -> stack.sh kafka-connect WORKER.properties CONNECTOR.properties...

CONNECT_HOME=connect-4.3.1-1

connect_install() {
  java_17 >/dev/null || die "Java 17 or newer is needed; run deploy/local/install.sh"
  install_once "$CONNECT_HOME" "a download of about 90 MB" connect_fill
}

connect_fill() {
  maven_jars "$1/libs" org.apache.kafka:connect-runtime:4.3.1 org.apache.kafka:connect-file:4.3.1 \
    org.apache.logging.log4j:log4j-slf4j-impl:2.25.4 org.apache.logging.log4j:log4j-core:2.25.4
  # Each plugin has a class loader of its own.
  maven_jars "$1/plugins/debezium-postgres" io.debezium:debezium-connector-postgres:3.7.0.Final
  maven_jars "$1/plugins/debezium-mongodb" io.debezium:debezium-connector-mongodb:3.6.1.Final
  cat >"$1/log4j2.xml" <<'XML'
<Configuration status="WARN">
  <Appenders><Console name="console"><PatternLayout pattern="%d %p %c{1}: %m%n"/></Console></Appenders>
  <Loggers>
    <!-- a converter of Debezium's that asks for an older Kafka Connect, with its stack each time -->
    <Logger name="org.apache.kafka.connect.runtime.isolation" level="OFF"/>
    <Root level="WARN"><AppenderRef ref="console"/></Root>
  </Loggers>
</Configuration>
XML
}

# WORKER.properties CONNECTOR.properties...: replaces this shell; ends at a signal. Without arguments there is nothing to run.
connect_standalone() {
  local home=$CACHE/$CONNECT_HOME worker=${1:-}
  [ $# -gt 0 ] || return 0
  shift
  exec "$(java_17)" -Xms64m -Xmx256m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Djava.awt.headless=true \
    "-Dlog4j2.configurationFile=$home/log4j2.xml" -cp "$home/libs/*" org.apache.kafka.connect.cli.ConnectStandalone \
    <(cat "$worker" && printf '\n%s\n' "plugin.path=$home/plugins" plugin.discovery=service_load) "$@"
}
