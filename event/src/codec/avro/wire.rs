//! Avro's binary form, both ways: `values <-> bytes`. Whole numbers are zigzag varints, texts and bytes have their length before
//! them, floats are little endian, arrays and maps come in blocks.

use std::borrow::Cow;

use crate::codec::json::scan::{Bad, Parsed};

/// What stands before each key and value: this byte, then the schema's id in four, the highest first.
pub const MAGIC: u8 = 0;
/// Bytes before the datum.
pub const PREFIX: usize = 5;

#[inline]
pub fn write_long(out: &mut Vec<u8>, value: i64) {
    let mut rest = (value << 1 ^ value >> 63) as u64;
    if rest < 0x80 {
        out.push(rest as u8);
        return;
    }
    let mut bytes = [0; 10];
    let mut last = 0;
    while rest >= 0x80 {
        bytes[last] = rest as u8 | 0x80;
        rest >>= 7;
        last += 1;
    }
    bytes[last] = rest as u8;
    out.extend_from_slice(&bytes[..=last]);
}

#[inline]
pub fn write_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    write_long(out, bytes.len() as i64);
    out.extend_from_slice(bytes);
}

/// The shortest two's complement, the highest byte first.
#[inline]
pub fn write_decimal(out: &mut Vec<u8>, unscaled: i128) {
    let bits = 128 - if unscaled < 0 { (!unscaled).leading_zeros() } else { unscaled.leading_zeros() };
    // A bit more for the sign.
    let length = bits as usize / 8 + 1;
    write_bytes(out, &unscaled.to_be_bytes()[16 - length..]);
}

/// The inverse of [`write_decimal`]; also of longer forms, as fixed-size decimals are.
pub fn decimal(bytes: &[u8]) -> Option<i128> {
    let negative = *bytes.first()? >= 0x80;
    let fill = if negative { 0xFF } else { 0 };
    let (more, last) = bytes.split_at(bytes.len().saturating_sub(16));
    if more.iter().any(|byte| *byte != fill) || (!more.is_empty() && (*last.first()? >= 0x80) != negative) {
        return None;
    }
    let mut whole = [fill; 16];
    whole[16 - last.len()..].copy_from_slice(last);
    Some(i128::from_be_bytes(whole))
}

/// Reads a datum. Every length is compared with what is left before it is believed.
pub struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
    /// How many values that take no bytes may still be read or skipped: a schema can make a few bytes stand for any number.
    empty: usize,
}

/// A record is allowed this many values that take no bytes.
const EMPTY_VALUES: usize = 1 << 16;

