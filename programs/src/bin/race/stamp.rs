//! What is written into pages, and what a word that was read turns out to be.

/// The pages of each file that are used: in the first, second and last quarter of a slot.
pub const USED: [usize; 12] = [0, 1, 2, 3, 130, 131, 132, 133, 400, 401, 402, 511];
/// A page of each file that is there always and never stored into: with it a mapping gets its table in no time.
pub const ANCHOR: usize = 7;
/// Where the last quarter of a slot begins, as a page index.
pub const LAST_QUARTER: usize = 384;

const MAGIC: u64 = 0xa7;

/// The stamp of a page of a file, with a number that tells one store from the next.
pub fn stamp(file: usize, index: usize, nonce: u32) -> u64 {
    MAGIC << 56 | (file as u64) << 48 | (index as u64) << 32 | u64::from(nonce)
}

/// What a word is, to someone who looks into page `index` of `file`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Word {
    /// Nobody has written yet.
    Zero,
    /// A stamp of this page.
    Right,
    /// A stamp of another page or of another file.
    Foreign,
    /// Nothing that anybody here has written.
    Junk,
}

impl Word {
    pub fn of(word: u64, file: usize, index: usize) -> Word {
        match word {
            0 => Word::Zero,
            _ if word >> 32 == stamp(file, index, 0) >> 32 => Word::Right,
            _ if word >> 56 == MAGIC => Word::Foreign,
            _ => Word::Junk,
        }
    }
}

/// A word for people.
pub fn describe(word: u64) -> String {
    if word >> 56 == MAGIC {
        format!("the stamp of file {} page {} ({:#x})", word >> 48 & 0xff, word >> 32 & 0xffff, word as u32)
    } else {
        format!("{word:#x}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_is_known_for_what_it_is() {
        let word = stamp(3, 511, 9);
        assert_eq!(Word::of(word, 3, 511), Word::Right);
        assert_eq!(Word::of(word, 2, 511), Word::Foreign);
        assert_eq!(Word::of(word, 3, 510), Word::Foreign);
        assert_eq!(Word::of(0, 3, 511), Word::Zero);
        assert_eq!(Word::of(17, 3, 511), Word::Junk);
        assert!(describe(word).contains("file 3 page 511"));
    }
}
