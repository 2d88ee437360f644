//! Lake values printed as PostgreSQL prints them, for `verify` to compare with the server's own text.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float32Array,
    Float64Array, Int32Array, ListArray, StringArray, TimestampMicrosecondArray,
};

use super::*;

fn printed(array: ArrayRef) -> Vec<String> {
    let printer = Printer::new(array.as_ref()).unwrap();
    (0..array.len())
        .map(|row| {
            let mut out = Vec::new();
            if printer.write(row, &mut out) { String::from_utf8(out).unwrap() } else { "(null)".into() }
        })
        .collect()
}

fn canonical(canon: &Canon, text: &str) -> Option<String> {
    let mut out = Vec::new();
    canon.write(text.as_bytes(), &mut out).then(|| String::from_utf8(out).unwrap())
}

// Each expected text is what PostgreSQL 17 prints.

#[test]
fn dates_and_times_print_as_the_server_does() {
    let dates =
        Date32Array::from(vec![Some(0), Some(-719_163), Some(2_932_897), Some(i32::MAX), Some(-i32::MAX), None]);
    assert_eq!(
        printed(Arc::new(dates)),
        ["1970-01-01", "0001-12-31 BC", "10000-01-01", "infinity", "-infinity", "(null)"]
    );
    let micros = vec![0, -1, 1_704_067_200_120_000, -62_135_596_800_000_001, i64::MAX, -i64::MAX];
    let plain = TimestampMicrosecondArray::from(micros.clone());
    assert_eq!(
        printed(Arc::new(plain)),
        [
            "1970-01-01 00:00:00",
            "1969-12-31 23:59:59.999999",
            "2024-01-01 00:00:00.12",
            "0001-12-31 23:59:59.999999 BC",
            "infinity",
            "-infinity"
        ]
    );
    let zoned = TimestampMicrosecondArray::from(micros).with_timezone("UTC");
    assert_eq!(printed(Arc::new(zoned))[2..4], ["2024-01-01 00:00:00.12+00", "0001-12-31 23:59:59.999999+00 BC"]);
}

#[test]
fn scalars_print_as_the_server_does() {
    assert_eq!(printed(Arc::new(BooleanArray::from(vec![true, false]))), ["t", "f"]);
    let decimals = Decimal128Array::from(vec![0, 5, -5, 123_456]).with_precision_and_scale(38, 2).unwrap();
    assert_eq!(printed(Arc::new(decimals)), ["0.00", "0.05", "-0.05", "1234.56"]);
    let whole = Decimal128Array::from(vec![-7]).with_precision_and_scale(5, 0).unwrap();
    assert_eq!(printed(Arc::new(whole)), ["-7"]);
    assert_eq!(printed(Arc::new(BinaryArray::from(vec![&b""[..], b"\x00\xff"]))), ["\\x", "\\x00ff"]);
    let uuid = FixedSizeBinaryArray::try_from_iter([(0..16).collect::<Vec<u8>>()].iter()).unwrap();
    assert_eq!(printed(Arc::new(uuid)), ["00010203-0405-0607-0809-0a0b0c0d0e0f"]);
}

#[test]
fn floats_are_equal_by_their_bits() {
    for text in ["1.1", "-0", "0", "1e+20", "1.17549435e-38", "NaN", "Infinity", "-Infinity", "3.4028235e+38"] {
        let value: f32 = text.parse().unwrap();
        assert_eq!(
            canonical(&Canon::Float, text).unwrap(),
            printed(Arc::new(Float32Array::from(vec![value])))[0],
            "{text}"
        );
    }
    for text in ["0.1", "5e-324", "1.7976931348623157e+308", "-0", "1e+16", "1e-05"] {
        let value: f64 = text.parse().unwrap();
        assert_eq!(
            canonical(&Canon::Double, text).unwrap(),
            printed(Arc::new(Float64Array::from(vec![value])))[0],
            "{text}"
        );
    }
    assert_ne!(canonical(&Canon::Double, "-0"), canonical(&Canon::Double, "0"));
    assert_ne!(canonical(&Canon::Double, "0.1"), canonical(&Canon::Double, "0.10000000000000002"));
}

