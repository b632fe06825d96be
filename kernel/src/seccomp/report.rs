//! SECCOMP_RET_LOG: a line for the kernel's log, some of each user in a second.
//!
//! Anybody may ask for as many as there are calls. Neither the console, which takes a byte at a time, nor what others have to say
//! is to suffer from it.

use core::sync::atomic::{AtomicU64, Ordering};

use crate::process::Thread;
use crate::time::{self, SECOND};

/// Lines in a second.
const MOST: u64 = 10;
/// Users share the places by their numbers.
const PLACES: usize = 16;
/// Low bits of a place: how many lines there were in the second that the others say.
const COUNT: u64 = 0xff;

static PLACE: [AtomicU64; PLACES] = [const { AtomicU64::new(0) }; PLACES];

/// One more of a user in this second, if that may be.
fn take(uid: u32) -> bool {
    let second = time::now() / SECOND;
    let one_more = |place: u64| match place / (COUNT + 1) == second {
        true => (place & COUNT < MOST).then_some(place + 1),
        false => Some(second * (COUNT + 1) + 1),
    };
    // Relaxed: the place is all there is.
    PLACE[uid as usize % PLACES].fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
}

/// A filter wants to have a call told of. It is below what the console shows.
pub fn tell(thread: &Thread, number: usize) {
    if take(thread.credentials().uid) {
        log::debug!("seccomp: {} (pid {}) makes system call {number}", thread.name(), thread.process.pid);
    }
}
