//! Waiting for the readiness of several files: what poll(2) and select(2) have in common.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use super::file::File;
use crate::errno::Result;
use crate::process::{self, Charge, Process};
use crate::sched;
use crate::sync::{WaitError, WaitQueue, Watcher};

/// Lets others run after some of what is gone through: a user may have a million files.
pub fn in_turns<I: IntoIterator>(items: I) -> impl Iterator<Item = I::Item> {
    const AT_ONCE: usize = 64;
    items.into_iter().enumerate().map(|(number, item)| {
        if number % AT_ONCE == AT_ONCE - 1 {
            sched::cond_resched();
        }
        item
    })
}

/// Notes that one of the watched files may have become ready.
struct Poller {
    woken: AtomicBool,
    queue: WaitQueue,
}

impl Watcher for Poller {
    fn notify(&self) {
        self.woken.store(true, Ordering::SeqCst);
        self.queue.wake_all();
    }
}

/// Watches files until it is dropped.
struct Watch {
    poller: Arc<Poller>,
    files: Vec<Arc<File>>,
    _charge: Charge,
}

impl Watch {
    /// `held`: bytes that the caller keeps meanwhile.
    fn new(files: Vec<Arc<File>>, held: usize) -> Result<Self> {
        let poller = Arc::new(Poller { woken: AtomicBool::new(false), queue: WaitQueue::new() });
        let charge = process::current().process.charges.add(held + size_of_val(&*files));
        let mut watch = Self { poller, files, _charge: charge };
        let mut queues = 0;
        for file in in_turns(&watch.files) {
            queues += add_watcher(file, &watch.poller)?;
        }
        watch._charge.grow(queues * WaitQueue::BYTES_OF_WATCHER);
        Ok(watch)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let watcher: Arc<dyn Watcher> = self.poller.clone();
        for file in in_turns(&self.files) {
            file.ops().wait_queues(file, &mut |queue| queue.remove_watcher(&watcher));
        }
    }
}

/// Where a watcher was put that stays: it may be taken off again by another process than the one whose signals it watches.
pub(super) struct Home(Option<Weak<Process>>);

impl Home {
    /// Of a watcher that the current thread is about to add.
    pub(super) fn of(file: &File) -> Self {
        Self(file.ops().home())
    }

    /// Takes the watcher off all queues that it was put on.
    pub(super) fn remove_watcher(&self, file: &File, watcher: &Arc<dyn Watcher>) {
        match &self.0 {
            None => file.ops().wait_queues(file, &mut |queue| queue.remove_watcher(watcher)),
            // The queue of a process that is gone went with it.
            Some(process) => {
                if let Some(process) = process.upgrade() {
                    process.signals_changed.remove_watcher(watcher);
                }
            }
        }
    }
}

/// Has `watcher` told of what happens to the file, by so many queues; dropping that again is the caller's, also after a failure.
pub(super) fn add_watcher<W: Watcher + 'static>(file: &File, watcher: &Arc<W>) -> Result<usize> {
    let mut result = Ok(0);
    file.ops().wait_queues(file, &mut |queue| {
        if let Ok(queues) = &mut result {
            match queue.add_watcher(watcher.clone()) {
                Ok(()) => *queues += 1,
                Err(error) => result = Err(error),
            }
        }
    });
    result
}

/// Calls `scan` until it finds something ready (a number above 0), the deadline (monotonic nanoseconds) passes, or a signal comes.
/// `files` gives what to watch; it is asked once and only if there is nothing at first. Without files it just sleeps. `held` are the bytes
/// that the caller keeps meanwhile: they are its process's while it waits.
pub fn wait(
    deadline: Option<u64>,
    held: usize,
    files: impl FnOnce() -> Result<Vec<Arc<File>>>,
    mut scan: impl FnMut() -> usize,
) -> Result<usize> {
    let ready = scan();
    if ready > 0 || deadline == Some(0) {
        return Ok(ready);
    }
    let watch = Watch::new(files()?, held)?;
    loop {
        watch.poller.woken.store(false, Ordering::SeqCst);
        let ready = scan();
        if ready > 0 {
            return Ok(ready);
        }
        let woken = watch
            .poller
            .queue
            .wait_event(deadline, || watch.poller.woken.load(Ordering::SeqCst).then_some(()));
        match woken {
            Ok(()) => {}
            Err(WaitError::TimedOut) => return Ok(scan()),
            Err(error) => return Err(error.into()),
        }
    }
}
