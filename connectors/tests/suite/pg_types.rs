//! Every type, by COPY and by the stream: both give the same batch, and what interface.md promises.

use std::fmt::Write as _;
use std::sync::Arc;

use arrow::array::{Array, ArrayRef, AsArray};
use arrow::datatypes::{
    DataType, Date32Type, Decimal128Type, Float32Type, Float64Type, Int32Type, Int64Type, TimestampMicrosecondType,
};
use futures::TryStreamExt;
use lakeward_connectors::postgres::SESSION_SETTINGS;
use lakeward_connectors::postgres::catalog::{self, TableFilter, TableShape};
use lakeward_connectors::postgres::copy::CopyDecoder;
use lakeward_connectors::postgres::pgoutput::Message;
use lakeward_connectors::postgres::tuple::{Binding, RowMeta, TableBuilder};
use lakeward_event::{ChangeBatch, Op};
use tokio_postgres::{Client, NoTls};

/// A database of its own, dropped at the end of the test.
struct Database {
    client: Client,
    admin: Client,
    name: String,
}

async fn connect(url: &str, database: Option<&str>) -> Client {
    let mut config: tokio_postgres::Config = url.parse().unwrap();
    if let Some(database) = database {
        config.dbname(database);
    }
    let (client, connection) = config.connect(NoTls).await.expect("the test PostgreSQL does not answer");
    tokio::spawn(connection);
    client
}

impl Database {
    async fn create(test: &str) -> Self {
        let url = std::env::var("LAKEWARD_TEST_POSTGRES")
            .unwrap_or_else(|_| "postgresql://postgres:lakeward@127.0.0.1:22415/postgres".into());
        let admin = connect(&url, None).await;
        let name = format!("{test}_{}", uuid::Uuid::new_v4().simple());
        admin.batch_execute(&format!("CREATE DATABASE {name}")).await.unwrap();
        // What the session settings must win against.
        for setting in [
            "DateStyle = 'German, DMY'",
            "IntervalStyle = iso_8601",
            "TimeZone = 'Asia/Kolkata'",
            "bytea_output = escape",
            "extra_float_digits = -5",
        ] {
            admin.batch_execute(&format!("ALTER DATABASE {name} SET {setting}")).await.unwrap();
        }
        let client = connect(&url, Some(&name)).await;
        for (setting, value) in SESSION_SETTINGS {
            client.batch_execute(&format!("SET {setting} = '{value}'")).await.unwrap_or_else(|_| panic!("{setting}"));
        }
        Self { client, admin, name }
    }

