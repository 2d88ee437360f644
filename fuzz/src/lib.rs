//! What the targets share: a table of every type, a batch of it, and what a decoder must keep to whatever it is given.
//!
//! `input -> a record, made up or damaged -> Decoder::push -> Decoder::flush`

pub mod foreign;

use std::sync::{Arc, LazyLock, Mutex, MutexGuard};

use arrow::array::{Array, StructArray};
use arrow::datatypes::DataType;
use lakeward_event::batch::{ChangeMeta, MetaRow};
use lakeward_event::codec::any::AnyDecoder;
use lakeward_event::codec::registry::{RegisteredSchema, SchemaRegistry};
use lakeward_event::codec::{Decoder, Encoder, RecordBlock, RecordRef};
use lakeward_event::schema::TableKind;
use lakeward_event::{ChangeBatch, Column, LogicalType, Op, TableId, TableSchema};

/// Versions 1 (all types) and 2 (a collection).
pub fn schemas() -> [Arc<TableSchema>; 2] {
    let decimal = LogicalType::Decimal { precision: 12, scale: 2 };
    let types = [
        LogicalType::Long,
        LogicalType::Int,
        LogicalType::Bool,
        LogicalType::Float,
        LogicalType::Double,
        decimal,
        LogicalType::String,
        LogicalType::Json,
        LogicalType::Uuid,
        LogicalType::Binary,
        LogicalType::Date,
        LogicalType::Timestamp,
        LogicalType::TimestampTz,
        LogicalType::List(Box::new(LogicalType::String)),
        LogicalType::List(Box::new(LogicalType::Int)),
    ];
    let columns = types.into_iter().enumerate().map(|(i, ty)| Column {
        id: i as i32,
        name: format!("c{i}"),
        ty,
        source_type: String::new(),
        nullable: true,
    });
    let relational = TableSchema {
        table: TableId::new("users", "public", "t"),
        kind: TableKind::Relational,
        version: 1,
        columns: columns.collect(),
        key: vec![0],
    };
    let documents = TableSchema { version: 2, ..TableSchema::documents(TableId::new("shop", "shop", "items")) };
    [relational.into(), documents.into()]
}

/// The schemas of `avro` records, by number.
#[derive(Default)]
pub struct Registry(Mutex<Vec<Arc<RegisteredSchema>>>);

/// Where real `avro` records have theirs.
pub static REGISTRY: LazyLock<Arc<Registry>> = LazyLock::new(Arc::default);

impl Registry {
    /// One that has these texts, the first as number 0.
    pub fn of(texts: impl IntoIterator<Item = String>) -> Arc<Self> {
        let schema = |text| Arc::new(RegisteredSchema { text, references: Vec::new() });
        Arc::new(Self(Mutex::new(texts.into_iter().map(schema).collect())))
    }

    pub fn texts(&self) -> Vec<String> {
        self.known().iter().map(|schema| schema.text.clone()).collect()
    }

    fn known(&self) -> MutexGuard<'_, Vec<Arc<RegisteredSchema>>> {
        self.0.lock().expect("nobody panics with it")
    }
}

impl SchemaRegistry for Registry {
    fn register(&self, _: &str, schema: &str) -> lakeward_event::Result<u32> {
        let mut known = self.known();
        known.push(Arc::new(RegisteredSchema { text: schema.into(), references: Vec::new() }));
        Ok(known.len() as u32 - 1)
    }

    fn schema(&self, id: u32) -> lakeward_event::Result<Option<Arc<RegisteredSchema>>> {
        Ok(self.known().get(id as usize).cloned())
    }
}

/// Real records of both tables, to be damaged.
pub fn records(encoder: &mut dyn Encoder) -> RecordBlock {
    let mut block = RecordBlock::default();
    for schema in schemas() {
        let rows = 9;
        let side = |step: usize| {
            let columns = schema.columns.iter().map(|column| {
                // Some value of the type, by the decoder of JSON, which reads them all.
                let text = match &column.ty {
                    LogicalType::Bool => "true",
                    LogicalType::String | LogicalType::Json => {
                        "\"text that is long enough to be compressed, text, text, text\""
                    }
                    LogicalType::Decimal { .. } => "\"12.30\"",
                    LogicalType::Uuid => "\"6b0c1f3e-9b3a-4a52-8f5e-0f6d3d8f6a11\"",
                    LogicalType::Binary => "\"AAEC\"",
                    LogicalType::TimestampTz => "\"2020-01-01T00:00:00Z\"",
                    LogicalType::List(element) if **element == LogicalType::Int => "[1,null,3]",
                    LogicalType::List(_) => "[\"a\",null]",
                    _ => "1",
                };
                let value = value_of(&column.ty, text);
                let indices = arrow::array::UInt32Array::from_iter((0..rows).map(|row| (row % step != 0).then_some(0)));
                arrow::compute::take(&value, &indices, None).expect("one row")
            });
            let nulls = (0..rows).map(|row| row % step != 0).collect::<Vec<_>>().into();
            StructArray::new(schema.arrow_fields(), columns.collect(), Some(nulls))
        };
        let mut meta = ChangeMeta::default();
        for row in 0..rows {
            if row == 4 {
                meta.misfit(b'a', 1, "NaN");
            }
            meta.push(MetaRow {
                op: [Op::Create, Op::Update, Op::Delete, Op::Read, Op::Truncate][row % 5],
                sequence: row as u64,
                position: 7,
                tx: Some(3),
                commit_ts: Some(5),
                unchanged: (row == 1).then_some(&[4u8, 0][..]),
                patch: (row == 6).then_some("{\"updatedFields\":{}}"),
            });
        }
        let batch = ChangeBatch::try_new(schema.clone(), meta.finish().expect("columns"), side(3), side(2));
        encoder.encode(&batch.expect("a batch"), 1, &mut block).expect("records");
    }
    block
}