#[test]
fn arrays_are_quoted_as_the_server_does() {
    let of_texts = Canon::of(&LogicalType::List(Box::new(LogicalType::String)), b',');
    let server = r#"{a,"b c",NULL,"NULL","","x\"y","back\\slash","{",",",é}"#;
    let elements = [
        Some("a"),
        Some("b c"),
        None,
        Some("NULL"),
        Some(""),
        Some("x\"y"),
        Some("back\\slash"),
        Some("{"),
        Some(","),
        Some("é"),
    ];
    let mut list = arrow::array::ListBuilder::new(arrow::array::StringBuilder::new());
    list.append_value(elements);
    list.append_value(Vec::<Option<&str>>::new());
    list.append_null();
    let printed = printed(Arc::new(list.finish()));
    assert_eq!(printed, [server, "{}", "(null)"]);
    assert_eq!(canonical(&of_texts, server).unwrap(), server);
    assert_eq!(canonical(&of_texts, "{}").unwrap(), "{}");
}

#[test]
fn arrays_of_floats_by_their_bits() {
    let of_floats = Canon::of(&LogicalType::List(Box::new(LogicalType::Double)), b',');
    let list =
        ListArray::from_iter_primitive::<Float64Type, _, _>([Some([Some(1.0), None, Some(1e20), Some(f64::NAN)])]);
    assert_eq!(canonical(&of_floats, "{1,NULL,1e+20,NaN}").unwrap(), printed(Arc::new(list))[0]);
    // pgvector
    assert_eq!(canonical(&of_floats, "[1,2.5]"), canonical(&of_floats, "{1,2.5}"));
}

#[test]
fn what_no_column_can_hold_is_told() {
    let of_ints = Canon::of(&LogicalType::List(Box::new(LogicalType::Int)), b',');
    for text in ["{{1,2},{3,4}}", "[2:3]={1,2}", "[0:1]={1,2}"] {
        assert_eq!(canonical(&of_ints, text), None, "{text}");
    }
    for text in ["NaN", "Infinity", "-Infinity"] {
        assert_eq!(canonical(&Canon::Decimal, text), None);
    }
    assert_eq!(
        canonical(&Canon::Timestamp, "294247-01-10 04:00:54.775806").as_deref(),
        Some("294247-01-10 04:00:54.775806")
    );
    assert_eq!(canonical(&Canon::Timestamp, "294276-12-31 23:59:59.999999"), None);
    assert_eq!(canonical(&Canon::Timestamp, "294276-12-31 23:59:59.999999+00"), None);
    assert!(canonical(&Canon::Timestamp, "4713-01-01 00:00:00 BC").is_some());
    assert!(canonical(&Canon::Timestamp, "infinity").is_some());
}

#[test]
fn composites_are_equal_by_their_leaves() {
    let same = [
        (r#"(1,"a ""b""",,t)"#, r#"{"a":1,"b":"a \"b\"","c":null,"d":true}"#),
        (r#"(1,"(2,x)")"#, r#"{"a":1,"n":{"b":2,"c":"x"}}"#),
    ];
    for (text, json) in same {
        assert_eq!(canonical(&Canon::Composite, text), canonical(&Canon::Composite, json));
    }
    assert_ne!(canonical(&Canon::Composite, "(1,2)"), canonical(&Canon::Composite, r#"{"a":1,"b":3}"#));
}

#[test]
fn a_row_tells_null_from_empty_and_where_columns_end() {
    let row = |values: &[Option<&str>]| {
        let mut row = Row::default();
        for value in values {
            row.push(|out| {
                out.extend_from_slice(value.unwrap_or_default().as_bytes());
                value.is_some()
            });
        }
        row.finish(&[0]);
        row
    };
    let rows = [
        row(&[Some("a"), Some("")]),
        row(&[Some("a"), None]),
        row(&[Some("a"), Some("b")]),
        row(&[Some("ab"), Some("")]),
    ];
    let hashes: std::collections::HashSet<u64> = rows.iter().map(Row::hash).collect();
    assert_eq!(hashes.len(), 4);
    assert_eq!(rows[0].key_hash(), rows[2].key_hash());
    assert_ne!(rows[0].key_hash(), rows[3].key_hash());
    assert_eq!((rows[1].value(0), rows[1].value(1)), (Some(&b"a"[..]), None));
    assert_eq!(rows[0].value(1), Some(&b""[..]));
    let strings = StringArray::from(vec!["x"]);
    assert_eq!(printed(Arc::new(strings)), ["x"]);
    assert_eq!(printed(Arc::new(Int32Array::from(vec![-1]))), ["-1"]);
}
