//! Changes of several keys to the last one of each, with values that were left out.
#![allow(clippy::unwrap_used)]
//! Reductions against a map of key to row that takes the same changes one by one.

use std::collections::BTreeMap;

use arrow::array::{AsArray, Int32Array, StringArray, StructArray};
use arrow::buffer::NullBuffer;
use arrow::datatypes::{Field, Int64Type, Schema};
use lakeward_event::batch::MetaRow;
use lakeward_event::schema::TableKind;
use lakeward_event::{ChangeMeta, Column, LogicalType, TableId};
use proptest::prelude::*;

use super::*;

fn schema() -> Arc<TableSchema> {
    let column = |id, name: &str, ty| Column { id, name: name.into(), ty, source_type: String::new(), nullable: true };
    Arc::new(TableSchema {
        table: TableId::new("s", "public", "t"),
        kind: TableKind::Relational,
        version: 1,
        columns: vec![
            column(1, "id", LogicalType::Int),
            column(2, "v", LogicalType::String),
            column(3, "big", LogicalType::String),
        ],
        key: vec![0],
    })
}

/// The lake's table: the key is wider than the source's, and a column is the sink's own.
fn layout() -> Layout {
    let fields = vec![
        Field::new("big", DataType::Utf8, true),
        Field::new("id", DataType::Int64, true),
        Field::new("gone", DataType::Utf8, true),
        Field::new("v", DataType::Utf8, true),
    ];
    let feed = |identity| Feed { identity: Some(identity), dropped: identity == 9 };
    Layout { schema: Arc::new(Schema::new(fields)), columns: vec![feed(3), feed(1), feed(9), feed(2)], key: vec![1] }
}

#[derive(Debug, Clone)]
enum Event {
    Put { id: i32, v: u8, big: Option<u8> },
    Delete { id: i32 },
    Truncate,
    Move { from: i32, to: i32, v: u8, big: Option<u8> },
}

type Row = (String, Option<String>);

/// The rows of an event in the log's form: op, before, after.
type Raw = (Op, Option<i32>, Option<(i32, u8, Option<u8>)>);

fn raw(event: &Event) -> Vec<Raw> {
    match *event {
        Event::Put { id, v, big } => vec![(Op::Update, None, Some((id, v, big)))],
        Event::Delete { id } => vec![(Op::Delete, Some(id), None)],
        Event::Truncate => vec![(Op::Truncate, None, None)],
        Event::Move { from, to, v, big } => {
            vec![(Op::Delete, Some(from), None), (Op::Create, Some(from), Some((to, v, big)))]
        }
    }
}

fn batch(rows: &[(u64, Raw)]) -> ChangeBatch {
    let schema = schema();
    let mut meta = ChangeMeta::default();
    for (sequence, (op, _, after)) in rows {
        let left_out = after.is_some_and(|(_, _, big)| big.is_none());
        meta.push(MetaRow {
            op: *op,
            sequence: *sequence,
            position: 1,
            tx: None,
            commit_ts: None,
            unchanged: left_out.then_some(&[0b100][..]),
            patch: None,
        });
    }
    let text = |values: Vec<Option<u8>>| -> ArrayRef {
        Arc::new(StringArray::from_iter(values.into_iter().map(|v| v.map(|v| v.to_string()))))
    };
    let side = |ids: Vec<Option<i32>>, v, big| {
        let valid: Vec<bool> = ids.iter().map(Option::is_some).collect();
        let columns: Vec<ArrayRef> = vec![Arc::new(Int32Array::from(ids)), text(v), text(big)];
        StructArray::try_new(schema.arrow_fields(), columns, Some(NullBuffer::from(valid))).unwrap()
    };
    let none = || vec![None; rows.len()];
    let after = side(
        rows.iter().map(|(_, r)| r.2.map(|a| a.0)).collect(),
        rows.iter().map(|(_, r)| r.2.map(|a| a.1)).collect(),
        rows.iter().map(|(_, r)| r.2.and_then(|a| a.2)).collect(),
    );
    let before = side(rows.iter().map(|(_, r)| r.1).collect(), none(), none());
    ChangeBatch::try_new(schema.clone(), meta.finish().unwrap(), after, before).unwrap()
}

/// What the source has after the events.
fn apply(model: &mut BTreeMap<i32, Row>, event: &Event) {
    match event {
        Event::Put { id, v, big } => {
            let old = model.get(id).and_then(|row| row.1.clone());
            model.insert(*id, (v.to_string(), big.map(|b| b.to_string()).or(old)));
        }
        Event::Delete { id } => drop(model.remove(id)),
        Event::Truncate => model.clear(),
        Event::Move { from, to, v, big } => {
            let old = model.remove(from).and_then(|row| row.1);
            model.insert(*to, (v.to_string(), big.map(|b| b.to_string()).or(old)));
        }
    }
}

fn hash(id: i32) -> u128 {
    hash_keys(&[Arc::new(Int32Array::from(vec![id])) as ArrayRef], 1).unwrap()[0].unwrap()
}