/// A column of one row that holds the value.
fn value_of(ty: &LogicalType, text: &str) -> arrow::array::ArrayRef {
    let schema = Arc::new(TableSchema {
        table: TableId::new("s", "s", "t"),
        kind: TableKind::Relational,
        version: 1,
        columns: vec![Column { id: 1, name: "v".into(), ty: ty.clone(), source_type: String::new(), nullable: true }],
        key: vec![],
    });
    let mut decoder = AnyDecoder::new(Arc::new(move |_| Some(schema.clone())), None).expect("a decoder");
    let value = format!("{{\"before\":null,\"after\":{{\"v\":{text}}},\"source\":{{\"lsn\":1}},\"op\":\"c\"}}");
    push(&mut decoder, None, Some(value.as_bytes()), Some(b"1,1")).expect("a value");
    let batch = decoder.flush().expect("a batch").remove(0);
    batch.after().column(0).clone()
}

fn push(
    decoder: &mut AnyDecoder,
    key: Option<&[u8]>,
    value: Option<&[u8]>,
    header: Option<&[u8]>,
) -> lakeward_event::Result<()> {
    decoder.push(&RecordRef { topic: "t", partition: 0, offset: 0, key, value, header })
}

/// The decoder of records of both tables.
fn decoder(registry: &Arc<Registry>) -> AnyDecoder {
    let [schema, documents] = schemas();
    let find = move |version| match version {
        1 => Some(schema.clone()),
        2 => Some(documents.clone()),
        _ => None,
    };
    AnyDecoder::new(Arc::new(find), Some(registry.clone())).expect("a decoder")
}

/// One input: real records, which a registry says were written with these schemas.
pub fn run_schemas(real: &RecordBlock, texts: Vec<String>) {
    let mut decoder = decoder(&Registry::of(texts));
    for record in real.iter() {
        let rows = decoder.rows();
        let taken = push(&mut decoder, record.key, record.value, record.header).is_ok();
        assert_eq!(decoder.rows(), rows + usize::from(taken), "a record that was refused left something behind");
    }
    finish(decoder);
}

/// One input: by its first byte made up (even) or edits of a real record, the one that its second byte says.
pub fn run(real: &RecordBlock, input: &[u8]) {
    let [first, which, input @ ..] = input else { return };
    let Some(record) = real.iter().nth(usize::from(*which) % real.len()) else { return };
    let [key, value, header] = if first % 2 == 0 {
        let Some((length, input)) = input.split_first() else { return };
        let (header, value) = input.split_at(input.len().min(usize::from(*length)));
        [record.key.map(<[u8]>::to_vec), Some(value.to_vec()), Some(header.to_vec())]
    } else {
        let mut parts = [record.key, record.value, record.header].map(|part| part.map(<[u8]>::to_vec));
        // Part, place (two bytes), new value; a part of 3 cuts the value off.
        for edit in input.chunks_exact(4) {
            let at = usize::from(u16::from_le_bytes([edit[1], edit[2]]));
            match (edit[0] % 4, &mut parts) {
                (3, [_, Some(value), _]) => value.truncate(at),
                (part @ 0..3, parts) => {
                    if let Some(byte) = parts[usize::from(part)].as_mut().and_then(|bytes| bytes.get_mut(at)) {
                        *byte = edit[3];
                    }
                }
                _ => {}
            }
        }
        parts
    };
    let mut decoder = decoder(&REGISTRY);
    // What is right is taken, whatever came before.
    let right = |decoder: &mut AnyDecoder| {
        let rows = decoder.rows();
        push(decoder, record.key, record.value, record.header).expect("a real record");
        assert!(decoder.rows() > rows);
    };
    right(&mut decoder);
    let rows = decoder.rows();
    if push(&mut decoder, key.as_deref(), value.as_deref(), header.as_deref()).is_err() {
        assert_eq!(decoder.rows(), rows, "a record that was refused left something behind");
    }
    right(&mut decoder);
    finish(decoder);
}

fn finish(mut decoder: AnyDecoder) {
    let rows = decoder.rows();
    let batches = decoder.flush().expect("what was taken can be given back");
    assert_eq!(batches.iter().map(ChangeBatch::num_rows).sum::<usize>(), rows);
    assert_eq!(decoder.rows(), 0);
    // Everything can be looked at: offsets, texts and null bits are in bounds.
    for batch in batches {
        for column in batch.record_batch().columns() {
            column.to_data().validate_full().expect("sound arrays");
        }
        assert_eq!(batch.before().data_type(), &DataType::Struct(batch.table().arrow_fields()));
        for row in 0..batch.num_rows() {
            let _ = batch.misfits().of(row).count();
        }
    }
}
