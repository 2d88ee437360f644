//! Configuration as a user writes it: what is read, and what each mistake is told.
#![allow(clippy::unwrap_used)]

use super::*;
use crate::error::Action;

const MINIMAL: &str = r#"
[[source]]
name = "users"
kind = "postgres"
url = "postgresql://app:${env:USERS_PASSWORD}@127.0.0.1:5432/users"
"#;

fn parse(text: &str, env: &[(&str, &str)]) -> crate::Result<Config> {
    Config::parse(text, env.iter().map(|(k, v)| (k.to_string(), v.to_string())))
}

fn complaint(text: &str) -> String {
    let error = parse(text, &[("USERS_PASSWORD", "x")]).unwrap_err();
    assert_eq!(error.action(), Action::Configuration);
    error.to_string()
}

#[test]
fn a_source_is_all_it_takes() {
    let config = parse(MINIMAL, &[("USERS_PASSWORD", "s3cret")]).unwrap();
    let source = &config.sources[0];
    assert_eq!(source.url.expose(), "postgresql://app:s3cret@127.0.0.1:5432/users");
    assert_eq!((source.slot.as_str(), source.default_schema.as_str()), ("lakeward_users", "public"));
    let LogConfig::Embedded(log) = &config.log else { panic!("embedded expected") };
    assert_eq!((log.path.to_str(), log.partitions), (Some(".lakeward/log.db"), 1));
    assert!(config.warehouse.url.starts_with("file:///") && config.warehouse.url.ends_with(".lakeward/warehouse"));
    assert!(!format!("{config:?}").contains("s3cret"), "a secret was printed");
}

#[test]
fn variables_override_the_file() {
    let text = format!("{MINIMAL}\n[log]\nkind = \"kafka\"\nbrokers = \"a:1\"\n");
    let config = parse(
        &text,
        &[
            ("USERS_PASSWORD", "x"),
            ("LAKEWARD__NAME", "shop"),
            ("LAKEWARD__LOG__BROKERS", "b:2"),
            ("LAKEWARD__LOG__PARTITIONS", "8"),
            ("LAKEWARD__SOURCE__USERS__WAL_BUDGET", "3GiB"),
            ("LAKEWARD__LOG__CLIENT__SASL__MECHANISM", "PLAIN"),
        ],
    )
    .unwrap();
    let LogConfig::Kafka(kafka) = &config.log else { panic!("kafka expected") };
    assert_eq!((kafka.brokers.as_str(), kafka.partitions), ("b:2", 8));
    assert_eq!(kafka.client["sasl.mechanism"].expose(), "PLAIN");
    assert_eq!(config.sources[0].wal_budget, 3 << 30);
    assert_eq!(config.sources[0].publication, "shop_users");
}

#[test]
fn an_unknown_key_suggests_the_nearest() {
    assert!(
        complaint(&format!("chekpoint_interval = \"1s\"\n{MINIMAL}")).contains("did you mean `checkpoint_interval`?")
    );
    let text = complaint(&format!("{MINIMAL}\nincludes = [\"a\"]"));
    assert!(text.contains("did you mean `include`?") && text.contains("`users`"), "{text}");
    let text = complaint(&format!("{MINIMAL}\n[sink]\nmemmory = \"1GiB\""));
    assert!(text.contains("unknown key `memmory` in sink; did you mean `memory`?"), "{text}");
}

#[test]
fn bad_values_name_their_place() {
    for (text, part) in [
        ("[sink]\ncommit_interval = \"3s\"", "power of two"),
        ("[sink]\nmemory = \"much\"", "sink.memory"),
        ("[log]\nkind = \"kafka\"", "`brokers` is missing"),
        ("[log]\nkind = \"embedded\"\nbrokers = \"a:1\"", "log.brokers is for kind = \"kafka\""),
        ("[log]\nkind = \"embedded\"\npartitions = 0", "partitions must be"),
        ("[log]\nkind = \"memory\"", "is not one of \"embedded\", \"kafka\""),
        ("[log]\nkind = \"kafka\"\nbrokers = \"a:1\"\npartitions = \"four\"", "log.partitions"),
        ("[warehouse]\nurl = \"lake\"", "warehouse.url"),
        ("[[source]]\nname = \"Users\"\nkind = \"postgres\"\nurl = \"postgresql://h/d\"", "[a-z][a-z0-9_]*"),
        ("[[source]]\nname = \"users\"\nkind = \"postgres\"\nurl = \"postgresql://h/d\"", "two sources"),
        ("[[source]]\nname = \"inv\"\nkind = \"mongodb\"\nurl = \"mongodb://h:1\"", "default database"),
        ("[[source]]\nname = \"inv\"\nkind = \"oracle\"\nurl = \"x\"", "is not one of"),
        ("[[source]]\nname = \"inv\"\nkind = \"postgres\"", "`url` is missing"),
    ] {
        let said = complaint(&format!("{MINIMAL}\n{text}"));
        assert!(said.contains(part), "{text:?} said: {said}");
    }
    let unset = parse(MINIMAL, &[]).unwrap_err().to_string();
    assert!(unset.contains("USERS_PASSWORD is not set"), "{unset}");
}

