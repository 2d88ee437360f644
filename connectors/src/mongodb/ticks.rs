//! Which ticks of the grid the stream has proven: `times of events -> ticks, watermark, watermark_from`. Pure.

use crate::grid::{tick_after, tick_at};

/// All times are microseconds since 1970 on the server's clock.
#[derive(Debug)]
pub struct Ticks {
    interval: i64,
    /// Running maximum of the times of events, of all collections: commit times are not monotone.
    clock: i64,
    /// Time of the last published change.
    last_commit: i64,
    watermark: i64,
}

impl Ticks {
    /// `last_commit`: nothing is known of the time before; `watermark`: the newest tick that a checkpoint has promised.
    pub fn new(interval: i64, last_commit: i64, watermark: i64) -> Self {
        Self { interval, clock: last_commit.max(watermark), last_commit, watermark }
    }

    pub fn watermark(&self) -> i64 {
        self.watermark
    }

    /// The tick after the last commit: before it the source had less than we have published.
    pub fn watermark_from(&self) -> i64 {
        tick_after(self.last_commit, self.interval)
    }

    /// The tick to promise before something that bears this time, if there is a new one.
    pub fn before(&self, time: i64) -> Option<i64> {
        let tick = tick_at(self.clock.max(time), self.interval);
        (tick > self.watermark && tick >= self.watermark_from()).then_some(tick)
    }

    pub fn promised(&mut self, tick: i64) {
        self.watermark = self.watermark.max(tick);
        self.clock = self.clock.max(tick);
    }

    /// An event was seen; returns the time that it counts with: later than every tick promised without it.
    pub fn seen(&mut self, time: i64) -> i64 {
        self.clock = self.clock.max(time);
        self.clock
    }

    /// A change of this time is published, or a collection that was read then has become exact.
    pub fn committed(&mut self, time: i64) {
        self.last_commit = self.last_commit.max(time);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_source_is_true_from_its_last_commit_on() {
        let mut ticks = Ticks::new(1_000, 5_300, 0);
        assert_eq!((ticks.before(5_900), ticks.before(6_000)), (None, Some(6_000)));
        ticks.promised(6_000);
        assert_eq!(ticks.before(6_999), None);
        ticks.promised(9_000);
        assert_eq!((ticks.watermark_from(), ticks.watermark()), (6_000, 9_000));
        // stamped before the tick that was promised without it
        let time = ticks.seen(8_500);
        ticks.committed(time);
        assert_eq!((time, ticks.watermark_from(), ticks.before(9_999)), (9_000, 10_000, None));
        assert_eq!(ticks.before(10_000), Some(10_000));
    }

    #[test]
    fn no_tick_lies_before_a_commit_it_holds() {
        let mut ticks = Ticks::new(1_000, 0, 1_000);
        // the tick 2,000 could not be placed between two events of one transaction
        let time = ticks.seen(2_100);
        ticks.committed(time);
        assert_eq!((ticks.before(2_200), ticks.before(3_000)), (None, Some(3_000)));
    }

    #[test]
    fn a_restart_keeps_what_was_promised() {
        let ticks = Ticks::new(1_000, 7_000 - 1, 9_000);
        assert_eq!((ticks.watermark_from(), ticks.before(9_999), ticks.before(10_000)), (7_000, None, Some(10_000)));
    }
}
