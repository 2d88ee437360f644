//! A run: sorted index entries in one mapped file. `entries of a commit or of merged runs -> RunWriter -> file -> Run -> look-ups`
//!
//! ```text
//! header  32 bytes   magic, version, number of entries, number of filter blocks
//! entries 24 bytes   hash (u128), file number (u32), row (u32); little endian, sorted by hash, then file, then row
//! filter  64 bytes   per block: a blocked Bloom filter over the hashes
//! ```
//!
//! Pages of the mapping are page cache: they count against the machine, not against `sink.memory`. A run is a cache of what
//! the table holds, so nothing is synced to disk: the index's state file knows every run's checksum instead.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use memmap2::Mmap;
use xxhash_rust::xxh3::Xxh3;

const MAGIC: u64 = u64::from_le_bytes(*b"lakeward");
/// Of the file's form; another one is rebuilt.
const VERSION: u64 = 1;
const HEADER: usize = 32;
const ENTRY: usize = 24;
const BLOCK: usize = 64;
/// Hashes per filter block: 512 bits for 40 hashes are about 13 bits each, one false hit in several hundred.
const HASHES_PER_BLOCK: u64 = 40;
/// Bits set per hash, 9 bits of it each.
const PROBES: u32 = 6;

/// Where a key's row is (or was).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Entry {
    /// Hash of the canonical key.
    pub hash: u128,
    /// The index's number of the data file.
    pub file: u32,
    /// Position in the data file.
    pub row: u32,
}

impl Entry {
    fn to_bytes(self) -> [u8; ENTRY] {
        let mut bytes = [0; ENTRY];
        bytes[..16].copy_from_slice(&self.hash.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.file.to_le_bytes());
        bytes[20..].copy_from_slice(&self.row.to_le_bytes());
        bytes
    }
}

/// Bits of a hash in its filter block, and the block.
fn filter_block(hash: u128, blocks: u64) -> u64 {
    // The upper half chooses the block, the lower half the bits. Multiply-shift: no division.
    ((u128::from((hash >> 64) as u64) * u128::from(blocks)) >> 64) as u64
}

fn filter_bits(hash: u128) -> impl Iterator<Item = usize> {
    let low = hash as u64;
    (0..PROBES).map(move |probe| ((low >> (9 * probe)) & 511) as usize)
}

/// Writes a run; entries come in order.
pub struct RunWriter {
    path: PathBuf,
    out: BufWriter<File>,
    checksum: Xxh3,
    entries: u64,
    filter: Vec<[u8; BLOCK]>,
}

impl RunWriter {
    /// `expected`: at least as many entries as will be pushed; sizes the filter.
    pub fn create(path: &Path, expected: u64) -> std::io::Result<Self> {
        let mut out = BufWriter::with_capacity(1 << 18, File::create(path)?);
        out.write_all(&[0; HEADER])?;
        let blocks = expected.div_ceil(HASHES_PER_BLOCK).max(1) as usize;
        Ok(Self { path: path.into(), out, checksum: Xxh3::new(), entries: 0, filter: vec![[0; BLOCK]; blocks] })
    }

    pub fn push(&mut self, entry: Entry) -> std::io::Result<()> {
        let bytes = entry.to_bytes();
        self.checksum.update(&bytes);
        self.entries += 1;
        let block = filter_block(entry.hash, self.filter.len() as u64) as usize;
        let block = &mut self.filter[block];
        for bit in filter_bits(entry.hash) {
            block[bit / 8] |= 1 << (bit % 8);
        }
        self.out.write_all(&bytes)
    }

    /// Ends the file and maps it.
    pub fn finish(mut self) -> std::io::Result<Run> {
        for block in &self.filter {
            self.checksum.update(block);
            self.out.write_all(block)?;
        }
        let file = self.out.into_inner().map_err(std::io::IntoInnerError::into_error)?;
        let mut header = [0; HEADER];
        for (place, value) in [MAGIC, VERSION, self.entries, self.filter.len() as u64].into_iter().enumerate() {
            header[place * 8..place * 8 + 8].copy_from_slice(&value.to_le_bytes());
        }
        std::os::unix::fs::FileExt::write_all_at(&file, &header, 0)?;
        drop(file);
        Run::map(&self.path, self.checksum.digest())
    }
}

/// A mapped run.
#[derive(Debug)]
pub struct Run {
    path: PathBuf,
    map: Mmap,
    entries: usize,
    blocks: usize,
    checksum: u64,
}

