//! Counters that processes share, and waiting on them.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::mem::{ANON, Map, RW, SHARED};

/// A page of counters that children made by fork share.
pub struct Shared {
    page: Map,
}

impl Default for Shared {
    fn default() -> Shared {
        Shared::new()
    }
}

impl Shared {
    pub fn new() -> Shared {
        Shared { page: Map::new(4096, RW, SHARED | ANON, -1, 0).expect("shared page") }
    }

    pub fn word(&self, index: usize) -> &AtomicU32 {
        self.page.atomic(index * 4)
    }

    pub fn get(&self, index: usize) -> u32 {
        self.word(index).load(Ordering::SeqCst)
    }

    /// Adds one and wakes who waits.
    pub fn add(&self, index: usize) -> u32 {
        let old = self.word(index).fetch_add(1, Ordering::SeqCst);
        wake(self.word(index), i32::MAX);
        old
    }

    pub fn set(&self, index: usize, value: u32) {
        self.word(index).store(value, Ordering::SeqCst);
        wake(self.word(index), i32::MAX);
    }

    /// Sleeps until the counter is at least `value`; panics after a minute.
    pub fn wait(&self, index: usize, value: u32) {
        assert!(self.wait_for(index, value, Duration::from_secs(60)), "counter {index} never became {value}");
    }

    /// Sleeps until the counter is at least `value`, however long that takes.
    pub fn wait_without_limit(&self, index: usize, value: u32) {
        loop {
            let now = self.get(index);
            if now >= value {
                return;
            }
            wait(self.word(index), now, None);
        }
    }

    pub fn wait_for(&self, index: usize, value: u32, limit: Duration) -> bool {
        let end = Instant::now() + limit;
        loop {
            let now = self.get(index);
            if now >= value {
                return true;
            }
            let Some(left) = end.checked_duration_since(Instant::now()) else { return false };
            wait(self.word(index), now, Some(left));
        }
    }
}

/// FUTEX_WAIT between processes; 0 or errno.
pub fn wait(word: &AtomicU32, expected: u32, limit: Option<Duration>) -> i32 {
    let limit = limit
        .map(|limit| libc::timespec { tv_sec: limit.as_secs() as i64, tv_nsec: limit.subsec_nanos().into() });
    let limit = limit.as_ref().map_or(std::ptr::null(), |limit| limit as *const _);
    // SAFETY: the word and the time live through the call.
    let result = unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAIT, expected, limit) };
    if result == 0 { 0 } else { nix::errno::Errno::last_raw() }
}

/// FUTEX_WAKE between processes; how many were woken.
pub fn wake(word: &AtomicU32, most: i32) -> i32 {
    // SAFETY: the word lives through the call.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, most) as i32 }
}
