//! Records by other schemas than the reader's: older and newer ones, those of others, and those that are made to hurt.

use std::sync::Arc;

use apache_avro::types::Value;
use arrow::array::{
    Array, ArrayRef, AsArray, Float32Array, Float64Array, Int32Array, Int64Array, StringArray, StructArray,
};
use arrow::datatypes::{Decimal128Type, Int64Type};
use proptest::prelude::*;

use super::{Registry, decoder, encoded};
use crate::batch::{ChangeBatch, Op};
use crate::codec::avro::plan::Envelope;
use crate::codec::avro::registered::Registered;
use crate::codec::avro::schema::{ty as avro_type, value as avro_schema};
use crate::codec::avro::wire::write_long;
use crate::codec::registry::RegisteredSchema;
use crate::codec::samples::{any_batch, meta, record, row, rows, schema};
use crate::codec::{Decoder, RecordBlock, RecordRef};
use crate::error::Error;
use crate::schema::{Column, TableSchema};
use crate::types::LogicalType;

fn columns(of: &[(&str, LogicalType)]) -> Vec<Column> {
    let column = |(i, (name, ty)): (usize, &(&str, LogicalType))| Column {
        id: i as i32 + 1,
        name: (*name).into(),
        ty: ty.clone(),
        source_type: String::new(),
        nullable: true,
    };
    of.iter().enumerate().map(column).collect()
}

/// The same records under the version before and the one after.
#[test]
fn versions_read_each_other() {
    let base = schema(vec![], vec![]);
    let version = |version, of: &[(&str, LogicalType)]| {
        Arc::new(TableSchema { version, columns: columns(of), ..(*base).clone() })
    };
    use LogicalType::{Double, Float, Int, Long, String};
    let old = version(1, &[("id", Int), ("name", String), ("ratio", Float)]);
    let new = version(2, &[("ratio", Double), ("added", String), ("id", Long)]);
    let other = version(3, &[("id", String)]);
    let registry = Arc::<Registry>::default();
    let of = |schema: &Arc<TableSchema>, columns: Vec<ArrayRef>| {
        let meta = meta(&[row(Op::Create, 1)]).finish().unwrap();
        let before = StructArray::new_null(schema.arrow_fields(), 1);
        let after = rows(schema, columns, vec![true]);
        encoded(&ChangeBatch::try_new(schema.clone(), meta, after, before).unwrap(), 1, &registry)
    };
    let text = |text: &str| Arc::new(StringArray::from(vec![text])) as ArrayRef;
    let by_old =
        of(&old, vec![Arc::new(Int32Array::from(vec![-7])), text("n"), Arc::new(Float32Array::from(vec![0.5]))]);
    let by_new =
        of(&new, vec![Arc::new(Float64Array::from(vec![0.1])), text("a"), Arc::new(Int64Array::from(vec![9]))]);
    let mut decoder = decoder(&[&old, &new, &other], &registry);
    let mut read = |block: &RecordBlock, header: &str| {
        let r = block.iter().next().unwrap();
        decoder.push(&RecordRef { header: Some(header.as_bytes()), ..record(&r) })?;
        Ok::<_, Error>(decoder.flush()?.remove(0).after().clone())
    };
    let expected = rows(
        &new,
        vec![
            Arc::new(Float64Array::from(vec![0.5])),
            Arc::new(StringArray::new_null(1)),
            Arc::new(Int64Array::from(vec![-7])),
        ],
        vec![true],
    );
    assert_eq!(read(&by_old, "avro,2,1").unwrap(), expected);
    // narrower columns do not take wider types, whatever the value
    let error = read(&by_new, "avro,1,1").unwrap_err().to_string();
    assert!(error.contains("field ratio is not of type Float, as version 1 has it"), "{error}");
    assert!(read(&by_old, "avro,3,1").unwrap_err().to_string().contains("field id is not of type String"));
    let narrow = version(4, &[("added", String), ("gone", Int)]);
    let mut decoder = super::decoder(&[&narrow], &registry);
    let r = by_new.iter().next().unwrap();
    decoder.push(&RecordRef { header: Some(b"avro,4,1"), ..record(&r) }).unwrap();
    let expected = rows(&narrow, vec![text("a"), Arc::new(Int32Array::new_null(1))], vec![true]);
    assert_eq!(decoder.flush().unwrap()[0].after(), &expected);
}

