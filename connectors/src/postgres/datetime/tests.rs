//! Dates and times out of the server's text and binary forms, to their bounds and beyond.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

fn printed(micros: i64, zoned: bool) -> String {
    let mut out = Vec::new();
    write_timestamp(micros, zoned, &mut out);
    String::from_utf8(out).unwrap()
}

#[test]
fn dates_of_both_eras() {
    assert_eq!(date_from_text(b"1970-01-01"), Some(0));
    assert_eq!(date_from_text(b"2000-02-29"), Some(11_016));
    assert_eq!(date_from_text(b"0001-01-01 BC"), Some(-719_528));
    assert_eq!(date_from_text(b"5874897-12-31"), Some(2_145_042_905));
    assert_eq!(date_from_binary(0), Some(10_957));
    assert_eq!(date_from_text(b"infinity"), date_from_binary(i32::MAX));
    assert_eq!(date_from_text(b"-infinity"), date_from_binary(i32::MIN));
    assert_eq!(date_from_binary(i32::MIN), Some(-i32::MAX));
}

#[test]
fn timestamps_with_and_without_zone() {
    assert_eq!(timestamp_from_text(b"1970-01-01 00:00:00.1", false), Some(100_000));
    assert_eq!(timestamp_from_text(b"1970-01-01 05:30:00+05:30", true), Some(0));
    assert_eq!(timestamp_from_text(b"1969-12-31 20:29:59.999999-03:30:01", true), Some(999_999));
    assert_eq!(timestamp_from_text(b"infinity", true), timestamp_from_binary(i64::MAX));
    assert_eq!(timestamp_from_text(b"-infinity", true), timestamp_from_binary(i64::MIN));
    assert_eq!(timestamp_from_binary(i64::MIN), Some(-i64::MAX));
}

#[test]
fn beyond_the_range_is_none() {
    let last = 9_223_371_331_199_999_999;
    assert_eq!(timestamp_from_binary(last), None);
    assert_eq!(printed(last, false), "294276-12-31 23:59:59.999999");
    assert_eq!(timestamp_from_text(b"294276-12-31 23:59:59.999999", false), None);
    // the moment that would look like infinity
    assert_eq!(timestamp_from_binary(i64::MAX - EPOCH_SECONDS * 1_000_000), None);
    assert_eq!(timestamp_from_text(b"294247-01-10 04:00:54.775807", false), None);
}

#[test]
fn other_texts_are_none() {
    for text in [
        "",
        "2024",
        "2024-1-01",
        "2024-13-01",
        "2024-00-01",
        "0000-01-01",
        "01.02.2024",
        "2024-01-01 AD",
        "99999999-01-01",
        "2024-01-01x",
    ] {
        assert_eq!(date_from_text(text.as_bytes()), None, "{text}");
    }
    for text in [
        "2024-01-01",
        "2024-01-01 24:00:00",
        "2024-01-01 00:00:00.",
        "2024-01-01 00:00:00.1234567",
        "2024-01-01 00:00:00+00",
    ] {
        assert_eq!(timestamp_from_text(text.as_bytes(), false), None, "{text}");
    }
    assert_eq!(timestamp_from_text(b"2024-01-01 00:00:00", true), None, "a zone is missing");
}

proptest! {
    /// 4714 BC to 294246 AD.
    #[test]
    fn text_and_binary_are_one_moment(micros in -211_813_488_000_000_000i64..9_222_425_352_054_775_807, zoned: bool) {
        let expected = timestamp_from_binary(micros);
        prop_assert!(expected.is_some());
        prop_assert_eq!(timestamp_from_text(printed(micros, zoned).as_bytes(), zoned), expected);
    }

    #[test]
    fn a_date_is_its_midnight(days in -2_451_545i32..100_000_000) {
        let midnight = printed(i64::from(days) * DAY_MICROS, false);
        let date = midnight.replace(" 00:00:00", "");
        prop_assert_eq!(date_from_text(date.as_bytes()), date_from_binary(days));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), text in "[0-9:. +BC-]*", micros: i64) {
        for text in [&bytes[..], text.as_bytes()] {
            date_from_text(text);
            timestamp_from_text(text, true);
        }
        timestamp_from_binary(micros);
        printed(micros, true);
    }
}