    async fn run(&self, sql: &str) {
        self.client.batch_execute(sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
    }

    /// A publication of all tables, and a temporary slot named as the database: it does not outlive a test that fails.
    async fn capture(&self) {
        self.run("CREATE PUBLICATION p FOR ALL TABLES WITH (publish_via_partition_root = true)").await;
        self.run(&format!("SELECT pg_create_logical_replication_slot('{}', 'pgoutput', true)", self.name)).await;
    }

    /// Takes the messages that the slot holds.
    async fn messages(&self) -> Vec<Vec<u8>> {
        let sql = format!(
            "SELECT data FROM pg_logical_slot_get_binary_changes('{}', NULL, NULL, 'proto_version', '1', 'publication_names', 'p')",
            self.name
        );
        self.client.query(&sql, &[]).await.unwrap().iter().map(|r| r.get(0)).collect()
    }

    async fn shape(&self, table: &str) -> TableShape {
        let filter = TableFilter::new(&[format!("public.{table}")], &[]).unwrap();
        let tables = catalog::list_tables(&self.client, &filter).await.unwrap();
        assert_eq!(tables.len(), 1, "{tables:?}");
        tables[0].shape("users", 1).unwrap()
    }

    /// The table's rows by COPY, fed in pieces of `piece` bytes.
    async fn copy(&self, shape: &TableShape, from: &str, piece: usize) -> ChangeBatch {
        let sql = format!("COPY (SELECT {} FROM {from}) TO STDOUT (FORMAT binary)", shape.snapshot_select());
        let stream = self.client.copy_out(&sql).await.unwrap_or_else(|e| panic!("{sql}: {e:?}"));
        let chunks: Vec<_> = stream.try_collect().await.unwrap();
        let (mut decoder, mut builder, mut rows) = (CopyDecoder::new(), TableBuilder::new(shape), 0);
        for chunk in chunks.concat().chunks(piece) {
            rows += decoder.feed(chunk, &mut builder, meta(rows)).unwrap();
        }
        decoder.finish().unwrap();
        assert_eq!(builder.rows() as u64, rows);
        builder.finish().unwrap()
    }

    /// What the slot holds about this table.
    async fn stream(&self, shape: &TableShape) -> ChangeBatch {
        let mut builder = TableBuilder::new(shape);
        let (mut binding, mut sequence) = (None, 0);
        for message in self.messages().await {
            let (_, message) = Message::parse(&message, false).unwrap();
            let bound = || binding.as_ref().expect("a change before its Relation message");
            sequence += match &message {
                // A partition is announced too, before its rows come as the root's.
                Message::Relation(relation) if relation.oid != shape.relation_oid() => 0,
                Message::Relation(relation) => {
                    binding = Some(Binding::of(relation, shape).expect("the relation has the catalog's shape"));
                    0
                }
                Message::Insert { new, .. } => builder.insert(bound(), new, meta(sequence)).unwrap(),
                Message::Update { old, new, .. } => builder.update(bound(), old.as_ref(), new, meta(sequence)).unwrap(),
                Message::Delete { old, .. } => builder.delete(bound(), old, meta(sequence)).unwrap(),
                Message::Truncate { .. } => builder.truncate(meta(sequence)).unwrap(),
                _ => 0,
            };
        }
        builder.finish().unwrap()
    }

    async fn drop(self) {
        let _ = self.client.execute("SELECT pg_drop_replication_slot($1)", &[&self.name]).await;
        drop(self.client);
        self.admin.batch_execute(&format!("DROP DATABASE {} WITH (FORCE)", self.name)).await.unwrap();
    }
}

fn meta(sequence: u64) -> RowMeta {
    RowMeta { sequence, position: 7, tx: Some(9), commit_ts: Some(11) }
}

/// A value as this test writes it down: Arrow's raw numbers, so that nothing is hidden by a printer.
fn show(array: &ArrayRef, row: usize) -> String {
    if array.is_null(row) {
        return "null".into();
    }
    match array.data_type() {
        DataType::Boolean => array.as_boolean().value(row).to_string(),
        DataType::Int32 => array.as_primitive::<Int32Type>().value(row).to_string(),
        DataType::Int64 => array.as_primitive::<Int64Type>().value(row).to_string(),
        DataType::Float32 => format!("{:?}", array.as_primitive::<Float32Type>().value(row)),
        DataType::Float64 => format!("{:?}", array.as_primitive::<Float64Type>().value(row)),
        DataType::Decimal128(_, scale) => format!("{}e-{scale}", array.as_primitive::<Decimal128Type>().value(row)),
        DataType::Date32 => array.as_primitive::<Date32Type>().value(row).to_string(),
        DataType::Timestamp(_, zone) => {
            let zone = if zone.is_some() { "Z" } else { "" };
            format!("{}{zone}", array.as_primitive::<TimestampMicrosecondType>().value(row))
        }
        DataType::Utf8 => format!("'{}'", array.as_string::<i32>().value(row)),
        DataType::Binary => hex(array.as_binary::<i32>().value(row)),
        DataType::FixedSizeBinary(16) => hex(array.as_fixed_size_binary().value(row)),
        DataType::List(_) => {
            let list = array.as_list::<i32>().value(row);
            let items: Vec<_> = (0..list.len()).map(|i| show(&list, i)).collect();
            format!("[{}]", items.join(" "))
        }
        other => panic!("no column is {other}"),
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold("x".to_owned(), |mut text, byte| {
        write!(text, "{byte:02x}").unwrap();
        text
    })
}

/// `column: value` for each column of `after` or `before`, or `-`.
fn side(batch: &ChangeBatch, row: usize, after: bool) -> String {
    let side = if after { batch.after() } else { batch.before() };
    if side.is_null(row) {
        return "-".into();
    }
    side.columns().iter().map(|c| show(c, row)).collect::<Vec<_>>().join(" ")
}

/// Type, SQL value (`NULL` is added to each), the expected value or the misfit's text.
type Case = (&'static str, &'static [(&'static str, Expected)]);

enum Expected {
    Value(&'static str),
    Misfit(&'static str),
}
use Expected::{Misfit, Value};

const CASES: &[Case] = &[
    ("bool", &[("true", Value("true")), ("false", Value("false"))]),
    ("int2", &[("-32768", Value("-32768")), ("32767", Value("32767"))]),
    ("int4", &[("-2147483648", Value("-2147483648")), ("2147483647", Value("2147483647"))]),
    (
        "int8",
        &[
            ("-9223372036854775808", Value("-9223372036854775808")),
            ("9223372036854775807", Value("9223372036854775807")),
        ],
    ),
    ("oid", &[("4294967295", Value("4294967295"))]),
    (
        "float4",
        &[
            ("'NaN'", Value("NaN")),
            ("'-Infinity'", Value("-inf")),
            ("1.17549435e-38", Value("1.1754944e-38")),
            ("'-0'", Value("-0.0")),
            ("16777217", Value("16777216.0")),
        ],
    ),
    (
        "float8",
        &[
            ("'NaN'", Value("NaN")),
            ("'Infinity'", Value("inf")),
            ("0.1::float8 + 0.2::float8", Value("0.30000000000000004")),
            ("5e-324", Value("5e-324")),
            ("1e300", Value("1e300")),
        ],
    ),
    (
        "numeric(10,2)",
        &[
            ("12.5", Value("1250e-2")),
            ("-0.01", Value("-1e-2")),
            ("99999999.99", Value("9999999999e-2")),
            ("0", Value("0e-2")),
            ("10000", Value("1000000e-2")),
            ("'NaN'", Misfit("NaN")),
        ],
    ),
    (
        "numeric(38,0)",
        &[
            ("99999999999999999999999999999999999999", Value("99999999999999999999999999999999999999e-0")),
            ("-1e37", Value("-10000000000000000000000000000000000000e-0")),
        ],
    ),
    (
        "numeric(38,1)",
        &[("9999999999999999999999999999999999999.5", Value("99999999999999999999999999999999999995e-1"))],
    ),
    (
        "numeric(38,38)",
        &[
            ("0.00000000000000000000000000000000000001", Value("1e-38")),
            ("0.99999999999999999999999999999999999999", Value("99999999999999999999999999999999999999e-38")),
        ],
    ),
    (
        "numeric(39,1)",
        &[("99999999999999999999999999999999999999.5", Value("'99999999999999999999999999999999999999.5'"))],
    ),
    ("numeric(3,-2)", &[("12345", Value("'12300'"))]),
    ("numeric(2,4)", &[("0.0012", Value("'0.0012'"))]),
    (
        "numeric",
        &[
            ("'NaN'", Value("'NaN'")),
            ("'Infinity'", Value("'Infinity'")),
            ("'-Infinity'", Value("'-Infinity'")),
            ("1.500", Value("'1.500'")),
            ("0", Value("'0'")),
            ("0.000", Value("'0.000'")),
            ("-0.00001234", Value("'-0.00001234'")),
            ("1e20", Value("'100000000000000000000'")),
            ("1e-10", Value("'0.0000000001'")),
            ("123456789012345678901234567890.0987654321", Value("'123456789012345678901234567890.0987654321'")),
            ("10000.0001", Value("'10000.0001'")),
        ],
    ),
    ("money", &[("'-1234.5'", Value("'-$1,234.50'"))]),
    (
        "text",
        &[("''", Value("''")), ("E'a\\nb\\tc\\\\'", Value("'a\nb\tc\\'")), ("'naïve 日本'", Value("'naïve 日本'"))],
    ),
    ("varchar(5)", &[("'abc  '", Value("'abc  '"))]),
    ("char(5)", &[("'abc'", Value("'abc  '"))]),
    ("\"char\"", &[("'x'", Value("'x'"))]),
    ("name", &[("'n'", Value("'n'"))]),
    ("mood", &[("'sad '", Value("'sad '"))]),
    ("xml", &[("'<?xml version=\"1.0\" encoding=\"UTF-8\"?><a/>'", Value("'<a/>'"))]),
    (
        "inet",
        &[("'10.0.0.1'", Value("'10.0.0.1'")), ("'10.0.0.1/8'", Value("'10.0.0.1/8'")), ("'::1'", Value("'::1'"))],
    ),
    ("cidr", &[("'10.0.0.0/8'", Value("'10.0.0.0/8'"))]),
    ("macaddr", &[("'08:00:2b:01:02:03'", Value("'08:00:2b:01:02:03'"))]),
    ("bit(5)", &[("B'10101'", Value("'10101'"))]),
    ("varbit", &[("B'101'", Value("'101'"))]),
    ("int4range", &[("'[1,5]'", Value("'[1,6)'")), ("'empty'", Value("'empty'"))]),
    ("tstzrange", &[("'[2024-01-01 00:00+00,)'", Value("'[\"2024-01-01 00:00:00+00\",)'"))]),
    ("int4multirange", &[("'{[1,2],[4,5]}'", Value("'{[1,3),[4,6)}'"))]),
    ("point", &[("'(0.1,2)'", Value("'(0.1,2)'"))]),
    ("interval", &[("'1 year 2 mons -3 days 04:05:06.789'", Value("'1 year 2 mons -3 days +04:05:06.789'"))]),
    ("timetz", &[("'24:00:00+05:30'", Value("'24:00:00+05:30'"))]),
    ("time", &[("'24:00:00'", Value("'24:00:00'")), ("'01:02:03.000004'", Value("'01:02:03.000004'"))]),
    ("tsvector", &[("'b a:1'", Value("''a':1 'b''"))]),
    ("pg_lsn", &[("'16/B374D848'", Value("'16/B374D848'"))]),
    ("json", &[("'{\"b\": 1,  \"a\":[1.0,null]}'", Value("'{\"b\": 1,  \"a\":[1.0,null]}'"))]),
    (
        "jsonb",
        &[
            ("'{\"b\": 1,  \"a\":[1.0,null]}'", Value("'{\"a\": [1.0, null], \"b\": 1}'")),
            ("'\"x\"'", Value("'\"x\"'")),
        ],
    ),
    ("uuid", &[("'A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11'", Value("xa0eebc999c0b4ef8bb6d6bb9bd380a11"))]),
    ("bytea", &[("'\\x'", Value("x")), ("'\\x00ff5c27'", Value("x00ff5c27"))]),
    (
        "date",
        &[
            ("'2024-02-29'", Value("19782")),
            ("'0001-01-01'", Value("-719162")),
            ("'0044-03-15 BC'", Value("-735160")),
            ("'infinity'", Value("2147483647")),
            ("'-infinity'", Value("-2147483647")),
            ("'5874897-12-31'", Value("2145042905")),
            ("'4713-01-01 BC'", Value("-2440550")),
        ],
    ),
    (
        "timestamp",
        &[
            ("'1969-12-31 23:59:59.999999'", Value("-1")),
            ("'0044-03-15 12:00 BC'", Value("-63517780800000000")),
            ("'infinity'", Value("9223372036854775807")),
            ("'-infinity'", Value("-9223372036854775807")),
            ("'294247-01-10 04:00:54.775806'", Value("9223372036854775806")),
            ("'294247-01-10 04:00:54.775807'", Misfit("294247-01-10 04:00:54.775807")),
            ("'294276-12-31 23:59:59.5'", Misfit("294276-12-31 23:59:59.5")),
        ],
    ),
    (
        "timestamptz",
        &[
            ("'2024-01-01 00:00+05:30'", Value("1704047400000000Z")),
            ("'infinity'", Value("9223372036854775807Z")),
            ("'-infinity'", Value("-9223372036854775807Z")),
            ("'294276-12-31 23:59:59+00'", Misfit("294276-12-31 23:59:59+00")),
            ("'4713-01-01 00:00+00 BC'", Value("-210863520000000000Z")),
        ],
    ),
    (
        "int4[]",
        &[
            ("'{}'", Value("[]")),
            ("'{1,NULL,-3}'", Value("[1 null -3]")),
            ("'{{1,2},{3,4}}'", Misfit("{{1,2},{3,4}}")),
            ("'[0:1]={1,2}'", Misfit("[0:1]={1,2}")),
        ],
    ),
    (
        "text[]",
        &[
            ("ARRAY['a,b','NULL','',E'q\"\\\\',' s ',NULL]", Value("['a,b' 'NULL' '' 'q\"\\' ' s ' null]")),
            ("'{{a}}'", Misfit("{{a}}")),
        ],
    ),
    ("numeric(6,2)[]", &[("'{1.5,NULL}'", Value("[150e-2 null]")), ("'{1,NaN}'", Misfit("{1.00,NaN}"))]),
    ("bool[]", &[("'{t,f}'", Value("[true false]"))]),
    ("timestamptz[]", &[("'{2024-01-01 00:00+00,infinity}'", Value("[1704067200000000Z 9223372036854775807Z]"))]),
    ("uuid[]", &[("'{a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11}'", Value("[xa0eebc999c0b4ef8bb6d6bb9bd380a11]"))]),
    ("bytea[]", &[("ARRAY['\\x00ff'::bytea]", Value("[x00ff]"))]),
    ("jsonb[]", &[("ARRAY['{\"a\": \"x,y\"}'::jsonb]", Value("['{\"a\": \"x,y\"}']"))]),
    ("box[]", &[("'{(1,2),(0,0);(3,4),(1,1)}'", Value("['(1,2),(0,0)' '(3,4),(1,1)']"))]),
    ("mood[]", &[("'{\"sad \",ok}'", Value("['sad ' 'ok']"))]),
    ("int2vector", &[("'1 2'", Value("'1 2'"))]),
    ("price", &[("1.5", Value("150e-2"))]),
    ("prices", &[("'{1.5}'", Value("[150e-2]"))]),
    (
        "address",
        &[
            (
                "ROW('O''Neill \"x\", 1', 12, ARRAY[1.50,NULL], 'sad ', ROW(true, '{\"k\": 1}'))",
                Value(
                    r#"'{"street":"O'Neill \"x\", 1","no":12,"prices":[1.50,null],"mood":"sad ","inner":{"ok":true,"j":{"k": 1}}}'"#,
                ),
            ),
            (
                "ROW(NULL,NULL,NULL,NULL,NULL)",
                Value(r#"'{"street":null,"no":null,"prices":null,"mood":null,"inner":null}'"#),
            ),
        ],
    ),
    (
        "address_domain",
        &[(
            "ROW('s', 1, NULL, NULL, NULL)",
            Value(r#"'{"street":"s","no":1,"prices":null,"mood":null,"inner":null}'"#),
        )],
    ),
    ("flag[]", &[("ARRAY[ROW(true,'1')::flag]", Value(r#"['{"ok":true,"j":1}']"#))]),
];

const TYPES: &str = r#"
    CREATE TYPE mood AS ENUM ('sad ', 'ok');
    CREATE DOMAIN price AS numeric(10,2);
    CREATE DOMAIN prices AS price[];
    CREATE TYPE flag AS (ok bool, j jsonb);
    CREATE TYPE address AS (street text, no int, prices numeric[], mood mood, "inner" flag);
    CREATE DOMAIN address_domain AS address;
"#;

#[tokio::test]
async fn copy_and_stream_agree_on_every_type() {
    let db = Database::create("pg_types").await;
    db.run(TYPES).await;
    let columns: Vec<_> = CASES.iter().enumerate().map(|(i, (ty, _))| format!("\"C {i}\" {ty}")).collect();
    db.run(&format!("CREATE TABLE every (id int PRIMARY KEY, {})", columns.join(", "))).await;
    db.capture().await;
    // Row n holds each type's nth value, row 0 and what is past a type's last value are null.
    let rows = 1 + CASES.iter().map(|(_, values)| values.len()).max().unwrap();
    for row in 0..rows {
        let values = CASES.iter().map(|(ty, values)| match row.checked_sub(1).and_then(|i| values.get(i)) {
            Some((sql, _)) => format!("({sql})::{ty}"),
            None => "NULL".into(),
        });
        db.run(&format!("INSERT INTO every VALUES ({row}, {})", values.collect::<Vec<_>>().join(", "))).await;
    }

    let shape = db.shape("every").await;
    let streamed = db.stream(&shape).await;
    for piece in [1, 1 << 20] {
        let copied = db.copy(&shape, "ONLY every ORDER BY id", piece).await;
        assert!(copied.ops().iter().all(|op| *op == Op::Read as u8));
        assert_eq!(copied.sequences(), streamed.sequences());
        assert_eq!(copied.after().to_data(), streamed.after().to_data());
        assert_eq!(misfits(&copied), misfits(&streamed));
    }

    assert_eq!(streamed.num_rows(), rows);
    for (index, (ty, values)) in CASES.iter().enumerate() {
        let column = streamed.after().column(index + 1);
        for row in 0..rows {
            let misfit = streamed.misfits().of(row).find(|m| m.1 == index + 1);
            match row.checked_sub(1).and_then(|i| values.get(i)) {
                None => assert_eq!((show(column, row).as_str(), misfit), ("null", None), "{ty}"),
                Some((sql, Value(text))) => {
                    assert_eq!((show(column, row).as_str(), misfit), (*text, None), "{ty} {sql}")
                }
                Some((sql, Misfit(text))) => {
                    assert_eq!(show(column, row), "null", "{ty} {sql}");
                    assert_eq!(misfit, Some((b'a', index + 1, *text)), "{ty} {sql}");
                }
            }
        }
    }
    db.drop().await;
}

fn misfits(batch: &ChangeBatch) -> Vec<(usize, u8, usize, String)> {
    let misfits = batch.misfits();
    let rows = 0..batch.num_rows();
    rows.flat_map(|row| misfits.of(row).map(move |(side, column, text)| (row, side, column, text.to_owned()))).collect()
}

/// Operations, and both sides of each row.
fn story(batch: &ChangeBatch) -> Vec<String> {
    let row = |i: usize| {
        let unchanged = batch.unchanged();
        let unchanged =
            if unchanged.is_null(i) { String::new() } else { format!(" unchanged {}", hex(unchanged.value(i))) };
        let op = char::from(batch.ops()[i]);
        format!("{op} {} -> {}{unchanged}", side(batch, i, false), side(batch, i, true))
    };
    (0..batch.num_rows()).map(row).collect()
}

/// A value of 20,000 characters that does not compress.
const BIG: &str = "(SELECT string_agg(md5(i::text), '') FROM generate_series(1, 625) i)";

#[tokio::test]
async fn operations_on_a_table_with_a_primary_key() {
    let db = Database::create("pg_ops").await;
    db.run("CREATE TABLE t (a int, id int, big text, PRIMARY KEY (id, a))").await;
    db.run("ALTER TABLE t DROP COLUMN a; ALTER TABLE t ADD PRIMARY KEY (id); ALTER TABLE t ADD v text").await;
    db.run("ALTER TABLE t ALTER big SET STORAGE EXTERNAL").await;
    db.capture().await;
    db.run(&format!("INSERT INTO t VALUES (1, {BIG}, 'x')")).await;
    db.run("UPDATE t SET v = 'y'").await;
    db.run("UPDATE t SET id = 2").await;
    db.run("DELETE FROM t").await;
    db.run("TRUNCATE t").await;
    let shape = db.shape("t").await;
    assert_eq!(shape.schema().columns.iter().map(|c| c.id).collect::<Vec<_>>(), [2, 3, 4]);
    assert_eq!(shape.schema().key, [0]);
    let batch = db.stream(&shape).await;
    let story = story(&batch);
    assert!(story[0].starts_with("c - -> 1 'c4ca4238a0b923820dcc509a6f75849b"), "{}", story[0]);
    assert_eq!(
        story[1..],
        [
            "u - -> 1 null 'y' unchanged x02",
            "d 1 null null -> -",
            "c 1 null null -> 2 null 'y' unchanged x02",
            "d 2 null null -> -",
            "t - -> -"
        ]
    );
    assert_eq!(batch.sequences(), [0, 1, 2, 3, 4, 5]);
    db.drop().await;
}

#[tokio::test]
async fn operations_with_the_whole_old_row() {
    let db = Database::create("pg_full").await;
    db.run("CREATE TABLE t (v text, id int PRIMARY KEY, big text)").await;
    db.run("ALTER TABLE t ALTER big SET STORAGE EXTERNAL; ALTER TABLE t REPLICA IDENTITY FULL").await;
    db.capture().await;
    db.run(&format!("INSERT INTO t VALUES ('x', 1, {BIG})")).await;
    db.run("UPDATE t SET v = 'y'").await;
    db.run("UPDATE t SET id = 2").await;
    let shape = db.shape("t").await;
    assert_eq!(shape.schema().key, [1]);
    let batch = db.stream(&shape).await;
    let (after, before) = (batch.after(), batch.before());
    assert_eq!(batch.ops(), b"cudc");
    assert_eq!(batch.unchanged().null_count(), 4, "nothing is missing");
    let big = show(after.column(2), 0);
    assert_eq!(big.len(), 20_002);
    assert_eq!((show(after.column(2), 1), show(before.column(2), 1)), (big.clone(), big.clone()));
    assert_eq!((show(before.column(0), 1), show(after.column(0), 1)), ("'x'".into(), "'y'".into()));
    assert_eq!(
        (show(before.column(1), 3), show(after.column(1), 3), show(after.column(2), 3)),
        ("1".into(), "2".into(), big)
    );
    assert!(after.is_null(2) && before.is_null(0));
    db.drop().await;
}

#[tokio::test]
async fn the_identity_index_is_the_key() {
    let db = Database::create("pg_index").await;
    db.run(
        "CREATE TABLE t (id int PRIMARY KEY, x int NOT NULL, y int NOT NULL, g int GENERATED ALWAYS AS (x + 1) STORED);
         CREATE UNIQUE INDEX u ON t (y, x) INCLUDE (id); ALTER TABLE t REPLICA IDENTITY USING INDEX u",
    )
    .await;
    db.capture().await;
    db.run("INSERT INTO t VALUES (1, 10, 100); UPDATE t SET y = 101; DELETE FROM t").await;
    let shape = db.shape("t").await;
    assert_eq!(shape.schema().key, [2, 1]);
    let batch = db.stream(&shape).await;
    assert_eq!(
        story(&batch),
        ["c - -> 1 10 100", "d null 10 100 -> -", "c null 10 100 -> 1 10 101", "d null 10 101 -> -"]
    );
    db.drop().await;
}

#[tokio::test]
async fn partitions_are_their_root() {
    let db = Database::create("pg_parts").await;
    db.run(
        "CREATE TABLE t (id int PRIMARY KEY, v text) PARTITION BY RANGE (id);
         CREATE TABLE t1 PARTITION OF t FOR VALUES FROM (0) TO (10);
         CREATE TABLE t2 (v text, gone int, id int NOT NULL); ALTER TABLE t2 DROP COLUMN gone;
         ALTER TABLE t ATTACH PARTITION t2 FOR VALUES FROM (10) TO (20);
         CREATE UNLOGGED TABLE u (id int)",
    )
    .await;
    db.capture().await;
    db.run("INSERT INTO t VALUES (1, 'a'), (11, 'b')").await;
    let all = catalog::list_tables(&db.client, &TableFilter::new(&[], &[]).unwrap()).await.unwrap();
    assert_eq!(all.iter().map(|t| t.name.as_str()).collect::<Vec<_>>(), ["t"]);
    assert!(all[0].partitioned);
    let leaves = catalog::leaves(&db.client, all[0].oid).await.unwrap();
    assert_eq!(
        leaves.iter().map(|l| l.qualified.as_str()).collect::<Vec<_>>(),
        [r#""public"."t1""#, r#""public"."t2""#]
    );
    assert_eq!(catalog::leaves(&db.client, leaves[1].oid).await.unwrap(), leaves[1..]);

    let shape = all[0].shape("users", 1).unwrap();
    assert_eq!(story(&db.stream(&shape).await), ["c - -> 1 'a'", "c - -> 11 'b'"]);
    let copied = db.copy(&shape, &format!("ONLY {}", leaves[1].qualified), 100).await;
    assert_eq!(story(&copied), ["r - -> 11 'b'"]);
    db.drop().await;
}

#[tokio::test]
async fn another_shape_is_noticed() {
    let db = Database::create("pg_shape").await;
    db.run("CREATE TABLE t (id int PRIMARY KEY, v text)").await;
    db.capture().await;
    let mut shape = db.shape("t").await;
    for change in [
        "ALTER TABLE t ADD w int",
        "ALTER TABLE t RENAME v TO vv",
        "ALTER TABLE t ALTER vv TYPE varchar(10)",
        "ALTER TABLE t DROP COLUMN w",
        "ALTER TABLE t REPLICA IDENTITY FULL",
        "ALTER TABLE t REPLICA IDENTITY DEFAULT; ALTER TABLE t DROP CONSTRAINT t_pkey",
    ] {
        db.run(change).await;
        db.run("INSERT INTO t SELECT count(*) FROM t").await;
        let newer = db.shape("t").await;
        let messages = db.messages().await;
        let relation = messages.iter().find_map(|m| match Message::parse(m, false).unwrap().1 {
            Message::Relation(relation) => Some(relation),
            _ => None,
        });
        let relation = relation.expect("a change of the table makes a Relation message");
        assert_eq!(Binding::of(&relation, &shape), None, "{change}");
        assert!(Binding::of(&relation, &newer).is_some(), "{change}");
        shape = newer;
    }
    let oid = shape.relation_oid();
    assert_eq!(catalog::read_table(&db.client, oid).await.unwrap().unwrap().key, Vec::<usize>::new());
    db.run("DROP TABLE t").await;
    assert_eq!(catalog::read_table(&db.client, oid).await.unwrap(), None);
    db.drop().await;
}

/// Columns can be none at all.
#[tokio::test]
async fn a_table_without_columns() {
    let db = Database::create("pg_empty").await;
    db.run("CREATE TABLE t ()").await;
    db.capture().await;
    db.run("INSERT INTO t DEFAULT VALUES").await;
    let shape = db.shape("t").await;
    assert_eq!(db.copy(&shape, "ONLY t", 3).await.num_rows(), 1);
    assert_eq!(db.stream(&shape).await.num_rows(), 1);
    let schema = Arc::clone(shape.schema());
    assert!(schema.columns.is_empty() && schema.key.is_empty());
    db.drop().await;
}
