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
    /// The number to look at next, counted from [`FIRST`]: what is given back waits until the search comes round.
    next: AtomicUsize,
}

impl Minors {
    /// All are free.
    pub const fn new() -> Self {
        Self { used: [const { AtomicU64::new(0) }; WORDS], next: AtomicUsize::new(0) }
    }

    /// A number that nobody has; none when all are taken. They count up: some programs know eight bits of them only.
    pub fn take(&self) -> Option<u32> {
        // Relaxed: where a search begins.
        let begin = self.next.load(Ordering::Relaxed);
        // The first word comes once more at the end, for what is before the place where the search begins.
        (0..=WORDS).find_map(|step| {
            let word = (begin / 64 + step) % WORDS;
            let allowed = if step == 0 { u64::MAX << (begin % 64) } else { u64::MAX };
            let free = |used: u64| !used & allowed;
            let with_free = |used: u64| (free(used) != 0).then(|| used | 1 << free(used).trailing_zeros());
            // Acquire: with the release by which the number was given back.
            let before = self.used[word].fetch_update(Ordering::AcqRel, Ordering::Relaxed, with_free).ok()?;
            let found = word * 64 + free(before).trailing_zeros() as usize;
            self.next.store((found + 1) % (WORDS * 64), Ordering::Relaxed);
            Some(FIRST + found as u32)
        })
    }

    /// Gives one back.
    pub fn give_back(&self, number: u32) {
        let index = number - FIRST;
        self.used[index as usize / 64].fetch_and(!(1 << (index % 64)), Ordering::Release);
    }
}
