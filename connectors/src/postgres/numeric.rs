//! PostgreSQL's numeric, as text and in binary: `bytes -> unscaled i128 | the server's text`.
//!
//! Binary form: u16 groups, i16 weight (power of 10,000 of the first group), u16 sign, u16 display scale, then the groups, each
//! four decimal digits (`numeric_send` in PostgreSQL's `numeric.c`).

/// What a numeric turned out to be for a decimal column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decimal {
    /// `value * 10^scale`
    Unscaled(i128),
    /// NaN, an infinity, too many digits before or after the point.
    Misfit,
}

/// 10^0 to 10^38.
const POWERS: [i128; 39] = {
    let mut powers = [1; 39];
    let mut i = 1;
    while i < 39 {
        powers[i] = powers[i - 1] * 10;
        i += 1;
    }
    powers
};

fn fits(value: i128, negative: bool, precision: u8) -> Decimal {
    match POWERS.get(usize::from(precision)) {
        Some(limit) if value < *limit => Decimal::Unscaled(if negative { -value } else { value }),
        _ => Decimal::Misfit,
    }
}

/// Reads the server's text, such as `-12.50`, as `decimal(precision, scale)`; exact, never rounded.
pub fn decimal_from_text(text: &[u8], precision: u8, scale: u8) -> Decimal {
    decimal_digits(text, scale).map_or(Decimal::Misfit, |(value, negative)| fits(value, negative, precision))
}

fn decimal_digits(text: &[u8], scale: u8) -> Option<(i128, bool)> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        rest => (false, rest),
    };
    let point = digits.iter().position(|b| *b == b'.');
    let (whole, fraction) = point.map_or((digits, &[][..]), |at| (&digits[..at], &digits[at + 1..]));
    if whole.is_empty() || (point.is_some() && fraction.is_empty()) {
        return None;
    }
    let scale = usize::from(scale);
    let (kept, beyond) = fraction.split_at(fraction.len().min(scale));
    if beyond.iter().any(|b| *b != b'0') {
        return None;
    }
    let missing = (scale - kept.len()) as u32;
    if whole.len() + kept.len() <= 18 {
        let mut value: u64 = 0;
        for byte in whole.iter().chain(kept) {
            value = value * 10 + u64::from(digit(*byte)?);
        }
        let power = POWERS.get(missing as usize)?;
        return Some((i128::from(value).checked_mul(*power)?, negative));
    }
    let mut value: i128 = 0;
    for byte in whole.iter().chain(kept) {
        value = value.checked_mul(10)?.checked_add(i128::from(digit(*byte)?))?;
    }
    Some((value.checked_mul(*POWERS.get(missing as usize)?)?, negative))
}

fn digit(byte: u8) -> Option<u8> {
    let digit = byte.wrapping_sub(b'0');
    (digit < 10).then_some(digit)
}

/// A numeric's binary form, taken apart.
#[derive(Debug, Clone, Copy)]
pub struct Binary<'a> {
    weight: i32,
    sign: Sign,
    display_scale: usize,
    groups: &'a [u8],
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sign {
    Positive,
    Negative,
    Nan,
    Infinity,
    NegativeInfinity,
}

impl<'a> Binary<'a> {
    /// `None`: these are not the bytes of a numeric.
    #[inline]
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let (head, groups) = bytes.split_first_chunk::<8>()?;
        let word = |at: usize| u16::from_be_bytes([head[at], head[at + 1]]);
        let sign = match word(4) {
            0x0000 => Sign::Positive,
            0x4000 => Sign::Negative,
            0xC000 => Sign::Nan,
            0xD000 => Sign::Infinity,
            0xF000 => Sign::NegativeInfinity,
            _ => return None,
        };
        let number = Self { weight: i32::from(word(2) as i16), sign, display_scale: usize::from(word(6)), groups };
        let whole = groups.len() == usize::from(word(0)) * 2 && number.groups().all(|g| g < 10_000);
        whole.then_some(number)
    }

    fn groups(&self) -> impl Iterator<Item = u16> + 'a {
        self.groups.chunks_exact(2).map(|g| u16::from_be_bytes([g[0], g[1]]))
    }

    #[inline]
    pub fn decimal(&self, precision: u8, scale: u8) -> Decimal {
        let negative = match self.sign {
            Sign::Positive => false,
            Sign::Negative => true,
            _ => return Decimal::Misfit,
        };
        self.unscaled(scale).map_or(Decimal::Misfit, |value| fits(value, negative, precision))
    }

    /// The absolute value in units of `10^-scale`; `None` where that is not whole or too large.
    fn unscaled(&self, scale: u8) -> Option<i128> {
        let mut value: i128 = 0;
        // Power of ten, in units, of the group last taken in.
        let mut exponent = self.weight * 4 + i32::from(scale) + 4;
        for group in self.groups() {
            exponent -= 4;
            if exponent >= 0 {
                value = value.checked_mul(10_000)?.checked_add(i128::from(group))?;
            } else if exponent > -4 {
                // The last digit of the scale is inside this group.
                let divisor = POWERS[exponent.unsigned_abs() as usize];
                let group = i128::from(group);
                if group % divisor != 0 {
                    return None;
                }
                value = value.checked_mul(10_000 / divisor)?.checked_add(group / divisor)?;
            } else if group != 0 {
                return None;
            }
        }
        if exponent > 0 && value != 0 {
            value = value.checked_mul(*POWERS.get(exponent as usize)?)?;
        }
        Some(value)
    }

    /// Appends what `numeric_out` prints.
    pub fn write_text(&self, out: &mut Vec<u8>) {
        match self.sign {
            Sign::Nan => return out.extend_from_slice(b"NaN"),
            Sign::Infinity => return out.extend_from_slice(b"Infinity"),
            Sign::NegativeInfinity => return out.extend_from_slice(b"-Infinity"),
            Sign::Negative => out.push(b'-'),
            Sign::Positive => {}
        }
        let digits =
            |group: u16| [group / 1000 % 10, group / 100 % 10, group / 10 % 10, group % 10].map(|d| b'0' + d as u8);
        let group = |index: i32| {
            let at = usize::try_from(index).ok().and_then(|i| self.groups.get(i * 2..i * 2 + 2));
            at.map_or(0, |g| u16::from_be_bytes([g[0], g[1]]))
        };
        let start = out.len();
        for index in 0..=self.weight {
            for digit in digits(group(index)) {
                if digit != b'0' || out.len() > start {
                    out.push(digit);
                }
            }
        }
        if out.len() == start {
            out.push(b'0');
        }
        if self.display_scale > 0 {
            out.push(b'.');
            let end = out.len() + self.display_scale;
            let mut index = self.weight + 1;
            // Groups between the point and the first stored one are zero.
            if self.weight < -1 {
                index = 0;
                let zeros = ((-1 - self.weight) as usize * 4).min(self.display_scale);
                out.resize(out.len() + zeros, b'0');
            }
            while out.len() < end {
                out.extend_from_slice(&digits(group(index)));
                index += 1;
            }
            out.truncate(end);
        }
    }
}

#[cfg(test)]
#[path = "numeric/tests.rs"]
mod tests;