/// A record by a schema that we did not write: other orders, unions the other way round or none, fields that we do not
/// know, types defined elsewhere.
#[test]
fn schemas_of_others_are_read_by_name() {
    let row = r#"{"type":"record","name":"shared.Row","fields":[
        {"name":"unknown","type":{"type":"map","values":{"type":"array","items":"shared.Kind"}}},
        {"name":"c2","type":["string","null"]},
        {"name":"c1","type":{"type":"fixed","name":"Uuid","size":16}},
        {"name":"c0","type":["double","null","int"]},
        {"name":"c3","type":{"type":"array","items":"string"}},
        {"name":"c4","type":{"type":"fixed","name":"Money","size":20,"logicalType":"decimal","precision":30,"scale":2}},
        {"name":"nested","type":["null","shared.Row"]}]}"#;
    let kind = r#"{"type":"enum","name":"shared.Kind","symbols":["A","B"]}"#;
    let envelope = r#"{"type":"record","name":"E","namespace":"other","fields":[
        {"name":"op","type":["null","string"]},
        {"name":"source","type":{"type":"record","name":"S","fields":[
            {"name":"more","type":["null",{"type":"record","name":"M","fields":[{"name":"f","type":"double"}]}]},
            {"name":"lsn","type":"int"},{"name":"ts_us","type":["long","null"]}]}},
        {"name":"after","type":["shared.Row","null"]},
        {"name":"before","type":["null","shared.Row"]}]}"#;
    let parsed = apache_avro::Schema::parse_list([kind, row, envelope]).unwrap();
    let text = |text: &str| Value::String(text.into());
    let some = |branch: u32, value: Value| Value::Union(branch, Box::new(value));
    let of = |c0: Value, nested: Value| {
        Value::Record(vec![
            (
                "unknown".into(),
                Value::Map([("k".to_owned(), Value::Array(vec![Value::Enum(1, "B".into()); 3]))].into()),
            ),
            ("c2".into(), some(0, text("ü"))),
            ("c1".into(), Value::Fixed(16, vec![7; 16])),
            ("c0".into(), c0),
            ("c3".into(), Value::Array(vec![text("x"), text("")])),
            ("c4".into(), Value::Decimal(apache_avro::Decimal::from([&[0xff; 18][..], &[0xfb, 0x32]].concat()))),
            ("nested".into(), nested),
        ])
    };
    let nested = some(1, of(some(2, Value::Int(2)), some(0, Value::Null)));
    let envelope_of = |c0: Value| {
        Value::Record(vec![
            ("op".into(), some(1, text("c"))),
            (
                "source".into(),
                Value::Record(vec![
                    ("more".into(), some(1, Value::Record(vec![("f".into(), Value::Double(1.5))]))),
                    ("lsn".into(), Value::Int(77)),
                    ("ts_us".into(), some(0, Value::Long(5))),
                ]),
            ),
            ("after".into(), some(0, of(c0, nested.clone()))),
            ("before".into(), some(0, Value::Null)),
        ])
    };
    let datum =
        |c0: Value| apache_avro::to_avro_datum_schemata(&parsed[2], parsed.iter().collect(), envelope_of(c0)).unwrap();

    let decimal = LogicalType::Decimal { precision: 12, scale: 2 };
    let list = LogicalType::List(Box::new(LogicalType::String));
    let mut table = (*schema(vec![], vec![])).clone();
    table.columns = columns(&[
        ("c0", LogicalType::Long),
        ("c1", LogicalType::Uuid),
        ("c2", LogicalType::String),
        ("c3", list),
        ("c4", decimal),
        ("c5", LogicalType::Bool),
    ]);
    let table = Arc::new(table);
    let registry = Arc::<Registry>::default();
    let id = registry.add(envelope, &[kind, row]);
    let value = |id: u32, c0: Value| [&[0][..], &id.to_be_bytes(), &datum(c0)].concat();
    let one = value(id, some(2, Value::Int(1)));
    let at = RecordRef {
        topic: "t",
        partition: 0,
        offset: 0,
        key: None,
        value: Some(&one),
        header: Some(b"avro,7,18446744073709551615"),
    };
    let mut decoder = decoder(&[&table], &registry);
    decoder.push(&at).unwrap();
    let batch = decoder.flush().unwrap().remove(0);
    assert_eq!((batch.sequences(), batch.positions()), (&[u64::MAX][..], &[77][..]));
    assert_eq!((batch.commit_ts().value(0), batch.ops()[0]), (5, b'c'));
    let after = batch.after();
    assert_eq!(after.column(0).as_primitive::<Int64Type>().value(0), 1);
    assert_eq!(after.column(1).as_fixed_size_binary().value(0), [7; 16]);
    assert_eq!(after.column(2).as_string::<i32>().value(0), "ü");
    assert_eq!(after.column(3).as_list::<i32>().value(0).as_string::<i32>(), &StringArray::from(vec!["x", ""]));
    assert_eq!(after.column(4).as_primitive::<Decimal128Type>().value(0), -1230);
    assert!(after.column(5).is_null(0) && batch.before().is_null(0));
    // a branch that is no whole number, in a column of them
    let error = decoder.push(&RecordRef { value: Some(&value(id, some(0, Value::Double(1.0)))), ..at }).unwrap_err();
    assert!(error.to_string().contains("branch 0 of a union, which is of another type"), "{error}");
    // a schema whose reference is missing
    let id = registry.add(envelope, &[kind]);
    let error = decoder.push(&RecordRef { value: Some(&value(id, some(1, Value::Null))), ..at }).unwrap_err();
    assert!(error.to_string().contains("nothing says what type shared.Row is"), "{error}");
    assert_eq!(decoder.rows(), 0);
}

