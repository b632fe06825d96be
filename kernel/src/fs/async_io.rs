//! SIGIO for open files with O_ASYNC.
//!
//! Whoever wakes a file's wait queue holds that queue's lock, under which no signal can be sent. So the watch only puts itself on a list,
//! and a thread of the kernel's looks what the file is ready for and sends the signal.

use alloc::sync::{Arc, Weak};
use core::sync::atomic::{AtomicBool, Ordering};

use intrusive_collections::{LinkedList, LinkedListAtomicLink, intrusive_adapter};
use linux_raw_sys::general as abi;

use super::file::File;
use super::notify::Note;
use super::poll::Events;
use super::watch::{self, Home};
use crate::errno::Result;
use crate::process::Thread;
use crate::sched::{self, Sleep};
use crate::sync::{IrqLock, Mutex, Once, Watcher};

/// An open file with O_ASYNC.
pub struct AsyncWatch {
    this: Weak<AsyncWatch>,
    file: Weak<File>,
    /// The descriptor by which the flag was set.
    fd: i32,
    home: Home,
    /// It is on the list.
    is_listed: AtomicBool,
    link: LinkedListAtomicLink,
}

intrusive_adapter!(ListedNote = Arc<Note>: Note { link => LinkedListAtomicLink });
intrusive_adapter!(Listed = Arc<AsyncWatch>: AsyncWatch { link => LinkedListAtomicLink });

/// Those whose files may be ready.
static READY: IrqLock<LinkedList<Listed>> = IrqLock::new(LinkedList::new(Listed::NEW));
/// Notes of directories that whole groups of processes hear of.
static NOTES: IrqLock<LinkedList<ListedNote>> = IrqLock::new(LinkedList::new(ListedNote::NEW));
static WORKER: Once<Arc<Thread>> = Once::new();

impl Watcher for AsyncWatch {
    fn notify(&self) {
        if self.is_listed.swap(true, Ordering::SeqCst) {
            return;
        }
        if let Some(this) = self.this.upgrade() {
            READY.lock().push_back(this);
            wake_worker();
        }
    }
}

/// The thread that sends the signals is made when the first file asks for some.
fn start_worker() {
    static STARTING: Mutex<()> = Mutex::new(());
    let _starting = STARTING.lock();
    if WORKER.get().is_none() {
        let _ = WORKER.set(sched::spawn_kernel_thread("sigio", work));
    }
}

/// Has the note's signals sent by the thread, once for all that happens until then.
pub(super) fn tell_later(note: &Arc<Note>) {
    start_worker();
    if !note.is_listed.swap(true, Ordering::SeqCst) {
        NOTES.lock().push_back(note.clone());
        wake_worker();
    }
}

fn wake_worker() {
    if let Some(worker) = WORKER.get() {
        sched::wake(worker);
    }
}

fn work() {
    loop {
        let (watch, note) = (READY.lock().pop_front(), NOTES.lock().pop_front());
        if watch.is_none() && note.is_none() {
            let is_due = || !READY.lock().is_empty() || !NOTES.lock().is_empty();
            let _ = sched::sleep(Sleep::Interruptible, None, is_due);
        }
        if let Some(watch) = watch {
            watch.tell();
        }
        if let Some(note) = note {
            note.tell_listed();
        }
        sched::cond_resched();
    }
}

impl AsyncWatch {
    /// Begins to watch the file.
    pub(super) fn start(file: &Arc<File>, fd: i32) -> Result<Arc<Self>> {
        start_worker();
        let watch = Arc::new_cyclic(|this| Self {
            this: this.clone(),
            file: Arc::downgrade(file),
            fd,
            home: Home::of(file),
            is_listed: AtomicBool::new(false),
            link: LinkedListAtomicLink::new(),
        });
        watch::add_watcher(file, &watch).map(|_| watch.clone()).inspect_err(|_| watch.stop(file))
    }

    /// Watches no longer.
    pub(super) fn stop(&self, file: &File) {
        let Some(this) = self.this.upgrade() else { return };
        let this: Arc<dyn Watcher> = this;
        self.home.remove_watcher(file, &this);
    }

    fn tell(&self) {
        // Before the look: what happens from here on puts it on the list again.
        self.is_listed.store(false, Ordering::SeqCst);
        let Some(file) = self.file.upgrade() else { return };
        let events = file.poll();
        let (code, band) = if events.contains(Events::READABLE) {
            (abi::POLL_IN, abi::POLLIN | abi::POLLRDNORM)
        } else if events.contains(Events::HUP) {
            (abi::POLL_HUP, abi::POLLHUP | abi::POLLERR)
        } else if events.contains(Events::WRITABLE) {
            (abi::POLL_OUT, abi::POLLOUT | abi::POLLWRNORM | abi::POLLWRBAND)
        } else {
            return;
        };
        file.owner().tell(self.fd, code as i32, band.into());
    }
}
