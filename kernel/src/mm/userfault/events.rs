//! Events: what a monitor is told beside faults, so that it knows the memory of a process that does not know of it.
//!
//! A thread that forks, moves, empties or unmaps registered memory leaves a message and waits until it is read, if the context has
//! asked for such messages. Until then nothing is filled on behalf of the context ([`Context::check_unchanged`]): the monitor would
//! do so by what it knew before. A change counts from when it happens, with the areas lock held; its thread waits without a lock.

use alloc::collections::LinkedList;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use linux_raw_sys::general as abi;

use super::super::AddressSpace;
use super::super::vma::{VmFlags, Vma, VmaSet};
use super::{Context, INITIALISED, MESSAGE, Waiters};
use crate::errno::{Errno, Result};
use crate::memory::{PAGE_SIZE, fallible, reserve};
use crate::process;
use crate::sched;
use crate::sync::WaitQueue;

/// A message that has to be read.
pub(super) struct Event {
    pub(super) message: [u8; MESSAGE],
    /// Of a fork: the context of the child, for which the reader gets a descriptor.
    pub(super) child: Option<Arc<Context>>,
    /// Somebody has read it, and has the descriptor of the child's context.
    is_read: AtomicBool,
    /// Nobody waits for it to be read, or nobody ever will read it.
    has_ended: AtomicBool,
    queue: WaitQueue,
}

impl Event {
    /// The reader has the message.
    pub(super) fn was_read(&self) {
        self.is_read.store(true, Ordering::SeqCst);
        self.end();
    }

    fn end(&self) {
        self.has_ended.store(true, Ordering::SeqCst);
        self.queue.wake_all();
    }
}

/// Something that a context is to be told of. It counts as a change of its memory until then.
pub(in super::super) struct Change {
    context: Arc<Context>,
    event: Arc<Event>,
}

impl Change {
    /// The areas lock is held.
    fn new(context: &Arc<Context>, event: u32, words: [u64; 3], child: Option<Arc<Context>>) -> Self {
        let mut message = [0; MESSAGE];
        message[0] = event as u8;
        for (to, word) in message[8..].chunks_exact_mut(8).zip(words) {
            to.copy_from_slice(&word.to_ne_bytes());
        }
        context.changing.fetch_add(1, Ordering::SeqCst);
        let (is_read, has_ended) = (AtomicBool::new(false), AtomicBool::new(false));
        let event = Event { message, child, is_read, has_ended, queue: WaitQueue::new() };
        Self { context: context.clone(), event: Arc::new(event) }
    }

    /// Waits until the monitor has read the message, or is gone. Without locks.
    pub(in super::super) fn tell(self) {
        let event = &self.event;
        // Who ends waits for nobody.
        if process::current().memory.is_ending() {
            return;
        }
        let number = {
            let mut waiters = self.context.waiters.lock();
            if waiters.released {
                return;
            }
            let number = waiters.next;
            waiters.next += 1;
            waiters.events.insert(number, event.clone());
            number
        };
        self.context.arrived.wake_one();
        let has_ended = || event.has_ended.load(Ordering::SeqCst).then_some(());
        let _ = event.queue.wait_killable(None, has_ended);
        let left = {
            // Under the lock: who has it in hand does not put it back.
            let mut waiters = self.context.waiters.lock();
            event.has_ended.store(true, Ordering::SeqCst);
            waiters.events.remove(&number)
        };
        drop(left);
    }
}

impl Drop for Change {
    fn drop(&mut self) {
        self.context.changing.fetch_sub(1, Ordering::SeqCst);
        if let Some(child) = &self.event.child
            && !self.event.is_read.load(Ordering::SeqCst)
        {
            // Nobody got its descriptor.
            child.release();
        }
    }
}

impl Waiters {
    /// Puts an event back that could not be delivered.
    pub(super) fn put_back(&mut self, number: u64, event: Arc<Event>) {
        if self.released {
            event.end();
        } else if !event.has_ended.load(Ordering::SeqCst) {
            self.events.insert(number, event);
        }
    }
}

impl Context {
    /// `EAGAIN` while there are changes that the monitor has not heard of. The areas lock is held.
    pub(super) fn check_unchanged(&self) -> Result<()> {
        if self.changing.load(Ordering::SeqCst) == 0 { Ok(()) } else { Err(Errno::EAGAIN) }
    }

    /// Lets all go on who wait for a message to be read: nobody reads any more.
    pub(super) fn give_up_events(&self) {
        loop {
            let first = self.waiters.lock().events.pop_first();
            let Some((_, event)) = first else { return };
            event.end();
            sched::cond_resched();
        }
    }

    /// Is it told where its memory moves to? Then the memory stays registered.
    pub(in super::super) fn follows_moves(&self) -> bool {
        self.has(abi::UFFD_FEATURE_EVENT_REMAP)
    }

    /// The same for a child's memory.
    fn of_child(&self, child: &Arc<AddressSpace>) -> Arc<Self> {
        let copy = Self::new(child, self.flags);
        copy.features.store(self.features.load(Ordering::SeqCst) | INITIALISED, Ordering::SeqCst);
        copy
    }
}

/// A number for a call that notes contexts, each once.
fn new_call() -> u64 {
    static CALLS: AtomicU64 = AtomicU64::new(1);
    // Relaxed: only told apart.
    CALLS.fetch_add(1, Ordering::Relaxed)
}

