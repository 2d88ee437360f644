//! Numerics out of text and binary: exact, or a misfit.
#![allow(clippy::unwrap_used)]

use super::*;
use proptest::prelude::*;

/// `numeric_send` of a decimal text.
fn send(text: &str) -> Vec<u8> {
    let (negative, digits) = text.strip_prefix('-').map_or((false, text), |t| (true, t));
    let (whole, fraction) = digits.split_once('.').unwrap_or((digits, ""));
    let padded = |t: &str, front: bool| {
        let zeros = "0".repeat((4 - t.len() % 4) % 4);
        if front { zeros + t } else { t.to_owned() + &zeros }
    };
    let all = padded(whole, true) + &padded(fraction, false);
    let mut groups: Vec<u16> =
        all.as_bytes().chunks(4).map(|c| std::str::from_utf8(c).unwrap().parse().unwrap()).collect();
    let mut weight = (whole.len().div_ceil(4) as i16) - 1;
    while groups.last() == Some(&0) {
        groups.pop();
    }
    while groups.first() == Some(&0) {
        groups.remove(0);
        weight -= 1;
    }
    let zero = groups.is_empty();
    let head = [groups.len() as u16, if zero { 0 } else { weight as u16 }, if negative && !zero { 0x4000 } else { 0 }];
    let words = head.into_iter().chain([fraction.len() as u16]).chain(groups);
    words.flat_map(u16::to_be_bytes).collect()
}

fn text(bytes: &[u8]) -> String {
    let mut out = Vec::new();
    Binary::parse(bytes).unwrap().write_text(&mut out);
    String::from_utf8(out).unwrap()
}

fn special(sign: u16) -> Vec<u8> {
    [0, 0, sign, 0].into_iter().flat_map(u16::to_be_bytes).collect()
}

#[test]
fn texts_are_the_servers() {
    for number in [
        "0",
        "0.00",
        "1",
        "-1.50",
        "10000",
        "100000000",
        "0.0001",
        "0.00000001",
        "-0.000000012300",
        "12345678901234567890.123",
    ] {
        assert_eq!(text(&send(number)), number);
    }
    assert_eq!(text(&special(0xC000)), "NaN");
    assert_eq!(text(&special(0xD000)), "Infinity");
    assert_eq!(text(&special(0xF000)), "-Infinity");
}

#[test]
fn what_a_decimal_cannot_hold_is_a_misfit() {
    let both = |number: &str, precision, scale| {
        let binary = Binary::parse(&send(number)).unwrap().decimal(precision, scale);
        assert_eq!(decimal_from_text(number.as_bytes(), precision, scale), binary, "{number}");
        binary
    };
    assert_eq!(both("999.99", 5, 2), Decimal::Unscaled(99_999));
    assert_eq!(both("1000.00", 5, 2), Decimal::Misfit);
    assert_eq!(both("1.005", 5, 2), Decimal::Misfit, "never rounded");
    assert_eq!(both("1.0500", 5, 2), Decimal::Unscaled(105));
    assert_eq!(both(&"9".repeat(38), 38, 0), Decimal::Unscaled(10i128.pow(38) - 1));
    assert_eq!(both(&format!("-1{}", "0".repeat(38)), 38, 0), Decimal::Misfit);
    assert_eq!(both(&format!("1{}", "0".repeat(400)), 38, 0), Decimal::Misfit);
    for sign in [0xC000, 0xD000, 0xF000] {
        assert_eq!(Binary::parse(&special(sign)).unwrap().decimal(10, 2), Decimal::Misfit);
    }
    for text in ["", "-", ".5", "5.", "1e5", "NaN", "1.2.3", " 1"] {
        assert_eq!(decimal_from_text(text.as_bytes(), 10, 2), Decimal::Misfit, "{text}");
    }
}

#[test]
fn other_bytes_are_refused() {
    assert!(Binary::parse(&send("1.5")[..9]).is_none());
    assert!(Binary::parse(&special(0x1234)).is_none());
    assert!(Binary::parse(&[0, 1, 0, 0, 0, 0, 0, 0, 0x27, 0x10]).is_none(), "a group of 10,000");
}

proptest! {
    #[test]
    fn text_and_binary_are_one_number(number in "-?(0|[1-9][0-9]{0,30})(\\.[0-9]{1,20})?", precision in 1u8..=38, scale in 0u8..=38) {
        prop_assume!(scale <= precision);
        let bytes = send(&number);
        let binary = Binary::parse(&bytes).unwrap();
        let positive = number.trim_start_matches('-');
        let zero = positive.bytes().all(|b| matches!(b, b'0' | b'.'));
        prop_assert_eq!(text(&bytes), if zero { positive } else { &number });
        prop_assert_eq!(decimal_from_text(number.as_bytes(), precision, scale), binary.decimal(precision, scale));
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..40), precision: u8, scale: u8) {
        decimal_from_text(&bytes, precision, scale);
        if let Some(number) = Binary::parse(&bytes) {
            number.decimal(precision, scale);
            number.write_text(&mut Vec::new());
        }
    }
}
