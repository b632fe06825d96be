//! Sizes in bytes, as people and QEMU write them: 512M, 8G.

use std::fmt;
use std::str::FromStr;

/// A number of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl Size {
    /// So many mebibytes.
    pub const fn mebibytes(count: u64) -> Size {
        Size(count << 20)
    }

    /// So many gibibytes.
    pub const fn gibibytes(count: u64) -> Size {
        Size(count << 30)
    }
}

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NotASize {
    /// It does not begin with a number.
    NoNumber,
    /// Its unit is not known.
    Unit(String),
    /// It is below 0.
    Negative,
    /// It is more than 16 EiB.
    TooLarge,
}

impl fmt::Display for NotASize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NotASize::NoNumber => f.write_str("a size is a number with a unit, such as 512M, 1.5TiB or 10GB"),
            NotASize::Unit(unit) => {
                write!(f, "'{unit}' is no unit: they are K, M, G, T and P, with iB or B or without")
            }
            NotASize::Negative => f.write_str("a size is not below 0"),
            NotASize::TooLarge => {
                f.write_str("it is more than 16 EiB, which is more than any machine can address")
            }
        }
    }
}

impl std::error::Error for NotASize {}

impl FromStr for Size {
    type Err = NotASize;

    /// A unit is a power of 1024, however it is written; between thousands may stand commas or underscores.
    fn from_str(text: &str) -> Result<Size, NotASize> {
        let text = text.trim();
        if text.starts_with('-') {
            return Err(NotASize::Negative);
        }
        let end = text.find(|c: char| !(c.is_ascii_digit() || ".,_".contains(c))).unwrap_or(text.len());
        let (number, unit) = (&text[..end], text[end..].trim());
        let shift = match unit.to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KB" | "KI" | "KIB" => 10,
            "M" | "MB" | "MI" | "MIB" => 20,
            "G" | "GB" | "GI" | "GIB" => 30,
            "T" | "TB" | "TI" | "TIB" => 40,
            "P" | "PB" | "PI" | "PIB" => 50,
            _ if number.is_empty() => return Err(NotASize::NoNumber),
            _ => return Err(NotASize::Unit(unit.to_string())),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        let whole = thousands(whole)?;
        let whole = whole.checked_mul(1 << shift).ok_or(NotASize::TooLarge)?;
        // Digits beyond these are less than a byte of any unit.
        let fraction = &fraction[..fraction.len().min(18)];
        let part = match fraction {
            "" => 0,
            digits if digits.bytes().all(|digit| digit.is_ascii_digit()) => {
                let digits_value: u128 = digits.parse().map_err(|_| NotASize::NoNumber)?;
                ((digits_value << shift) / 10u128.pow(digits.len() as u32)) as u64
            }
            _ => return Err(NotASize::NoNumber),
        };
        whole.checked_add(part).map(Size).ok_or(NotASize::TooLarge)
    }
}

/// A whole number, with or without marks between its thousands: `10000`, `10,000`, `10_000`.
pub fn thousands(text: &str) -> Result<u64, NotASize> {
    let groups: Vec<&str> = text.split([',', '_']).collect();
    let is_whole = groups.len() == 1
        || (1..=3).contains(&groups[0].len()) && groups[1..].iter().all(|group| group.len() == 3);
    let digits = groups.concat();
    if !is_whole || digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_digit()) {
        return Err(NotASize::NoNumber);
    }
    digits.parse().map_err(|_| NotASize::TooLarge)
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(40, "T"), (30, "G"), (20, "M"), (10, "K")] {
            if self.0 != 0 && self.0.trailing_zeros() >= shift {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_and_written_the_same_way() {
        for text in ["0", "513", "4K", "512M", "8G", "1T", "1536M"] {
            assert_eq!(text.parse::<Size>().unwrap().to_string(), text);
        }
        assert_eq!("2g".parse(), Ok(Size::gibibytes(2)));
        assert_eq!("64MiB".parse(), Ok(Size::mebibytes(64)));
    }

    #[test]
    fn what_people_write_is_taken() {
        for (text, bytes) in [
            ("1Gi", 1 << 30),
            ("1.5TiB", 3 << 39),
            ("10,000", 10_000),
            ("10_000K", 10_000 << 10),
            ("0.5 MB", 1 << 19),
            ("2PiB", 2 << 50),
            ("1.0000000000000000000001K", 1024),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_the_reason() {
        for text in ["", "G", "1,0M", "1..5G", "1.5.5G", ",5G", "many"] {
            assert_eq!(text.parse::<Size>(), Err(NotASize::NoNumber), "{text:?}");
        }
        assert_eq!("1X".parse::<Size>(), Err(NotASize::Unit("X".into())));
        assert_eq!("-1M".parse::<Size>(), Err(NotASize::Negative));
        assert_eq!("99999999T".parse::<Size>(), Err(NotASize::TooLarge));
        assert_eq!("99999999999999999999999".parse::<Size>(), Err(NotASize::TooLarge));
    }
}
