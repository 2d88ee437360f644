//! The grid of ticks on which every source places its checkpoints: multiples of `checkpoint_interval` since 1970.

/// The newest tick at or before a time; both in microseconds since 1970.
pub fn tick_at(time: i64, interval: i64) -> i64 {
    time.div_euclid(interval) * interval
}

/// The first tick after a time: a commit at `time` is included from there on.
pub fn tick_after(time: i64, interval: i64) -> i64 {
    tick_at(time, interval) + interval
}
