//! Single values out of text and binary into column builders.
#![allow(clippy::unwrap_used)]

use super::*;
use arrow::array::{Array, ArrayRef, AsArray};
use proptest::prelude::*;

use super::super::array::Punctuation;

fn text(kind: &Kind, values: &[&str]) -> (Vec<Fit>, ArrayRef) {
    let mut builder = ColumnBuilder::new(kind);
    let fits = values.iter().map(|v| builder.append_text(v.as_bytes(), &mut Vec::new()).unwrap()).collect();
    (fits, builder.column().finish().unwrap())
}

/// One value both ways; both must be held.
fn both(scalar: Scalar, as_text: &str, bytes: &[u8]) -> Result<(), TestCaseError> {
    let kind = Kind::Scalar(scalar);
    let mut builder = ColumnBuilder::new(&kind);
    prop_assert_eq!(builder.append_binary(bytes, &mut Vec::new()).unwrap(), Fit::Held);
    let (fits, array) = text(&kind, &[as_text]);
    prop_assert_eq!(fits, [Fit::Held]);
    prop_assert_eq!(array.to_data(), builder.column().finish().unwrap().to_data());
    Ok(())
}

#[test]
fn a_list_that_does_not_fit_leaves_nothing_behind() {
    let kind = Kind::List { element: Scalar::Int, marks: Punctuation::array(b',') };
    let (fits, array) = text(&kind, &["{1,2}", "{3,x}", "{{4}}", "{NULL,5}", "{}"]);
    assert_eq!(fits, [Fit::Held, Fit::Misfit, Fit::Misfit, Fit::Held, Fit::Held]);
    let lists = array.as_list::<i32>();
    assert_eq!(lists.value_offsets(), [0, 2, 4, 4]);
    assert_eq!(lists.values().len(), 4);
}

#[test]
fn every_column_takes_back_its_last_values() {
    let samples = [
        (Scalar::Bool, "t"),
        (Scalar::Double, "1.5"),
        (Scalar::Text, "abc"),
        (Scalar::Bytea, "\\x00"),
        (Scalar::Uuid, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a11"),
    ];
    for (element, value) in samples {
        let kind = Kind::List { element: element.clone(), marks: Punctuation::array(b',') };
        let quoted = format!("\"{}\"", value.replace('\\', "\\\\"));
        let (fits, array) =
            text(&kind, &[&format!("{{NULL,{quoted}}}"), &format!("{{{quoted},{{}}}}"), &format!("{{{quoted}}}")]);
        assert_eq!(fits, [Fit::Held, Fit::Misfit, Fit::Held], "{element:?}");
        let lists = array.as_list::<i32>();
        assert_eq!((lists.len(), lists.values().len(), lists.values().null_count()), (2, 3, 1), "{element:?}");
    }
}

#[test]
fn a_column_can_be_finished_and_filled_again() {
    let mut builder = ColumnBuilder::new(&Kind::Scalar(Scalar::Text));
    for value in ["one", "two"] {
        assert_eq!(builder.append_text(value.as_bytes(), &mut Vec::new()).unwrap(), Fit::Held);
        builder.column().append_nulls(1);
        let array = builder.column().finish().unwrap();
        assert_eq!((array.len(), array.as_string::<i32>().value(0), array.is_null(1)), (2, value, true));
    }
}

#[test]
fn bytes_that_are_not_utf8_are_a_misfit() {
    let mut builder = ColumnBuilder::new(&Kind::Scalar(Scalar::Text));
    let mut text = Vec::new();
    assert_eq!(builder.append_text(b"\xFF", &mut text).unwrap(), Fit::Misfit);
    assert_eq!(builder.append_binary(b"a\xFF", &mut text).unwrap(), Fit::Misfit);
    assert_eq!(text, b"a\xFF");
    assert!(builder.column().is_empty());
}

#[test]
fn a_binary_misfit_brings_its_text() {
    let mut builder = ColumnBuilder::new(&Kind::Scalar(Scalar::Decimal { precision: 10, scale: 2 }));
    let mut text = Vec::new();
    assert_eq!(builder.append_binary(&[0, 0, 0, 0, 0xC0, 0, 0, 0], &mut text).unwrap(), Fit::Misfit);
    assert_eq!(text, b"NaN");
}

#[test]
fn texts_of_another_type_are_misfits() {
    for (scalar, value) in [
        (Scalar::Int, "2147483648"),
        (Scalar::Int, "-2147483649"),
        (Scalar::Int, ""),
        (Scalar::Int, "-"),
        (Scalar::Long, "9223372036854775808"),
        (Scalar::Long, "1.0"),
        (Scalar::Bool, "true"),
        (Scalar::Double, "x"),
        (Scalar::Uuid, "a0eebc99-9c0b-4ef8-bb6d-6bb9bd380a1"),
        (Scalar::Uuid, "a0eebc999c0b4ef8bb6d6bb9bd380a11"),
        (Scalar::Bytea, "\\x0"),
        (Scalar::Bytea, "\\x0g"),
        (Scalar::Bytea, "abc"),
    ] {
        let (fits, array) = text(&Kind::Scalar(scalar), &[value]);
        assert_eq!((fits, array.len()), (vec![Fit::Misfit], 0), "{value}");
    }
}

proptest! {
    #[test]
    fn text_and_binary_agree(small: i16, int: i32, long: i64, oid: u32, real in prop::num::f32::ANY, double in prop::num::f64::ANY, s in "\\PC*", bytes in prop::collection::vec(any::<u8>(), 0..50), id: u128) {
        both(Scalar::Int, &small.to_string(), &small.to_be_bytes())?;
        both(Scalar::Int, &int.to_string(), &int.to_be_bytes())?;
        both(Scalar::Long, &long.to_string(), &long.to_be_bytes())?;
        both(Scalar::Long, &oid.to_string(), &oid.to_be_bytes())?;
        // Of NaN there is one text and many forms; the server makes one of them.
        let (real, double) = (if real.is_nan() { f32::NAN } else { real }, if double.is_nan() { f64::NAN } else { double });
        both(Scalar::Float, &format!("{real:e}"), &real.to_be_bytes())?;
        both(Scalar::Double, &format!("{double:e}"), &double.to_be_bytes())?;
        both(Scalar::Text, &s, s.as_bytes())?;
        both(Scalar::Jsonb, &s, &[&[1], s.as_bytes()].concat())?;
        both(Scalar::Uuid, &uuid::Uuid::from_u128(id).to_string(), &id.to_be_bytes())?;
        let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
        both(Scalar::Bytea, &format!("\\x{hex}"), &bytes)?;
    }

    #[test]
    fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..20), fits in prop::collection::vec(any::<u8>(), 8)) {
        let scalars = [
            Scalar::Bool, Scalar::Int, Scalar::Long, Scalar::Float, Scalar::Double, Scalar::Numeric, Scalar::Text, Scalar::Json,
            Scalar::Jsonb, Scalar::Uuid, Scalar::Bytea, Scalar::Date, Scalar::Timestamp, Scalar::TimestampTz,
            Scalar::Decimal { precision: 38, scale: 10 },
        ];
        for scalar in scalars {
            let mut builder = ColumnBuilder::new(&Kind::Scalar(scalar));
            for bytes in [&bytes[..], &fits, &fits[..4], &fits[..2], &fits[..1]] {
                let _ = builder.append_text(bytes, &mut Vec::new());
                let _ = builder.append_binary(bytes, &mut Vec::new());
            }
            prop_assert!(builder.column().finish().is_ok());
        }
    }
}
