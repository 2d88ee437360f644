//! What is read off the server beside the stream: `ranges of _id -> batches -> append`, `ids of patches that cannot be used ->
//! whole documents -> the open batch`.

use std::time::{Duration, Instant};

use lakeward_event::ChangeBatch;
use lakeward_runtime::config::SourceConfig;
use lakeward_runtime::{Error, Result};
use mongodb::Client;
use tokio_util::sync::CancellationToken;

use super::super::builder::DocumentBuilder;
use super::super::client::operation_time;
use super::super::snapshot::{Range, State, read_documents, read_range};
use super::{Capture, TURN, schema};

/// Collections that are read at once.
const READERS: usize = 4;
/// Documents of a range that the server's history window is too short for, however often it is halved.
const FEWEST_ROWS: i64 = 10;
/// Rounds of ranges that are refused one after the other before that is told as a failure: some seconds.
const REFUSALS: u32 = 40;

/// A collection's name, and the `_id` after which its next range begins.
type Due = (String, Option<serde_json::Value>);

/// One range of a collection, read and not yet appended.
struct ReadRange {
    name: String,
    range: Range,
    builder: DocumentBuilder,
    rows: u64,
}

/// One range of each of these collections, all at one moment. None: the server is not at `from` yet, ask again later.
async fn read(
    client: &Client,
    source: &SourceConfig,
    from: u64,
    rows: i64,
    due: Vec<Due>,
) -> Result<Option<Vec<ReadRange>>> {
    let at = operation_time(client).await?;
    if at < from {
        return Ok(None);
    }
    let reads = due.into_iter().map(|(name, after)| async move {
        let (database, collection) = name.split_once('.').unwrap_or((&name, ""));
        let mut builder = DocumentBuilder::new(schema(source, database, collection));
        let mut rows_read = 0;
        let range =
            read_range(client, (database, collection), after.as_ref(), (at, rows), &mut builder, &mut rows_read)
                .await?;
        Ok::<_, Error>(ReadRange { name, range, builder, rows: rows_read })
    });
    futures::future::try_join_all(reads).await.map(Some)
}

impl Capture<'_> {
    /// Ranges of a few collections at a time, all at one moment and with their progress in one append, for a turn. While some
    /// are appended the next are read.
    pub(super) async fn read_ranges(&mut self, shutdown: &CancellationToken) -> Result<()> {
        let started = Instant::now();
        // Hold the stream: everything published is at or before the moments that are read.
        self.publish(false).await?;
        let (client, source) = (self.client.clone(), self.source);
        let mut ranges = read(&client, source, self.time, self.range_rows, self.due()).await?;
        while let Some(read_ranges) = ranges {
            let Some(batches) = self.take_ranges(read_ranges)? else { return Ok(()) };
            let due = self.due();
            let more = !due.is_empty() && started.elapsed() < TURN && !shutdown.is_cancelled();
            let (from, rows) = (self.time, self.range_rows);
            let next = async { if more { read(&client, source, from, rows, due).await } else { Ok(None) } };
            lakeward_runtime::crash_point!("connector.range.before_append");
            let ((), next) = tokio::try_join!(self.append(batches, false), next)?;
            ranges = next;
        }
        Ok(())
    }

    /// The collections whose turn it is.
    fn due(&self) -> Vec<Due> {
        let due = self.progress.collections.iter().filter_map(|(name, state)| match state {
            State::Reading { after } => Some((name.clone(), after.clone())),
            _ => None,
        });
        due.take(READERS).collect()
    }

    /// Notes how far ranges have come; returns their rows. None: nothing was read, ask again later.
    fn take_ranges(&mut self, ranges: Vec<ReadRange>) -> Result<Option<Vec<ChangeBatch>>> {
        let mut batches = Vec::new();
        let (mut progress, mut too_old) = (false, None);
        for ReadRange { name, range, mut builder, rows } in ranges {
            match range {
                Range::Read(state) => {
                    self.progress.collections.insert(name, state);
                    progress = true;
                }
                Range::TooOld => {
                    too_old = Some(name);
                    continue;
                }
                Range::Changed => continue,
            }
            if rows > 0 {
                let batch = builder.finish()?.with_sequence_base(self.sequence);
                batches.push(batch.map_err(|e| Error::bug("numbering a range").source(e))?);
                self.sequence += rows;
            }
        }
        let rows = self.range_rows;
        self.range_rows = match &too_old {
            Some(_) => (rows / 2).max(FEWEST_ROWS).min(rows),
            // Back to full ranges, in steps that cost little if it is too early.
            None => (rows + rows / 8 + 1).min(self.full_range_rows),
        };
        if let Some(name) = &too_old {
            tracing::info!(source = %self.source.name, collection = name, rows = self.range_rows,
                "the server's history did not reach to the end of a range, going on with smaller ones");
        }
        if progress {
            self.refusals = 0;
            return Ok(Some(batches));
        }
        self.refusals += 1;
        if self.refusals < REFUSALS {
            return Ok(None);
        }
        Err(match too_old {
            Some(name) => Error::retry(format!(
                "the server does not keep its history for long enough to read {rows} documents: raise minSnapshotHistoryWindowInSeconds (300 by default)"
            ))
            .with("collection", name),
            None => Error::retry(
                "the server gives no moment at which a range could be read: are collections renamed or indexed all the time?",
            ),
        })
    }

    /// Documents whose patches could not be used, as they were at exactly the position of this append; where the server cannot
    /// give that moment, as they are now, and the collection converges until the stream is there.
    pub(super) async fn read_again(&mut self, cut: bool) -> Result<()> {
        if self.again == 0 {
            return Ok(());
        }
        let (mut read, mut bytes) = (0, 0);
        for collection in self.collections.iter_mut().filter(|c| !c.again.is_empty()) {
            let name = (collection.database.as_str(), collection.collection.as_str());
            let mut ids = std::mem::take(&mut collection.again);
            let builder = &mut collection.builder;
            let (before, wanted) = (builder.bytes(), ids.len());
            let wall = self.ticks.seen(0);
            let mut at = self.time;
            let exact = read_documents(&self.client, name, &mut ids, at, builder, (&mut self.sequence, wall)).await?;
            if !exact || !ids.is_empty() {
                // A document that the stream says is there and the server does not find: its collection was dropped since, or
                // it is deleted later in the transaction that is not whole yet.
                let mut there = false;
                for pause in 0..20 {
                    tokio::time::sleep(Duration::from_millis(5 * pause)).await;
                    at = operation_time(&self.client).await?.max(self.time);
                    there =
                        read_documents(&self.client, name, &mut ids, at, builder, (&mut self.sequence, wall)).await?;
                    if there {
                        break;
                    }
                }
                if !there {
                    return Err(Error::retry("the server cannot give a moment at which documents could be read again")
                        .with("collection", &collection.name));
                }
            }
            // Inside a transaction the moment of the position is the moment after it.
            if at > self.time || (!cut && self.in_transaction) {
                self.progress.read_ahead(&collection.name, at);
            }
            read += wanted;
            bytes += builder.bytes() - before;
        }
        self.again = 0;
        self.again_weight = bytes / read.max(1) + 64;
        Ok(())
    }
}
