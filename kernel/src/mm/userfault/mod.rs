//! userfaultfd(2): page faults that another thread resolves.
//!
//! A *context* is what the descriptor refers to. Areas that are registered with it name it, and their flags say of which faults it
//! is told. A thread that meets such a fault leaves a message and sleeps; who has the descriptor reads the message, puts a
//! page there and wakes the range.
//!
//! No wake is lost. The thread joins the context's waiters first and looks at the page once more after that, with the areas lock held for
//! reading; who resolves the fault changes the page first and wakes then. Either the thread sees the page, or it is woken.
//!
//! The context knows its address space weakly, and the areas know the context: the descriptor may outlive the memory, and is let go
//! of by the areas when it is closed ([`Context::release`]).

mod events;
mod file;
mod fill;
mod look;
mod move_pages;
mod register;

use alloc::collections::BTreeMap;
use alloc::sync::{Arc, Weak};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use linux_raw_sys::general as abi;

use super::AddressSpace;
use super::fault::{Access, FaultError};
use crate::errno::{Errno, Result};
use crate::process;
use crate::sched;
use crate::sync::{SpinLock, WaitQueue};

use events::Event;
pub(super) use events::{Changes, Forks};
pub use file::{UNPRIVILEGED, create, init, may_create};
use look::Look;

/// On whose behalf memory is accessed: who waits how for a userfaultfd.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// The program itself. Any signal ends its wait, and the access comes again after it.
    Program,
    /// The kernel in a system call. Only a signal that kills ends its wait.
    Kernel,
    /// A debugger from outside. It does not wait, and sees an error.
    Debugger,
}

/// Set in the features once UFFDIO_API was called.
const INITIALISED: u64 = 1 << 31;

/// Bytes of a message.
const MESSAGE: usize = 32;

/// A thread that waits for a fault to be resolved.
struct Waiting {
    /// The page, and what tells two threads at one page apart.
    key: (u64, u64),
    message: [u8; MESSAGE],
    resumed: AtomicBool,
    queue: WaitQueue,
}

#[derive(Default)]
struct Waiters {
    /// The descriptor is closed: nobody resolves anything any more.
    released: bool,
    next: u64,
    by_page: BTreeMap<(u64, u64), Arc<Waiting>>,
    /// Those whose message nobody has read, in the order of their arrival.
    unread: BTreeMap<u64, Arc<Waiting>>,
    /// Other messages that nobody has read.
    events: BTreeMap<u64, Arc<Event>>,
}

/// What a reader gets.
enum News {
    Fault([u8; MESSAGE]),
    /// With its number, for who cannot take it after all.
    Event(u64, Arc<Event>),
}

impl Waiters {
    fn remove(&mut self, key: (u64, u64)) -> Option<Arc<Waiting>> {
        self.unread.remove(&key.1);
        self.by_page.remove(&key)
    }
}

/// What a userfaultfd refers to.
pub struct Context {
    space: Weak<AddressSpace>,
    /// With what it was made: O_CLOEXEC, O_NONBLOCK, and UFFD_USER_MODE_ONLY, by which system calls fail in place of waiting.
    flags: u32,
    features: AtomicU64,
    waiters: SpinLock<Waiters>,
    /// Changes that the monitor has not heard of.
    changing: AtomicUsize,
    /// A message has come.
    arrived: WaitQueue,
    /// The last call that has noted the context, and as which one of its contexts. For who has the areas lock for writing.
    noted: AtomicU64,
    place: AtomicUsize,
}

/// A fault that a context is to be told of, or has been: the thread has not slept yet.
pub(super) struct Intercepted {
    context: Arc<Context>,
    /// `None` when the context is at its end: the fault is to be looked at again.
    waiting: Option<Arc<Waiting>>,
}

