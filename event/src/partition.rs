//! A record's partition: murmur2 of its key bytes, as Kafka's default partitioner computes it, so that other producers and
//! consumers of a topic agree with us about where a key lives.

/// The partition of `key` among `partitions`; 0 where the topic has none or one.
pub fn partition(key: &[u8], partitions: i32) -> i32 {
    if partitions <= 1 { 0 } else { (murmur2(key) & i32::MAX) % partitions }
}

/// Kafka's murmur2 (`org.apache.kafka.common.utils.Utils`): MurmurHash2 with a fixed seed, as Java's signed int.
pub fn murmur2(data: &[u8]) -> i32 {
    const SEED: u32 = 0x9747_b28c;
    const M: u32 = 0x5bd1_e995;
    let mut hash = SEED ^ data.len() as u32;
    let mut words = data.chunks_exact(4);
    for word in &mut words {
        let mut k = u32::from_le_bytes([word[0], word[1], word[2], word[3]]).wrapping_mul(M);
        k ^= k >> 24;
        hash = hash.wrapping_mul(M) ^ k.wrapping_mul(M);
    }
    let tail = words.remainder();
    if !tail.is_empty() {
        let rest = tail.iter().rev().fold(0u32, |rest, byte| (rest << 8) | u32::from(*byte));
        hash = (hash ^ rest).wrapping_mul(M);
    }
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(M);
    (hash ^ (hash >> 15)) as i32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The vectors of Kafka's own test of `murmur2`.
    #[test]
    fn hashes_are_kafkas() {
        for (text, hash) in [
            ("21", -973_932_308),
            ("foobar", -790_332_482),
            ("a-little-bit-long-string", -985_981_536),
            ("a-little-bit-longer-string", -1_486_304_829),
            ("lkjh234lh9fiuh90y23oiuhsafujhadof229phr9h19h89h8", -58_897_971),
            ("abc", 479_470_107),
        ] {
            assert_eq!(murmur2(text.as_bytes()), hash, "{text}");
        }
    }

    #[test]
    fn negative_hashes_have_partitions_too() {
        assert_eq!(partition(b"foobar", 4), (-790_332_482 & i32::MAX) % 4);
        assert_eq!(partition(b"foobar", 1), 0);
        assert_eq!(partition(b"foobar", 0), 0);
    }
}
