//! The text of single values, both ways: `value of a column <-> bytes of JSON`. Writers append whole JSON values (quotes
//! included); parsers take what stands between the quotes.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use uuid::Uuid;

use crate::types::TIMESTAMP_INFINITY;

const MICROS_PER_DAY: i64 = 86_400_000_000;

/// Bytes that cannot stand for themselves in a JSON string: 0 none, `u` as `\u00XX`, else the letter after the backslash.
const ESCAPE: [u8; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 0x20 {
        table[i] = b'u';
        i += 1;
    }
    table[0x08] = b'b';
    table[b'\t' as usize] = b't';
    table[b'\n' as usize] = b'n';
    table[0x0c] = b'f';
    table[b'\r' as usize] = b'r';
    table[b'"' as usize] = b'"';
    table[b'\\' as usize] = b'\\';
    table
};
const HEX: &[u8; 16] = b"0123456789abcdef";

/// True for bytes that end a run of plain characters inside a JSON string.
#[inline]
pub(crate) fn is_special(byte: u8) -> bool {
    ESCAPE[byte as usize] != 0
}

pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut plain = 0;
    for (i, byte) in bytes.iter().enumerate() {
        let escape = ESCAPE[*byte as usize];
        if escape == 0 {
            continue;
        }
        out.extend_from_slice(&bytes[plain..i]);
        plain = i + 1;
        if escape == b'u' {
            out.extend_from_slice(b"\\u00");
            out.push(HEX[usize::from(byte >> 4)]);
            out.push(HEX[usize::from(byte & 15)]);
        } else {
            out.extend_from_slice(&[b'\\', escape]);
        }
    }
    out.extend_from_slice(&bytes[plain..]);
    out.push(b'"');
}

pub(crate) fn write_int(out: &mut Vec<u8>, value: impl itoa::Integer) {
    out.extend_from_slice(itoa::Buffer::new().format(value).as_bytes());
}

/// Shortest digits that read back the same; what JSON has no number for is a string in PostgreSQL's spelling.
pub(crate) fn write_float(out: &mut Vec<u8>, value: impl ryu::Float + Into<f64>) {
    let wide: f64 = value.into();
    if wide.is_finite() {
        out.extend_from_slice(ryu::Buffer::new().format_finite(value).as_bytes());
    } else if wide.is_nan() {
        out.extend_from_slice(b"\"NaN\"");
    } else {
        out.extend_from_slice(if wide > 0.0 { b"\"Infinity\"" } else { b"\"-Infinity\"" });
    }
}

/// As the server prints it, trailing zeros and all: 1230 with scale 2 is `"12.30"`.
pub(crate) fn write_decimal(out: &mut Vec<u8>, unscaled: i128, scale: i8) {
    out.push(b'"');
    if unscaled < 0 {
        out.push(b'-');
    }
    let magnitude = unscaled.unsigned_abs();
    let mut buffer = itoa::Buffer::new();
    // 128-bit division is several times dearer, and most values do not need it.
    let digits = match u64::try_from(magnitude) {
        Ok(small) => buffer.format(small),
        Err(_) => buffer.format(magnitude),
    }
    .as_bytes();
    let scale = scale.unsigned_abs() as usize;
    if scale == 0 {
        out.extend_from_slice(digits);
    } else if digits.len() > scale {
        let (whole, fraction) = digits.split_at(digits.len() - scale);
        out.extend_from_slice(whole);
        out.push(b'.');
        out.extend_from_slice(fraction);
    } else {
        out.extend_from_slice(b"0.");
        out.resize(out.len() + scale - digits.len(), b'0');
        out.extend_from_slice(digits);
    }
    out.push(b'"');
}

/// The unscaled value of a decimal that fits `precision` and `scale` exactly; fewer fraction digits are filled up.
pub(crate) fn parse_decimal(text: &[u8], precision: u8, scale: i8) -> Option<i128> {
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        _ => (false, text),
    };
    let scale = usize::from(scale.unsigned_abs());
    let mut value: i128 = 0;
    let mut digits = 0usize;
    let mut fraction: Option<usize> = None;
    for byte in text {
        match byte {
            b'0'..=b'9' => {
                value = value.checked_mul(10)?.checked_add(i128::from(byte - b'0'))?;
                digits += 1;
                if let Some(count) = &mut fraction {
                    *count += 1;
                }
            }
            b'.' if fraction.is_none() => fraction = Some(0),
            _ => return None,
        }
    }
    let missing = scale.checked_sub(fraction.unwrap_or(0))?;
    if digits == 0 {
        return None;
    }
    for _ in 0..missing {
        value = value.checked_mul(10)?;
    }
    if value.unsigned_abs() >= 10u128.checked_pow(u32::from(precision))? {
        return None;
    }
    Some(if negative { -value } else { value })
}