impl Context {
    fn new(space: &Arc<AddressSpace>, flags: u32) -> Arc<Self> {
        Arc::new(Self {
            space: Arc::downgrade(space),
            flags,
            features: AtomicU64::new(0),
            waiters: SpinLock::growing(Waiters::default()),
            changing: AtomicUsize::new(0),
            arrived: WaitQueue::new(),
            noted: AtomicU64::new(0),
            place: AtomicUsize::new(0),
        })
    }

    fn has(&self, feature: u32) -> bool {
        self.features.load(Ordering::SeqCst) & u64::from(feature) != 0
    }

    /// Are stores into withheld pages noted, and nobody asked?
    pub(super) fn is_asynchronous(&self) -> bool {
        self.has(linux_raw_sys::general::UFFD_FEATURE_WP_ASYNC)
    }

    fn is_initialised(&self) -> bool {
        self.features.load(Ordering::SeqCst) & INITIALISED != 0
    }

    /// The address space; `ESRCH` when it is gone.
    fn space(&self) -> Result<Arc<AddressSpace>> {
        self.space.upgrade().ok_or(Errno::ESRCH)
    }

    /// Puts the current thread among those who wait for `page`.
    fn join(self: &Arc<Self>, page: u64, address: u64, flags: u32) -> Intercepted {
        let shown = if self.has(abi::UFFD_FEATURE_EXACT_ADDRESS) { address } else { page };
        let mut message = [0; MESSAGE];
        message[0] = abi::UFFD_EVENT_PAGEFAULT as u8;
        message[8..16].copy_from_slice(&u64::from(flags).to_ne_bytes());
        message[16..24].copy_from_slice(&shown.to_ne_bytes());
        if self.has(abi::UFFD_FEATURE_THREAD_ID) {
            message[24..28].copy_from_slice(&process::current().number().to_ne_bytes());
        }
        let mut waiters = self.waiters.lock();
        if waiters.released {
            return Intercepted { context: self.clone(), waiting: None };
        }
        let key = (page, waiters.next);
        waiters.next += 1;
        let waiting =
            Arc::new(Waiting { key, message, resumed: AtomicBool::new(false), queue: WaitQueue::new() });
        waiters.by_page.insert(key, waiting.clone());
        waiters.unread.insert(key.1, waiting.clone());
        drop(waiters);
        Intercepted { context: self.clone(), waiting: Some(waiting) }
    }

    /// Lets all who wait for pages in `range` look again.
    fn wake(&self, range: Range<u64>) {
        // Who comes back meanwhile waits for the next call: else this one would not end.
        let last = self.waiters.lock().next;
        let mut from = (range.start, 0);
        while from < (range.end, 0) {
            let mut waiters = self.waiters.lock();
            let Some(key) = waiters.by_page.range(from..(range.end, 0)).next().map(|(key, _)| *key) else {
                return;
            };
            let woken = if key.1 < last { waiters.remove(key) } else { None };
            drop(waiters);
            // Of one page those who came first come first.
            from = if woken.is_some() { key } else { (key.0 + 1, 0) };
            if let Some(woken) = woken {
                woken.resumed.store(true, Ordering::SeqCst);
                woken.queue.wake_all();
            }
            // Thousands of threads may wait.
            sched::cond_resched();
        }
    }

    /// The message that came first and was not read, faults before all others; that of a fault counts as read from now on.
    fn take_news(&self) -> Option<News> {
        let mut waiters = self.waiters.lock();
        if let Some((_, waiting)) = waiters.unread.pop_first() {
            return Some(News::Fault(waiting.message));
        }
        waiters.events.pop_first().map(|(number, event)| News::Event(number, event))
    }

    fn has_message(&self) -> bool {
        let waiters = self.waiters.lock();
        !waiters.unread.is_empty() || !waiters.events.is_empty()
    }
}