/// What a table with the rows of `lake` has after the reduction, as the writer would make it.
fn write(mut reduction: Reduction, lake: &BTreeMap<i32, Row>) -> BTreeMap<i32, Row> {
    let layout = layout();
    let by_hash: BTreeMap<u128, i32> = lake.keys().map(|id| (hash(*id), *id)).collect();
    let mut table = lake.clone();
    if reduction.truncated {
        table.clear();
        assert!(reduction.touched.is_empty());
    }
    for hash in &reduction.touched {
        if let Some(id) = by_hash.get(hash) {
            table.remove(id);
        }
    }
    let (left_out, needed) = reduction.needed(layout.columns.len());
    let mut rows = LakeRows { rows: vec![None; reduction.lake.len()], columns: vec![None; 4] };
    let mut big = Vec::new();
    for index in needed {
        if let Some(id) = by_hash.get(&reduction.lake[index as usize]) {
            rows.rows[index as usize] = Some(big.len() as u32);
            big.push(lake[id].1.clone());
        }
    }
    rows.columns[0] = Some(Arc::new(StringArray::from(big)));
    reduction.sort(&layout, &rows).unwrap();
    let batch = reduction.assemble(0..reduction.rows.len(), &layout, &rows, &left_out).unwrap();
    let ids = batch.column(1).as_primitive::<Int64Type>().values();
    assert!(ids.is_sorted(), "rows are sorted by key");
    for row in 0..batch.num_rows() {
        let text = |column: usize| {
            let values = batch.column(column).as_string::<i32>();
            values.is_valid(row).then(|| values.value(row).to_owned())
        };
        assert_eq!(text(2), None, "a column that the source does not have");
        assert_eq!(reduction.rows[row].0, hash(ids[row] as i32), "the hash is the row's");
        let old = table.insert(ids[row] as i32, (text(3).unwrap(), text(0)));
        assert_eq!(old, None, "a row that is written replaces its old one");
    }
    table
}

fn event() -> impl Strategy<Value = Event> {
    let big = || prop::option::weighted(0.5, 0..100u8);
    prop_oneof![
        8 => (0..8i32, 0..100u8, big()).prop_map(|(id, v, big)| Event::Put { id, v, big }),
        3 => (0..8i32).prop_map(|id| Event::Delete { id }),
        1 => Just(Event::Truncate),
        4 => (0..8i32, 0..8i32, 0..100u8, big()).prop_map(|(from, to, v, big)| Event::Move { from, to, v, big }),
    ]
}

/// An event that a source can send in this state: it changes rows that are there, and moves them to keys that are free.
fn possible(model: &BTreeMap<i32, Row>, event: Event) -> Option<Event> {
    match event {
        // A row that is not there is inserted whole.
        Event::Put { id, v, big: None } if !model.contains_key(&id) => Some(Event::Put { id, v, big: Some(0) }),
        Event::Delete { id } if !model.contains_key(&id) => None,
        Event::Move { from, to, .. } if from == to || !model.contains_key(&from) || model.contains_key(&to) => None,
        event => Some(event),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn is_the_map_of_the_last_changes(
        commits in proptest::collection::vec(proptest::collection::vec((event(), 0..3usize), 0..25), 1..5),
    ) {
        let (mut model, mut lake) = (BTreeMap::new(), BTreeMap::new());
        let mut sequence = 0;
        for events in commits {
            // Three partitions, read one after the other; a truncate is in each.
            let mut partitions: [Vec<(u64, Raw)>; 3] = Default::default();
            for (event, partition) in events {
                let Some(event) = possible(&model, event) else { continue };
                apply(&mut model, &event);
                for (half, row) in raw(&event).into_iter().enumerate() {
                    sequence += 1;
                    if row.0 == Op::Truncate {
                        partitions.iter_mut().for_each(|p| p.push((sequence, row)));
                    } else {
                        // The halves of a key change lie in different partitions.
                        partitions[(partition + half) % 3].push((sequence, row));
                    }
                }
            }
            let layout = layout();
            let batches: Vec<Aligned> = partitions
                .iter()
                .filter(|rows| !rows.is_empty())
                .map(|rows| Aligned::new(batch(rows), &layout).unwrap())
                .collect();
            lake = write(reduce(batches, true), &lake);
            prop_assert_eq!(&lake, &model);
        }
    }
}

/// Trap 30: a row whose key cannot be held is not applied, and touches nothing.
#[test]
fn a_row_without_its_key_is_refused() {
    let batch = batch(&[(1, (Op::Delete, None, None)), (2, (Op::Create, None, Some((1, 2, Some(3)))))]);
    let aligned = Aligned::new(batch, &layout()).unwrap();
    assert!(matches!(aligned.kinds(), [Kind::Refused(_), Kind::Put]));
    let reduction = reduce(vec![aligned], true);
    assert_eq!((reduction.touched.len(), reduction.rows.len()), (1, 1));
}
