//! Debezium's forms of values to the server's text: `bytes, numbers and ISO 8601 of a record -> what PostgreSQL would print`.
//! Writers append to `out`; None: the value is not of the form it claims.

use std::io::Write;

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// A two's complement big-endian number, times 10 to the power of `-scale`, as PostgreSQL prints a numeric: no exponent, all
/// zeros kept.
pub(super) fn write_decimal(bytes: &[u8], scale: i32, out: &mut Vec<u8>) -> Option<()> {
    // The server's own limits: 131072 digits before the point, 16383 after it.
    if !(-131_072..=16_383).contains(&scale) || bytes.len() > 65_536 {
        return None;
    }
    let negative = bytes.first().is_some_and(|first| first & 0x80 != 0);
    let digits = decimal_digits(bytes, negative);
    if negative {
        out.push(b'-');
    }
    match usize::try_from(scale) {
        Ok(scale) if scale >= digits.len() => {
            out.extend_from_slice(b"0");
            if scale > 0 {
                out.push(b'.');
            }
            out.resize(out.len() + scale - digits.len(), b'0');
            out.extend_from_slice(&digits);
        }
        Ok(scale) => {
            let (whole, fraction) = digits.split_at(digits.len() - scale);
            out.extend_from_slice(whole);
            if !fraction.is_empty() {
                out.push(b'.');
                out.extend_from_slice(fraction);
            }
        }
        Err(_) => {
            out.extend_from_slice(&digits);
            if digits != b"0" {
                out.resize(out.len() + scale.unsigned_abs() as usize, b'0');
            }
        }
    }
    Some(())
}

/// The digits of a number's magnitude, without leading zeros; `0` for zero.
fn decimal_digits(bytes: &[u8], negative: bool) -> Vec<u8> {
    if let Some(value) = to_i128(bytes) {
        return value.unsigned_abs().to_string().into_bytes();
    }
    // Base 2^32, the largest first; of a negative number its magnitude.
    let mut limbs: Vec<u32> = Vec::with_capacity(bytes.len() / 4 + 1);
    let head = bytes.len() % 4;
    let sign = if negative { 0xff } else { 0 };
    if head > 0 {
        limbs.push(bytes[..head].iter().fold(if negative { u32::MAX } else { 0 }, |n, b| n << 8 | u32::from(*b)));
    }
    limbs.extend(bytes[head..].chunks_exact(4).map(|c| u32::from_be_bytes([c[0], c[1], c[2], c[3]])));
    if sign != 0 {
        let mut carry = true;
        for limb in limbs.iter_mut().rev() {
            let (value, over) = (!*limb).overflowing_add(u32::from(carry));
            *limb = value;
            carry = over;
        }
    }
    // Nine digits at a time, the last first.
    let mut groups = Vec::new();
    let mut first = 0;
    while first < limbs.len() {
        let mut rest = 0u64;
        for limb in &mut limbs[first..] {
            let value = rest << 32 | u64::from(*limb);
            *limb = (value / 1_000_000_000) as u32;
            rest = value % 1_000_000_000;
        }
        groups.push(rest as u32);
        while limbs.get(first) == Some(&0) {
            first += 1;
        }
    }
    let mut digits = Vec::with_capacity(groups.len() * 9);
    for (i, group) in groups.iter().rev().enumerate() {
        // Writing to a Vec does not fail.
        let _ = if i == 0 { write!(digits, "{group}") } else { write!(digits, "{group:09}") };
    }
    digits
}

/// A two's complement big-endian number that 128 bits hold.
pub(super) fn to_i128(bytes: &[u8]) -> Option<i128> {
    let negative = bytes.first().is_some_and(|first| first & 0x80 != 0);
    let mut whole = [if negative { 0xff } else { 0 }; 16];
    let start = 16usize.checked_sub(bytes.len())?;
    whole[start..].copy_from_slice(bytes);
    Some(i128::from_be_bytes(whole))
}

/// Microseconds since midnight as a `time`; the last is 24:00:00.
pub(super) fn write_time(micros: i64, out: &mut Vec<u8>) -> Option<()> {
    if !(0..=MICROS_PER_DAY).contains(&micros) {
        return None;
    }
    write_clock(micros.unsigned_abs(), out);
    Some(())
}