impl Intercepted {
    /// Sleeps until the fault is to be looked at again. False when a signal came first.
    pub(super) fn wait(self, origin: Origin) -> Result<bool, FaultError> {
        let Some(waiting) = &self.waiting else {
            crate::sched::yield_now();
            return Ok(true);
        };
        self.context.arrived.wake_one();
        let resumed = || waiting.resumed.load(Ordering::SeqCst).then_some(());
        let slept = match origin {
            Origin::Program => waiting.queue.wait_event(None, resumed),
            Origin::Kernel | Origin::Debugger => waiting.queue.wait_killable(None, resumed),
        };
        match slept {
            Ok(()) => Ok(true),
            Err(_) if origin == Origin::Program => Ok(false),
            Err(_) => Err(FaultError::Sigbus),
        }
    }
}

impl Drop for Intercepted {
    fn drop(&mut self) {
        if let Some(waiting) = &self.waiting {
            let left = self.context.waiters.lock().remove(waiting.key);
            drop(left);
        }
    }
}

impl AddressSpace {
    /// Is an access to an area that permits it held up by a userfaultfd?
    pub(super) fn is_intercepted(&self, vma: &super::vma::Vma, address: u64, access: Access) -> bool {
        vma.userfault.is_some() && self.look(vma, address, access) != Look::Clear
    }

    /// Tells the context of a registered area of a fault, if it wants to know of it. The areas lock is held.
    pub(super) fn intercept(
        &self,
        vma: &super::vma::Vma,
        address: u64,
        access: Access,
        origin: Origin,
    ) -> Result<Option<Intercepted>, FaultError> {
        let Some(context) = &vma.userfault else { return Ok(None) };
        let look = self.look(vma, address, access);
        let write = if access == Access::Write { abi::UFFD_PAGEFAULT_FLAG_WRITE } else { 0 };
        let flags = match look {
            Look::Clear => return Ok(None),
            Look::Poisoned => return Err(FaultError::Poisoned(vma.granule().trailing_zeros())),
            Look::Missing => write,
            Look::Minor => write | abi::UFFD_PAGEFAULT_FLAG_MINOR,
            Look::Withheld if context.has(abi::UFFD_FEATURE_WP_ASYNC) => {
                // Nobody is told: that stores are no longer withheld is the record of the store.
                let page = address & !(vma.granule() - 1);
                self.permit_in(vma, page..page + vma.granule()).map_err(|_| FaultError::Sigbus)?;
                return Ok(None);
            }
            Look::Withheld => write | abi::UFFD_PAGEFAULT_FLAG_WP,
        };
        // Who ends waits for nobody: no signal would end that, and the descriptor may be its own.
        let ends = process::current().memory.is_ending();
        let refused = ends || origin == Origin::Kernel && context.flags & abi::UFFD_USER_MODE_ONLY != 0;
        if context.has(abi::UFFD_FEATURE_SIGBUS) || refused || origin == Origin::Debugger {
            return Err(FaultError::Sigbus);
        }
        let intercepted = context.join(address & !(vma.granule() - 1), address, flags);
        // Once more, see the module.
        if intercepted.waiting.is_some() && self.look(vma, address, access) != look {
            return self.intercept_again(vma, address, access, origin, intercepted);
        }
        Ok(Some(intercepted))
    }

    /// The page changed while the thread joined: it leaves, and the fault is looked at again.
    fn intercept_again(
        &self,
        vma: &super::vma::Vma,
        address: u64,
        access: Access,
        origin: Origin,
        left: Intercepted,
    ) -> Result<Option<Intercepted>, FaultError> {
        drop(left);
        match self.look(vma, address, access) {
            Look::Clear => Ok(None),
            Look::Poisoned => Err(FaultError::Poisoned(vma.granule().trailing_zeros())),
            // Another reason now. The caller drops the areas lock, and comes again.
            _ if origin == Origin::Debugger => Err(FaultError::Sigbus),
            _ => {
                let context = vma.userfault.clone().ok_or(FaultError::Sigbus)?;
                Ok(Some(Intercepted { context, waiting: None }))
            }
        }
    }
}