pub(crate) fn write_uuid(out: &mut Vec<u8>, value: &[u8]) {
    let uuid = Uuid::from_slice(value).unwrap_or_default();
    out.push(b'"');
    out.extend_from_slice(uuid.hyphenated().encode_lower(&mut Uuid::encode_buffer()).as_bytes());
    out.push(b'"');
}

pub(crate) fn parse_uuid(text: &[u8]) -> Option<[u8; 16]> {
    if text.len() != 36 {
        return None;
    }
    Uuid::try_parse_ascii(text).ok().map(Uuid::into_bytes)
}

pub(crate) fn write_binary(out: &mut Vec<u8>, value: &[u8]) {
    out.push(b'"');
    let start = out.len();
    out.resize(start + value.len().div_ceil(3) * 4, 0);
    // The room is exactly what the encoding takes, so this cannot fail.
    let written = STANDARD.encode_slice(value, &mut out[start..]).unwrap_or(0);
    out.truncate(start + written);
    out.push(b'"');
}

pub(crate) fn parse_binary(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    STANDARD.decode_vec(text, out).ok()
}

pub(crate) fn write_hex(out: &mut Vec<u8>, value: &[u8]) {
    for byte in value {
        out.push(HEX[usize::from(byte >> 4)]);
        out.push(HEX[usize::from(byte & 15)]);
    }
}

pub(crate) fn parse_hex(text: &[u8], out: &mut Vec<u8>) -> Option<()> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if !text.len().is_multiple_of(2) {
        return None;
    }
    for pair in text.chunks_exact(2) {
        out.push(digit(pair[0])? << 4 | digit(pair[1])?);
    }
    Some(())
}

/// ISO 8601 in UTC with six fraction digits; years before 1 and after 9999 are signed (year 0 is 1 BC), as Debezium writes
/// them, and so are the infinities.
pub(crate) fn write_timestamptz(out: &mut Vec<u8>, micros: i64) {
    if micros.checked_abs() == Some(TIMESTAMP_INFINITY) {
        out.extend_from_slice(if micros > 0 { b"\"infinity\"" } else { b"\"-infinity\"" });
        return;
    }
    let (year, month, day) = civil_from_days(micros.div_euclid(MICROS_PER_DAY));
    let rest = micros.rem_euclid(MICROS_PER_DAY) as u64;
    out.push(b'"');
    if !(0..=9999).contains(&year) {
        out.push(if year < 0 { b'-' } else { b'+' });
    }
    let year = year.unsigned_abs();
    if year > 9999 {
        write_int(out, year);
    } else {
        write_padded::<4>(out, year);
    }
    out.push(b'-');
    write_padded::<2>(out, month.into());
    out.push(b'-');
    write_padded::<2>(out, day.into());
    out.push(b'T');
    write_padded::<2>(out, rest / 3_600_000_000);
    out.push(b':');
    write_padded::<2>(out, rest / 60_000_000 % 60);
    out.push(b':');
    write_padded::<2>(out, rest / 1_000_000 % 60);
    out.push(b'.');
    write_padded::<6>(out, rest % 1_000_000);
    out.extend_from_slice(b"Z\"");
}

/// ISO 8601 in UTC of milliseconds since 1970, as relaxed Extended JSON has it: the fraction is there only when it is not 0.
/// Years from 1970 to 9999; without quotes.
pub(crate) fn write_date_millis(out: &mut Vec<u8>, millis: i64) {
    let start = out.len();
    write_timestamptz(out, millis * 1000);
    // "YYYY-MM-DDTHH:MM:SS.ffffffZ" with its quotes
    out.remove(start);
    out.truncate(start + if millis % 1000 == 0 { 19 } else { 23 });
    out.push(b'Z');
}

pub(crate) fn parse_timestamptz(text: &[u8]) -> Option<i64> {
    match text {
        b"infinity" => return Some(TIMESTAMP_INFINITY),
        b"-infinity" => return Some(-TIMESTAMP_INFINITY),
        _ => {}
    }
    let (days, rest) = parse_date(text)?;
    // THH:MM:SS, then perhaps a fraction, then Z
    let (clock, fraction) = rest.split_at_checked(9)?;
    let [b'T', h1, h2, b':', i1, i2, b':', s1, s2] = clock else { return None };
    let two = |a: &u8, b: &u8| number(&[*a, *b]);
    let (hour, minute, second) = (two(h1, h2)?, two(i1, i2)?, two(s1, s2)?);
    let micros = match fraction {
        b"Z" => 0,
        [b'.', digits @ .., b'Z'] if (1..=6).contains(&digits.len()) => {
            number(digits)? * 10i64.pow(6 - digits.len() as u32)
        }
        _ => return None,
    };
    if hour > 23 || minute > 59 || second > 59 {
        return None;
    }
    let clock = ((hour * 60 + minute) * 60 + second) * 1_000_000 + micros;
    // The day of the smallest timestamp starts before the range does.
    i64::try_from(i128::from(days) * i128::from(MICROS_PER_DAY) + i128::from(clock)).ok()
}

