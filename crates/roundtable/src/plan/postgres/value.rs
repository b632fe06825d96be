//! Numbers as PostgreSQL reads them from its configuration.

use anyhow::{Result, bail};

/// The largest number that a setting of whole numbers can have.
const LARGEST: f64 = i32::MAX as f64;

/// A number of things: `100`, `0x64`, `1e2`, `100.4`, which is rounded.
pub fn count(text: &str) -> Result<u64> {
    let (number, unit) = number(text)?;
    if !unit.is_empty() {
        bail!("a number without a unit is wanted");
    }
    whole(number).map(|number| number as u64)
}

/// Bytes: a number without a unit is in units of `base` bytes, and one with a unit is rounded to them.
pub fn bytes(text: &str, base: u64) -> Result<u64> {
    let (number, unit) = number(text)?;
    let factor = match unit {
        "" => base as f64,
        "B" => 1.0,
        "kB" => 1024.0,
        "MB" => 1024f64.powi(2),
        "GB" => 1024f64.powi(3),
        "TB" => 1024f64.powi(4),
        _ => bail!("PostgreSQL's units are B, kB, MB, GB and TB, in these letters"),
    };
    Ok((whole(number * factor / base as f64)? as u64) * base)
}

/// Rounds to the nearest, an even one from the middle, as C does.
fn whole(number: f64) -> Result<f64> {
    let number = number.round_ties_even();
    match number {
        number if number < 0.0 => bail!("it is less than nothing"),
        number if number <= LARGEST => Ok(number),
        _ => bail!("it is more than PostgreSQL takes"),
    }
}

/// The number at the start, and the unit behind it.
fn number(text: &str) -> Result<(f64, &str)> {
    let text = text.trim();
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    let sign = if text.starts_with('-') { -1.0 } else { 1.0 };
    let (value, rest) = match unsigned.strip_prefix("0x").or_else(|| unsigned.strip_prefix("0X")) {
        Some(hex) => integer(hex, 16),
        None => {
            let (_, rest) = integer(unsigned, 10);
            let is_real = rest.starts_with(['.', 'e', 'E']);
            match unsigned.strip_prefix('0') {
                _ if is_real => real(unsigned),
                // C's octal numbers.
                Some(octal) if octal.starts_with(|c: char| c.is_ascii_digit()) => integer(octal, 8),
                _ => integer(unsigned, 10),
            }
        }
    };
    match value {
        Some(value) => Ok((sign * value, rest.trim())),
        None => bail!("it does not begin with a number"),
    }
}

fn integer(text: &str, radix: u32) -> (Option<f64>, &str) {
    let end = text.find(|c: char| !c.is_digit(radix)).unwrap_or(text.len());
    let value = text[..end]
        .chars()
        .fold(0.0, |value, digit| value * f64::from(radix) + f64::from(digit.to_digit(radix).unwrap_or(0)));
    ((end > 0).then_some(value), &text[end..])
}

fn real(text: &str) -> (Option<f64>, &str) {
    let digits = |from: usize| text[from..].bytes().take_while(u8::is_ascii_digit).count();
    let mut end = digits(0);
    if text[end..].starts_with('.') {
        end += 1 + digits(end + 1);
    }
    if text[end..].starts_with(['e', 'E']) {
        let sign = usize::from(text[end + 1..].starts_with(['+', '-']));
        let exponent = digits(end + 1 + sign);
        // Without digits the letter is no exponent.
        end += if exponent > 0 { 1 + sign + exponent } else { 0 };
    }
    (text[..end].parse().ok(), &text[end..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_read_as_c_reads_them() {
        for (text, number) in [
            ("100", 100),
            (" 0x64 ", 100),
            ("1e2", 100),
            ("100.4", 100),
            ("100.5", 100),
            ("101.5", 102),
            ("010", 8),
            ("+7", 7),
            (".6e1", 6),
            ("0", 0),
        ] {
            assert_eq!(count(text).ok(), Some(number), "{text}");
        }
        for text in ["", "many", "-1", "1 2", "1kB", "2147483648", "1e400", "0x", "e1", "1e"] {
            assert!(count(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes_have_postgres_units() {
        for (text, expected) in [
            ("16384", 16384 * 8192),
            ("8kB", 8192),
            ("1.5GB", 3 << 29),
            ("1TB", 1 << 40),
            ("4 MB", 4 << 20),
            ("1e6kB", 1_024_000_000),
            ("0x10MB", 16 << 20),
            // To the nearest block.
            ("12289B", 16384),
        ] {
            assert_eq!(bytes(text, 8192).ok(), Some(expected), "{text}");
        }
        for text in ["", "x", "1gb", "1KB", "-1", "99999999TB", "1GB x"] {
            assert!(bytes(text, 8192).is_err(), "{text}");
        }
    }
}
