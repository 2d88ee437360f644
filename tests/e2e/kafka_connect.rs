//! A stranger reads our topics: Kafka Connect with its JsonConverter and Debezium's own unwrap transforms, by the settings that
//! docs/log.md prints. What its file sink writes, cell by cell, is what the databases hold.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use mongodb::bson::{Bson, doc, oid::ObjectId};
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::harness::{Mongo, Pipeline, Postgres, Servers, clip, noise, poll};

/// The settings of docs/log.md that follow this line, without their indent.
fn documented(after: &str) -> String {
    let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/log.md")).unwrap();
    let rest = page.split_once(after).unwrap_or_else(|| panic!("docs/log.md has `{after}`")).1;
    let block: String = rest
        .lines()
        .skip(1)
        .skip_while(|line| !line.starts_with("    "))
        .map_while(|line| line.strip_prefix("    "))
        .map(|line| format!("{line}\n"))
        .collect();
    assert!(!block.is_empty(), "settings follow `{after}`");
    block
}

const WORKER: &str = "**Kafka Connect.** In the worker";
const UNWRAP: &str = "With `inline_schemas`, Debezium's own transform";
const UNWRAP_DOCUMENTS: &str = "For MongoDB it is";
const WITHOUT_SCHEMA: &str = "Without `inline_schemas`";

/// A connector that writes what it gets into a file, one line for each record.
struct FileSink {
    file: PathBuf,
    config: PathBuf,
}

impl FileSink {
    /// `settings` as documented, for this source; `more` is the test's own.
    fn new(dir: &Path, name: &str, source: &str, settings: &str, more: &str) -> Self {
        let (file, config) = (dir.join(format!("{name}.txt")), dir.join(format!("{name}.properties")));
        assert!(settings.contains("=users[.]"), "{settings}");
        let settings = settings.replace("=users[.]", &format!("={source}[.]"));
        let text = format!(
            "name={source}-{name}\nconnector.class=org.apache.kafka.connect.file.FileStreamSinkConnector\ntasks.max=1\n\
             file={}\n{settings}{more}\n",
            file.display()
        );
        std::fs::write(&config, text).unwrap();
        Self { file, config }
    }

    fn text(&self) -> String {
        std::fs::read_to_string(&self.file).unwrap_or_default()
    }
}

/// A running worker of Kafka Connect; killed when dropped.
struct Worker {
    child: Child,
    log: PathBuf,
}

impl Worker {
    fn start(dir: &Path, sinks: &[&FileSink]) -> Self {
        let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let (config, log) = (dir.join("worker.properties"), dir.join("connect.log"));
        let text = format!(
            "bootstrap.servers={}\nlisteners=http://127.0.0.1:{port}\noffset.storage.file.filename={}\n\
             offset.flush.interval.ms=1000\nkey.converter=org.apache.kafka.connect.storage.StringConverter\n\
             value.converter=org.apache.kafka.connect.storage.StringConverter\n{}",
            Servers::get().kafka,
            dir.join("connect.offsets").display(),
            documented(WORKER),
        );
        std::fs::write(&config, text).unwrap();
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/local/stack.sh");
        // The first time that is a download, which nothing else should wait for.
        assert!(Command::new(script).arg("kafka-connect").status().expect("stack.sh can be started").success());
        let mut command = Command::new(script);
        command.env("TZ", "UTC").arg("kafka-connect").arg(&config).args(sinks.iter().map(|sink| &sink.config));
        let (out, error) = (File::create(&log).unwrap(), File::options().append(true).open(&log).unwrap());
        let child = command.stdin(Stdio::null()).stdout(out).stderr(error).spawn().expect("stack.sh can be started");
        Self { child, log }
    }

    /// Waits until `judge` finds no fault with what `sink` wrote.
    fn wait_until(&mut self, sink: &FileSink, judge: impl Fn(&str) -> Result<(), String>) {
        let mut fault = String::new();
        let done = poll(|| {
            assert!(self.child.try_wait().unwrap().is_none(), "Kafka Connect ended:\n{}", self.logged());
            fault = judge(&sink.text()).err().unwrap_or_default();
            fault.is_empty().then_some(())
        });
        let text: String =
            sink.text().lines().map(|line| line.chars().take(300).chain(['\n']).collect::<String>()).collect();
        assert!(done.is_some(), "{fault}\n---- file\n{}\n---- log\n{}", clip(&text), self.logged());
    }

