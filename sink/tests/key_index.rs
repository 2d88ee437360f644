//! A budget, not a timing: ten million keys are indexed in 256 MiB of memory that is not page cache.
//!
//! `hashes of keys -> KeyIndex::add, merge, save, lookup`, with an allocator that knows how much is in use. Runs are mapped
//! files: the system can drop their pages, and they do not come through the allocator.
#![allow(clippy::unwrap_used)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use lakeward_sink::key_index::{Definition, Entry, KeyIndex};

/// Issue 3.
const BYTES_PER_KEY: f64 = (256 << 20) as f64 / 10_000_000.0;
/// Keys added at a time: as many as a table's rebuild reads before it adds them.
const AT_ONCE: usize = 1 << 20;

static IN_USE: AtomicUsize = AtomicUsize::new(0);
static PEAK: AtomicUsize = AtomicUsize::new(0);

/// The system's allocator, knowing how many bytes are in use.
struct Measuring;

fn grown(bytes: usize) {
    PEAK.fetch_max(IN_USE.fetch_add(bytes, Ordering::Relaxed) + bytes, Ordering::Relaxed);
}

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Measuring {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        grown(layout.size());
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(memory, layout) }
    }
    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // Both are there while one is copied.
        grown(size);
        IN_USE.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.realloc(memory, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: Measuring = Measuring;

/// Spread as the hashes of keys are.
fn hash(key: usize) -> u128 {
    let mixed = |seed: u64| {
        (key as u64 ^ seed).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(31).wrapping_mul(0xD6E8_FEB8_6659_FD93)
    };
    u128::from(mixed(1)) << 64 | u128::from(mixed(2))
}

/// Indexes so many keys of files of 2^20 rows and finds some again; the answer is the peak of memory in use.
fn index(keys: usize) -> usize {
    let folder = tempfile::tempdir().unwrap();
    let definition = Definition { table_uuid: "t".into(), encoding: 1, key: vec![1] };
    let before = IN_USE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    let mut index = KeyIndex::open(folder.path(), definition).unwrap();
    for first in (0..keys).step_by(AT_ONCE) {
        let file = index.add_file(&format!("data/{first}.parquet"));
        let rows = AT_ONCE.min(keys - first);
        let entries = (0..rows).map(|row| Entry { hash: hash(first + row), file, row: row as u32 });
        index.add(entries.collect()).unwrap();
        index.merge(|_, _| false).unwrap();
    }
    index.save(1).unwrap();
    assert_eq!(index.entries(), keys);

    let wanted: Vec<usize> = (0..keys).step_by(keys / 1000).collect();
    let mut hashes: Vec<u128> = wanted.iter().map(|key| hash(*key)).collect();
    hashes.sort_unstable();
    let mut found = Vec::new();
    index.lookup(&hashes, |_, entry| {
        let path = index.path(entry.file).unwrap();
        let first: usize = path.trim_start_matches("data/").trim_end_matches(".parquet").parse().unwrap();
        found.push(first + entry.row as usize);
    });
    found.sort_unstable();
    assert_eq!(found, wanted);
    PEAK.load(Ordering::Relaxed) - before
}

#[test]
fn ten_million_keys_fit_into_256_mib() {
    let keys = 10_000_000;
    let started = std::time::Instant::now();
    let peak = index(keys);
    eprintln!("{keys} keys: {} MiB at most, {:.1} s", peak >> 20, started.elapsed().as_secs_f64());
    assert!((peak as f64) < BYTES_PER_KEY * keys as f64, "{peak} bytes for {keys} keys");
}
