//! Snapshots as the loop sees them: when a wave may be taken, what it has read, and where each table stands.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use lakeward_event::{ChangeBatch, TableId};
use lakeward_runtime::{Error, Result, crash_point};

use super::append::Flush;
use super::{START_OVERS, Stream};
use crate::postgres::capture::{delete_message, relation_of};
use crate::postgres::catalog::{self, Table};
use crate::postgres::mark::Mark;
use crate::postgres::pgoutput::Message;
use crate::postgres::publication;
use crate::postgres::snapshot::state::{Key, Range, Stage};
use crate::postgres::snapshot::wave::{Locked, Read, Wanted};
use crate::postgres::snapshot::{Event, Outcome, REFUSED};
use crate::postgres::tuple::{Binding, RowMeta, TableBuilder};

impl Stream {
    /// Marks of the run before may have arrived or not: they are written again.
    pub(super) fn resume_stages(&mut self) {
        let tables: Vec<u32> = self.snapshots.state.tables.keys().copied().collect();
        for oid in tables {
            if let Some(table) = self.snapshots.state.tables.get_mut(&oid) {
                match table.stage {
                    Stage::Closing => {
                        let attempt = table.attempt;
                        self.write(Mark::RangesRead { table: oid, run: self.run.clone(), attempt });
                    }
                    Stage::Ending => table.stage = Stage::Settling,
                    Stage::Reading | Stage::Settling => {}
                }
            }
            self.advance(oid);
        }
    }

    /// Takes a table to its next stage if it is ready for it.
    pub(super) fn advance(&mut self, oid: u32) {
        let run = self.run.clone();
        let Some(table) = self.snapshots.state.tables.get_mut(&oid) else { return };
        let mark = match table.stage {
            Stage::Reading if table.is_read() => {
                table.stage = Stage::Closing;
                Mark::RangesRead { table: oid, run, attempt: table.attempt }
            }
            Stage::Settling if table.is_settled() => {
                table.stage = Stage::Ending;
                Mark::Settled { table: oid, run, attempt: table.attempt }
            }
            _ => return,
        };
        self.write(mark);
    }

    pub(super) async fn event(&mut self, event: Event) -> Result<()> {
        match event {
            Event::Read(read) => self.read(read).await,
            Event::Ended(Outcome::BarrierPassed) => {
                self.snapshots.rest(Duration::ZERO);
                Ok(())
            }
            Event::Ended(Outcome::Locked(None)) => {
                tracing::info!(source = self.source.name, "a table is locked or was changed: its snapshot waits");
                self.snapshots.rest(REFUSED);
                Ok(())
            }
            Event::Ended(Outcome::Locked(Some(locked))) => self.open_wave(*locked).await,
            Event::Ended(Outcome::WaveOver) => {
                while let Some(read) = self.snapshots.try_read() {
                    self.read(read).await?;
                }
                self.snapshots.wave_over();
                // The stream goes on where it was held.
                if let Some(frame) = self.held.take() {
                    self.frame(frame).await?;
                }
                let tables: Vec<u32> = self.snapshots.state.tables.keys().copied().collect();
                for table in tables {
                    self.advance(table);
                }
                Ok(())
            }
        }
    }

    /// Reads the catalog for the wave to come, and has its locks taken.
    pub(super) async fn plan_wave(&mut self, tables: Vec<u32>) -> Result<()> {
        let mut wanted = BTreeMap::new();
        for oid in tables {
            let Some(table) = catalog::read_table(&*self.sql, oid).await? else {
                // Dropped: there is nothing to read, and nothing will follow.
                self.snapshots.state.tables.remove(&oid);
                continue;
            };
            if publication::unfit(&table).is_some() {
                continue;
            }
            let shape = self.register(&table).await?;
            let keys =
                self.snapshots.state.tables.get(&oid).map_or(Vec::new(), |t| t.incomplete.keys().cloned().collect());
            wanted.insert(oid, Wanted { table, shape, keys });
        }
        if wanted.is_empty() {
            self.snapshots.rest(REFUSED)
        } else {
            self.snapshots.lock(wanted)
        }
        Ok(())
    }

    /// The locks are held. Nothing is published while the snapshot is taken: this is the loop that publishes.
    async fn open_wave(&mut self, locked: Locked) -> Result<()> {
        self.empty(&locked).await?;
        let mut ranges: Vec<Range> = Vec::new();
        for (oid, leaves) in &locked.leaves {
            let Some(table) = self.snapshots.state.tables.get_mut(oid) else { continue };
            if table.stage == Stage::Reading {
                if table.look(leaves) {
                    tracing::info!(
                        source = self.source.name,
                        table = table.name,
                        "rewritten while its snapshot was taken: it starts over"
                    );
                }
                ranges.extend(table.ranges_left(*oid));
            }
        }
        let Some(exported) = self.snapshots.export(locked).await? else {
            tracing::info!(source = self.source.name, "a published transaction is not visible yet: the snapshot waits");
            self.snapshots.rest(REFUSED);
            return Ok(());
        };
        self.snapshots.read(exported, ranges);
        Ok(())
    }

