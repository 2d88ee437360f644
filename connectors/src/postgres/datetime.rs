//! Dates and timestamps, as text (`DateStyle = ISO`) and in binary: `bytes -> days | microseconds since 1970`.
//!
//! PostgreSQL counts from 2000, as i32 days and i64 microseconds, extremes being the infinities. Its dates all fit into an i32 of
//! days since 1970; its last 49 years of timestamps (294247 to 294276) do not fit into an i64 of microseconds: they are misfits.

use lakeward_event::types::{DATE_INFINITY, TIMESTAMP_INFINITY};

use super::EPOCH_SECONDS;

const EPOCH_DAYS: i32 = (EPOCH_SECONDS / 86_400) as i32;
const DAY_MICROS: i64 = 86_400_000_000;

/// A date from its binary form.
pub fn date_from_binary(days: i32) -> Option<i32> {
    match days {
        i32::MAX => Some(DATE_INFINITY),
        i32::MIN => Some(-DATE_INFINITY),
        days => days.checked_add(EPOCH_DAYS).filter(|d| d.unsigned_abs() != DATE_INFINITY.unsigned_abs()),
    }
}

/// A timestamp, with or without zone, from its binary form. `None`: beyond what 64 bits hold from 1970.
pub fn timestamp_from_binary(micros: i64) -> Option<i64> {
    match micros {
        i64::MAX => Some(TIMESTAMP_INFINITY),
        i64::MIN => Some(-TIMESTAMP_INFINITY),
        micros => finite(micros.checked_add(EPOCH_SECONDS * 1_000_000)?),
    }
}

/// A finite moment may not look like an infinity.
fn finite(micros: i64) -> Option<i64> {
    (micros.unsigned_abs() != TIMESTAMP_INFINITY.unsigned_abs() && micros != i64::MIN).then_some(micros)
}

/// Reads `2024-02-29`, `0044-03-15 BC`, `infinity`.
pub fn date_from_text(text: &[u8]) -> Option<i32> {
    match text {
        b"infinity" => return Some(DATE_INFINITY),
        b"-infinity" => return Some(-DATE_INFINITY),
        _ => {}
    }
    let mut scan = Scan { rest: text };
    let (year, month, day) = scan.date()?;
    let era = scan.era()?;
    let days = i32::try_from(days_from_civil(era.year(year)?, month, day)).ok()?;
    (days.unsigned_abs() != DATE_INFINITY.unsigned_abs()).then_some(days)
}

/// Reads `2024-02-29 12:00:00.5`, with `zoned` an offset too (`+00`, `-03:30`); `BC` and infinities.
pub fn timestamp_from_text(text: &[u8], zoned: bool) -> Option<i64> {
    match text {
        b"infinity" => return Some(TIMESTAMP_INFINITY),
        b"-infinity" => return Some(-TIMESTAMP_INFINITY),
        _ => {}
    }
    let mut scan = Scan { rest: text };
    let (year, month, day) = scan.date()?;
    scan.expect(b' ')?;
    let hour = scan.two_digits(23)?;
    scan.expect(b':')?;
    let minute = scan.two_digits(59)?;
    scan.expect(b':')?;
    let second = scan.two_digits(60)?;
    let micros = scan.fraction()?;
    let offset = if zoned { scan.offset()? } else { 0 };
    let year = scan.era()?.year(year)?;
    let seconds = (hour * 60 + minute) * 60 + second - offset;
    let days = i128::from(days_from_civil(year, month, day)) * i128::from(DAY_MICROS);
    finite(i64::try_from(days + i128::from(seconds * 1_000_000 + micros)).ok()?)
}

