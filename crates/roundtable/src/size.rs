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

/// A text that is not a size.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NotASize;

impl fmt::Display for NotASize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a size is a number with K, M, G or T behind it, such as 512M")
    }
}

impl std::error::Error for NotASize {}

impl FromStr for Size {
    type Err = NotASize;

    fn from_str(text: &str) -> Result<Size, NotASize> {
        let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
        let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
            "" | "B" => 0,
            "K" | "KB" | "KIB" => 10,
            "M" | "MB" | "MIB" => 20,
            "G" | "GB" | "GIB" => 30,
            "T" | "TB" | "TIB" => 40,
            _ => return Err(NotASize),
        };
        let number: u64 = digits.parse().map_err(|_| NotASize)?;
        number.checked_mul(1 << shift).map(Size).ok_or(NotASize)
    }
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
    fn what_is_no_size_is_refused() {
        for text in ["", "G", "1X", "-1M", "1.5G", "99999999T"] {
            assert_eq!(text.parse::<Size>(), Err(NotASize), "{text:?}");
        }
    }
}
