//! Appends: `ended batches + progress -> publisher -> checkpoint -> position confirmed to the server`.

use lakeward_event::{ChangeBatch, Checkpoint, Position};
use lakeward_runtime::{Error, Result, crash_point};

use super::Stream;
use crate::publisher::{Append, Progress};

impl Stream {
    /// Hands everything that has arrived, and then `extra` (whose sequences count from 0 in each batch group of one read), to the
    /// log.
    pub(super) async fn flush(&mut self, extra: Vec<(Vec<ChangeBatch>, u64)>, kind: Flush) -> Result<()> {
        for capture in self.captures.values_mut().flatten() {
            if let Some(batch) = capture.finish()? {
                self.ready.push(batch);
            }
        }
        for (batches, rows) in extra {
            for batch in batches {
                let numbered = batch.with_sequence_base(self.sequences);
                self.ready.push(numbered.map_err(|e| Error::bug("numbering a snapshot's rows").source(e))?);
            }
            self.sequences += rows;
        }
        if self.ready.is_empty() && matches!(kind, Flush::Data) {
            return Ok(());
        }
        self.settle().await?;
        let cut = match kind {
            Flush::Tick(tick) => {
                self.cursor.promised(tick);
                true
            }
            Flush::Cut => {
                // Off the grid, which tells the sink that somebody waits for this very cut.
                self.cursor.promised(self.cursor.clock());
                true
            }
            Flush::Data | Flush::Always => false,
        };
        let snapshot = serde_json::to_value(&self.snapshots.state)
            .map_err(|e| Error::bug("the snapshot's state is always JSON").source(e))?;
        let progress = Progress {
            position: self.cursor.position(),
            snapshot,
            converging: self.snapshots.converging(),
            watermark_from: self.cursor.watermark_from(),
            watermark: self.cursor.watermark(),
            cut,
        };
        self.flying = std::mem::take(&mut self.sequences);
        self.bytes = 0;
        crash_point!("connector.stream.before_append");
        self.lane.begin(Append { batches: std::mem::take(&mut self.ready), sequences: self.flying, progress })
    }

    /// Waits for the append under way.
    pub(super) async fn settle(&mut self) -> Result<()> {
        if self.lane.is_busy() {
            let checkpoint = self.lane.settled().await?;
            self.committed(checkpoint).await?;
        }
        Ok(())
    }

    /// An append is durable: exactly its position is confirmed to the server.
    pub(super) async fn committed(&mut self, checkpoint: Checkpoint) -> Result<()> {
        crash_point!("connector.confirm.before");
        let rows = std::mem::take(&mut self.flying);
        self.context.status.committed(&self.source.name, &checkpoint, rows);
        if let Position::Postgres { lsn, .. } = checkpoint.draft.position
            && lsn > self.confirmed
        {
            self.confirmed = lsn;
            self.feedback().await?;
        }
        if self.context.until_caught_up
            && checkpoint.draft.cut
            && checkpoint.draft.converging.is_empty()
            && self.caught_up.is_some_and(|clock| checkpoint.draft.watermark > clock)
        {
            self.finished = Some(checkpoint);
        }
        Ok(())
    }
}

/// Why something is handed to the log.
pub(super) enum Flush {
    /// There is enough of it.
    Data,
    /// Even if it holds no change: its progress counts.
    Always,
    /// Everything acknowledged before this tick is in it.
    Tick(i64),
    /// Asked for, at the cursor's position.
    Cut,
}
