//! Contexts of io_setup(2): what was submitted, and the events of what is done.
//!
//! An operation is done before its submission returns, as on Linux where a file knows no other way. So a context only keeps events.

use alloc::collections::{BTreeMap, VecDeque};
use alloc::sync::Arc;
use core::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::process::{self, Charge};
use crate::sched;
use crate::sync::{Mutex, WaitError, WaitQueue};

/// Operations that all contexts together may hold: `/proc/sys/fs/aio-max-nr`.
pub static MOST: AtomicUsize = AtomicUsize::new(65_536);
/// Those that they were made for: `/proc/sys/fs/aio-nr`.
pub static COUNT: AtomicUsize = AtomicUsize::new(0);

/// `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct Event {
    pub data: u64,
    /// Address of the `struct iocb`.
    pub object: u64,
    pub result: i64,
    pub second: i64,
}

/// The contexts of a process, by their numbers.
pub struct Contexts(Mutex<BTreeMap<u64, Arc<Context>>>);

/// Events that are handed out in one hold of their lock.
const BATCH: usize = 64;
/// An entry of the map, with its part of a node.
const ENTRY: usize = 64;

/// One context.
pub struct Context {
    /// What it was made for, and what it holds.
    wished: usize,
    room: usize,
    /// Operations that run, and events that wait.
    used: AtomicUsize,
    events: Mutex<VecDeque<Event>>,
    changed: WaitQueue,
    gone: AtomicBool,
    /// Itself with its place among others, and all events that it has room for.
    _charge: Charge,
}

/// Room for one event of an operation that runs.
pub struct Slot {
    context: Arc<Context>,
    is_done: bool,
}

impl Contexts {
    /// None.
    pub fn new() -> Self {
        Self(Mutex::new(BTreeMap::new()))
    }

    /// Adds a context for so many operations under a number that is free. `EAGAIN` when the system has too many.
    pub fn add(&self, number: u64, wished: usize) -> Result<()> {
        let context = Context::new(wished)?;
        let old = self.0.lock().insert(number, context);
        // The page of another one was unmapped, and has come back: nobody can name that one any more.
        if let Some(old) = old {
            old.end();
        }
        Ok(())
    }

    /// The context of this number. `EINVAL`.
    pub fn get(&self, number: u64) -> Result<Arc<Context>> {
        self.0.lock().get(&number).cloned().ok_or(Errno::EINVAL)
    }

    /// Takes a context away; who waits for its events is told. `EINVAL`.
    pub fn remove(&self, number: u64) -> Result<()> {
        let context = self.0.lock().remove(&number).ok_or(Errno::EINVAL)?;
        context.end();
        Ok(())
    }

    /// Takes all away: the memory in which their numbers mean something goes.
    pub fn clear(&self) {
        loop {
            // The lock goes at the end of the statement.
            let Some((_, context)) = self.0.lock().pop_first() else { return };
            context.end();
            drop(context);
            sched::cond_resched();
        }
    }
}

impl Context {
    fn new(wished: usize) -> Result<Arc<Self>> {
        let most = MOST.load(Ordering::SeqCst);
        COUNT
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |count| {
                count.checked_add(wished).filter(|count| *count <= most)
            })
            .map_err(|_| Errno::EAGAIN)?;
        // Linux fills the pages of its ring, and has room for a few at the least.
        let room = wished.max(64) * 2;
        let bytes = size_of::<Self>() + ENTRY + room * size_of::<Event>();
        Ok(Arc::new(Self {
            wished,
            room,
            used: AtomicUsize::new(0),
            events: Mutex::new(VecDeque::new()),
            changed: WaitQueue::new(),
            gone: AtomicBool::new(false),
            _charge: process::current().process.charges.add(bytes),
        }))
    }

    /// How many operations and events it has room for.
    pub fn room(&self) -> usize {
        self.room
    }

    fn end(&self) {
        self.gone.store(true, Ordering::SeqCst);
        self.changed.wake_all();
    }

    /// Room for one operation more. `EAGAIN` when events fill the context.
    pub fn begin(self: &Arc<Self>) -> Result<Slot> {
        let taken = self
            .used
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |used| (used < self.room).then_some(used + 1));
        taken.map_err(|_| Errno::EAGAIN)?;
        let slot = Slot { context: self.clone(), is_done: false };
        let mut events = self.events.lock();
        let running = self.used.load(Ordering::SeqCst).saturating_sub(events.len());
        fallible::reserve_queue(&mut events, running)?;
        drop(events);
        Ok(slot)
    }

    /// Hands out up to `most` events, and waits until there are `least`. Returns how many.
    pub fn fetch(
        &self,
        least: usize,
        most: usize,
        deadline: Option<u64>,
        mut emit: impl FnMut(&Event) -> Result<()>,
    ) -> Result<usize> {
        let mut count = 0;
        loop {
            let (some, result) = self.hand_out((most - count).min(BATCH), &mut emit);
            count += some;
            match result {
                Err(error) if count == 0 => return Err(error),
                Err(_) => return Ok(count),
                Ok(()) => {}
            }
            if some == BATCH && !process::current().kill_pending() {
                sched::cond_resched();
                continue;
            }
            if count >= least {
                return Ok(count);
            }
            let changed = || {
                let gone = self.gone.load(Ordering::SeqCst);
                (gone || !self.events.lock().is_empty()).then_some(gone)
            };
            match self.changed.wait_event(deadline, changed) {
                Ok(false) => {}
                Ok(true) if count == 0 => return Err(Errno::EINVAL),
                Err(WaitError::Interrupted) if count == 0 => return Err(Errno::EINTR),
                Ok(true) | Err(_) => return Ok(count),
            }
        }
    }

    /// Hands out up to `most` events that are there; how many these were.
    fn hand_out(&self, most: usize, emit: &mut impl FnMut(&Event) -> Result<()>) -> (usize, Result<()>) {
        let mut events = self.events.lock();
        for count in 0..most {
            let Some(event) = events.front() else { return (count, Ok(())) };
            if let Err(error) = emit(event) {
                return (count, Err(error));
            }
            events.pop_front();
            self.used.fetch_sub(1, Ordering::SeqCst);
        }
        (most, Ok(()))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        COUNT.fetch_sub(self.wished, Ordering::SeqCst);
    }
}

impl Slot {
    /// The operation is done.
    pub fn finish(mut self, event: Event) {
        self.is_done = true;
        // Room was made at the begin.
        self.context.events.lock().push_back(event);
        self.context.changed.wake_all();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.is_done {
            self.context.used.fetch_sub(1, Ordering::SeqCst);
        }
    }
}