impl Context {
    /// Notes the context for a call; true the first time. The areas lock is held for writing, and orders these stores: hence relaxed.
    fn note(&self, call: u64, place: usize) -> bool {
        let first = self.noted.swap(call, Ordering::Relaxed) != call;
        if first {
            self.place.store(place, Ordering::Relaxed);
        }
        first
    }
}

/// The changes of one call, in their order.
#[derive(Default)]
pub(in super::super) struct Changes(LinkedList<Change>);

impl Changes {
    /// All areas in `range` are about to be unmapped. The contexts may be as many as the areas: what takes memory comes first, and on
    /// `ENOMEM` nothing is noted. Returns how many are, for [`Changes::forget`].
    pub(in super::super) fn unmapping(&mut self, set: &VmaSet, range: &Range<u64>) -> Result<usize> {
        let (mut call, before) = (None, self.0.len());
        for vma in set.overlapping(range.clone()) {
            let context = vma.userfault.as_ref().filter(|c| c.has(abi::UFFD_FEATURE_EVENT_UNMAP));
            let Some(context) = context else { continue };
            // Each context once, however many areas it has there.
            if !context.note(*call.get_or_insert_with(new_call), 0) {
                continue;
            }
            if let Err(error) = reserve::ask(PAGE_SIZE) {
                self.forget(self.0.len() - before);
                return Err(error);
            }
            self.unmapped(context, range);
        }
        Ok(self.0.len() - before)
    }

    /// The last so many changes do not happen.
    pub(in super::super) fn forget(&mut self, count: usize) {
        for _ in 0..count {
            // The areas keep its context.
            drop(self.0.pop_back());
        }
    }

    /// One area, of all that is told of it, is unmapped.
    pub(in super::super) fn unmapped_alone(&mut self, vma: &Vma, range: &Range<u64>) {
        if let Some(context) = vma.userfault.as_ref().filter(|c| c.has(abi::UFFD_FEATURE_EVENT_UNMAP)) {
            self.unmapped(context, range);
        }
    }

    fn unmapped(&mut self, context: &Arc<Context>, range: &Range<u64>) {
        let words = [range.start, range.end, 0];
        self.0.push_back(Change::new(context, abi::UFFD_EVENT_UNMAP, words, None));
    }

    /// The memory of a context that follows moves has moved.
    pub(in super::super) fn moved(&mut self, context: &Arc<Context>, from: u64, to: u64, len: u64) {
        self.0.push_back(Change::new(context, abi::UFFD_EVENT_REMAP, [from, to, len], None));
    }

    /// Tells of all.
    pub(in super::super) fn tell(&mut self) {
        while let Some(change) = self.0.pop_front() {
            change.tell();
        }
    }
}

/// The contexts of a fork.
#[derive(Default)]
pub(in super::super) struct Forks {
    /// The number of the call, once a context is met.
    call: u64,
    changes: Vec<Change>,
}

impl Forks {
    /// The context of the child's copy of an area that is watched: `None` if its monitor does not ask for children.
    pub(in super::super) fn of_area(
        &mut self,
        context: &Arc<Context>,
        child: &Arc<AddressSpace>,
    ) -> Result<Option<Arc<Context>>> {
        if !context.has(abi::UFFD_FEATURE_EVENT_FORK) {
            return Ok(None);
        }
        if self.call == 0 {
            self.call = new_call();
        }
        if !context.note(self.call, self.changes.len()) {
            // Relaxed: as where it is noted. Who fails below comes no more.
            let known = self.changes.get(context.place.load(Ordering::Relaxed));
            return Ok(known.and_then(|known| known.event.child.clone()));
        }
        // Room first: a change that is dropped lets go of the child's areas, whose lock is held.
        fallible::reserve(&mut self.changes, 1)?;
        let copy = context.of_child(child);
        self.changes.push(Change::new(context, abi::UFFD_EVENT_FORK, [0; 3], Some(copy.clone())));
        Ok(Some(copy))
    }

    /// Tells of the child. Without locks.
    pub(in super::super) fn tell(self) {
        self.changes.into_iter().for_each(Change::tell);
    }
}

impl AddressSpace {
    /// Tells of pages in `range` that are about to go, while the areas stay: before they do, and without the areas lock. Of huge areas
    /// only whole pages go.
    pub(in super::super) fn tell_of_removal(&self, range: Range<u64>) {
        let mut at = range.start;
        while at < range.end
            && let Some((change, next)) = self.next_removal(at..range.end)
        {
            if let Some(change) = change {
                change.tell();
            }
            at = next;
            sched::cond_resched();
        }
    }

    fn next_removal(&self, range: Range<u64>) -> Option<(Option<Change>, u64)> {
        let areas = self.read();
        let vma = areas.set.overlapping(range.clone()).find(|vma| vma.userfault.is_some())?;
        let (start, end) = (vma.start.max(range.start), vma.end.min(range.end));
        let whole_end = end & !(vma.granule() - 1);
        let context = vma.userfault.as_ref()?;
        let is_told = context.has(abi::UFFD_FEATURE_EVENT_REMOVE)
            && start < whole_end
            && !vma.flags.contains(VmFlags::LOCKED);
        let change =
            is_told.then(|| Change::new(context, abi::UFFD_EVENT_REMOVE, [start, whole_end, 0], None));
        Some((change, end))
    }
}