impl<'a> Cursor<'a> {
    pub fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at: at.min(bytes.len()), empty: EMPTY_VALUES }
    }

    pub fn bad<T>(&self, reason: impl Into<Cow<'static, str>>) -> Parsed<T> {
        Err(Bad { reason: reason.into(), at: self.at })
    }

    pub fn end(&self) -> Parsed<()> {
        if self.at == self.bytes.len() { Ok(()) } else { self.bad("bytes after the end") }
    }

    /// Counts a value that may take no bytes.
    pub fn visit(&mut self) -> Parsed<()> {
        match self.empty.checked_sub(1) {
            Some(left) => {
                self.empty = left;
                Ok(())
            }
            None => self.bad("too many values for its bytes"),
        }
    }

    #[inline]
    pub fn take(&mut self, length: usize) -> Parsed<&'a [u8]> {
        let rest = &self.bytes[self.at..];
        let Some(taken) = rest.get(..length) else {
            return self.bad(format!("{length} bytes where {} are left", rest.len()));
        };
        self.at += length;
        // What takes bytes is bounded by them.
        self.empty = self.empty.saturating_add(length);
        Ok(taken)
    }

    #[inline]
    fn array<const N: usize>(&mut self) -> Parsed<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    #[inline]
    pub fn long(&mut self) -> Parsed<i64> {
        let mut value = 0u64;
        for (i, byte) in self.bytes[self.at..].iter().enumerate() {
            // The tenth byte holds the last bit.
            if i == 9 && *byte > 1 {
                return self.bad("a number of more than 64 bits");
            }
            value |= u64::from(byte & 0x7F) << (7 * i);
            if *byte < 0x80 {
                self.take(i + 1)?;
                return Ok((value >> 1) as i64 ^ -((value & 1) as i64));
            }
        }
        self.bad("a number without an end")
    }

    #[inline]
    pub fn int(&mut self) -> Parsed<i32> {
        let value = self.long()?;
        i32::try_from(value).or_else(|_| self.bad("a number of more than 32 bits"))
    }

    pub fn boolean(&mut self) -> Parsed<bool> {
        match self.take(1)? {
            [0] => Ok(false),
            [1] => Ok(true),
            _ => self.bad("neither true nor false"),
        }
    }

    pub fn float(&mut self) -> Parsed<f32> {
        self.array().map(f32::from_le_bytes)
    }

    pub fn double(&mut self) -> Parsed<f64> {
        self.array().map(f64::from_le_bytes)
    }

    #[inline]
    pub fn bytes(&mut self) -> Parsed<&'a [u8]> {
        let length = self.long()?;
        match usize::try_from(length) {
            Ok(length) => self.take(length),
            Err(_) => self.bad(format!("{length} bytes")),
        }
    }

    #[inline]
    pub fn text(&mut self) -> Parsed<&'a str> {
        let bytes = self.bytes()?;
        std::str::from_utf8(bytes).or_else(|_| self.bad("not UTF-8"))
    }

    /// How many values the next block of an array or map has, and how many bytes, where it says so; None: there is no more.
    pub fn block(&mut self) -> Parsed<Option<(u64, Option<usize>)>> {
        let count = self.long()?;
        if count == 0 {
            return Ok(None);
        }
        if count > 0 {
            return Ok(Some((count.unsigned_abs(), None)));
        }
        let size = self.long()?;
        match usize::try_from(size).ok().filter(|size| *size <= self.bytes.len() - self.at) {
            Some(size) => Ok(Some((count.unsigned_abs(), Some(size)))),
            None => self.bad(format!("a block of {size} bytes where {} are left", self.bytes.len() - self.at)),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn numbers_are_zigzag() {
        for (value, bytes) in [
            (0, &[0u8][..]),
            (-1, &[1]),
            (1, &[2]),
            (-64, &[0x7f]),
            (64, &[0x80, 1]),
            (i64::MAX, &[0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
            (i64::MIN, &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1]),
        ] {
            let mut out = Vec::new();
            write_long(&mut out, value);
            assert_eq!(out, bytes);
            assert_eq!(Cursor::new(bytes, 0).long().unwrap(), value);
        }
        for bad in [&[][..], &[0x80], &[0xff; 10], &[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2]] {
            assert!(Cursor::new(bad, 0).long().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn decimals_are_short() {
        for (value, bytes) in [
            (0, &[0u8][..]),
            (127, &[0x7f]),
            (128, &[0, 0x80]),
            (-128, &[0x80]),
            (-129, &[0xff, 0x7f]),
            (1230, &[4, 0xce]),
        ] {
            let mut out = Vec::new();
            write_decimal(&mut out, value);
            assert_eq!(&out[1..], bytes);
        }
        assert_eq!(decimal(&[0xff; 20]), Some(-1));
        assert_eq!(decimal(&[0; 20]), Some(0));
        assert_eq!(decimal(&[]), None);
        let mut wide = [0u8; 17];
        wide[1] = 0x80;
        assert_eq!(decimal(&wide), None);
    }

    #[test]
    fn a_block_is_no_larger_than_what_is_left() {
        let block = |bytes: &[u8]| Cursor::new(bytes, 0).block().map_err(|bad| bad.reason.into_owned());
        assert_eq!(block(&[0]), Ok(None));
        assert_eq!(block(&[4]), Ok(Some((2, None))));
        assert_eq!(block(&[3, 2, 9]), Ok(Some((2, Some(1)))));
        for bad in [&[3][..], &[3, 4, 9], &[3, 1]] {
            block(bad).unwrap_err();
        }
        // the smallest number has no positive counterpart
        let mut bytes = Vec::new();
        write_long(&mut bytes, i64::MIN);
        bytes.push(0);
        assert_eq!(block(&bytes), Ok(Some((1 << 63, Some(0)))));
    }

    proptest! {
        #[test]
        fn any_number_comes_back(value in any::<i64>(), unscaled in any::<i128>(), shift in 0u32..128) {
            let (value, unscaled) = (value >> (shift % 64), unscaled >> shift);
            let mut out = Vec::new();
            write_long(&mut out, value);
            write_decimal(&mut out, unscaled);
            let mut cursor = Cursor::new(&out, 0);
            prop_assert_eq!(cursor.long().unwrap(), value);
            prop_assert_eq!(decimal(cursor.bytes().unwrap()), Some(unscaled));
            prop_assert!(cursor.end().is_ok());
        }
    }
}