#[test]
fn a_codec_is_one_that_is_there() {
    let log = |codec: &str| format!("{MINIMAL}\n[log]\nkind = \"kafka\"\nbrokers = \"a:1\"\ncodec = \"{codec}\"\n");
    for (name, codec) in
        [("json", Codec::Json), ("avro\"\nregistry = \"http://r:1", Codec::Avro), ("arrow", Codec::Arrow)]
    {
        let config = parse(&log(name), &[("USERS_PASSWORD", "x")]).unwrap();
        assert!(matches!(&config.log, LogConfig::Kafka(kafka) if kafka.codec == codec), "{name}");
    }
    let with_schemas = format!("{}inline_schemas = true\n", log("json"));
    let config = parse(&with_schemas, &[("USERS_PASSWORD", "x")]).unwrap();
    assert_eq!(config.log.codec(), Codec::JsonWithSchemas);
    let text = complaint(&with_schemas.replace("\"json\"", "\"arrow\""));
    assert!(text.contains("log.inline_schemas is for codec = \"json\""), "{text}");
    // The embedded log's own codec is not `json`.
    let text = complaint(&format!("{MINIMAL}\n[log]\nkind = \"embedded\"\ninline_schemas = true\n"));
    assert!(text.contains("log.inline_schemas"), "{text}");
    assert!(complaint(&log("protobuf")).contains("`protobuf` is not one of \"json\", \"avro\", \"arrow\""));
}

#[test]
fn a_registry_goes_with_avro_and_may_with_any_codec() {
    let embedded = |rest: &str| format!("{MINIMAL}\n[log]\nkind = \"embedded\"\n{rest}\n");
    assert!(complaint(&embedded("codec = \"avro\"")).contains("log.registry is missing"));
    for (url, said) in [
        ("registry:8081", "log.registry must be http"),
        ("ftp://r:8081", "log.registry must be http"),
        ("http://r:8081/?a=b", "log.registry must end with its path"),
        ("https://key:s3cret@r:port", "log.registry must be http"),
    ] {
        let told = complaint(&embedded(&format!("registry = \"{url}\"")));
        assert!(told.contains(said) && !told.contains("s3cret"), "{told}");
    }
    // Records of before may need it.
    let config = parse(&embedded("registry = \"https://key:s3cret@r/ccompat\""), &[("USERS_PASSWORD", "x")]).unwrap();
    assert_eq!(config.log.codec(), Codec::Arrow);
    assert_eq!(config.registry.as_ref().map(Secret::expose), Some("https://key:s3cret@r/ccompat"));
    assert!(!format!("{config:?}").contains("s3cret"), "a secret was printed");
    assert!(parse(MINIMAL, &[("USERS_PASSWORD", "x")]).unwrap().registry.is_none());
}

#[test]
fn properties_pass_to_librdkafka_but_for_those_that_delivery_rests_on() {
    let with =
        |client: &str| format!("{MINIMAL}\n[log]\nkind = \"kafka\"\nbrokers = \"a:1\"\n[log.client]\n{client}\n");
    let secure = with(
        "\"security.protocol\" = \"sasl_ssl\"\n\"sasl.mechanism\" = \"SCRAM-SHA-512\"\n\"sasl.password\" = \"s3cret\"\n\
         \"socket.timeout.ms\" = 5000\n\"enable.idempotence\" = true",
    );
    let config = parse(&secure, &[("USERS_PASSWORD", "x")]).unwrap();
    let LogConfig::Kafka(kafka) = &config.log else { panic!("kafka expected") };
    assert_eq!(
        (kafka.client["socket.timeout.ms"].expose(), kafka.client["sasl.password"].expose()),
        ("5000", "s3cret")
    );
    assert!(!format!("{config:?}").contains("s3cret"), "a secret was printed");
    for (name, value) in [
        ("transactional.id", "\"mine\""),
        ("enable.idempotence", "false"),
        ("isolation.level", "\"read_uncommitted\""),
        ("enable.auto.commit", "true"),
        ("acks", "1"),
        ("auto.offset.reset", "\"latest\""),
        ("bootstrap.servers", "\"b:1\""),
    ] {
        let told = complaint(&with(&format!("\"{name}\" = {value}")));
        assert!(told.contains(&format!("log.client.\"{name}\"")) && told.contains("leave it out"), "{told}");
    }
}