/// `HH:MM:SS` and a fraction without trailing zeros.
fn write_clock(micros: u64, out: &mut Vec<u8>) {
    let (hours, minutes, seconds) = (micros / 3_600_000_000, micros / 60_000_000 % 60, micros / 1_000_000 % 60);
    let _ = write!(out, "{hours:02}:{minutes:02}:{seconds:02}");
    let fraction = micros % 1_000_000;
    if fraction > 0 {
        let _ = write!(out, ".{fraction:06}");
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
}

/// A `timetz` in UTC, `11:14:15.5Z`, as the server prints it: `11:14:15.5+00`.
pub(super) fn write_zoned_time(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let (clock, zone) = match text.iter().position(|b| matches!(b, b'Z' | b'+' | b'-')) {
        Some(at) => text.split_at(at),
        None => return None,
    };
    let clock_bytes = |b: &u8| b.is_ascii_digit() || matches!(b, b':' | b'.');
    if clock.len() < 5 || !clock.iter().all(clock_bytes) {
        return None;
    }
    out.extend_from_slice(clock);
    if clock.len() == 5 {
        out.extend_from_slice(b":00");
    }
    match zone {
        b"Z" => out.extend_from_slice(b"+00"),
        _ => out.extend_from_slice(zone.strip_suffix(b":00").unwrap_or(zone)),
    }
    Some(())
}

/// An ISO 8601 duration, `P1Y2M3DT4H5M6.789S` with a sign on each part, as an `interval` in the style `postgres`.
pub(super) fn write_interval(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let mut rest = std::str::from_utf8(text).ok()?.strip_prefix('P')?;
    let (mut months, mut days, mut micros) = (0i64, 0i64, 0i64);
    let mut clock = false;
    while !rest.is_empty() {
        if let Some(after) = rest.strip_prefix('T') {
            (clock, rest) = (true, after);
            continue;
        }
        let end = rest.find(|c: char| c.is_ascii_alphabetic())?;
        let (number, unit) = rest.split_at(end);
        rest = unit.get(1..)?;
        let whole = || number.parse::<i64>().ok();
        match (clock, unit.as_bytes().first()?) {
            (false, b'Y') => months = months.checked_add(whole()?.checked_mul(12)?)?,
            (false, b'M') => months = months.checked_add(whole()?)?,
            (false, b'W') => days = days.checked_add(whole()?.checked_mul(7)?)?,
            (false, b'D') => days = days.checked_add(whole()?)?,
            (true, b'H') => micros = micros.checked_add(whole()?.checked_mul(3_600_000_000)?)?,
            (true, b'M') => micros = micros.checked_add(whole()?.checked_mul(60_000_000)?)?,
            (true, b'S') => micros = micros.checked_add(seconds(number)?)?,
            _ => return None,
        }
    }
    let start = out.len();
    let mut negative = false;
    for (value, unit) in [(months / 12, "year"), (months % 12, "mon"), (days, "day")] {
        if value == 0 {
            continue;
        }
        let space = if out.len() == start { "" } else { " " };
        let sign = if negative && value > 0 { "+" } else { "" };
        let plural = if value == 1 { "" } else { "s" };
        let _ = write!(out, "{space}{sign}{value} {unit}{plural}");
        negative = value < 0;
    }
    if micros != 0 || out.len() == start {
        let space = if out.len() == start { "" } else { " " };
        let sign = if micros < 0 {
            "-"
        } else if negative {
            "+"
        } else {
            ""
        };
        let _ = write!(out, "{space}{sign}");
        write_clock(micros.unsigned_abs(), out);
    }
    Some(())
}

/// `-6.789` as microseconds, rounded: Debezium before 2.4 writes `6.788999999` for it.
fn seconds(number: &str) -> Option<i64> {
    let (negative, number) = match number.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, number),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if fraction.len() > 9 || !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: i64 = format!("{fraction:0<9}").parse().ok()?;
    let micros = whole.parse::<i64>().ok()?.checked_mul(1_000_000)?.checked_add((nanos + 500) / 1_000)?;
    Some(if negative { -micros } else { micros })
}

/// The bits of a `bit(length)`: Debezium's bytes have the last bit first.
pub(super) fn write_bits(bytes: &[u8], length: usize, out: &mut Vec<u8>) -> Option<()> {
    let bit = |i: usize| bytes.get(i / 8).is_some_and(|byte| byte >> (i % 8) & 1 == 1);
    if (length..bytes.len() * 8).any(bit) {
        return None;
    }
    out.extend((0..length).rev().map(|i| if bit(i) { b'1' } else { b'0' }));
    Some(())
}

