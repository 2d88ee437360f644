//! What the tests of all codecs share: small batches by hand, and any batch.
#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use arrow::array::{
    Array, ArrayRef, BinaryArray, BooleanArray, Date32Array, Decimal128Array, FixedSizeBinaryArray, Float32Array,
    Float64Array, Int32Array, Int64Array, ListArray, StringArray, StructArray, TimestampMicrosecondArray,
};
use arrow::buffer::{NullBuffer, OffsetBuffer};
use arrow::datatypes::Field;
use proptest::prelude::*;
use proptest::strategy::Union;

use super::{BlockRecord, RecordRef};
use crate::batch::{ChangeBatch, ChangeMeta, MetaRow, Op};
use crate::schema::{Column, TableId, TableKind, TableSchema};
use crate::types::{LIST_ELEMENT, LogicalType};

pub(super) fn schema(types: Vec<LogicalType>, key: Vec<usize>) -> Arc<TableSchema> {
    let columns = types.into_iter().enumerate().map(|(i, ty)| Column {
        id: i as i32 + 1,
        // Names that need escapes, and one that is the start of another.
        name: if i == 1 { "quo\"te\n".into() } else { format!("c{i}") },
        ty,
        source_type: "any".into(),
        nullable: true,
    });
    Arc::new(TableSchema {
        table: TableId::new("users", "public", "orders"),
        kind: TableKind::Relational,
        version: 7,
        columns: columns.collect(),
        key,
    })
}

pub(super) fn record<'a>(record: &BlockRecord<'a>) -> RecordRef<'a> {
    RecordRef {
        topic: "users.public.orders",
        partition: record.partition,
        offset: 3,
        key: record.key,
        value: record.value,
        header: record.header,
    }
}

pub(super) fn meta(rows: &[MetaRow<'_>]) -> ChangeMeta {
    let mut meta = ChangeMeta::default();
    rows.iter().for_each(|row| meta.push(*row));
    meta
}

pub(super) fn row(op: Op, sequence: u64) -> MetaRow<'static> {
    MetaRow {
        op,
        sequence,
        position: 24_023_128,
        tx: Some(740),
        commit_ts: Some(1_700_000_000_000_123),
        unchanged: None,
        patch: None,
    }
}

pub(super) fn rows(schema: &TableSchema, columns: Vec<ArrayRef>, valid: Vec<bool>) -> StructArray {
    StructArray::new(schema.arrow_fields(), columns, Some(NullBuffer::from(valid)))
}

fn scalar_type() -> impl Strategy<Value = LogicalType> {
    prop_oneof![
        Just(LogicalType::Bool),
        Just(LogicalType::Int),
        Just(LogicalType::Long),
        Just(LogicalType::Float),
        Just(LogicalType::Double),
        (1u8..=38).prop_flat_map(|precision| {
            (0..=precision as i8).prop_map(move |scale| LogicalType::Decimal { precision, scale })
        }),
        Just(LogicalType::String),
        Just(LogicalType::Json),
        Just(LogicalType::Uuid),
        Just(LogicalType::Binary),
        Just(LogicalType::Date),
        Just(LogicalType::Timestamp),
        Just(LogicalType::TimestampTz),
    ]
}

fn any_type() -> impl Strategy<Value = LogicalType> {
    prop_oneof![4 => scalar_type(), 1 => scalar_type().prop_map(|ty| LogicalType::List(Box::new(ty)))]
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{0,12}", "\\PC{0,6}", "[\\x00-\\x1f\"\\\\/\u{2028}\u{1f600}]{0,8}"]
}

fn options<T: std::fmt::Debug + Clone + 'static>(
    value: impl Strategy<Value = T> + 'static,
    valid: &[bool],
) -> BoxedStrategy<Vec<Option<T>>> {
    let valid = valid.to_vec();
    proptest::collection::vec(proptest::option::weighted(0.8, value), valid.len())
        .prop_map(move |mut values| {
            for (value, valid) in values.iter_mut().zip(&valid) {
                if !valid {
                    *value = None;
                }
            }
            values
        })
        .boxed()
}

