# Apache Kafka 4.3.1, one KRaft node that is broker and controller. Sourced by stack.sh.
#
#   Maven jars -> $CACHE/kafka-… -> $STACK/data/kafka, port $LAKEWARD_KAFKA_PORT (controller: the port after it)

KAFKA_HOME=kafka-4.3.1-1
# Of the user lakeward, where LAKEWARD_KAFKA_SASL asks for one.
KAFKA_PASSWORD=lakeward-secret

kafka_version() { echo "Apache Kafka 4.3.1"; }
kafka_url() { echo "$HOST:${PORTS[kafka]}"; }

kafka_install() {
  java_17 >/dev/null || die "Java 17 or newer is needed; run deploy/local/install.sh"
  install_once "$KAFKA_HOME" "a download of about 100 MB" kafka_fill
}

kafka_fill() {
  # connect-runtime: a web server and 40 jars that only a tool which we do not use needs.
  maven_jars "$1/libs" org.apache.kafka:kafka_2.13:4.3.1 \
    org.apache.kafka:kafka-tools:4.3.1 '!org.apache.kafka:connect-runtime' \
    org.apache.logging.log4j:log4j-slf4j-impl:2.25.4 org.apache.logging.log4j:log4j-core:2.25.4
  cat >"$1/log4j2.xml" <<'XML'
<Configuration status="WARN">
  <Appenders><Console name="console"><PatternLayout pattern="%d %p %c{1}: %m%n"/></Console></Appenders>
  <Loggers>
    <!-- says "Kafka Server started", which kafka_ready waits for -->
    <Logger name="kafka.server.KafkaRaftServer" level="INFO"/>
    <Root level="WARN"><AppenderRef ref="console"/></Root>
  </Loggers>
</Configuration>
XML
}

kafka_command() { # sets COMMAND: all of it but the main class and its arguments
  COMMAND=("$(java_17)" -Xms128m -Xmx512m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Xss512k -XX:MaxDirectMemorySize=256m
    -Djava.awt.headless=true "-Dlog4j2.configurationFile=$CACHE/$KAFKA_HOME/log4j2.xml" -cp "$CACHE/$KAFKA_HOME/libs/*")
}

# What clients meet, as listener CLIENT: nothing asked, or TLS and a password (user lakeward), by any of three mechanisms.
kafka_security() {
  if [ -z "${LAKEWARD_KAFKA_SASL:-}" ]; then
    echo "listener.security.protocol.map=CLIENT:PLAINTEXT,CONTROLLER:PLAINTEXT"
    return
  fi
  cat <<CONF
listener.security.protocol.map=CLIENT:SASL_SSL,CONTROLLER:PLAINTEXT
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512
# The broker is a client of itself: transaction markers go through its listener.
sasl.mechanism.inter.broker.protocol=PLAIN
listener.name.client.plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required username="lakeward" password="$KAFKA_PASSWORD" user_lakeward="$KAFKA_PASSWORD";
listener.name.client.scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
listener.name.client.scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;
ssl.keystore.type=PKCS12
ssl.keystore.location=$STACK/run/kafka.p12
ssl.keystore.password=$KAFKA_PASSWORD
ssl.truststore.type=PEM
ssl.truststore.location=$STACK/run/kafka-ca.pem
CONF
}

# CLASS ARGUMENT...: a tool of Kafka's, or another broker.
kafka_tool() {
  local COMMAND
  kafka_command
  exec "${COMMAND[@]}" "$@"
}

kafka_config() { # DATA
  local port=${PORTS[kafka]} controller=$((PORTS[kafka] + 1))
  kafka_security
  cat <<CONF
process.roles=broker,controller
node.id=1
controller.quorum.bootstrap.servers=$HOST:$controller
controller.listener.names=CONTROLLER
listeners=CLIENT://$HOST:$port,CONTROLLER://$HOST:$controller
advertised.listeners=CLIENT://$HOST:$port,CONTROLLER://$HOST:$controller
inter.broker.listener.name=CLIENT
log.dirs=$1
# Lakeward creates its topics; a misspelled one must not appear by itself.
auto.create.topics.enable=false
# One broker: nothing can be replicated.
default.replication.factor=1
min.insync.replicas=1
offsets.topic.replication.factor=1
offsets.topic.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
transaction.state.log.num.partitions=4
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
share.coordinator.state.topic.num.partitions=2
group.initial.rebalance.delay.ms=0
# A transaction whose producer was killed ends soon after its timeout, not up to 10 s later.
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
# A restart after kill -9 waits for the dead broker's session to end, and reads the open segment of each partition again.
broker.session.timeout.ms=3000
broker.heartbeat.interval.ms=500
log.segment.bytes=67108864
num.recovery.threads.per.data.dir=4
# Two cores, a small heap and many small topics: the defaults are for a machine of its own.
num.network.threads=2
num.io.threads=4
background.threads=2
log.cleaner.dedupe.buffer.size=8388608
log.index.size.max.bytes=1048576
CONF
}

kafka_start() {
  local data=$STACK/data/kafka config=$STACK/run/kafka.properties id COMMAND
  kafka_command
  [ -z "${LAKEWARD_KAFKA_SASL:-}" ] || certificate kafka "$KAFKA_PASSWORD" -ext bc:critical=ca:true
  if [ ! -d "$data" ]; then
    rm -rf "$data.part"
    kafka_config "$data.part" >"$config"
    # 16 random bytes in Kafka's own spelling; a leading dash would be taken for an option.
    id=$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=')
    "${COMMAND[@]}" kafka.tools.StorageTool format --standalone -t "${id/#-/A}" -c "$config" \
      --add-scram "SCRAM-SHA-256=[name=lakeward,password=$KAFKA_PASSWORD]" \
      --add-scram "SCRAM-SHA-512=[name=lakeward,password=$KAFKA_PASSWORD]" >>"$STACK/log/kafka.log" 2>&1 ||
      { tail -n 20 "$STACK/log/kafka.log" >&2; die "could not format $data"; }
    mv "$data.part" "$data"
  fi
  kafka_config "$data" >"$config"
  spawn kafka "${COMMAND[@]}" kafka.Kafka "$config"
}

# The port opens before the broker is let into its cluster; only the log (a new one at every start) tells when that is done.
kafka_ready() { port_open "${PORTS[kafka]}" && grep -q 'Kafka Server started' "$STACK/log/kafka.log"; }

kafka_stop() { stop kafka TERM 30 KILL; }