/// Appends the server's text of a timestamp's binary form (microseconds since 2000).
pub fn write_timestamp(micros: i64, zoned: bool, out: &mut Vec<u8>) {
    use std::io::Write;
    let (days, of_day) = (micros.div_euclid(DAY_MICROS), micros.rem_euclid(DAY_MICROS));
    let (year, month, day) = civil_from_days(days + i64::from(EPOCH_DAYS));
    let shown = if year > 0 { year } else { 1 - year };
    let (seconds, fraction) = (of_day / 1_000_000, of_day % 1_000_000);
    let (hour, minute, second) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    // Writing into a Vec cannot fail.
    let _ = write!(out, "{shown:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02}");
    if fraction != 0 {
        let _ = write!(out, ".{fraction:06}");
        while out.last() == Some(&b'0') {
            out.pop();
        }
    }
    if zoned {
        out.extend_from_slice(b"+00");
    }
    if year <= 0 {
        out.extend_from_slice(b" BC");
    }
}

#[derive(Clone, Copy)]
enum Era {
    Common,
    Before,
}

impl Era {
    /// The astronomical year: 1 BC is 0.
    fn year(self, year: i64) -> Option<i64> {
        match self {
            _ if year == 0 => None,
            Self::Common => Some(year),
            Self::Before => Some(1 - year),
        }
    }
}

struct Scan<'a> {
    rest: &'a [u8],
}

impl Scan<'_> {
    fn expect(&mut self, byte: u8) -> Option<()> {
        let (first, rest) = self.rest.split_first()?;
        self.rest = rest;
        (*first == byte).then_some(())
    }

    fn two_digits(&mut self, max: i64) -> Option<i64> {
        let (digits, rest) = self.rest.split_first_chunk::<2>()?;
        self.rest = rest;
        let (tens, ones) = (digits[0].wrapping_sub(b'0'), digits[1].wrapping_sub(b'0'));
        let value = i64::from(tens) * 10 + i64::from(ones);
        (tens < 10 && ones < 10 && value <= max).then_some(value)
    }

    /// Year (four digits or more), month, day.
    fn date(&mut self) -> Option<(i64, i64, i64)> {
        let length = self.rest.iter().position(|b| !b.is_ascii_digit())?;
        if !(4..=7).contains(&length) {
            return None;
        }
        let (digits, rest) = self.rest.split_at(length);
        self.rest = rest;
        let year = digits.iter().fold(0, |year, digit| year * 10 + i64::from(digit - b'0'));
        self.expect(b'-')?;
        let month = self.two_digits(12)?;
        self.expect(b'-')?;
        let day = self.two_digits(31)?;
        (month > 0 && day > 0).then_some((year, month, day))
    }

    /// Up to six digits after the point, as microseconds.
    fn fraction(&mut self) -> Option<i64> {
        let Some((b'.', digits)) = self.rest.split_first() else { return Some(0) };
        let length = digits.iter().position(|b| !b.is_ascii_digit()).unwrap_or(digits.len());
        if !(1..=6).contains(&length) {
            return None;
        }
        let (digits, rest) = digits.split_at(length);
        self.rest = rest;
        let micros = digits.iter().fold(0, |value, digit| value * 10 + i64::from(digit - b'0'));
        Some((length..6).fold(micros, |value, _| value * 10))
    }

    /// Seconds east of UTC.
    fn offset(&mut self) -> Option<i64> {
        let (sign, rest) = self.rest.split_first()?;
        self.rest = rest;
        let mut seconds = self.two_digits(99)? * 3600;
        for unit in [60, 1] {
            if self.rest.first() == Some(&b':') {
                self.expect(b':')?;
                seconds += self.two_digits(59)? * unit;
            }
        }
        match sign {
            b'+' => Some(seconds),
            b'-' => Some(-seconds),
            _ => None,
        }
    }

    /// What is left: nothing, or ` BC`.
    fn era(&mut self) -> Option<Era> {
        match self.rest {
            b"" => Some(Era::Common),
            b" BC" => Some(Era::Before),
            _ => None,
        }
    }
}

/// Days since 1970-01-01 of a proleptic Gregorian date; eras of 400 years, years from March.
fn days_from_civil(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let of_year = (153 * ((month + 9) % 12) + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The inverse of [`days_from_civil`].
fn civil_from_days(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let day = of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    (year_of_era + era * 400 + i64::from(month <= 2), month, day)
}

#[cfg(test)]
#[path = "datetime/tests.rs"]
mod tests;
