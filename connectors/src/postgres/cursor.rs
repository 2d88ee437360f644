//! Where the stream is: which commits have arrived whole, which moment of the server's clock that proves, and what is skipped
//! after a restart inside a transaction. Pure: `messages -> Cursor -> position, watermark`.

use lakeward_event::Position;
use lakeward_event::position::PartialTransaction;
use lakeward_runtime::{Error, Result};

use super::slot::Identity;
pub use crate::grid::tick_at;

/// The transaction that is arriving.
#[derive(Debug, Clone)]
pub struct Open {
    pub xid: u32,
    /// LSN of its commit record.
    pub final_lsn: u64,
    pub commit_time: i64,
    /// Changes so far, those of the server's that we leave out included: their count must be the same after a restart.
    pub changes: u64,
    /// LSN of the last change.
    pub lsn: u64,
}

#[derive(Debug)]
pub struct Cursor {
    identity: Identity,
    /// The grid, microseconds.
    interval: i64,
    /// End of the last whole commit (or message of ours) that has arrived.
    lsn: u64,
    /// Running maximum of commit times and clocks of messages: what commits later in the stream is acknowledged later.
    clock: i64,
    /// `clock` as it was at the last commit.
    last_commit: i64,
    /// The newest tick that a checkpoint has promised.
    watermark: i64,
    open: Option<Open>,
    skip: Option<PartialTransaction>,
}

impl Cursor {
    /// Continues after `lsn`; `watermark` and `watermark_from` are those of the last checkpoint, 0 where there is none.
    pub fn new(
        identity: Identity,
        interval: i64,
        lsn: u64,
        skip: Option<PartialTransaction>,
        watermark_from: i64,
        watermark: i64,
    ) -> Self {
        // The last commit is before the tick `watermark_from`: any time in the interval before that tick says the same.
        let last_commit = watermark_from.saturating_sub(1);
        Self { identity, interval, lsn, clock: watermark.max(last_commit), last_commit, watermark, open: None, skip }
    }

    pub fn lsn(&self) -> u64 {
        self.lsn
    }
    pub fn clock(&self) -> i64 {
        self.clock
    }
    pub fn watermark(&self) -> i64 {
        self.watermark
    }
    pub fn open(&self) -> Option<&Open> {
        self.open.as_ref()
    }

    /// The tick after the last commit: before it the source had less than we have published.
    pub fn watermark_from(&self) -> i64 {
        tick_at(self.last_commit, self.interval) + self.interval
    }

    /// The tick to promise, if what comes next bears this time: everything acknowledged before that tick has arrived.
    pub fn tick_before(&self, time: i64) -> Option<i64> {
        let tick = tick_at(self.clock.max(time), self.interval);
        (tick > self.watermark).then_some(tick)
    }

    pub fn promised(&mut self, tick: i64) {
        self.watermark = self.watermark.max(tick);
    }

    /// A message of ours has arrived.
    pub fn message(&mut self, lsn: u64, clock: i64) {
        self.lsn = self.lsn.max(lsn);
        self.clock = self.clock.max(clock);
    }

    pub fn begin(&mut self, xid: u32, final_lsn: u64, commit_time: i64) -> Result<()> {
        if self.open.is_some() {
            return Err(Error::human("the server began a transaction inside another"));
        }
        self.open = Some(Open { xid, final_lsn, commit_time, changes: 0, lsn: 0 });
        Ok(())
    }

    /// Counts a change; false: it is published already.
    pub fn change(&mut self, lsn: u64) -> Result<bool> {
        let Some(open) = self.open.as_mut() else {
            return Err(Error::human("the server sent a change outside of a transaction"));
        };
        open.changes += 1;
        open.lsn = lsn;
        match &self.skip {
            None => Ok(true),
            Some(skip) if skip.xid != open.xid => Err(Error::resnapshot(format!(
                "the log ends inside transaction {}, the server continues with {}: the history is another one",
                skip.xid, open.xid
            ))),
            Some(skip) if open.changes < skip.index => Ok(false),
            Some(skip) => {
                if open.changes == skip.index && skip.lsn != lsn {
                    return Err(Error::resnapshot(
                        "the transaction in which the log ends is not the server's any more",
                    )
                    .with("xid", skip.xid)
                    .with("change", skip.index));
                }
                Ok(open.changes > skip.index)
            }
        }
    }

