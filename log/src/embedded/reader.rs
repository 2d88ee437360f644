//! Reading records: partitions and offsets that the caller names -> blocks of one snapshot of the file -> a visitor.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::TryStreamExt;
use lakeward_event::Ends;
use lakeward_event::codec::RecordRef;
use sqlx::sqlite::{SqliteConnection, SqliteRow};
use sqlx::{Connection, Row};
use tokio::runtime::Handle;

use super::block::{Damaged, Records};
use super::error::Doing;
use super::store::Store;
use crate::blocking::{AbandonOnDrop, blocking};
use crate::{Error, RecordReader, RecordVisitor, Result};

const READING: &str = "reading the log";

/// A partition as the caller has assigned it.
#[derive(Debug, Clone)]
struct Place {
    topic: String,
    partition: i32,
    /// Every record below it has been handed out.
    position: i64,
}

/// Partitions, and the connection that reads them. Its calls block.
struct Assigned {
    store: Arc<Store>,
    connection: SqliteConnection,
    places: Vec<Place>,
    /// In `places`, by topic and partition.
    index: HashMap<String, HashMap<i32, usize>>,
    /// Where compressed blocks are unpacked.
    scratch: Vec<u8>,
}

impl Assigned {
    fn assign(&mut self, topic: &str, partition: i32, offset: i64) -> Result<()> {
        let index = self.index.entry(topic.to_owned()).or_default();
        if index.contains_key(&partition) {
            return Err(Error::bug("a partition is assigned twice").with("topic", topic).with("partition", partition));
        }
        index.insert(partition, self.places.len());
        self.places.push(Place { topic: topic.to_owned(), partition, position: offset });
        Ok(())
    }