    /// Tables whose snapshot is taken again begin empty: what the log has of them goes before the first range. What is published
    /// between the two is seen by the wave, as all that is published is.
    async fn empty(&mut self, locked: &Locked) -> Result<()> {
        let mut extra = Vec::new();
        for (oid, wanted) in &locked.wanted {
            let Some(table) = self.snapshots.state.tables.get_mut(oid) else { continue };
            if !std::mem::take(&mut table.again) {
                continue;
            }
            let mut builder = TableBuilder::new(&wanted.shape);
            let meta =
                RowMeta { sequence: 0, position: self.cursor.lsn(), tx: None, commit_ts: Some(self.cursor.clock()) };
            let wrong = |e| Error::bug("a truncate of our own making").source(e);
            let rows = builder.truncate(meta).map_err(wrong)?;
            extra.push((vec![builder.finish().map_err(wrong)?], rows));
        }
        if extra.is_empty() { Ok(()) } else { self.flush(extra, Flush::Always).await }
    }

    /// Rows of a wave and the progress they are, in one append.
    async fn read(&mut self, read: Read) -> Result<()> {
        let extra = match read {
            Read::Range { range, batches, rows } => {
                if let Some(table) = self.snapshots.state.tables.get_mut(&range.table) {
                    table.range_done(&range);
                }
                vec![(batches, rows)]
            }
            Read::Completed { table, keys, missing, batches, rows } => {
                let wave = self.snapshots.wave();
                if let Some(state) = self.snapshots.state.tables.get_mut(&table) {
                    state.completed(&keys, &missing, wave);
                }
                let mut extra = vec![(batches, rows)];
                if !missing.is_empty() {
                    extra.push(self.deletes(table, &missing).await?);
                }
                extra
            }
        };
        crash_point!("connector.wave.before_append");
        self.flush(extra, Flush::Always).await
    }

    /// Deletes for keys that a wave did not find.
    async fn deletes(&mut self, oid: u32, keys: &[Key]) -> Result<(Vec<ChangeBatch>, u64)> {
        let Some(table) = catalog::read_table(&*self.sql, oid).await? else { return Ok((Vec::new(), 0)) };
        let shape = self.register(&table).await?;
        let wrong = |e| Error::bug("a delete of our own making").source(e);
        let binding = Binding::of(&relation_of(&table), &shape)
            .ok_or_else(|| Error::bug("a relation of our own making has another shape"))?;
        let mut builder = TableBuilder::new(&shape);
        let mut rows = 0;
        for key in keys {
            let bytes = delete_message(&table, key);
            if let (_, Message::Delete { old, .. }) = Message::parse(&bytes, false).map_err(wrong)? {
                let meta = RowMeta {
                    sequence: rows,
                    position: self.cursor.lsn(),
                    tx: None,
                    commit_ts: Some(self.cursor.clock()),
                };
                rows += builder.delete(&binding, &old, meta).map_err(wrong)?;
            }
        }
        Ok((vec![builder.finish().map_err(wrong)?], rows))
    }

    /// Changes of the table cannot be read: a snapshot that sees them makes up for them. Those of transactions to come can be, for
    /// the server describes the table anew after every change of it.
    pub(super) fn start_over(&mut self, oid: u32, id: &TableId) -> Result<()> {
        let begun = self.snapshots.state.tables.get(&oid).is_some_and(|t| t.leaves.is_some());
        let times = self.started_over.entry(oid).or_default();
        *times += u32::from(begun);
        if *times > START_OVERS {
            return Err(Error::human(
                "the server describes the table again and again in a way that does not fit its catalog: see whether its publication lists columns, or exclude the table",
            )
            .with("table", id));
        }
        tracing::warn!(
            source = self.source.name,
            table = %id,
            "the table was changed while its changes waited to be read, and which of its columns they are of cannot be told any more: its snapshot is taken again, and until then queries read it as it was"
        );
        self.snapshots.state.begin(oid, id.to_string(), true);
        self.snapshots.want_barrier();
        self.captures.insert(oid, None);
        Ok(())
    }

    /// The catalog's tables now: new ones join the publication and get a snapshot, those gone leave it.
    pub(super) async fn found(&mut self, tables: Vec<Table>) -> Result<()> {
        let before: BTreeSet<u32> = self.tables.keys().copied().collect();
        let (mut fit, mut left_out, mut lost) = (BTreeMap::new(), Vec::new(), Vec::new());
        for table in tables {
            match publication::unfit(&table) {
                None => drop(fit.insert(table.oid, table)),
                Some((what, fix)) => {
                    if before.contains(&table.oid) {
                        lost.push((format!("{}.{}", table.schema, table.name), what.clone(), fix));
                    }
                    left_out.push(what);
                }
            }
        }
        self.context.status.update(&self.source.name, |s| s.left_out = left_out);
        if before == fit.keys().copied().collect() {
            self.tables = fit;
            return Ok(());
        }
        let added = publication::ensure(&self.sql, &self.source.publication, &fit).await?;
        for (name, what, fix) in lost {
            tracing::warn!(source = self.source.name, fix, "{name} is not captured any more: {what}");
        }
        for oid in before.iter().filter(|oid| !fit.contains_key(oid)) {
            self.snapshots.state.tables.remove(oid);
            self.snapshots.state.done.remove(oid);
        }
        for (oid, table) in &fit {
            if added.contains(oid) || !before.contains(oid) {
                let name = format!("{}.{}", table.schema, table.name);
                tracing::info!(source = self.source.name, table = name, "new table");
                let id = TableId::new(&self.source.name, &table.schema, &table.name);
                let again = !self.publisher().await?.versions(&id).is_empty();
                self.snapshots.state.begin(*oid, name, again);
                self.snapshots.want_barrier();
            }
        }
        self.tables = fit;
        // A relation that was passed over before may be ours now; the server describes it again after the publication changed.
        Ok(())
    }
}
