//! What a snapshot of the server sees: `pg_current_snapshot()::text -> Visibility`.

use lakeward_runtime::{Error, Result};

/// `xmin:xmax:xip,…` with 64-bit transaction ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Visibility {
    xmin: u64,
    xmax: u64,
    in_progress: Vec<u64>,
}

impl Visibility {
    pub fn parse(text: &str) -> Result<Self> {
        let wrong = || Error::human("the server's snapshot is not understood").with("snapshot", text);
        let mut parts = text.split(':');
        let (Some(xmin), Some(xmax), Some(list), None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let mut in_progress = Vec::new();
        for xid in list.split(',').filter(|x| !x.is_empty()) {
            in_progress.push(xid.parse().map_err(|_| wrong())?);
        }
        in_progress.sort_unstable();
        Ok(Self { xmin: xmin.parse().map_err(|_| wrong())?, xmax: xmax.parse().map_err(|_| wrong())?, in_progress })
    }

    /// Whether the snapshot sees this committed transaction. Its 32-bit id, as pgoutput sends it, is taken as the one nearest
    /// to the snapshot.
    pub fn sees(&self, xid: u32) -> bool {
        let xid = self.widen(xid);
        xid < self.xmin || (xid < self.xmax && self.in_progress.binary_search(&xid).is_err())
    }

    fn widen(&self, xid: u32) -> u64 {
        // Ids in use lie within 2^31 of each other.
        let distance = xid.wrapping_sub(self.xmax as u32) as i32;
        self.xmax.saturating_add_signed(i64::from(distance))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn running_and_later_transactions_are_not_seen() {
        let snapshot = Visibility::parse("740:745:740,743").unwrap();
        let seen: Vec<u32> = (738..748).filter(|x| snapshot.sees(*x)).collect();
        assert_eq!(seen, [738, 739, 741, 742, 744]);
        assert!(Visibility::parse("740:740:").unwrap().sees(739));
        assert!(!Visibility::parse("740:740:").unwrap().sees(740));
        assert!(Visibility::parse("740").is_err() && Visibility::parse("a:b:").is_err());
    }

    #[test]
    fn ids_are_widened_across_a_wrap() {
        // The counter has just wrapped: epoch 3, 5 transactions into it.
        let xmax = (3u64 << 32) + 5;
        let snapshot = Visibility::parse(&format!("{}:{xmax}:{}", xmax - 1, xmax - 1)).unwrap();
        assert!(snapshot.sees(u32::MAX - 10));
        assert!(snapshot.sees(3) && !snapshot.sees(4) && !snapshot.sees(5) && !snapshot.sees(6));
        let before = Visibility::parse(&format!("{0}:{0}:", (3u64 << 32) - 2)).unwrap();
        assert!(!before.sees(2) && before.sees(u32::MAX - 2));
    }
}