    /// [`RecordReader::read_to`]; `abandoned` ends it early. Not to be called from the runtime's own threads, and the visitor
    /// is never called from inside of the runtime: it may wait for something itself.
    fn read_to(
        &mut self,
        runtime: &Handle,
        ends: &Ends,
        abandoned: &AtomicBool,
        visitor: &mut dyn RecordVisitor,
    ) -> Result<()> {
        let mut open: Vec<(usize, i64)> = Vec::new();
        for (topic, partitions) in ends {
            for (&partition, &end) in partitions {
                let Some(&at) = self.index.get(topic).and_then(|index| index.get(&partition)) else {
                    return Err(Error::bug("reading a partition that is not assigned")
                        .with("topic", topic)
                        .with("partition", partition));
                };
                if self.places[at].position < end {
                    open.push((at, end));
                }
            }
        }
        let Self { store, connection, places, scratch, .. } = self;
        // One snapshot for bounds and blocks, so that nothing is dropped between looking and reading.
        let mut snapshot = runtime.block_on(connection.begin()).doing(&store.path, READING)?;
        for (at, end) in open {
            let Some(place) = places.get_mut(at) else { continue };
            let topic = runtime.block_on(bounded(&mut snapshot, store, place, end))?;
            let mut rows = sqlx::query(
                "SELECT first_offset, end_offset, records FROM blocks
                 WHERE topic = ? AND partition = ? AND end_offset > ? AND first_offset < ? ORDER BY end_offset",
            )
            .bind(topic)
            .bind(place.partition)
            .bind(place.position)
            .bind(end)
            .fetch(&mut *snapshot);
            while place.position < end {
                if abandoned.load(Ordering::Relaxed) {
                    return Ok(());
                }
                let row = runtime.block_on(rows.try_next()).doing(&store.path, READING)?;
                let Some(row) = row else {
                    return Err(damaged(store, place, Damaged("blocks are missing")));
                };
                if visit(&row, store, place, end, scratch, visitor)?.is_break() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// The topic's id, if the log has everything from the place's position to `end`.
async fn bounded(snapshot: &mut SqliteConnection, store: &Store, place: &Place, end: i64) -> Result<i64> {
    let found = sqlx::query(
        "SELECT t.id, p.first_offset, p.end_offset FROM topics t JOIN partitions p ON p.topic = t.id
         WHERE t.name = ? AND p.number = ?",
    )
    .bind(&place.topic)
    .bind(place.partition)
    .fetch_optional(snapshot)
    .await
    .doing(&store.path, READING)?;
    let Some(row) = found else {
        return Err(Error::human(
            "a topic or partition that Lakeward needs is missing: was the embedded log's file deleted?",
        )
        .with("topic", &place.topic)
        .with("partition", place.partition)
        .with("file", store.path.display()));
    };
    let (topic, first, last): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    let message = if place.position < first {
        "the log was cut off before it was read: was the lake set back, or is it another one?"
    } else if place.position > last || end > last {
        "the log ends before the offset to read: was the embedded log's file deleted?"
    } else {
        return Ok(topic);
    };
    Err(Error::human(message)
        .with("topic", &place.topic)
        .with("partition", place.partition)
        .with("offset", place.position)
        .with("first_offset", first)
        .with("end_offset", last))
}

/// Hands out a block's records from the place's position to `end`, and moves the position.
fn visit(
    row: &SqliteRow,
    store: &Store,
    place: &mut Place,
    end: i64,
    scratch: &mut Vec<u8>,
    visitor: &mut dyn RecordVisitor,
) -> Result<ControlFlow<()>> {
    let (first, block_end, blob): (i64, i64, &[u8]) = (row.get(0), row.get(1), row.get(2));
    if first > place.position {
        return Err(damaged(store, place, Damaged("blocks are missing")));
    }
    let records = Records::of(blob, scratch).map_err(|why| damaged(store, place, why))?;
    let mut offset = first;
    for parts in records {
        let [key, value, header] = parts.map_err(|why| damaged(store, place, why))?;
        if offset >= end.min(block_end) {
            break;
        }
        if offset >= place.position {
            place.position = offset + 1;
            let record = RecordRef { topic: &place.topic, partition: place.partition, offset, key, value, header };
            if visitor.record(&record).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        offset += 1;
    }
    if offset < end.min(block_end) {
        return Err(damaged(store, place, Damaged("it has too few records")));
    }
    Ok(ControlFlow::Continue(()))
}

fn damaged(store: &Store, place: &Place, why: Damaged) -> Error {
    Error::human(format!("a block of the embedded log is damaged: {}", why.0))
        .with("file", store.path.display())
        .with("topic", &place.topic)
        .with("partition", place.partition)
        .with("offset", place.position)
}

/// [`RecordReader`] on the embedded log.
pub(super) struct EmbeddedRecordReader {
    /// None while a read is under way, and for good when one was abandoned: its records are neither read nor unread.
    assigned: Option<Assigned>,
}

impl EmbeddedRecordReader {
    pub async fn open(store: Arc<Store>) -> Result<Self> {
        let connection = store.reader().await?;
        Ok(Self {
            assigned: Some(Assigned {
                store,
                connection,
                places: Vec::new(),
                index: HashMap::new(),
                scratch: Vec::new(),
            }),
        })
    }

    fn take(&mut self) -> Result<Assigned> {
        self.assigned.take().ok_or_else(|| Error::bug("a reader is used after one of its reads was abandoned"))
    }
}

#[async_trait]
impl RecordReader for EmbeddedRecordReader {
    async fn assign(&mut self, topic: &str, partition: i32, offset: i64) -> Result<()> {
        let mut assigned = self.take()?;
        let result = assigned.assign(topic, partition, offset);
        self.assigned = Some(assigned);
        result
    }

    async fn read_to(&mut self, ends: &Ends, visitor: Box<dyn RecordVisitor>) -> Result<Box<dyn RecordVisitor>> {
        let mut assigned = self.take()?;
        let (ends, runtime) = (ends.clone(), Handle::current());
        let abandoned = Arc::new(AtomicBool::new(false));
        let _guard = AbandonOnDrop(abandoned.clone());
        let mut visitor = visitor;
        let (assigned, visitor, result) = blocking(move || {
            let result = assigned.read_to(&runtime, &ends, &abandoned, visitor.as_mut());
            (assigned, visitor, result)
        })
        .await;
        self.assigned = Some(assigned);
        result.map(|()| visitor)
    }
}