    fn logged(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().filter(|line| !line.starts_with("\tat ")).collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A table, and for each column PostgreSQL's expression for what Kafka Connect must make of it. The first columns are the key.
struct Table {
    name: &'static str,
    key: usize,
    columns: &'static [(&'static str, &'static str)],
}

type Rows = BTreeMap<Vec<String>, Vec<Option<String>>>;

impl Table {
    /// What the database holds.
    fn held(&self, database: &Postgres) -> Rows {
        let columns: Vec<_> = self.columns.iter().map(|(_, expression)| *expression).collect();
        let rows = database.rows(&format!("SELECT {} FROM {}", columns.join(", "), self.name));
        rows.into_iter().map(|row| (self.key_of(&row), row)).collect()
    }

    fn key_of(&self, row: &[Option<String>]) -> Vec<String> {
        row[..self.key].iter().map(|value| value.clone().expect("a key")).collect()
    }

    /// The values in a line that is a row of this table, and `__deleted`. Java leaves out what is null.
    fn parse(&self, line: &str) -> Option<(Vec<Option<String>>, bool)> {
        let line = line.strip_prefix("Struct{")?.strip_suffix('}')?;
        let (line, deleted) = line.rsplit_once(",__deleted=")?;
        let mut found = Vec::new();
        let mut at = 0;
        for (i, (name, _)) in self.columns.iter().enumerate() {
            let mark = if i == 0 { format!("{name}=") } else { format!(",{name}=") };
            match line[at..].find(&mark) {
                Some(0) if i == 0 => {}
                _ if i == 0 => return None,
                Some(_) => {}
                None => continue,
            }
            let start = at + line[at..].find(&mark)?;
            found.push((i, start, start + mark.len()));
            at = start + mark.len();
        }
        let mut row = vec![None; self.columns.len()];
        for (n, (i, _, start)) in found.iter().enumerate() {
            let end = found.get(n + 1).map_or(line.len(), |next| next.1);
            row[*i] = Some(line[*start..end].to_owned());
        }
        Some((row, deleted == "true"))
    }

    /// What a consumer that applies the lines has in the end: a value that was left out stays what it was.
    fn applied(&self, text: &str) -> Rows {
        let mut rows = Rows::new();
        for (row, deleted) in text.lines().filter_map(|line| self.parse(line)) {
            let key = self.key_of(&row);
            if deleted {
                rows.remove(&key);
                continue;
            }
            let old = rows.remove(&key).unwrap_or_default();
            let kept = row.into_iter().enumerate().map(|(i, value)| {
                if value.as_deref().is_some_and(is_left_out) { old.get(i).cloned().flatten() } else { value }
            });
            rows.insert(key, kept.collect());
        }
        rows
    }

    fn judge(&self, database: &Postgres, text: &str) -> Result<(), String> {
        let (held, applied) = (self.held(database), self.applied(text));
        for key in held.keys().chain(applied.keys()) {
            let (Some(held), Some(applied)) = (held.get(key), applied.get(key)) else {
                return Err(format!("{} {key:?}: held {:?}, applied {:?}", self.name, held.get(key), applied.get(key)));
            };
            for (((name, _), held), applied) in self.columns.iter().zip(held).zip(applied) {
                let float = name.contains("real") || name.contains("double");
                let same = if float { floats(held) == floats(applied) } else { held == applied };
                if !same {
                    let [held, applied] = [held, applied].map(|value| clip(&format!("{value:?}")));
                    return Err(format!("{} {key:?} {name}: held {held}, applied {applied}", self.name));
                }
            }
        }
        Ok(())
    }
}

/// Numbers, in whatever digits.
fn floats(text: &Option<String>) -> Option<Vec<Option<f64>>> {
    let text = text.as_ref()?.trim_matches(['[', ']']);
    Some(text.split(", ").map(|one| one.parse().ok()).collect())
}

const PLACEHOLDER: &str = "__debezium_unavailable_value";

/// The forms of docs/log.md: text, base64, bytes as numbers, name-based UUID.
fn is_left_out(value: &str) -> bool {
    let numbers: Vec<_> = PLACEHOLDER.bytes().map(|byte| byte.to_string()).collect();
    [
        PLACEHOLDER.to_owned(),
        "X19kZWJleml1bV91bmF2YWlsYWJsZV92YWx1ZQ==".to_owned(),
        format!("[{PLACEHOLDER}]"),
        format!("[{}]", numbers.join(", ")),
        "[b68a35a7-17ad-35b3-af2a-ae46edb4545a]".to_owned(),
    ]
    .iter()
    .any(|form| form == value)
}

const TYPES: Table = Table {
    name: "types",
    key: 1,
    columns: &[
        ("types_id", "types_id"),
        ("c_bool", "c_bool::text"),
        ("c_small", "c_small"),
        ("c_long", "c_long"),
        ("c_real", "c_real"),
        ("c_double", "c_double"),
        ("c_num", "c_num"),
        ("c_text", "c_text"),
        ("c_varchar", "c_varchar"),
        ("c_json", "c_json"),
        ("c_jsonb", "c_jsonb"),
        ("c_uuid", "c_uuid"),
        ("c_bytes", "replace(encode(c_bytes, 'base64'), E'\\n', '')"),
        ("c_date", "CASE WHEN c_date = 'infinity' THEN '2147483647' ELSE (c_date - date '1970-01-01')::text END"),
        (
            "c_ts",
            "CASE WHEN c_ts = 'infinity' THEN '9223372036854775807' ELSE (extract(epoch FROM c_ts) * 1000000)::bigint::text END",
        ),
        (
            "c_tstz",
            "CASE WHEN c_tstz = 'infinity' THEN 'infinity' ELSE to_char(c_tstz AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') END",
        ),
        ("c_interval", "c_interval"),
        ("c_ints", "'[' || array_to_string(c_ints, ', ', 'null') || ']'"),
        ("c_longs", "'[' || array_to_string(c_longs, ', ', 'null') || ']'"),
        ("c_doubles", "'[' || array_to_string(c_doubles, ', ', 'null') || ']'"),
        ("c_texts", "'[' || array_to_string(c_texts, ', ', 'null') || ']'"),
        ("c_nums", "'[' || array_to_string(c_nums, ', ', 'null') || ']'"),
        ("c_bools", "'[' || array_to_string(c_bools::text[], ', ', 'null') || ']'"),
        ("c_uuids", "'[' || array_to_string(c_uuids, ', ', 'null') || ']'"),
        (
            "c_dates",
            "(SELECT '[' || string_agg(coalesce((d - date '1970-01-01')::text, 'null'), ', ' ORDER BY n) || ']' FROM unnest(c_dates) WITH ORDINALITY u(d, n) HAVING count(*) > 0)",
        ),
        (
            "c_tss",
            "(SELECT '[' || string_agg((extract(epoch FROM t) * 1000000)::bigint::text, ', ' ORDER BY n) || ']' FROM unnest(c_tss) WITH ORDINALITY u(t, n) HAVING count(*) > 0)",
        ),
        (
            "c_tstzs",
            "(SELECT '[' || string_agg(to_char(t AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), ', ' ORDER BY n) || ']' FROM unnest(c_tstzs) WITH ORDINALITY u(t, n) HAVING count(*) > 0)",
        ),
    ],
};

const TOAST: Table = Table {
    name: "toast",
    key: 1,
    columns: &[
        ("toast_id", "toast_id"),
        ("n", "n"),
        ("t_text", "t_text"),
        ("c_bytes", "replace(encode(c_bytes, 'base64'), E'\\n', '')"),
        ("t_json", "t_json"),
        ("t_ints", "'[' || array_to_string(t_ints, ', ', 'null') || ']'"),
        ("t_texts", "'[' || array_to_string(t_texts, ', ', 'null') || ']'"),
        ("t_uuids", "'[' || array_to_string(t_uuids, ', ', 'null') || ']'"),
    ],
};

const MOVED: Table = Table { name: "moved", key: 1, columns: &[("moved_id", "moved_id"), ("v", "v")] };
const WHOLE: Table =
    Table { name: "whole", key: 1, columns: &[("whole_id", "whole_id"), ("n", "n"), ("note", "note")] };
const PAIR: Table = Table {
    name: "\"Odd näme\"",
    key: 2,
    columns: &[("pair_a", "pair_a"), ("pair_b", "pair_b"), ("quo\"te", "\"quo\"\"te\""), ("a b", "\"a b\"")],
};

const SETUP: &str = "
    CREATE TABLE types (types_id int PRIMARY KEY, c_bool bool, c_small int2, c_long int8, c_real real, c_double float8,
        c_num numeric(12,2), c_text text, c_varchar varchar(20), c_json json, c_jsonb jsonb, c_uuid uuid, c_bytes bytea,
        c_date date, c_ts timestamp, c_tstz timestamptz, c_interval interval, c_ints int[], c_longs int8[], c_doubles float8[],
        c_texts text[], c_nums numeric(8,3)[], c_bools bool[], c_uuids uuid[], c_dates date[], c_tss timestamp[],
        c_tstzs timestamptz[]);
    INSERT INTO types VALUES (1, true, -32768, 9007199254740993, 0.1, 1e-300, 12.30, E'a\"b\\\\ \tü😀', 'v', '{\"k\": [1,  null]}',
        '{\"k\": 1.50}', 'a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11', '\\x00ff10', '1969-12-31', '2024-02-29 13:14:15.123456',
        '2024-02-29 13:14:15.123456+02', '1 year 2 days 03:04:05.6', '{1,NULL,-3}', '{9007199254740993}', '{0.1,1e22,-0.5}', '{a,NULL,ü}',
        '{1.500,-0.001}', '{t,f,NULL}', '{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}', '{2024-02-29,NULL,1900-01-01}',
        '{2024-02-29 13:14:15.123456,1969-12-31 23:59:59}', '{2024-02-29 13:14:15.123456+02}');
    INSERT INTO types (types_id) VALUES (2);
    INSERT INTO types (types_id, c_bool, c_small, c_long, c_real, c_double, c_num, c_text, c_date, c_ts, c_tstz, c_bytes, c_ints)
        VALUES (3, false, 32767, -9223372036854775808, 3.4028235e38, -0.0, -9999999999.99, '', 'infinity', 'infinity', 'infinity', '', '{}');
    CREATE TABLE toast (toast_id int PRIMARY KEY, n int, t_text text, c_bytes bytea, t_json jsonb, t_ints int[], t_texts text[],
        t_uuids uuid[]);
    CREATE TABLE moved (moved_id int PRIMARY KEY, v text NOT NULL);
    INSERT INTO moved SELECT i, 'v' || i FROM generate_series(1, 20) i;
    CREATE TABLE whole (whole_id int PRIMARY KEY, n int NOT NULL, note text); ALTER TABLE whole REPLICA IDENTITY FULL;
    ALTER TABLE whole ALTER note SET STORAGE EXTERNAL;
    INSERT INTO whole SELECT i, i, repeat('note', 1000 * (i % 2)) FROM generate_series(1, 10) i;
    CREATE TABLE \"Odd näme\" (pair_a text, pair_b int, \"quo\"\"te\" text, \"a b\" int, PRIMARY KEY (pair_b, pair_a));
    INSERT INTO \"Odd näme\" VALUES ('x', 1, 'q', 1), ('x', 2, NULL, 2), ('y', 1, 'r', NULL);
    CREATE TABLE emptied (emptied_id int PRIMARY KEY, e text);
    INSERT INTO emptied VALUES (1, 'one'), (2, 'two');
    CREATE TABLE odd (odd_id int PRIMARY KEY, d float8, m numeric(8,2));
    INSERT INTO odd VALUES (1, 'NaN', 'NaN'), (2, 'Infinity', 2), (3, '-Infinity', 3);";

#[test]
fn debeziums_transforms_read_our_topics() {
    let mut rng = StdRng::seed_from_u64(7);
    let users = Postgres::new(SETUP);
    for column in ["t_text", "c_bytes", "t_json", "t_ints", "t_texts", "t_uuids"] {
        users.execute(&format!("ALTER TABLE toast ALTER {column} SET STORAGE EXTERNAL"));
    }
    for id in 1..=4 {
        let big = noise(&mut rng, 9_000);
        users.execute(&format!(
            "INSERT INTO toast SELECT {id}, 0, '{big}', decode('{big}', 'hex'), to_jsonb('{big}'::text),
                array_agg(i), array_agg('{big}' || i), array_agg(gen_random_uuid()) FROM generate_series(1, 2000) i"
        ));
    }
    let shop = Mongo::new();
    let oid = ObjectId::parse_str("65a1b2c3d4e5f60718293a4b").unwrap();
    let items = shop.collection("items");
    items.insert(doc! {
        "_id": oid, "n": 1, "l": 5_i64, "d": 0.5, "s": "a\"b", "b": true, "sub": { "w": 1, "h": [1, 2] }, "tags": ["x", "y"],
        "dec": "12.30".parse::<mongodb::bson::Decimal128>().unwrap(),
        "at": mongodb::bson::DateTime::from_millis(1_700_000_000_000), "none": Bson::Null,
    });
    items.insert_many(vec![
        doc! { "_id": "text id", "n": 1 },
        doc! { "_id": 7, "n": 1 },
        doc! { "_id": "null", "n": 1 },
    ]);
    let images = shop.collection_with_post_images("images");
    images.insert(doc! { "_id": "i1", "v": 1, "keep": "k" });

    let lake = Pipeline::new().postgres(&users).mongo(&shop).build();
    let config = lake.variant("state", &[("codec = \"json\"", "codec = \"json\"\ninline_schemas = true")]);
    assert!(lake.start_with(&config, &["--until-caught-up"], "").wait().success());

    let cast = "transforms=unwrap,text\ntransforms.text.type=org.apache.kafka.connect.transforms.Cast$Value\ntransforms.text.spec=c_bytes:string";
    let dir = lake.dir();
    let unwrap = documented(UNWRAP);
    let rows = FileSink::new(dir, "rows", &users.name, &unwrap, cast);
    let documents = FileSink::new(dir, "documents", &shop.name, &unwrap, &documented(UNWRAP_DOCUMENTS));
    let mut worker = Worker::start(dir, &[&rows, &documents]);
    let tables = [TYPES, TOAST, MOVED, WHOLE, PAIR];
    let equal = |text: &str| tables.iter().try_for_each(|table| table.judge(&users, text));
    worker.wait_until(&rows, equal);

    let running = lake.start_with(&config, &[], "");
    users.execute(
        "UPDATE types SET c_text = 'changed', c_num = NULL WHERE types_id = 1; INSERT INTO types (types_id, c_bool) VALUES (4, true);
         UPDATE toast SET n = 1; UPDATE toast SET t_text = 'short' WHERE toast_id = 2;
         DELETE FROM toast WHERE toast_id = 4;
         UPDATE moved SET moved_id = moved_id + 100, v = 'moved' WHERE moved_id <= 5; DELETE FROM moved WHERE moved_id BETWEEN 16 AND 99;
         UPDATE whole SET note = NULL WHERE whole_id % 2 = 0; DELETE FROM whole WHERE whole_id > 8; UPDATE whole SET whole_id = 90 WHERE whole_id = 1;
         UPDATE \"Odd näme\" SET \"a b\" = 9 WHERE pair_a = 'x'; DELETE FROM \"Odd näme\" WHERE pair_a = 'y'",
    );
    users.execute("TRUNCATE emptied");
    users.execute("INSERT INTO emptied VALUES (3, 'three')");
    items.update(doc! { "_id": oid }, doc! { "$set": { "n": 2 }, "$unset": { "s": 1 } });
    // A path with a dot may be a name as well: the connector sends the whole document.
    items.update(doc! { "_id": oid }, doc! { "$set": { "sub.w": 5 } });
    items.replace(doc! { "_id": "text id" }, doc! { "n": 3, "new": "field" });
    items.delete(doc! { "_id": 7 });
    items.delete(doc! { "_id": "null" });
    images.update(doc! { "_id": "i1" }, doc! { "$set": { "v": 2 } });
    worker.wait_until(&rows, equal);

    // Every value that an update left out was told in the form that its schema takes.
    let text = rows.text();
    let left_out = text.lines().filter_map(|line| TOAST.parse(line)).filter(|(row, _)| row[1].as_deref() == Some("1"));
    let told = left_out.map(|(row, _)| row[2..].iter().filter(|v| v.as_deref().is_some_and(is_left_out)).count());
    assert_eq!(told.max(), Some(6), "{}", clip(&text));
    // The transform drops truncates; JsonConverter knows no float but a number.
    worker.wait_until(&rows, |text| {
        let emptied = Table { name: "emptied", key: 1, columns: &[("emptied_id", "emptied_id"), ("e", "e")] };
        let odd = Table { name: "odd", key: 1, columns: &[("odd_id", "odd_id"), ("d", "d"), ("m", "m")] };
        let applied = (emptied.applied(text).len(), odd.applied(text).into_values().collect::<Vec<_>>());
        let row = |id: &str, m: Option<&str>| vec![Some(id.to_owned()), Some("0.0".to_owned()), m.map(str::to_owned)];
        let wanted = (3, vec![row("1", None), row("2", Some("2.00")), row("3", Some("3.00"))]);
        if applied == wanted { Ok(()) } else { Err(format!("{applied:?}")) }
    });
    let wanted = [
        "Struct{__deleted=true,_id=7}",
        "Struct{__deleted=true,_id=null}",
        "Struct{_id=65a1b2c3d4e5f60718293a4b,n=1,l=5,d=0.5,s=a\"b,b=true,sub=Struct{w=1,h=[1, 2]},tags=[x, y],dec=12.30,at=Tue Nov 14 22:13:20 UTC 2023,__deleted=false}",
        "Struct{_id=65a1b2c3d4e5f60718293a4b,n=2,l=5,d=0.5,b=true,sub=Struct{w=5,h=[1, 2]},tags=[x, y],dec=12.30,at=Tue Nov 14 22:13:20 UTC 2023,__deleted=false}",
        "Struct{_id=7,n=1,__deleted=false}",
        "Struct{_id=i1,v=1,keep=k,__deleted=false}",
        "Struct{_id=i1,v=2,keep=k,__deleted=false}",
        "Struct{_id=null,n=1,__deleted=false}",
        "Struct{_id=text id,n=1,__deleted=false}",
        "Struct{_id=text id,n=3,new=field,__deleted=false}",
        "Struct{n=2,_id=65a1b2c3d4e5f60718293a4b,__deleted=false}",
    ];
    worker.wait_until(&documents, |text| {
        let mut lines: Vec<_> = text.lines().collect();
        lines.sort_unstable();
        // A snapshot may read what the stream tells as well.
        lines.dedup();
        if lines == wanted { Ok(()) } else { Err(format!("{lines:#?}")) }
    });
    lake.verify();
    running.stop();
}

/// Without schemas Debezium's transform lets records pass as they are; Kafka's own one takes the new row out of them.
#[test]
fn kafkas_own_transform_reads_records_without_schema() {
    let users = Postgres::new(
        "CREATE TABLE t (id int PRIMARY KEY, v text, n numeric(8,2)); INSERT INTO t VALUES (1, 'one', 1.5), (2, NULL, NULL)",
    );
    let lake = Pipeline::new().postgres(&users).build();
    lake.catch_up();
    users.execute(
        "UPDATE t SET v = 'two' WHERE id = 2; DELETE FROM t WHERE id = 1; TRUNCATE t; INSERT INTO t VALUES (3, '3', 3)",
    );
    lake.catch_up();
    let sink = FileSink::new(lake.dir(), "plain", &users.name, &documented(WITHOUT_SCHEMA), "");
    let mut worker = Worker::start(lake.dir(), &[&sink]);
    let wanted = [
        "id=1 n=1.50 v=one",
        "id=2 n=null v=null",
        "id=2 n=null v=two",
        "id=3 n=3.00 v=3",
        // a delete, and a truncate in both partitions
        "null",
        "null",
        "null",
    ];
    worker.wait_until(&sink, |text| {
        // Java's maps have no order.
        let sorted = |line: &str| {
            let mut fields: Vec<_> = line.trim_matches(['{', '}']).split(", ").collect();
            fields.sort_unstable();
            fields.join(" ")
        };
        let mut lines: Vec<_> = text.lines().map(sorted).collect();
        lines.sort_unstable();
        if lines == wanted { Ok(()) } else { Err(format!("{lines:#?}")) }
    });
}
