//! eventfd(2): a counter that can be waited for.

use alloc::sync::Arc;
use core::fmt::Write;

use linux_raw_sys::general as abi;

use super::anonymous::Kind;
use super::file::{File, FileOps};
use super::iobuf::{Sink, Source};
use super::poll::Events;
use crate::errno::{Errno, Result};
use crate::memory::fallible::Text;
use crate::sync::{SpinLock, WaitQueue};

/// The largest value of the counter.
const MOST: u64 = u64::MAX - 1;

struct EventFd {
    count: SpinLock<u64>,
    /// A read takes 1 and not all.
    semaphore: bool,
    changed: WaitQueue,
}

/// A new counter. `flags` are those of eventfd2(2), checked.
pub fn create(initial: u32, flags: u32) -> Arc<File> {
    let ops = EventFd {
        count: SpinLock::new(initial.into()),
        semaphore: flags & abi::EFD_SEMAPHORE != 0,
        changed: WaitQueue::new(),
    };
    File::anonymous(Kind::Anonymous, "[eventfd]", Arc::new(ops), abi::O_RDWR | flags & abi::O_NONBLOCK)
}

/// Is the file such a counter?
pub fn is_one(file: &File) -> bool {
    file.ops_as::<EventFd>().is_some()
}

/// Adds 1, if the counter has room for it: the kernel does not wait.
pub fn add_one(file: &File) {
    if let Some(counter) = file.ops_as::<EventFd>()
        && counter.add(1).is_some()
    {
        counter.changed.wake_all();
    }
}

impl EventFd {
    fn take(&self) -> Option<u64> {
        let mut count = self.count.lock();
        if *count == 0 {
            return None;
        }
        let taken = if self.semaphore { 1 } else { *count };
        *count -= taken;
        Some(taken)
    }

    fn add(&self, value: u64) -> Option<()> {
        let mut count = self.count.lock();
        if MOST - *count < value {
            return None;
        }
        *count += value;
        Some(())
    }
}

impl FileOps for EventFd {
    fn read_at(&self, file: &File, _: u64, sink: &mut Sink) -> Result<usize> {
        if sink.remaining() < 8 {
            return Err(Errno::EINVAL);
        }
        let value = match self.take() {
            Some(value) => value,
            None if file.nonblocking() => return Err(Errno::EAGAIN),
            None => self.changed.wait_event(None, || self.take())?,
        };
        self.changed.wake_all();
        sink.write_all(&value.to_ne_bytes())?;
        Ok(8)
    }

    fn write_at(&self, file: &File, _: &mut u64, source: &mut Source) -> Result<usize> {
        if source.remaining() < 8 {
            return Err(Errno::EINVAL);
        }
        let mut bytes = [0; 8];
        source.read_exact(&mut bytes)?;
        let value = u64::from_ne_bytes(bytes);
        if value == u64::MAX {
            return Err(Errno::EINVAL);
        }
        match self.add(value) {
            Some(()) => {}
            None if file.nonblocking() => return Err(Errno::EAGAIN),
            None => self.changed.wait_event(None, || self.add(value))?,
        }
        self.changed.wake_all();
        Ok(8)
    }

    fn poll(&self, _: &File) -> Events {
        let count = *self.count.lock();
        let mut events = Events::empty();
        if count > 0 {
            events |= Events::IN;
        }
        if count < MOST {
            events |= Events::OUT;
        }
        events
    }

    fn wait_queues(&self, _: &File, visit: &mut dyn FnMut(&WaitQueue)) {
        visit(&self.changed);
    }

    fn pollable(&self) -> bool {
        true
    }

    fn describe(&self, _: &File, out: &mut Text) {
        // Writing to a string does not fail.
        let _ = writeln!(out, "eventfd-count: {:16x}", *self.count.lock());
        let _ = writeln!(out, "eventfd-semaphore: {}", u32::from(self.semaphore));
    }
}