fn edges<T: std::fmt::Debug + Clone + 'static>(
    any: impl Strategy<Value = T> + 'static,
    edges: Vec<T>,
) -> impl Strategy<Value = T> {
    Union::new_weighted(vec![(3, any.boxed()), (1, proptest::sample::select(edges).boxed())])
}

/// An array of this type; null where `valid` says so, and elsewhere by chance.
fn array(ty: &LogicalType, valid: &[bool]) -> BoxedStrategy<ArrayRef> {
    fn boxed<A: Array + 'static>(array: A) -> ArrayRef {
        Arc::new(array)
    }
    let longs = || edges(any::<i64>(), vec![i64::MIN, i64::MAX, -i64::MAX, 0, -1]);
    let ints = || edges(any::<i32>(), vec![i32::MIN, i32::MAX, -i32::MAX, 0]);
    match ty {
        LogicalType::Bool => options(any::<bool>(), valid).prop_map(|v| boxed(BooleanArray::from(v))).boxed(),
        LogicalType::Int => options(ints(), valid).prop_map(|v| boxed(Int32Array::from(v))).boxed(),
        LogicalType::Date => options(ints(), valid).prop_map(|v| boxed(Date32Array::from(v))).boxed(),
        LogicalType::Long => options(longs(), valid).prop_map(|v| boxed(Int64Array::from(v))).boxed(),
        LogicalType::Timestamp => {
            options(longs(), valid).prop_map(|v| boxed(TimestampMicrosecondArray::from(v))).boxed()
        }
        LogicalType::TimestampTz => {
            options(longs(), valid).prop_map(|v| boxed(TimestampMicrosecondArray::from(v).with_timezone("UTC"))).boxed()
        }
        LogicalType::Float => {
            let odd = vec![f32::NAN, f32::INFINITY, f32::NEG_INFINITY, -0.0, f32::MAX, f32::from_bits(1)];
            options(edges(proptest::num::f32::NORMAL, odd), valid).prop_map(|v| boxed(Float32Array::from(v))).boxed()
        }
        LogicalType::Double => {
            let odd = vec![f64::NAN, f64::INFINITY, f64::NEG_INFINITY, -0.0, f64::MAX, f64::from_bits(1), 1e22];
            options(edges(proptest::num::f64::NORMAL, odd), valid).prop_map(|v| boxed(Float64Array::from(v))).boxed()
        }
        LogicalType::Decimal { precision, scale } => {
            let (precision, scale) = (*precision, *scale);
            let most = 10i128.pow(precision.into()) - 1;
            options(edges(-most..=most, vec![most, -most, 0, 1, -1]), valid)
                .prop_map(move |v| boxed(Decimal128Array::from(v).with_precision_and_scale(precision, scale).unwrap()))
                .boxed()
        }
        LogicalType::String | LogicalType::Json => {
            options(any_text(), valid).prop_map(|v| boxed(StringArray::from(v))).boxed()
        }
        LogicalType::Binary => options(proptest::collection::vec(any::<u8>(), 0..9), valid)
            .prop_map(|v| boxed(BinaryArray::from_iter(v)))
            .boxed(),
        LogicalType::Uuid => options(any::<[u8; 16]>(), valid)
            .prop_map(|v| boxed(FixedSizeBinaryArray::try_from_sparse_iter_with_size(v.into_iter(), 16).unwrap()))
            .boxed(),
        LogicalType::List(element) => {
            let element = (**element).clone();
            options(0usize..4, valid)
                .prop_flat_map(move |lengths| {
                    let total = lengths.iter().flatten().sum();
                    (Just(lengths), array(&element, &vec![true; total]))
                })
                .prop_map(|(lengths, elements)| {
                    let field = Arc::new(Field::new(LIST_ELEMENT, elements.data_type().clone(), true));
                    let offsets = OffsetBuffer::from_lengths(lengths.iter().map(|length| length.unwrap_or(0)));
                    let nulls = NullBuffer::from_iter(lengths.iter().map(Option::is_some));
                    boxed(ListArray::new(field, offsets, elements, Some(nulls)))
                })
                .boxed()
        }
    }
}

