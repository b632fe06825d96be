//! signalfd(2): signals that are read.

use alloc::sync::{Arc, Weak};
use core::fmt::Write;
use core::sync::atomic::{AtomicU64, Ordering};

use linux_raw_sys::general as abi;

use super::anonymous::Kind;
use super::file::{File, FileOps};
use super::iobuf::Sink;
use super::poll::Events;
use crate::errno::{Errno, Result};
use crate::memory::fallible::Text;
use crate::process::{self, Process};
use crate::signal::{self, SigInfo, SigSet, codes};
use crate::sync::WaitQueue;

/// `struct signalfd_siginfo`.
const RECORD: usize = 128;

/// A set of signals behind a descriptor. Whoever reads it gets signals of its own process.
pub struct SignalFd {
    mask: AtomicU64,
}

/// A new one for the signals in `mask`.
pub fn create(mask: SigSet, flags: u32) -> Arc<File> {
    let ops = SignalFd { mask: AtomicU64::new(wanted(mask)) };
    File::anonymous(Kind::Anonymous, "[signalfd]", Arc::new(ops), abi::O_RDWR | flags & abi::O_NONBLOCK)
}

/// SIGKILL and SIGSTOP cannot be read.
fn wanted(mask: SigSet) -> u64 {
    mask.without(SigSet::UNBLOCKABLE).0
}

impl SignalFd {
    /// Changes the set.
    pub fn set_mask(&self, mask: SigSet) {
        self.mask.store(wanted(mask), Ordering::SeqCst);
        process::current().process.signals_changed.wake_all();
    }

    fn mask(&self) -> SigSet {
        SigSet(self.mask.load(Ordering::SeqCst))
    }
}

/// The record that a read gets for a signal.
fn record(info: &SigInfo) -> [u8; RECORD] {
    let mut out = [0; RECORD];
    let mut put = |at: usize, bytes: &[u8]| out[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &info.signal.to_ne_bytes());
    put(4, &info.errno.to_ne_bytes());
    put(8, &info.code.to_ne_bytes());
    if info.code == codes::SI_TIMER {
        let (id, overrun) = info.timer_id();
        put(24, &id.to_ne_bytes());
        put(32, &overrun.to_ne_bytes());
        put(44, &(info.value() as i32).to_ne_bytes());
        put(48, &info.value().to_ne_bytes());
    } else if info.is_fault() {
        put(72, &info.address().to_ne_bytes());
    } else {
        put(12, &info.pid().to_ne_bytes());
        put(16, &info.uid().to_ne_bytes());
        if info.signal as u32 == signal::SIGCHLD {
            let (user, system) = info.child_times();
            put(40, &info.status().to_ne_bytes());
            put(56, &user.to_ne_bytes());
            put(64, &system.to_ne_bytes());
        } else if info.code < 0 {
            put(44, &(info.value() as i32).to_ne_bytes());
            put(48, &info.value().to_ne_bytes());
        }
    }
    out
}

impl FileOps for SignalFd {
    fn read_at(&self, file: &File, _: u64, sink: &mut Sink) -> Result<usize> {
        if sink.remaining() < RECORD {
            return Err(Errno::EINVAL);
        }
        let thread = process::current();
        let mut done = 0;
        while sink.remaining() >= RECORD {
            let info = match signal::take_waited(&thread, self.mask()) {
                Some(info) => info,
                None if done > 0 => break,
                None if file.nonblocking() => return Err(Errno::EAGAIN),
                None => thread
                    .process
                    .signals_changed
                    .wait_event(None, || signal::take_waited(&thread, self.mask()))?,
            };
            match sink.write_all(&record(&info)) {
                Err(_) if done > 0 => break,
                other => other?,
            }
            done += RECORD;
        }
        Ok(done)
    }

    fn poll(&self, _: &File) -> Events {
        let thread = process::current();
        let pending = thread.own_pending().union(thread.process.signals.shared_pending());
        if pending.intersection(self.mask()).is_empty() { Events::empty() } else { Events::IN }
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&process::current().process.signals_changed);
    }

    fn home(&self) -> Option<Weak<Process>> {
        Some(Arc::downgrade(&process::current().process))
    }

    fn pollable(&self) -> bool {
        true
    }

    fn describe(&self, _: &File, out: &mut Text) {
        // Writing to a string does not fail.
        let _ = writeln!(out, "sigmask:\t{:016x}", self.mask().0);
    }
}