/// A float as PostgreSQL prints it with `extra_float_digits = 1`: the shortest text that reads back the same.
fn write_float(value: f64, out: &mut Vec<u8>) {
    let magnitude = value.abs();
    let _ = if value.is_nan() {
        write!(out, "NaN")
    } else if value.is_infinite() {
        write!(out, "{}Infinity", if value < 0.0 { "-" } else { "" })
    } else if magnitude == 0.0 || (1e-4..1e15).contains(&magnitude) {
        write!(out, "{value}")
    } else {
        let text = format!("{value:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |rest| ('-', rest));
        write!(out, "{digits}e{sign}{exponent:0>2}")
    };
}

/// `(1.5,-2.25)`
pub(super) fn write_point((x, y): (f64, f64), out: &mut Vec<u8>) {
    out.push(b'(');
    write_float(x, out);
    out.push(b',');
    write_float(y, out);
    out.push(b')');
}

/// `{1,2,3}`
pub(super) fn write_line([a, b, c]: [f64; 3], out: &mut Vec<u8>) {
    out.push(b'{');
    for (i, value) in [a, b, c].into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_float(value, out);
    }
    out.push(b'}');
}

/// `<(1,2),3>`
pub(super) fn write_circle(center: (f64, f64), radius: f64, out: &mut Vec<u8>) {
    out.push(b'<');
    write_point(center, out);
    out.push(b',');
    write_float(radius, out);
    out.push(b'>');
}

/// A shape that Debezium sends as WKB with its PostgreSQL type beside. None: it is not one of these four.
pub(super) fn write_shape(wkb: &[u8], kind: &[u8], closed: bool, out: &mut Vec<u8>) -> Option<()> {
    let points = wkb_points(wkb)?;
    let list = |points: &[(f64, f64)], open: &[u8], close: &[u8], out: &mut Vec<u8>| {
        out.extend_from_slice(open);
        for (i, point) in points.iter().enumerate() {
            if i > 0 {
                out.push(b',');
            }
            write_point(*point, out);
        }
        out.extend_from_slice(close);
    };
    match (kind, points.as_slice()) {
        // Corners in turn: the first is the upper right, the third the lower left one.
        (b"box", [upper, _, lower, ..]) => list(&[*upper, *lower], b"", b"", out),
        (b"lseg", [from, to]) => list(&[*from, *to], b"[", b"]", out),
        (b"path", points) if closed => list(points, b"(", b")", out),
        (b"path", points) => list(points, b"[", b"]", out),
        // A ring of WKB ends where it began.
        (b"polygon", [points @ .., _]) if !points.is_empty() => list(points, b"(", b")", out),
        _ => return None,
    }
    Some(())
}