    pub fn commit(&mut self, end_lsn: u64) -> Result<()> {
        let Some(open) = self.open.take() else {
            return Err(Error::human("the server committed a transaction that it did not begin"));
        };
        if self.skip.as_ref().is_some_and(|skip| skip.xid == open.xid) {
            self.skip = None;
        }
        self.lsn = end_lsn;
        self.clock = self.clock.max(open.commit_time);
        self.last_commit = self.clock;
        Ok(())
    }

    /// A cut at an LSN that lies between two commits.
    pub fn cut(&mut self, lsn: u64) {
        self.lsn = self.lsn.max(lsn);
    }

    /// Where a checkpoint of everything that has arrived stands.
    pub fn position(&self) -> Position {
        let partial = match (&self.open, &self.skip) {
            // Nothing new of the transaction yet: what is published of it is what was.
            (Some(open), Some(skip)) if open.xid == skip.xid && open.changes <= skip.index => Some(skip.clone()),
            (Some(open), _) if open.changes > 0 => {
                Some(PartialTransaction { xid: open.xid, lsn: open.lsn, index: open.changes })
            }
            (_, skip) => skip.clone(),
        };
        Position::Postgres {
            lsn: self.lsn,
            partial,
            system_id: self.identity.system_id.clone(),
            timeline: self.identity.timeline,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn cursor(skip: Option<PartialTransaction>) -> Cursor {
        Cursor::new(Identity { system_id: "1".into(), timeline: 1 }, 1000, 10, skip, 0, 0)
    }

    fn transaction(cursor: &mut Cursor, xid: u32, time: i64, end: u64) {
        cursor.begin(xid, end - 1, time).unwrap();
        assert!(cursor.change(end - 1).unwrap());
        cursor.commit(end).unwrap();
    }

    #[test]
    fn a_tick_is_promised_once_the_next_commit_is_past_it() {
        let mut cursor = cursor(None);
        transaction(&mut cursor, 1, 5_400, 20);
        assert_eq!(cursor.tick_before(5_900), Some(5_000));
        cursor.promised(5_000);
        assert_eq!(cursor.tick_before(5_999), None);
        assert_eq!(cursor.tick_before(6_000), Some(6_000));
        assert_eq!(cursor.watermark_from(), 6_000);
    }

    #[test]
    fn commit_times_run_backwards_and_the_watermark_does_not() {
        let mut cursor = cursor(None);
        transaction(&mut cursor, 1, 6_001, 20);
        cursor.promised(6_000);
        // Committed later in the log, stamped earlier: it belongs after the tick that was promised without it.
        transaction(&mut cursor, 2, 5_999, 30);
        assert_eq!(cursor.watermark_from(), 7_000);
        assert_eq!(cursor.tick_before(5_998), None);
        // The same after a message of ours moved the clock.
        cursor.message(40, 9_500);
        cursor.promised(9_000);
        transaction(&mut cursor, 3, 8_000, 50);
        assert_eq!(cursor.watermark_from(), 10_000);
    }

    #[test]
    fn a_restart_keeps_what_was_promised() {
        let resumed = Cursor::new(Identity { system_id: "1".into(), timeline: 1 }, 1000, 10, None, 7_000, 9_000);
        assert_eq!(resumed.watermark_from(), 7_000);
        assert_eq!(resumed.tick_before(9_999), None);
    }

    #[test]
    fn a_restart_inside_a_transaction_skips_what_is_published() {
        let mut before = cursor(None);
        before.begin(9, 80, 100).unwrap();
        // One COPY: all its rows have one LSN.
        for _ in 0..3 {
            assert!(before.change(77).unwrap());
        }
        let Position::Postgres { lsn: 10, partial: Some(partial), .. } = before.position() else { panic!() };
        assert_eq!(partial, PartialTransaction { xid: 9, lsn: 77, index: 3 });

        let mut after = cursor(Some(partial.clone()));
        after.begin(9, 80, 100).unwrap();
        let fresh: Vec<bool> = (0..5).map(|_| after.change(77).unwrap()).collect();
        assert_eq!(fresh, [false, false, false, true, true]);
        after.commit(90).unwrap();
        assert!(matches!(after.position(), Position::Postgres { lsn: 90, partial: None, .. }));

        // stopped again before anything new
        let mut again = cursor(Some(partial.clone()));
        again.begin(9, 80, 100).unwrap();
        again.change(77).unwrap();
        assert!(matches!(again.position(), Position::Postgres { partial: Some(p), .. } if p == partial));

        let mut foreign = cursor(Some(partial));
        foreign.begin(10, 80, 100).unwrap();
        assert!(foreign.change(77).is_err());
    }
}
