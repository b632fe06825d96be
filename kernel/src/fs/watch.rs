//! Waiting for the readiness of several files: what poll(2) and select(2) have in common.

use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, Ordering};

use super::file::File;
use crate::errno::Result;
use crate::process::Process;
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
}

impl Watch {
    fn new(files: Vec<Arc<File>>) -> Result<Self> {
        let poller = Arc::new(Poller { woken: AtomicBool::new(false), queue: WaitQueue::new() });
        let watch = Self { poller, files };
        for file in in_turns(&watch.files) {
            add_watcher(file, &watch.poller)?;
        }
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

/// Has `watcher` told of what happens to the file; dropping that again is the caller's, also after a failure.
pub(super) fn add_watcher<W: Watcher + 'static>(file: &File, watcher: &Arc<W>) -> Result<()> {
    let mut result = Ok(());
    file.ops().wait_queues(file, &mut |queue| {
        if result.is_ok() {
            result = queue.add_watcher(watcher.clone());
        }
    });
    result
}

/// Calls `scan` until it finds something ready (a number above 0), the deadline (monotonic nanoseconds) passes, or a signal comes.
/// `files` gives what to watch; it is asked once and only if there is nothing at first. Without files it just sleeps.
pub fn wait(
    deadline: Option<u64>,
    files: impl FnOnce() -> Result<Vec<Arc<File>>>,
    mut scan: impl FnMut() -> usize,
) -> Result<usize> {
    let ready = scan();
    if ready > 0 || deadline == Some(0) {
        return Ok(ready);
    }
    let watch = Watch::new(files()?)?;
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