impl Run {
    /// Maps a run and checks that its content is what was written.
    pub fn open(path: &Path, checksum: u64) -> std::io::Result<Self> {
        let run = Self::map(path, checksum)?;
        let mut found = Xxh3::new();
        found.update(&run.map[HEADER..]);
        if found.digest() != checksum {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidData, "checksum differs"));
        }
        Ok(run)
    }

    fn map(path: &Path, checksum: u64) -> std::io::Result<Self> {
        let invalid = |what: &str| std::io::Error::new(std::io::ErrorKind::InvalidData, what.to_string());
        let file = File::open(path)?;
        // SAFETY: runs are never written again after `finish`, and the lock on the state directory keeps other writers out.
        let map = unsafe { Mmap::map(&file)? };
        if map.len() < HEADER {
            return Err(invalid("file is too short"));
        }
        let word = |place: usize| {
            let mut bytes = [0; 8];
            bytes.copy_from_slice(&map[place * 8..place * 8 + 8]);
            u64::from_le_bytes(bytes)
        };
        if word(0) != MAGIC || word(1) != VERSION {
            return Err(invalid("not a run of this version"));
        }
        let (entries, blocks) = (word(2) as usize, word(3) as usize);
        let length = entries.checked_mul(ENTRY).zip(blocks.checked_mul(BLOCK)).and_then(|(e, b)| e.checked_add(b));
        if blocks == 0 || length.and_then(|l| l.checked_add(HEADER)) != Some(map.len()) {
            return Err(invalid("length differs from the header's"));
        }
        Ok(Self { path: path.into(), entries, blocks, checksum, map })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }
    pub fn len(&self) -> usize {
        self.entries
    }
    pub fn is_empty(&self) -> bool {
        self.entries == 0
    }
    pub fn checksum(&self) -> u64 {
        self.checksum
    }
    /// Size of the file.
    pub fn bytes(&self) -> usize {
        self.map.len()
    }

    fn hash(&self, index: usize) -> u128 {
        let at = HEADER + index * ENTRY;
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&self.map[at..at + 16]);
        u128::from_le_bytes(bytes)
    }

    pub fn entry(&self, index: usize) -> Entry {
        let at = HEADER + index * ENTRY;
        let word = |from: usize| {
            let mut bytes = [0; 4];
            bytes.copy_from_slice(&self.map[from..from + 4]);
            u32::from_le_bytes(bytes)
        };
        Entry { hash: self.hash(index), file: word(at + 16), row: word(at + 20) }
    }

    fn may_contain(&self, hash: u128) -> bool {
        let block = HEADER + self.entries * ENTRY + filter_block(hash, self.blocks as u64) as usize * BLOCK;
        filter_bits(hash).all(|bit| self.map[block + bit / 8] & (1 << (bit % 8)) != 0)
    }

    /// First index at or after `from` whose hash is not below `hash`. Hashes are uniform, so a guess by proportion is within
    /// a few times the square root of the length; where it is not, plain binary search.
    fn lower_bound(&self, from: usize, hash: u128) -> usize {
        let n = self.entries;
        if from >= n {
            return n;
        }
        let guess = ((((hash >> 64) as u64 as u128) * n as u128) >> 64) as usize;
        let window = 2 << (n.ilog2() / 2);
        let (mut low, mut high) =
            (guess.saturating_sub(window).clamp(from, n), guess.saturating_add(window).clamp(from, n));
        if low > from && self.hash(low - 1) >= hash {
            low = from;
        }
        if high < n && self.hash(high) < hash {
            high = n;
        }
        while low < high {
            let middle = low + (high - low) / 2;
            if self.hash(middle) < hash { low = middle + 1 } else { high = middle }
        }
        low
    }

    /// Calls `hit(index into hashes, entry)` for every entry whose hash is among the sorted `hashes`.
    pub fn lookup(&self, hashes: &[u128], hit: &mut impl FnMut(usize, Entry)) {
        let mut place = 0;
        for (index, hash) in hashes.iter().enumerate() {
            if !self.may_contain(*hash) {
                continue;
            }
            place = self.lower_bound(place, *hash);
            // A hash can stand in several files, and the caller may ask for one twice.
            let mut same = place;
            while same < self.entries {
                let entry = self.entry(same);
                if entry.hash != *hash {
                    break;
                }
                hit(index, entry);
                same += 1;
            }
        }
    }
}