/// The points of a WKB line string, or of a polygon's one ring; little-endian, as Debezium writes them.
fn wkb_points(wkb: &[u8]) -> Option<Vec<(f64, f64)>> {
    let word = |at: usize| Some(u32::from_le_bytes(wkb.get(at..at + 4)?.try_into().ok()?));
    if wkb.first() != Some(&1) {
        return None;
    }
    let at = match word(1)? {
        2 => 5,
        3 if word(5)? == 1 => 9,
        _ => return None,
    };
    let points = wkb.get(at + 4..)?;
    if points.len() != usize::try_from(word(at)?).ok()?.checked_mul(16)? {
        return None;
    }
    let number = |bytes: &[u8]| Some(f64::from_le_bytes(bytes.try_into().ok()?));
    points.chunks_exact(16).map(|point| Some((number(&point[..8])?, number(&point[8..])?))).collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>) -> Option<()>) -> Option<String> {
        let mut out = Vec::new();
        write(&mut out).map(|()| String::from_utf8(out).unwrap())
    }

    #[test]
    fn numbers_of_any_length_are_exact() {
        let text = |bytes: &[u8], scale| written(|out| write_decimal(bytes, scale, out));
        for (bytes, scale, expected) in [
            (&[0x03, 0xe8][..], 2, "10.00"),
            (&[0xff], 2, "-0.01"),
            (&[0xff], 21, "-0.000000000000000000001"),
            (&[], 0, "0"),
            (&[0], 2, "0.00"),
            (&[5], -3, "5000"),
            (&[0], -3, "0"),
            (&[1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, "340282366920938463463374607431768211456"),
            (&[0xff, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], 0, "-340282366920938463463374607431768211456"),
        ] {
            assert_eq!(text(bytes, scale).as_deref(), Some(expected), "{bytes:?}");
        }
        assert_eq!(text(&[1], 20_000), None);
    }

    proptest! {
        /// The way for long numbers agrees with the one for short ones.
        #[test]
        fn limbs_are_right(value in any::<i128>(), more in 1usize..9) {
            let mut bytes = vec![if value < 0 { 0xff } else { 0 }; more];
            bytes.extend(value.to_be_bytes());
            prop_assert_eq!(written(|out| write_decimal(&bytes, 0, out)).unwrap(), value.to_string());
        }

        #[test]
        fn nothing_panics(bytes in prop::collection::vec(any::<u8>(), 0..60), text in "P?[-0-9YMDTHS.:Z+]{0,12}", scale in any::<i32>(), closed: bool) {
            let mut out = Vec::new();
            let _ = write_decimal(&bytes, scale, &mut out);
            let _ = write_bits(&bytes, bytes.len() * 3, &mut out);
            let _ = write_interval(text.as_bytes(), &mut out);
            let _ = write_zoned_time(text.as_bytes(), &mut out);
            for kind in [&b"box"[..], b"path", b"polygon", b"lseg"] {
                let _ = write_shape(&bytes, kind, closed, &mut out);
            }
        }
    }

    #[test]
    fn intervals_are_the_servers() {
        for (iso, text) in [
            ("P1Y2M3DT4H5M6.789S", "1 year 2 mons 3 days 04:05:06.789"),
            ("P-1Y-2M3DT-4H-5M-6.789S", "-1 years -2 mons +3 days -04:05:06.789"),
            ("P0Y0M0DT0H0M0S", "00:00:00"),
            ("P178000000Y0M0DT0H0M0S", "178000000 years"),
            ("P0Y0M-1DT0H0M-0.000001S", "-1 days -00:00:00.000001"),
            ("P0Y1M0DT0H0M0S", "1 mon"),
            ("P0Y0M-1DT1H0M0S", "-1 days +01:00:00"),
            // As 2.1 has them.
            ("P1Y2M3DT4H5M6.788999999S", "1 year 2 mons 3 days 04:05:06.789"),
            ("P0Y0M-1DT0H0M-0.000000999S", "-1 days -00:00:00.000001"),
            ("P0Y0M0DT0H0M59.9999999S", "00:01:00"),
        ] {
            assert_eq!(written(|out| write_interval(iso.as_bytes(), out)).as_deref(), Some(text));
        }
        for bad in ["", "1Y", "P1", "P1X", "PT1Y", "P99999999999999999999Y", "PT1.5H"] {
            assert_eq!(written(|out| write_interval(bad.as_bytes(), out)), None, "{bad}");
        }
    }

    #[test]
    fn times_bits_and_floats() {
        let time = |micros| written(|out| write_time(micros, out));
        assert_eq!(time(47_655_123_456).as_deref(), Some("13:14:15.123456"));
        assert_eq!(time(86_400_000_000).as_deref(), Some("24:00:00"));
        assert_eq!((time(-1), time(86_400_000_001)), (None, None));
        let zoned = |text: &str| written(|out| write_zoned_time(text.as_bytes(), out));
        assert_eq!(zoned("00:00:00.5Z").as_deref(), Some("00:00:00.5+00"));
        assert_eq!(zoned("13:14+05:30").as_deref(), Some("13:14:00+05:30"));
        assert_eq!(zoned("13:14"), None);
        let bits = |bytes: &[u8], length| written(|out| write_bits(bytes, length, out));
        assert_eq!(bits(&[0x16], 5).as_deref(), Some("10110"));
        assert_eq!(bits(&[1], 5).as_deref(), Some("00001"));
        assert_eq!(bits(&[0xff], 5), None, "more bits than the type has");
        for (value, text) in
            [(1e300, "1e+300"), (1e-5, "1e-05"), (1.5, "1.5"), (-0.0, "-0"), (1.234e17, "1.234e+17"), (f64::NAN, "NaN")]
        {
            let mut out = Vec::new();
            write_float(value, &mut out);
            assert_eq!(String::from_utf8(out).unwrap(), text);
        }
    }
}
