//! System V IPC: semaphores and message queues, and what they share with segments of memory ([`crate::mm::shm`]); and the message
//! queues of POSIX ([`mqueue`]), which share nothing with them.
//!
//! An object is found by its identifier ([`ids`]) and guarded by a lock of its own. A call that has to wait leaves in the object what it waits
//! for and what is to be done then. Whoever changes the object does it on the waiter's behalf, and finds the waiter that is first in turn
//! without a look at the others. So a waiter that wakes has its result, and no wake-up is for nothing.

pub mod ids;
pub mod mqueue;
pub mod msg;
pub mod permissions;
pub mod sem;
mod settings;

pub use settings::register;

/// Seconds since 1970, as the objects' times are told.
pub fn now() -> i64 {
    (crate::time::realtime_now() / 1_000_000_000) as i64
}

/// The process that makes the call; 0 for the kernel.
pub fn current_pid() -> crate::process::Pid {
    crate::process::try_current().map_or(0, |thread| thread.process.pid)
}
