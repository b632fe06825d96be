//! Which descriptors are in use, as bits: the lowest free one of very many is found by a few words.

use alloc::vec::Vec;

use crate::errno::Result;
use crate::memory::fallible::{self, TryVec};

/// Bits of a word.
const BITS: usize = u64::BITS as usize;

/// A set of small numbers.
#[derive(Default)]
pub struct Used {
    words: Vec<u64>,
    /// The words that are full.
    full: Vec<u64>,
}

impl Used {
    /// None.
    pub const fn new() -> Self {
        Self { words: Vec::new(), full: Vec::new() }
    }

    /// Makes room for numbers below `len`.
    pub fn grow(&mut self, len: usize) -> Result<()> {
        let words = len.div_ceil(BITS);
        if words > self.words.len() {
            self.full.try_resize(words.div_ceil(BITS).max(self.full.len()), 0)?;
            self.words.try_resize(words, 0)?;
        }
        Ok(())
    }

    /// The numbers for which there is room.
    pub fn room(&self) -> usize {
        self.words.len() * BITS
    }

    /// A copy, with room for no more than is needed.
    pub fn try_clone(&self) -> Result<Self> {
        let words = self.end().div_ceil(BITS);
        let full = words.div_ceil(BITS);
        Ok(Self {
            words: fallible::copy_of(&self.words[..words])?,
            full: fallible::copy_of(&self.full[..full])?,
        })
    }

    /// One more than the largest number; 0 without any.
    pub fn end(&self) -> usize {
        let last = self.words.iter().rposition(|word| *word != 0);
        last.map_or(0, |word| (word + 1) * BITS - self.words[word].leading_zeros() as usize)
    }

    /// Adds a number for which there is room.
    pub fn insert(&mut self, number: usize) {
        let word = number / BITS;
        self.words[word] |= 1 << (number % BITS);
        if self.words[word] == u64::MAX {
            self.full[word / BITS] |= 1 << (word % BITS);
        }
    }

    /// Takes a number out.
    pub fn remove(&mut self, number: usize) {
        let word = number / BITS;
        if let Some(bits) = self.words.get_mut(word) {
            *bits &= !(1 << (number % BITS));
            self.full[word / BITS] &= !(1 << (word % BITS));
        }
    }

    /// The lowest number from `from` up that is not in the set; there may be no room for it yet.
    pub fn first_free(&self, from: usize) -> usize {
        let word = from / BITS;
        let Some(bits) = self.words.get(word) else { return from };
        let free = (bits >> (from % BITS)).trailing_ones() as usize;
        if from % BITS + free < BITS {
            return from + free;
        }
        let word = first_zero(&self.full, word + 1);
        let bits = self.words.get(word).copied().unwrap_or(0);
        word * BITS + bits.trailing_ones() as usize
    }
}

/// The first bit from `from` up that is 0; behind the end all are.
fn first_zero(words: &[u64], from: usize) -> usize {
    let mut at = from;
    while let Some(bits) = words.get(at / BITS) {
        let ones = (bits >> (at % BITS)).trailing_ones() as usize;
        if at % BITS + ones < BITS {
            return at + ones;
        }
        at = (at / BITS + 1) * BITS;
    }
    at
}
