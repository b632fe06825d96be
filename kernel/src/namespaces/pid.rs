//! PID namespaces: numbers of their own for processes, and a first process that adopts and takes all others along when it ends.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};

use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeAtomicLink, UnsafeRef, intrusive_adapter};

use super::{Head, Kind, initial};
use crate::errno::{Errno, Result};
use crate::memory::fallible;
use crate::process::tree::{self, TreeCell};
use crate::process::{
    self, CAP_CHECKPOINT_RESTORE, CAP_SYS_ADMIN, Credentials, PID_MAX, Pid, Process, WaitFlags,
};
use crate::sched;
use crate::signal::{self, SIGKILL, SigInfo};
use crate::sync::{IrqLock, Once, WaitQueue};

/// The deepest that namespaces nest.
const DEEPEST: u32 = 32;
/// Where the numbers start again after the highest.
const RESERVED_PIDS: Pid = 300;

/// One number of a namespace.
pub(super) struct Entry {
    pub number: Pid,
    /// The kernel's own number for the same thread.
    pub global: Pid,
    pub link: RBTreeAtomicLink,
}

intrusive_adapter!(ByNumber = UnsafeRef<Entry>: Entry { link => RBTreeAtomicLink });

impl<'a> KeyAdapter<'a> for ByNumber {
    type Key = Pid;

    fn get_key(&self, entry: &'a Entry) -> Pid {
        entry.number
    }
}

/// The numbers that are taken. The last that has one may go in an interrupt handler.
struct Table {
    entries: RBTree<ByNumber>,
    used: Vec<u64>,
    next: Pid,
}

/// One PID namespace.
pub struct PidNamespace {
    pub head: Head,
    /// `None` for the first.
    pub parent: Option<Arc<PidNamespace>>,
    /// How many are above it.
    pub level: u32,
    table: IrqLock<Table>,
    /// The process that has number 1 in it.
    pub(crate) init: TreeCell<Option<Arc<Process>>>,
    /// Its first process has ended, or could not be made: nobody comes any more.
    closed: AtomicBool,
    /// Its first process has been there.
    begun: AtomicBool,
    /// What `vm.memfd_noexec` was set to in it, or was above when it was made; those above count too.
    memfd_noexec: AtomicU32,
    /// Threads that are registered with a number of it: changes under the tree's lock.
    registered: AtomicUsize,
    /// Woken when one of them goes.
    left: WaitQueue,
}

