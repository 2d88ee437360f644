//! The log read back: `checkpoints, records -> JsonDecoder -> rows by sequence -> documents`.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use arrow::array::{Array, AsArray};
use bson::Bson;
use lakeward_event::codec::json::JsonDecoder;
use lakeward_event::codec::{Decoder, RecordRef};
use lakeward_event::document::apply_patch;
use lakeward_event::{Checkpoint, Op, TableSchema};
use lakeward_log::{CheckpointReader, Log, RecordReader, RecordVisitor};

use super::{Documents, PATIENCE};

/// A source's collections as a reader of the log has them.
pub struct LogReader {
    checkpoints: Box<dyn CheckpointReader>,
    records: Option<Box<dyn RecordReader>>,
    assigned: HashSet<(String, i32)>,
    source: String,
    log: Arc<dyn Log>,
    /// Canonical Extended JSON by `database.collection` and id text.
    state: BTreeMap<String, BTreeMap<String, String>>,
    next_sequence: u64,
    watermark: i64,
    /// Rows by operation, and patches.
    ops: HashMap<u8, usize>,
    pub patches: usize,
}

struct Visitor {
    decoders: HashMap<String, JsonDecoder>,
    schemas: Vec<Arc<TableSchema>>,
}

impl RecordVisitor for Visitor {
    fn record(&mut self, record: &RecordRef<'_>) -> ControlFlow<()> {
        let decoder = self.decoders.entry(record.topic.to_owned()).or_insert_with(|| {
            let schemas: Vec<_> = self
                .schemas
                .iter()
                .filter(|s| lakeward_event::names::topic(&s.table) == record.topic)
                .cloned()
                .collect();
            JsonDecoder::new(Arc::new(move |version| schemas.iter().find(|s| s.version == version).cloned()))
        });
        decoder.push(record).unwrap();
        ControlFlow::Continue(())
    }
    fn into_any(self: Box<Self>) -> Box<dyn std::any::Any + Send> {
        self
    }
}

struct Row {
    table: String,
    op: Op,
    id: Option<String>,
    doc: Option<String>,
    patch: Option<String>,
}

impl LogReader {
    pub async fn open(log: &Arc<dyn Log>, source: &str) -> Self {
        Self {
            checkpoints: log.checkpoints(source, None).await.unwrap(),
            records: Some(log.records(source).await.unwrap()),
            assigned: HashSet::new(),
            source: source.into(),
            log: log.clone(),
            state: BTreeMap::new(),
            next_sequence: 0,
            watermark: 0,
            ops: HashMap::new(),
            patches: 0,
        }
    }

    /// Applies checkpoints up to the first that the caller wants.
    pub async fn until(&mut self, wanted: impl Fn(&Checkpoint) -> bool) -> Checkpoint {
        let all = async {
            loop {
                let checkpoint = self.next().await;
                if wanted(&checkpoint) {
                    return checkpoint;
                }
            }
        };
        tokio::time::timeout(PATIENCE, all).await.expect("the checkpoint comes")
    }

    /// Applies the next checkpoint.
    pub async fn next(&mut self) -> Checkpoint {
        let checkpoint = self.checkpoints.next().await.unwrap();
        let records = self.records.as_mut().unwrap();
        for (topic, partitions) in &checkpoint.ends {
            for &partition in partitions.keys() {
                if self.assigned.insert((topic.clone(), partition)) {
                    records.assign(topic, partition, 0).await.unwrap();
                }
            }
        }
        let schemas =
            if checkpoint.ends.is_empty() { Vec::new() } else { self.log.schemas(&self.source).await.unwrap() };
        let visitor = Box::new(Visitor { decoders: HashMap::new(), schemas });
        let visitor = tokio::time::timeout(PATIENCE, records.read_to(&checkpoint.ends, visitor)).await;
        let visitor = visitor.expect("the records come").unwrap().into_any().downcast::<Visitor>().unwrap();
        self.apply(*visitor, &checkpoint);
        let draft = &checkpoint.draft;
        assert!(draft.watermark >= self.watermark && draft.watermark % 1_000_000 == 0);
        assert!(draft.watermark_from % 1_000_000 == 0);
        if draft.cut {
            assert!(draft.watermark > self.watermark && draft.watermark_from <= draft.watermark, "{draft:?}");
        }
        self.watermark = draft.watermark;
        checkpoint
    }

    fn apply(&mut self, visitor: Visitor, checkpoint: &Checkpoint) {
        // A truncate is in every partition, under one sequence.
        let mut rows: BTreeMap<u64, Row> = BTreeMap::new();
        for mut decoder in visitor.decoders.into_values() {
            for batch in decoder.flush().unwrap() {
                let table = format!("{}.{}", batch.table().table.schema, batch.table().table.name);
                let (after, before) = (batch.after(), batch.before());
                for row in 0..batch.num_rows() {
                    let op = Op::from_u8(batch.ops()[row]).unwrap();
                    let side = if op == Op::Delete { before } else { after };
                    let text = |column: usize| {
                        let array = side.column(column).as_string::<i32>();
                        (side.is_valid(row) && array.is_valid(row)).then(|| array.value(row).to_owned())
                    };
                    let patch = batch.patch().is_valid(row).then(|| batch.patch().value(row).to_owned());
                    let new = Row { table: table.clone(), op, id: text(0), doc: text(1), patch };
                    let known = rows.insert(batch.sequences()[row], new);
                    assert!(op == Op::Truncate || known.is_none(), "a sequence comes twice");
                }
            }
        }
        let sequences = self.next_sequence..checkpoint.draft.next_sequence;
        for (sequence, row) in rows {
            // Each row is in the log once, and with its checkpoint.
            assert!(sequences.contains(&sequence), "{sequence} is not in {sequences:?}");
            *self.ops.entry(row.op as u8).or_default() += 1;
            let table = self.state.entry(row.table.clone()).or_default();
            match (row.op, row.id) {
                (Op::Truncate, _) => table.clear(),
                (Op::Delete, Some(id)) => {
                    table.remove(&id);
                }
                (_, Some(id)) => {
                    let document = match (row.doc, row.patch) {
                        (Some(document), None) => document,
                        (None, Some(patch)) => {
                            self.patches += 1;
                            let old =
                                table.get(&id).unwrap_or_else(|| panic!("{} {id} is not there: {patch}", row.table));
                            apply_patch(old, &patch)
                                .unwrap_or_else(|e| panic!("{} {id}: {e}: {old} {patch}", row.table))
                        }
                        other => panic!("neither document nor patch, or both: {other:?}"),
                    };
                    table.insert(id, document);
                }
                (op, None) => panic!("{op:?} without _id"),
            }
        }
        self.next_sequence = checkpoint.draft.next_sequence;
    }

    pub fn documents(&self, name: &str) -> Documents {
        let parse = |json: &String| match Bson::try_from(serde_json::from_str::<serde_json::Value>(json).unwrap()) {
            Ok(Bson::Document(document)) => document,
            other => panic!("not a document: {other:?}"),
        };
        self.state.get(name).into_iter().flatten().map(|(id, json)| (id.clone(), parse(json))).collect()
    }

    pub fn count(&self, op: Op) -> usize {
        self.ops.get(&(op as u8)).copied().unwrap_or(0)
    }
}
