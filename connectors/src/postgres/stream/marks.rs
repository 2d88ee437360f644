//! Messages of ours in the stream, requests of others, and the clock: what is due when one of them comes.

use std::time::{Duration, Instant};

use lakeward_log::Signal;
use lakeward_runtime::Result;

use super::append::Flush;
use super::{DISCOVERY, FEEDBACK, HOLD_LIMIT, Stream, Written, clock_offset, now};
use crate::postgres::catalog;
use crate::postgres::cursor::tick_at;
use crate::postgres::mark::{self, Mark};
use crate::postgres::snapshot::state::{Stage, TableState};

impl Stream {
    pub(super) async fn message(&mut self, lsn: u64, message: mark::Message) -> Result<()> {
        if self.cut_at.as_ref().is_some_and(|(_, cut)| lsn > *cut) {
            self.place_cut().await?;
        }
        self.cursor.message(lsn, message.clock);
        if let Some(tick) = self.cursor.tick_before(message.clock) {
            self.flush(Vec::new(), Flush::Tick(tick)).await?;
        }
        match message.mark {
            Mark::Tick => self.tick_written = false,
            Mark::Cut { .. } => {}
            Mark::CaughtUp { run } if run == self.run => self.caught_up = Some(message.clock),
            Mark::Hold { request, seconds } => {
                // The signal may have been faster than the stream.
                if self.cut_at.as_ref().is_none_or(|(asked, _)| *asked != request) {
                    let limit = Duration::from_secs(seconds).min(HOLD_LIMIT);
                    tracing::debug!(source = self.source.name, request, "holding the stream");
                    self.hold = Some((request, Instant::now() + limit));
                }
            }
            Mark::RangesRead { table, run, attempt } if run == self.run => {
                if let Some(state) = self.snapshots.state.tables.get_mut(&table)
                    && state.stage == Stage::Closing
                    && state.attempt == attempt
                {
                    state.stage = Stage::Settling;
                    self.advance(table);
                }
            }
            Mark::Settled { table, run, attempt } if run == self.run => {
                let is_it = |t: &TableState| t.stage == Stage::Ending && t.attempt == attempt;
                if self.snapshots.state.tables.get(&table).is_some_and(is_it)
                    && let Some(done) = self.snapshots.state.tables.remove(&table)
                {
                    self.snapshots.state.done.insert(table);
                    tracing::info!(source = self.source.name, table = done.name, "snapshot finished");
                }
            }
            Mark::CaughtUp { .. } | Mark::RangesRead { .. } | Mark::Settled { .. } => {}
        }
        Ok(())
    }

    pub(super) fn write(&mut self, mark: Mark) {
        let (client, marker) = (self.sql.clone(), self.marker.clone());
        self.writes.spawn(async move {
            marker.write(&client, &mark).await?;
            Ok(Written::Mark)
        });
    }

    pub(super) async fn written(&mut self, written: Written) -> Result<()> {
        match written {
            Written::Mark => Ok(()),
            Written::Clock(offset) => {
                self.clock_offset = offset;
                self.context.status.update(&self.source.name, |s| s.clock_offset = offset);
                Ok(())
            }
            Written::Tables(tables) => self.found(tables).await,
        }
    }

    pub(super) fn signal(&mut self, signal: Signal) {
        match signal {
            Signal::Cut { request, lsn } => {
                let begun = self.cursor.open().is_some_and(|open| open.changes > 0 && open.final_lsn >= lsn);
                if self.cursor.lsn() > lsn || begun {
                    tracing::warn!(source = self.source.name, request, "a cut was asked for too late");
                } else {
                    self.cut_at = Some((request.clone(), lsn));
                    self.write(Mark::Cut { request });
                }
                self.hold = None;
            }
            Signal::Snapshot { request, .. } => {
                tracing::warn!(
                    source = self.source.name,
                    request,
                    "taking a table's snapshot again is not possible yet"
                );
            }
        }
    }

    /// Everything up to the asked LSN has arrived, nothing after it.
    pub(super) async fn place_cut(&mut self) -> Result<()> {
        if let Some((request, lsn)) = self.cut_at.take() {
            self.cursor.cut(lsn);
            tracing::debug!(source = self.source.name, request, "cut placed");
            self.flush(Vec::new(), Flush::Cut).await?;
        }
        Ok(())
    }

    /// What is due by the clock.
    pub(super) async fn pulse(&mut self) -> Result<()> {
        if let Some((request, _)) = self.hold.as_ref().filter(|(_, until)| Instant::now() > *until) {
            tracing::warn!(source = self.source.name, request, "a hold ended without a cut");
            self.hold = None;
        }
        let due = tick_at(now() + self.clock_offset, self.interval);
        if due > self.cursor.watermark() && !self.tick_written && !self.is_held() {
            self.tick_written = true;
            self.write(Mark::Tick);
        }
        if self.told.elapsed() > FEEDBACK {
            self.feedback().await?;
        }
        if self.discovered.elapsed() > DISCOVERY {
            self.discovered = Instant::now();
            let (client, filter) = (self.sql.clone(), self.filter.clone());
            self.writes.spawn(async move { Ok(Written::Tables(catalog::list_tables(&*client, &filter).await?)) });
            let client = self.sql.clone();
            self.writes.spawn(async move { Ok(Written::Clock(clock_offset(&client).await?)) });
        }
        if let Some(tables) = self.snapshots.due() {
            self.plan_wave(tables).await?;
        }
        Ok(())
    }
}