impl PidNamespace {
    /// The one that the kernel starts with; its numbers are the kernel's own.
    pub fn initial() -> &'static Arc<Self> {
        static INITIAL: Once<Arc<PidNamespace>> = Once::new();
        INITIAL.call_once(|| Arc::new(Self::build(Head::initial(initial::PID), None, Vec::new())))
    }

    fn build(head: Head, parent: Option<Arc<PidNamespace>>, used: Vec<u64>) -> Self {
        let noexec = parent.as_ref().map_or(0, |parent| parent.memfd_noexec());
        Self {
            head,
            level: parent.as_ref().map_or(0, |parent| parent.level + 1),
            parent,
            table: IrqLock::new(Table { entries: RBTree::new(ByNumber::NEW), used, next: 1 }),
            init: TreeCell::new(None),
            begun: AtomicBool::new(false),
            closed: AtomicBool::new(false),
            memfd_noexec: AtomicU32::new(noexec),
            registered: AtomicUsize::new(0),
            left: WaitQueue::new(),
        }
    }

    /// A new one below `parent`. `EINVAL` when the maker's user namespace is not above or that of `parent`, `ENOSPC` when it is too deep.
    pub fn new(parent: &Arc<Self>, maker: &Credentials) -> Result<Arc<Self>> {
        if !parent.head.user.contains(&maker.user_namespace()) {
            return Err(Errno::EINVAL);
        }
        if parent.level >= DEEPEST {
            return Err(Errno::ENOSPC);
        }
        let head = Head::new(Kind::Pid, maker)?;
        let used = fallible::filled(0, PID_MAX as usize / 64)?;
        Ok(Arc::new(Self::build(head, Some(parent.clone()), used)))
    }

    /// `vm.memfd_noexec`: 1 when memfds are not executable unless they are asked to be, 2 when none may be, in it and all below.
    pub fn memfd_noexec(&self) -> u32 {
        let mut most = 0;
        let mut at = Some(self);
        while let Some(namespace) = at {
            // Relaxed: a setting of its own.
            most = most.max(namespace.memfd_noexec.load(Ordering::Relaxed));
            at = namespace.parent.as_deref();
        }
        most
    }

    /// Sets it. `EINVAL` for less than what holds above.
    pub fn set_memfd_noexec(&self, value: u32) -> Result<()> {
        let least = self.parent.as_ref().map_or(0, |parent| parent.memfd_noexec());
        if !(least..=2).contains(&value) {
            return Err(Errno::EINVAL);
        }
        // Relaxed: as above.
        self.memfd_noexec.store(value, Ordering::Relaxed);
        Ok(())
    }

    /// That of the current process.
    pub fn of_current() -> Arc<Self> {
        let numbers = &process::current().process.numbers;
        numbers.as_ref().map_or_else(|| Self::initial().clone(), |numbers| numbers.namespace().clone())
    }

    /// Is it the one that the kernel starts with?
    pub fn is_initial(&self) -> bool {
        self.level == 0
    }

    /// Is there, or was there, a first process in it?
    pub fn has_begun(&self) -> bool {
        self.is_initial() || self.closed.load(Ordering::SeqCst) || self.init.get(&tree::look()).is_some()
    }

    /// Its first process has ended, or could not be made: nobody comes any more.
    pub(crate) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::SeqCst)
    }

    /// Whether `self` is `other` or above it.
    pub fn contains(&self, other: &PidNamespace) -> bool {
        let mut at = Some(other);
        while let Some(namespace) = at.filter(|namespace| namespace.level >= self.level) {
            if core::ptr::eq(namespace, self) {
                return true;
            }
            at = namespace.parent.as_deref();
        }
        false
    }

    /// The number that was given last.
    pub fn last_number(&self) -> Pid {
        if self.is_initial() { tree::last_pid() } else { self.table.lock().next.saturating_sub(1) }
    }

    /// Takes a number, and says whose it is once it is put in place by `enter`. `ENOMEM` when nobody comes any more, `EAGAIN` when all
    /// numbers are taken.
    pub(super) fn allocate(&self) -> Result<Pid> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Errno::ENOMEM);
        }
        let mut table = self.table.lock();
        let mut left = PID_MAX;
        while left > 0 {
            let number = table.next;
            let (word, bit) = (number as usize / 64, number % 64);
            // A word at a time: most numbers may be taken.
            let taken = (table.used[word] >> bit).trailing_ones();
            let after = |number: Pid| if number + 1 >= PID_MAX { RESERVED_PIDS } else { number + 1 };
            if taken > 0 {
                left = left.saturating_sub(taken);
                table.next = after(number + taken - 1);
                continue;
            }
            table.next = after(number);
            table.used[word] |= 1 << bit;
            return Ok(number);
        }
        Err(Errno::EAGAIN)
    }

    /// Takes this number; `EEXIST` when it is taken.
    pub(super) fn allocate_this(&self, number: Pid) -> Result<Pid> {
        if self.closed.load(Ordering::SeqCst) {
            return Err(Errno::ENOMEM);
        }
        let mut table = self.table.lock();
        let (word, bit) = (number as usize / 64, number % 64);
        if table.used[word] >> bit & 1 != 0 {
            return Err(Errno::EEXIST);
        }
        table.used[word] |= 1 << bit;
        Ok(number)
    }

    /// May the caller choose these numbers for a child here, and above? From the deepest level up. `EINVAL` for what is no number, or
    /// would be there before the first process; `EPERM` without the right in the namespace's user namespace.
    pub fn check_wanted(&self, wanted: &[i32]) -> Result<()> {
        if wanted.len() > self.level as usize + 1 {
            return Err(Errno::EINVAL);
        }
        let mut at = Some(self);
        for number in wanted {
            let namespace = at.expect("as many levels as numbers");
            let is_number = (1..PID_MAX as i32).contains(number);
            if !is_number || *number != 1 && !namespace.has_begun() {
                return Err(Errno::EINVAL);
            }
            let caller = process::current().credentials();
            let user = &namespace.head.user;
            if !caller.capable_in(user, CAP_CHECKPOINT_RESTORE) && !caller.capable_in(user, CAP_SYS_ADMIN) {
                return Err(Errno::EPERM);
            }
            at = namespace.parent.as_deref();
        }
        Ok(())
    }

    /// # Safety
    /// The entry stays where it is until `leave` was called with it.
    pub(super) unsafe fn enter(&self, entry: &Entry) {
        // SAFETY: the caller keeps it in place.
        let entry = unsafe { UnsafeRef::from_raw(entry) };
        self.table.lock().entries.insert(entry);
    }

    /// Gives a number back, if it was not yet.
    pub(super) fn leave(&self, entry: &Entry) {
        let mut table = self.table.lock();
        if !entry.link.is_linked() {
            return;
        }
        let begun = self.begun.load(Ordering::SeqCst);
        if entry.number == 1 && begun {
            self.closed.store(true, Ordering::SeqCst);
        }
        if entry.number == 1 && !begun {
            // Its first process did not come to be: a fork that a signal has interrupted, which is made again.
            table.next = 1;
        }
        // SAFETY: `enter` has put it into this tree.
        let _ = unsafe { table.entries.cursor_mut_from_ptr(entry).remove() };
        table.used[entry.number as usize / 64] &= !(1 << (entry.number % 64));
    }

    /// The kernel's number for the first one from `number` on, and which that is.
    pub(super) fn from(&self, number: Pid) -> Option<(Pid, Pid)> {
        let table = self.table.lock();
        table.entries.lower_bound(Bound::Included(&number)).get().map(|entry| (entry.number, entry.global))
    }

    /// It has its first process. The tree's lock is held.
    pub(crate) fn begin(&self, tree: &mut tree::Guard, first: &Arc<Process>) {
        *self.init.get_mut(tree) = Some(first.clone());
        self.begun.store(true, Ordering::SeqCst);
    }

    /// A thread with a number of it is registered.
    pub(crate) fn thread_comes(&self) {
        self.registered.fetch_add(1, Ordering::SeqCst);
    }

    /// One goes; whoever waits for the last looks again.
    pub(crate) fn thread_goes(&self) {
        self.registered.fetch_sub(1, Ordering::SeqCst);
        self.left.wake_all();
    }

    /// The last thread of the first process ends: takes along everybody else, and returns when they are gone.
    pub(crate) fn first_process_ends(&self, process: &Arc<Process>) {
        // Children that end from now on are not waited for: see `exit::tell_parent`.
        self.closed.store(true, Ordering::SeqCst);
        let mut at = 1;
        while let Some((number, global)) = self.from(at) {
            at = number + 1;
            let mut tree = tree::lock_to_send(1);
            // What had the number may be gone, and the kernel's number a stranger's.
            let is_here = |other: &Arc<Process>| {
                other.numbers.as_ref().and_then(|numbers| numbers.in_namespace(self)) == Some(number)
            };
            let other = tree.process(global).filter(|other| !Arc::ptr_eq(other, process) && is_here(other));
            if let Some(other) = &other {
                signal::send_process_locked(&mut tree, other, SigInfo::kernel(SIGKILL));
            }
            drop(tree);
            sched::cond_resched();
        }
        // Those that had ended before wait to be waited for.
        let ended = WaitFlags { no_hang: true, exited: true, clones_too: true, ..WaitFlags::default() };
        while let Ok(Some(_)) = process::wait(process::IdKind::All, ended) {
            sched::cond_resched();
        }
        let mut at = 1;
        loop {
            let registered = self.registered.load(Ordering::SeqCst);
            if !self.has_others(process, &mut at) {
                break;
            }
            let has_changed = || self.registered.load(Ordering::SeqCst) != registered;
            self.left.wait_until(|| has_changed().then_some(()));
        }
        let init = self.init.get_mut(&mut tree::lock()).take();
        drop(init);
    }

    /// Is a thread of another process registered? Those that end one after the other are not all asked each time: the first that is
    /// found is enough. Nobody comes any more, so that those in front of it, `at`, need not be asked again.
    fn has_others(&self, process: &Arc<Process>, at: &mut Pid) -> bool {
        if self.registered.load(Ordering::SeqCst) <= 1 {
            return false;
        }
        while let Some((number, global)) = self.from(*at) {
            *at = number;
            let thread = tree::look().thread(global);
            let other = thread.filter(|thread| !Arc::ptr_eq(&thread.process, process));
            if other.and_then(|other| other.numbers().and_then(|numbers| numbers.in_namespace(self)))
                == Some(number)
            {
                return true;
            }
            *at = number + 1;
            sched::cond_resched();
        }
        false
    }

    /// `EPERM` unless the current thread may enter it.
    pub(super) fn check_may_enter(&self, own: &Credentials) -> Result<()> {
        if own.capable_in(&self.head.user, CAP_SYS_ADMIN) && own.capable_here(CAP_SYS_ADMIN) {
            Ok(())
        } else {
            Err(Errno::EPERM)
        }
    }
}