/// Rows of a schema; null rows where `present` says so, null values where `left_out(row, column)` does.
fn side(schema: Arc<TableSchema>, present: Vec<bool>, left_out: Vec<Vec<bool>>) -> BoxedStrategy<StructArray> {
    let columns: Vec<_> = schema
        .columns
        .iter()
        .enumerate()
        .map(|(i, column)| {
            let valid: Vec<_> = present.iter().zip(&left_out).map(|(present, out)| *present && !out[i]).collect();
            array(&column.ty, &valid)
        })
        .collect();
    columns
        .prop_map(move |columns| {
            let nulls = NullBuffer::from(present.clone());
            StructArray::try_new_with_length(schema.arrow_fields(), columns, Some(nulls), present.len()).unwrap()
        })
        .boxed()
}

/// A row's `op`, and everything else that is not in a column.
type AnyMeta = (Op, u64, u64, Option<u64>, Option<i64>, Option<Vec<bool>>, Option<String>, Vec<(bool, u16, String)>);

fn any_meta(columns: usize) -> impl Strategy<Value = AnyMeta> {
    let op = proptest::sample::select(vec![Op::Create, Op::Update, Op::Delete, Op::Read, Op::Truncate]);
    let patch = proptest::sample::select(vec![r#"{"updatedFields":{"a.b":[1,null,"x\n"]}}"#, "{}", "[]", "-1.5e3"]);
    (
        op,
        any::<u64>(),
        any::<u64>(),
        any::<Option<u64>>(),
        any::<Option<i64>>(),
        proptest::option::weighted(0.3, proptest::collection::vec(any::<bool>(), columns)),
        proptest::option::weighted(0.2, patch.prop_map(str::to_owned)),
        prop_oneof![
            3 => Just(Vec::new()).boxed(),
            1 => proptest::collection::vec((any::<bool>(), 0..columns.max(1) as u16, any_text()), 1..3).boxed(),
        ],
    )
}

pub(super) fn any_batch() -> impl Strategy<Value = ChangeBatch> {
    let relational = proptest::collection::vec(any_type(), 1..12).prop_flat_map(|types| {
        let key = proptest::sample::subsequence((0..types.len()).collect::<Vec<_>>(), 0..=types.len().min(3));
        (Just(types), key.prop_shuffle()).prop_map(|(types, key)| schema(types, key))
    });
    let documents = Just(Arc::new(TableSchema::documents(TableId::new("inventory", "shop", "items"))));
    prop_oneof![3 => relational.boxed(), 1 => documents.boxed()]
        .prop_flat_map(|schema| {
            let columns = schema.columns.len();
            (Just(schema), proptest::collection::vec((any_meta(columns), any::<bool>(), any::<bool>()), 0..7))
        })
        .prop_flat_map(|(schema, all)| {
            let relational = schema.kind == TableKind::Relational;
            let none = vec![false; schema.columns.len()];
            let left_out: Vec<_> = all
                .iter()
                .map(|((_, _, _, _, _, unchanged, ..), ..)| {
                    unchanged.clone().filter(|_| relational).unwrap_or(none.clone())
                })
                .collect();
            let after = side(schema.clone(), all.iter().map(|row| row.1).collect(), left_out);
            let before = side(schema.clone(), all.iter().map(|row| row.2).collect(), vec![none; all.len()]);
            (Just(schema), Just(all), after, before)
        })
        .prop_map(|(schema, all, after, before)| {
            let mut meta = ChangeMeta::default();
            for ((op, sequence, position, tx, commit_ts, unchanged, patch, misfits), ..) in &all {
                for (side, column, text) in misfits {
                    meta.misfit(if *side { b'a' } else { b'b' }, (*column).into(), text);
                }
                let bitmap = unchanged.as_ref().map(|bits| {
                    let mut bytes = vec![0u8; bits.len().div_ceil(8)];
                    bits.iter().enumerate().for_each(|(i, bit)| bytes[i / 8] |= u8::from(*bit) << (i % 8));
                    bytes
                });
                meta.push(MetaRow {
                    op: *op,
                    sequence: *sequence,
                    position: *position,
                    tx: *tx,
                    commit_ts: *commit_ts,
                    unchanged: bitmap.as_deref(),
                    patch: patch.as_deref(),
                });
            }
            ChangeBatch::try_new(schema, meta.finish().unwrap(), after, before).unwrap()
        })
}