/// The days since 1970 of the ISO 8601 date that is next, `-0043-03-15` is of 44 BC; and what follows.
pub(crate) fn parse_date(text: &[u8]) -> Option<(i64, &[u8])> {
    let (sign, text) = match text {
        [b'-', rest @ ..] => (-1, rest),
        [b'+', rest @ ..] => (1, rest),
        _ => (1, text),
    };
    let year_digits = text.iter().position(|b| *b == b'-')?;
    if !(4..=7).contains(&year_digits) {
        return None;
    }
    let (year, rest) = text.split_at(year_digits);
    let (day, rest) = rest.split_at_checked(6)?;
    let [b'-', m1, m2, b'-', d1, d2] = day else { return None };
    let (year, month, day) = (sign * number(year)?, number(&[*m1, *m2])?, number(&[*d1, *d2])?);
    let days = days_from_civil(year, month, day);
    (civil_from_days(days) == (year, month as u32, day as u32)).then_some((days, rest))
}

fn number(digits: &[u8]) -> Option<i64> {
    digits.iter().try_fold(0i64, |value, byte| byte.is_ascii_digit().then(|| value * 10 + i64::from(byte - b'0')))
}

fn write_padded<const WIDTH: usize>(out: &mut Vec<u8>, mut value: u64) {
    let mut digits = [b'0'; WIDTH];
    for digit in digits.iter_mut().rev() {
        *digit = b'0' + (value % 10) as u8;
        value /= 10;
    }
    out.extend_from_slice(&digits);
}

/// Proleptic Gregorian calendar, counted in eras of 400 years that start on 1 March (leap days then come last).
fn civil_from_days(days: i64) -> (i64, u32, u32) {
    let shifted = days + 719_468;
    let era = shifted.div_euclid(146_097);
    let day_of_era = shifted.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = (day_of_year - (153 * shifted_month + 2) / 5 + 1) as u32;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 } as u32;
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let era = year.div_euclid(400);
    let year_of_era = year.rem_euclid(400);
    let day_of_year = (153 * (if month > 2 { month - 3 } else { month + 9 }) + 2) / 5 + day - 1;
    era * 146_097 + year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year - 719_468
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut out = Vec::new();
        write(&mut out);
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn timestamps_are_iso_and_exact() {
        for (micros, text) in [
            (0, "1970-01-01T00:00:00.000000Z"),
            (1_709_212_455_123_456, "2024-02-29T13:14:15.123456Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
            (-62_135_596_800_000_000, "0001-01-01T00:00:00.000000Z"),
            (-62_135_596_800_000_001, "0000-12-31T23:59:59.999999Z"),
            (-63_517_824_000_000_000, "-0043-03-15T00:00:00.000000Z"),
            (9_223_371_244_800_000_000, "+294247-01-01T00:00:00.000000Z"),
            (i64::MAX, "infinity"),
            (-i64::MAX, "-infinity"),
        ] {
            assert_eq!(parse_timestamptz(text.as_bytes()), Some(micros), "{text}");
            assert_eq!(written(|out| write_timestamptz(out, micros)), format!("\"{text}\""));
        }
        for micros in [i64::MIN, i64::MIN + 2, i64::MAX - 1] {
            let text = written(|out| write_timestamptz(out, micros));
            assert_eq!(parse_timestamptz(text.trim_matches('"').as_bytes()), Some(micros), "{text}");
        }
        // PostgreSQL's last microsecond is beyond 64 bits when counted from 1970.
        for bad in [
            "",
            "+294276-12-31T23:59:59.999999Z",
            "2023-02-29T00:00:00Z",
            "2024-13-01T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01 00:00:00Z",
        ] {
            assert_eq!(parse_timestamptz(bad.as_bytes()), None, "{bad}");
        }
    }

    #[test]
    fn decimals_keep_their_zeros() {
        for (value, scale, text) in [
            (1230, 2, "12.30"),
            (-5, 2, "-0.05"),
            (0, 2, "0.00"),
            (0, 0, "0"),
            (-7, 0, "-7"),
            (10i128.pow(38) - 1, 38, "0.99999999999999999999999999999999999999"),
            (1 - 10i128.pow(38), 0, "-99999999999999999999999999999999999999"),
        ] {
            assert_eq!(written(|out| write_decimal(out, value, scale)), format!("\"{text}\""));
            assert_eq!(parse_decimal(text.as_bytes(), 38, scale), Some(value));
        }
        for bad in ["", "-", ".", "1.234", "1e5", "NaN", "1.2.3", "12345678901234567890123456789012345678901234567890"]
        {
            assert_eq!(parse_decimal(bad.as_bytes(), 38, 2), None, "{bad}");
        }
        assert_eq!(parse_decimal(b"1000", 5, 2), None);
        assert_eq!(parse_decimal(b"1.5", 5, 2), Some(150));
    }
}
