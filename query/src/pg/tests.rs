//! Texts as PostgreSQL prints them.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::*;

use super::*;

fn texts(array: ArrayRef, style: Style) -> Vec<String> {
    let print = printer(&array, style).unwrap();
    (0..array.len())
        .map(|row| {
            let mut out = String::new();
            print(row, &mut out);
            out
        })
        .collect()
}

#[test]
fn dates_and_timestamps() {
    let dates = Arc::new(Date32Array::from(vec![
        Some(0),
        Some(i32::MAX),
        Some(-i32::MAX),
        None,
        Some(-719_529),
        Some(2_932_897),
        Some(11_016),
    ]));
    assert_eq!(
        texts(dates, Style::Text),
        ["1970-01-01", "infinity", "-infinity", "", "0002-12-31 BC", "10000-01-01", "2000-02-29"]
    );
    let stamps: ArrayRef =
        Arc::new(TimestampMicrosecondArray::from(vec![-1, i64::MAX, -i64::MAX, 1_500_000]).with_timezone("UTC"));
    assert_eq!(
        texts(Arc::clone(&stamps), Style::Text),
        ["1969-12-31 23:59:59.999999+00", "infinity", "-infinity", "1970-01-01 00:00:01.5+00"]
    );
    assert_eq!(texts(stamps, Style::Json)[3], "\"1970-01-01T00:00:01.5+00:00\"");
}

#[test]
fn floats() {
    let doubles =
        vec![0.0, -0.0, 1.0, 0.1, 1e15, 1e14, 123_456.789, 1e-4, 1e-5, -2.5e-300, f64::NAN, f64::INFINITY, 1e22];
    assert_eq!(
        texts(Arc::new(Float64Array::from(doubles)), Style::Text),
        [
            "0",
            "-0",
            "1",
            "0.1",
            "1e+15",
            "100000000000000",
            "123456.789",
            "0.0001",
            "1e-05",
            "-2.5e-300",
            "NaN",
            "Infinity",
            "1e+22"
        ]
    );
    assert_eq!(texts(Arc::new(Float32Array::from(vec![1e6, 999_999.0, 0.1])), Style::Text), ["1e+06", "999999", "0.1"]);
    assert_eq!(texts(Arc::new(Float64Array::from(vec![f64::NAN, 2.0])), Style::Json), ["\"NaN\"", "2"]);
}

#[test]
fn bytes_uuids_and_lists() {
    let uuid = parse_uuid("{A0EEBC99-9c0b-4ef8-bb6d-6bb9bd380a11}").unwrap();
    let uuids = FixedSizeBinaryArray::try_from_iter([uuid].into_iter()).unwrap();
    assert_eq!(texts(Arc::new(uuids), Style::Text), ["a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"]);
    assert_eq!(parse_uuid("a0eebc999c0b4ef8bb6d6bb9bd380a11"), Some(uuid));
    for bad in [
        "",
        "a0eebc99",
        "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1",
        "a0eebc99--9c0b4ef8bb6d6bb9bd380a11",
        "g0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11",
    ] {
        assert_eq!(parse_uuid(bad), None, "{bad}");
    }
    let bytes: ArrayRef = Arc::new(BinaryArray::from_vec(vec![b"\x00\xff"]));
    assert_eq!(texts(Arc::clone(&bytes), Style::Text), ["\\x00ff"]);
    assert_eq!(texts(bytes, Style::Json), ["\"\\\\x00ff\""]);
    let mut lists = ListBuilder::new(StringBuilder::new());
    for value in [Some("a"), Some("b c"), None, Some(""), Some("q\"\\"), Some("NULL")] {
        lists.values().append_option(value);
    }
    lists.append(true);
    lists.append(true);
    lists.append(false);
    let lists: ArrayRef = Arc::new(lists.finish());
    assert_eq!(texts(Arc::clone(&lists), Style::Text), ["{a,\"b c\",NULL,\"\",\"q\\\"\\\\\",\"NULL\"}", "{}", ""]);
    assert_eq!(texts(lists, Style::Json), ["[\"a\",\"b c\",null,\"\",\"q\\\"\\\\\",\"NULL\"]", "[]", "null"]);
}
