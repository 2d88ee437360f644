//! A run of records of one topic-partition as one blob: `records -> Packer -> blob -> Records -> records`.
//!
//! A blob is a byte that says how its body is stored (0: as it is, 1: zstd), the body's length (u32), and the body: per record
//! the lengths of key, value and header (each an i32; -1 says absent) and their bytes. Numbers are little-endian. Offsets are
//! not in it: they are dense, and the row has the first.

use lakeward_event::codec::BlockRecord;

/// A blob is cut where its body has this many bytes: large enough that the row costs nothing, small enough to hold a few.
pub(super) const BODY_BYTES: usize = 1 << 20;
/// SQLite's limit for a value is 1,000,000,000 bytes; this leaves room for the rest of the row.
const MAX_BODY_BYTES: usize = 990_000_000;
const PREFIX: usize = 5;
const LENGTHS: usize = 12;
const PLAIN: u8 = 0;
const ZSTD: u8 = 1;
/// The fastest level: it saves what a log on a laptop is about (bytes to sync), the higher ones cost more than that.
const LEVEL: i32 = 1;

/// A blob and how many records it holds.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Block {
    pub records: i64,
    pub bytes: Vec<u8>,
}

/// A single record is larger than a blob can be.
#[derive(Debug)]
pub(super) struct TooLarge;

/// Collects records of one topic-partition into blocks.
#[derive(Debug)]
pub(super) struct Packer {
    /// Prefix and body of the block in the making.
    open: Vec<u8>,
    records: i64,
    compress: bool,
    done: Vec<Block>,
}

impl Packer {
    pub fn new(compress: bool) -> Self {
        Self { open: Vec::new(), records: 0, compress, done: Vec::new() }
    }

    pub fn push(&mut self, record: &BlockRecord<'_>) -> Result<(), TooLarge> {
        let parts = [record.key, record.value, record.header];
        let length = LENGTHS + parts.iter().flatten().map(|part| part.len()).sum::<usize>();
        if length > MAX_BODY_BYTES {
            return Err(TooLarge);
        }
        if self.records > 0 && self.open.len() + length > PREFIX + BODY_BYTES {
            self.cut();
        }
        if self.records == 0 {
            self.open.resize(PREFIX, 0);
        }
        for part in parts {
            // Below the limit above, so it fits.
            let length = part.map_or(-1, |part| i32::try_from(part.len()).unwrap_or(i32::MAX));
            self.open.extend_from_slice(&length.to_le_bytes());
        }
        for part in parts.into_iter().flatten() {
            self.open.extend_from_slice(part);
        }
        self.records += 1;
        Ok(())
    }

    fn cut(&mut self) {
        let mut plain = std::mem::take(&mut self.open);
        let records = std::mem::take(&mut self.records);
        let length = u32::try_from(plain.len() - PREFIX).unwrap_or(u32::MAX).to_le_bytes();
        // What does not become smaller is stored as it is.
        let packed = if self.compress { zstd::bulk::compress(&plain[PREFIX..], LEVEL).ok() } else { None };
        let bytes = match packed {
            Some(packed) if packed.len() < plain.len() - PREFIX => {
                let mut bytes = Vec::with_capacity(PREFIX + packed.len());
                bytes.push(ZSTD);
                bytes.extend_from_slice(&length);
                bytes.extend_from_slice(&packed);
                bytes
            }
            _ => {
                plain[0] = PLAIN;
                plain[1..PREFIX].copy_from_slice(&length);
                plain
            }
        };
        self.done.push(Block { records, bytes });
    }

    /// The blocks, in the order of their records.
    pub fn finish(mut self) -> Vec<Block> {
        if self.records > 0 {
            self.cut();
        }
        self.done
    }
}

/// Why a blob cannot be read: a disk or a program has changed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Damaged(pub &'static str);

/// The parts of a record: key, value, header.
pub(super) type Parts<'a> = [Option<&'a [u8]>; 3];

/// The records of a blob, in order; ends after the first error.
#[derive(Debug)]
pub(super) struct Records<'a> {
    rest: &'a [u8],
}

impl<'a> Records<'a> {
    /// `scratch` takes the body where it has to be unpacked.
    pub fn of(blob: &'a [u8], scratch: &'a mut Vec<u8>) -> Result<Self, Damaged> {
        let Some((&[form, a, b, c, d], body)) = blob.split_first_chunk::<PREFIX>() else {
            return Err(Damaged("it is too short"));
        };
        let length = u32::from_le_bytes([a, b, c, d]) as usize;
        if length > MAX_BODY_BYTES {
            return Err(Damaged("its length is impossible"));
        }
        let rest = match form {
            PLAIN => body,
            ZSTD => {
                // Both lengths must agree before memory is taken for them.
                let told = zstd::zstd_safe::get_frame_content_size(body);
                if !matches!(told, Ok(Some(told)) if told == length as u64) {
                    return Err(Damaged("its length is wrong"));
                }
                scratch.clear();
                scratch.resize(length, 0);
                let unpacked = zstd::bulk::decompress_to_buffer(body, scratch.as_mut_slice());
                let unpacked = unpacked.map_err(|_| Damaged("it cannot be decompressed"))?;
                &scratch[..unpacked.min(length)]
            }
            _ => return Err(Damaged("its form is not known")),
        };
        if rest.len() != length {
            return Err(Damaged("its length is wrong"));
        }
        Ok(Self { rest })
    }

