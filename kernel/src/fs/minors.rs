//! Device numbers of file systems without a device: major 0, and a minor number that no other live file system has.
//!
//! Who knows a file by device and inode number (futexes in shared memory, programs that compare files) takes two for one when two live
//! file systems have the same number, and a user can make more than there are numbers. So they are given back, and come again late:
//! the search goes on where it was.

use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// st_dev has 20 bits of them. The first word's are those of the kernel's own file systems, which are never given back.
const WORDS: usize = (1 << 20) / 64 - 1;
/// The first number to give.
pub const FIRST: u32 = 64;

/// Numbers in use.
pub struct Minors {
    used: [AtomicU64; WORDS],
    /// The word to look at next.
    next: AtomicUsize,
}

impl Minors {
    /// All are free.
    pub const fn new() -> Self {
        Self { used: [const { AtomicU64::new(0) }; WORDS], next: AtomicUsize::new(0) }
    }

    /// A number that nobody has; none when all are taken.
    pub fn take(&self) -> Option<u32> {
        // Relaxed: where a search begins.
        let begin = self.next.load(Ordering::Relaxed);
        (0..WORDS).find_map(|step| {
            let word = (begin + step) % WORDS;
            let with_free = |used: u64| (used != u64::MAX).then(|| used | (used + 1));
            // Acquire: with the release by which the number was given back.
            let before = self.used[word].fetch_update(Ordering::AcqRel, Ordering::Relaxed, with_free).ok()?;
            let bit = before.trailing_ones();
            // Each number comes from another word: what is given back waits until the search comes round.
            self.next.store((word + 1) % WORDS, Ordering::Relaxed);
            Some(FIRST + word as u32 * 64 + bit)
        })
    }

    /// Gives one back.
    pub fn give_back(&self, number: u32) {
        let index = number - FIRST;
        self.used[index as usize / 64].fetch_and(!(1 << (index % 64)), Ordering::Release);
    }
}