/// A type that only looks like the column's would give other values: it is refused, before any is read.
#[test]
fn types_are_not_guessed() {
    let decimal = |scale| LogicalType::Decimal { precision: 10, scale };
    let list = |ty| LogicalType::List(Box::new(ty));
    use LogicalType::{Binary, Bool, Date, Int, Json, Long, String, Timestamp, TimestampTz, Uuid};
    for (ty, takes) in [
        (r#""int""#, vec![Int, Long, Date]),
        (r#"{"type":"int","logicalType":"date"}"#, vec![Date]),
        (r#"{"type":"int","logicalType":"time-millis"}"#, vec![]),
        (r#""long""#, vec![Long, Timestamp, TimestampTz]),
        (r#"{"type":"long","logicalType":"timestamp-millis"}"#, vec![]),
        (r#"{"type":"long","logicalType":"timestamp-micros"}"#, vec![TimestampTz]),
        (r#"{"type":"long","logicalType":"local-timestamp-micros"}"#, vec![Timestamp]),
        (r#"{"type":"long","logicalType":"timestamp-nanos"}"#, vec![]),
        (r#""float""#, vec![LogicalType::Float, LogicalType::Double]),
        (r#""double""#, vec![LogicalType::Double]),
        (r#""boolean""#, vec![Bool]),
        (r#""bytes""#, vec![Binary]),
        (r#"{"type":"bytes","logicalType":"decimal","precision":10,"scale":2}"#, vec![decimal(2)]),
        (r#"{"type":"bytes","logicalType":"decimal","precision":10}"#, vec![decimal(0)]),
        (r#""string""#, vec![String, Json, Uuid]),
        (r#"{"type":"string","logicalType":"uuid"}"#, vec![String, Uuid]),
        (r#"{"type":"array","items":["int","null"]}"#, vec![list(Int), list(Long), list(Date)]),
        (r#"{"type":"map","values":"int"}"#, vec![]),
        (r#"{"type":"enum","name":"N","symbols":["A"]}"#, vec![]),
        (r#"{"type":"fixed","name":"F","size":16}"#, vec![Uuid, Binary]),
        (r#"{"type":"fixed","name":"F","size":15}"#, vec![Binary]),
        (r#""E""#, vec![]),
    ] {
        let ours = [
            Bool,
            Int,
            Long,
            LogicalType::Float,
            LogicalType::Double,
            decimal(0),
            decimal(2),
            String,
            Json,
            Uuid,
            Binary,
            Date,
            Timestamp,
            TimestampTz,
            list(Int),
            list(Long),
            list(Date),
            list(String),
        ];
        for ours in ours {
            let table = schema(vec![ours.clone()], vec![]);
            let text = avro_schema(&table).replacen(&avro_type(&ours), ty, 1);
            let schema = RegisteredSchema { text: text.replace("Envelope", "E"), references: Vec::new() };
            let schema = Registered::parse(&schema).unwrap();
            let taken = Envelope::new(schema, &table);
            assert_eq!(taken.is_ok(), takes.contains(&ours), "{ty} in a column of {ours:?}");
        }
    }
}

/// Schemas and data that are made to hurt: refused soon, and before anything is allocated for them.
#[test]
fn nothing_grows_out_of_proportion() {
    let table = schema(
        vec![LogicalType::List(Box::new(LogicalType::Int)), LogicalType::Decimal { precision: 3, scale: 1 }],
        vec![],
    );
    let registry = Arc::<Registry>::default();
    let mut decoder = decoder(&[&table], &registry);
    let mut refused = |text: &str, references: &[&str], datum: &[u8]| {
        let id = registry.add(text, references);
        let value = [&[0][..], &id.to_be_bytes(), datum].concat();
        let at = RecordRef {
            topic: "t",
            partition: 0,
            offset: 0,
            key: None,
            value: Some(&value),
            header: Some(b"avro,7,1"),
        };
        let begun = std::time::Instant::now();
        let error = decoder.push(&at).unwrap_err().to_string();
        // What goes through billions of empty items takes minutes.
        assert!(begun.elapsed().as_secs() < 60, "{error}");
        assert_eq!(decoder.rows(), 0);
        error
    };
    // An envelope whose first field is of this type; the rest would be read after it.
    let envelope = |ty: &str| {
        format!(
            r#"{{"type":"record","name":"E","fields":[{{"name":"x","type":{ty}}},{{"name":"op","type":"string"}},
            {{"name":"source","type":{{"type":"record","name":"S","fields":[]}}}},{{"name":"before","type":"null"}},
            {{"name":"after","type":{{"type":"record","name":"R","fields":[
            {{"name":"c0","type":{{"type":"array","items":["null","int"]}}}}]}}}}]}}"#
        )
    };
    let count = |count: i64| {
        let mut out = Vec::new();
        write_long(&mut out, count);
        out
    };
    // items that take no bytes, in number
    let nulls = envelope(r#"{"type":"array","items":"null"}"#);
    assert!(refused(&nulls, &[], &count(i64::MAX)).contains("too many values for its bytes"));
    assert!(refused(&nulls, &[], &count(i64::MIN)).contains("a number without an end"));
    let empty = envelope(r#"{"type":"array","items":{"type":"record","name":"Z","fields":[]}}"#);
    assert!(refused(&empty, &[], &count(1 << 40)).contains("too many values for its bytes"));
    // a record in itself, of no bytes
    let inside = envelope(r#"{"type":"record","name":"A","fields":[{"name":"a","type":"A"},{"name":"b","type":"A"}]}"#);
    assert!(refused(&inside, &[], &[]).contains("nested too deeply"));
    // 2^40 values by 40 names
    let doubling: Vec<_> = (0..40)
        .map(|i| {
            let of = if i == 0 { "null".to_owned() } else { format!("D{}", i - 1) };
            format!(r#"{{"type":"record","name":"D{i}","fields":[{{"name":"a","type":"{of}"}},{{"name":"b","type":"{of}"}}]}}"#)
        })
        .collect();
    let references: Vec<_> = doubling.iter().map(String::as_str).collect();
    assert!(refused(&envelope("\"D39\""), &references, &[]).contains("too many values for its bytes"));
    // lengths
    for (ty, datum, reason) in [
        ("\"bytes\"", count(i64::MAX), "bytes where 0 are left"),
        ("\"string\"", count(-1), "-1 bytes"),
        (r#"{"type":"fixed","name":"F","size":4294967296}"#, vec![], "4294967296 bytes where 0 are left"),
        (r#"{"type":"map","values":"int"}"#, count(1 << 50), "a number without an end"),
        (r#"["null","int"]"#, count(1 << 50), "of a union of 2"),
    ] {
        let error = refused(&envelope(ty), &[], &datum);
        assert!(error.contains(reason), "{error}");
    }
    // elements of our own column
    let ours = envelope("\"null\"");
    let datum = |elements: Vec<u8>| [&b"\x02c"[..], &elements].concat();
    for elements in [count(i64::MAX), [count(i64::MAX), vec![0; 100]].concat(), [count(i64::MIN), vec![2, 0]].concat()]
    {
        let error = refused(&ours, &[], &datum(elements));
        assert!(error.contains("a number without an end"), "{error}");
    }
    // schemas that are none
    let deep = format!("{}\"int\"{}", "[".repeat(100_000), "]".repeat(100_000));
    for (text, reason) in [
        ("{", "not a schema"),
        (deep.as_str(), "not a schema: recursion limit"),
        ("7", "7 where a type must be"),
        ("[\"int\",[\"null\"]]", "a union in a union"),
        ("\"E\"", "nothing says what type E is"),
        ("{}", "without `type`"),
        (r#"{"type":"record","fields":[]}"#, "without a name"),
        (r#"{"type":"record","name":"E"}"#, "no fields"),
        (r#"{"type":"fixed","name":"E","size":0}"#, "no size"),
        (r#"{"type":"array"}"#, "null where a type must be"),
        (
            r#"{"type":"record","name":"E","fields":[{"name":"a","type":"int"},{"name":"a","type":"int"}]}"#,
            "two fields a",
        ),
        (r#"["null",{"type":"record","name":"E","fields":[]}]"#, "it is no record"),
        ("\"int\"", "it is no record"),
    ] {
        let error = refused(text, &[], &[]);
        assert!(error.contains(reason), "{text}: {error}");
    }
    let twice = r#"{"type":"record","name":"E","fields":[]}"#;
    assert!(refused(twice, &[twice], &[]).contains("E is defined twice"));
    assert!(refused(&" ".repeat(17 << 20), &[], &[]).contains("a schema of 17825792 bytes"));
    // what is no envelope of this table
    for (from, to, reason) in [
        (r#"["null","int"]"#, "\"null\"", "field c0 is not of type List(Int)"),
        (r#"["null","int"]"#, "\"string\"", "field c0 is not of type List(Int)"),
        (r#"{"name":"c0","#, r#"{"name":"d","lakeward.column":"c0","type":"int"},{"name":"c0","#, "is not of type"),
        (r#""name":"after""#, r#""name":"afterwards""#, "no field after"),
        (r#""type":"string""#, r#""type":"bytes""#, "field op is no text"),
        (
            r#""name":"S","fields":[]"#,
            r#""name":"S","fields":[{"name":"lsn","type":"string"}]"#,
            "source.lsn is no number",
        ),
        (r#""name":"before","type":"null""#, r#""name":"before","type":"int""#, "its field before: no record"),
    ] {
        assert!(ours.contains(from), "{from}");
        let error = refused(&ours.replace(from, to), &[], &[]);
        assert!(error.contains(reason), "{error}");
    }
}

proptest! {
    /// A schema whose text was damaged is refused or reads something; it never hurts.
    #[test]
    fn no_schema_is_too_odd(
        batch in any_batch(),
        flips in proptest::collection::vec((any::<proptest::sample::Index>(), "[\\[\\]{}\",:a-z0-9]"), 1..4),
        swap in any::<bool>(),
    ) {
        let registry = Arc::<Registry>::default();
        let block = encoded(&batch, 1, &registry);
        for (_, schema) in registry.known.lock().unwrap().iter_mut() {
            let mut text = schema.text.clone();
            if swap {
                text = text.replace("[\"null\",\"string\"]", "[\"string\",\"null\"]");
            }
            for (at, character) in &flips {
                let at = at.index(text.len());
                if text.is_char_boundary(at) && text.is_char_boundary(at + 1) {
                    text.replace_range(at..=at, character);
                }
            }
            *schema = Arc::new(RegisteredSchema { text, references: Vec::new() });
        }
        let mut decoder = decoder(&[batch.table()], &registry);
        let taken = block.iter().filter(|r| decoder.push(&record(r)).is_ok()).count();
        let rows: usize = decoder.flush().unwrap().iter().map(ChangeBatch::num_rows).sum();
        prop_assert_eq!(rows, taken);
    }
}