    fn record(&mut self) -> Result<Parts<'a>, Damaged> {
        let (lengths, mut rest) = self.rest.split_first_chunk::<LENGTHS>().ok_or(Damaged("a record is cut off"))?;
        let mut parts = [None; 3];
        for (part, length) in parts.iter_mut().zip(lengths.chunks_exact(4)) {
            let length = i32::from_le_bytes([length[0], length[1], length[2], length[3]]);
            if length == -1 {
                continue;
            }
            let length = usize::try_from(length).map_err(|_| Damaged("a length is negative"))?;
            let (bytes, after) = rest.split_at_checked(length).ok_or(Damaged("a record is cut off"))?;
            *part = Some(bytes);
            rest = after;
        }
        self.rest = rest;
        Ok(parts)
    }
}

impl<'a> Iterator for Records<'a> {
    type Item = Result<Parts<'a>, Damaged>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let record = self.record();
        if record.is_err() {
            self.rest = &[];
        }
        Some(record)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Owned = [Option<Vec<u8>>; 3];

    fn pack(records: &[Owned], compress: bool) -> Vec<Block> {
        let mut packer = Packer::new(compress);
        for [key, value, header] in records {
            let (key, value, header) = (key.as_deref(), value.as_deref(), header.as_deref());
            packer.push(&BlockRecord { partition: 0, key, value, header }).unwrap();
        }
        packer.finish()
    }

    fn unpack(blocks: &[Block]) -> Vec<Owned> {
        let mut all = Vec::new();
        for block in blocks {
            let mut scratch = Vec::new();
            let records: Vec<Owned> = Records::of(&block.bytes, &mut scratch)
                .unwrap()
                .map(|record| record.unwrap().map(|part| part.map(<[u8]>::to_vec)))
                .collect();
            assert_eq!(records.len() as i64, block.records);
            all.extend(records);
        }
        all
    }

    fn record() -> impl Strategy<Value = Owned> {
        let part = || proptest::option::of(proptest::collection::vec(any::<u8>(), 0..40));
        [part(), part(), part()]
    }

    proptest! {
        #[test]
        fn records_come_back(records in proptest::collection::vec(record(), 0..50), compress: bool) {
            prop_assert_eq!(unpack(&pack(&records, compress)), records);
        }

        /// Whatever a disk makes of a blob, it is an error or other records, never a panic.
        #[test]
        fn damage_is_an_error(
            records in proptest::collection::vec(record(), 1..20),
            compress: bool,
            at: prop::sample::Index,
            to: u8,
            cut: prop::sample::Index,
        ) {
            let mut bytes = pack(&records, compress).remove(0).bytes;
            let at = at.index(bytes.len());
            bytes[at] = to;
            bytes.truncate(cut.index(bytes.len() + 1));
            let mut scratch = Vec::new();
            if let Ok(records) = Records::of(&bytes, &mut scratch) {
                let _ = records.count();
            }
        }
    }

    #[test]
    fn blocks_are_cut_at_a_size_and_large_records_are_alone() {
        let small: Owned = [None, Some(vec![7; BODY_BYTES / 3]), None];
        let large: Owned = [Some(vec![1]), Some(vec![8; 3 * BODY_BYTES]), None];
        let records = [small.clone(), small.clone(), small.clone(), large, small];
        for compress in [false, true] {
            let blocks = pack(&records, compress);
            assert_eq!(blocks.iter().map(|block| block.records).collect::<Vec<_>>(), [2, 1, 1, 1]);
            assert_eq!(unpack(&blocks), records);
            assert_eq!(blocks[0].bytes.len() < BODY_BYTES / 10, compress);
        }
    }

    #[test]
    fn a_cut_off_blob_is_damaged() {
        let blocks = pack(&[[Some(vec![1, 2]), Some(vec![3]), None]], false);
        let whole = &blocks[0].bytes;
        for length in 0..whole.len() {
            assert!(Records::of(&whole[..length], &mut Vec::new()).is_err(), "{length} bytes");
        }
        let mut longer = whole.clone();
        longer[1] += 1;
        longer.push(0);
        let mut scratch = Vec::new();
        let read: Vec<_> = Records::of(&longer, &mut scratch).unwrap().collect();
        assert_eq!(read.last(), Some(&Err(Damaged("a record is cut off"))));
    }
}
