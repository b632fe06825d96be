//! A set of pending signals, with what their senders said.

use core::cell::UnsafeCell;

use alloc::sync::{Arc, Weak};
use intrusive_collections::{Bound, KeyAdapter, RBTree, RBTreeAtomicLink, intrusive_adapter};

use super::{SIGRTMIN, SigInfo, SigSet, codes};
use crate::memory::reserve;
use crate::process::accounts::{Counted, Share};
use crate::process::{Charge, Process, limits};
use crate::sched;
use crate::time::posix_timers::PosixTimer;

/// A signal's information: made by the sender outside of all locks. A timer has one for all its life.
pub struct Queued {
    link: RBTreeAtomicLink,
    /// Used under the lock of the set that the signal is on.
    sequence: UnsafeCell<u64>,
    info: SigInfo,
    /// What it counts for its receiver's user.
    share: Option<Share>,
    _charge: Option<Charge>,
    /// Whether the sender is in the receiver's PID namespace, where that is not the current thread's affair.
    from_within: Option<bool>,
    /// The timer that sends it.
    timer: Option<Weak<PosixTimer>>,
    /// The kernel sends it, or kill(2) had no room for it, and it counts for nobody: one of each number waits at most, also of real-time
    /// signals.
    single: bool,
}

// SAFETY: `sequence` is guarded as its comment says, the rest is atomic or immutable.
unsafe impl Sync for Queued {}
// SAFETY: as above.
unsafe impl Send for Queued {}

impl Queued {
    /// A signal of the kernel's own, or one that does not queue.
    pub fn new(info: SigInfo) -> Arc<Self> {
        Self::make(Self { single: true, ..Self::plain(info) })
    }

    /// A signal for a process, which counts for its user if it is one of those that do.
    pub fn to(process: &Process, info: SigInfo) -> Arc<Self> {
        Self::make(Self::counted(process, info))
    }

    fn counted(process: &Process, info: SigInfo) -> Self {
        let share = info.is_limited().then(|| {
            let limit = process.limit(limits::SIGPENDING);
            Share::take_within(process.uid_for_signals(), Counted::Signals, limit)
        });
        let share = share.flatten();
        let charge = share.is_some().then(|| process.charges.add(size_of::<Self>()));
        if info.is_limited() && share.is_none() && info.code == codes::SI_USER {
            // As Linux: kill(2) does not fail for that. One of them waits, and does not say whose it is.
            let info = SigInfo::user(info.signal as u32, codes::SI_USER, 0, 0);
            return Self { single: true, ..Self::plain(info) };
        }
        Self { share, _charge: charge, ..Self::plain(info) }
    }

    /// As [`Self::to`], from a sender that is not the current process perhaps.
    pub fn from(process: &Process, info: SigInfo, from_within: bool) -> Arc<Self> {
        Self::make(Self { from_within: Some(from_within), ..Self::counted(process, info) })
    }

    /// A timer's signal; the timer itself counts for its user.
    pub fn of_timer(info: SigInfo, timer: Weak<PosixTimer>) -> Arc<Self> {
        Self::make(Self { timer: Some(timer), ..Self::plain(info) })
    }

    /// One that counts for nobody.
    #[inline]
    fn plain(info: SigInfo) -> Self {
        let link = RBTreeAtomicLink::new();
        let sequence = UnsafeCell::new(0);
        Self {
            link,
            sequence,
            info,
            share: None,
            _charge: None,
            from_within: None,
            timer: None,
            single: false,
        }
    }

    #[inline]
    fn make(queued: Self) -> Arc<Self> {
        // One for each process of a group: less than a hundredth of what a process takes. And the queue of each is
        // limited.
        reserve::covered();
        Arc::new(queued)
    }

    pub fn signal(&self) -> u32 {
        self.info.signal as u32
    }

    pub fn info(&self) -> &SigInfo {
        &self.info
    }

    /// Whether the sender is in the receiver's PID namespace; `None` if that is for the current thread to say.
    pub fn is_from_within(&self) -> Option<bool> {
        self.from_within
    }

    /// Whether the receiver's user has too many of this kind.
    pub fn is_over_limit(&self) -> bool {
        self.info.is_limited() && self.timer.is_none() && self.share.is_none() && !self.single
    }

    /// For one that nobody else has.
    pub(super) fn set_info(&mut self, info: SigInfo) {
        self.info = info;
    }

    /// Whether it says nothing but its information, and counts for nobody.
    pub(super) fn is_plain(&self) -> bool {
        self.share.is_none() && self._charge.is_none() && self.from_within.is_none() && self.timer.is_none()
    }

    /// Whether it is on a set.
    pub fn is_pending(&self) -> bool {
        self.link.is_linked()
    }

    /// The timer that sends it, if one does and is still there.
    pub fn timer(&self) -> Option<Arc<PosixTimer>> {
        self.timer.as_ref()?.upgrade()
    }
}

intrusive_adapter!(BySignal = Arc<Queued>: Queued { link => RBTreeAtomicLink });

impl<'a> KeyAdapter<'a> for BySignal {
    type Key = (u32, u64);

    fn get_key(&self, queued: &'a Queued) -> (u32, u64) {
        // SAFETY: the tree is inside its owner's lock.
        (queued.signal(), unsafe { *queued.sequence.get() })
    }
}

/// Where an entry is in a set: its signal, and its number among all that came. It stays good when the entry has gone.
#[derive(Clone, Copy)]
pub struct Place((u32, u64));

/// Pending signals, by number and then in the order in which they came. Of the standard signals one each and one of
/// each timer, of the real-time ones all.
pub struct Pending {
    set: SigSet,
    queue: RBTree<BySignal>,
    length: usize,
    next_sequence: u64,
}

// SAFETY: it owns its nodes.
unsafe impl Send for Pending {}

impl Pending {
    pub const fn new() -> Self {
        Self { set: SigSet::EMPTY, queue: RBTree::new(BySignal::NEW), length: 0, next_sequence: 0 }
    }

    /// The signals that are pending.
    pub fn set(&self) -> SigSet {
        self.set
    }

    /// Adds one; gives it back when a standard signal is pending already, or this very one.
    pub fn add(&mut self, queued: Arc<Queued>) -> Option<Arc<Queued>> {
        let signal = queued.signal();
        let merges = queued.single || signal < SIGRTMIN && queued.timer.is_none();
        if queued.is_pending() || merges && self.set.contains(signal) {
            return Some(queued);
        }
        self.set = self.set.with(signal);
        self.length += 1;
        self.next_sequence += 1;
        // SAFETY: it is on no set, and this set's lock is held.
        unsafe { *queued.sequence.get() = self.next_sequence };
        self.queue.insert(queued);
        None
    }

    /// The entry behind `skip` others that come behind `place`, or behind the begin: its place and its information. The caller holds a
    /// lock that keeps interrupts off, so it skips a few at a time.
    pub fn entry_behind(&self, place: Option<Place>, skip: usize) -> Option<(Place, SigInfo)> {
        let begin = place.map_or((0, 0), |place| place.0);
        let mut cursor = self.queue.lower_bound(Bound::Excluded(&begin));
        (0..skip).for_each(|_| cursor.move_next());
        let queued = cursor.get()?;
        Some((Place(BySignal::NEW.get_key(queued)), queued.info))
    }

    /// Which signal of those in `wanted` comes first: synchronous ones, then by number.
    pub fn next(&self, wanted: SigSet) -> Option<u32> {
        let candidates = self.set.intersection(wanted);
        let synchronous = candidates.intersection(SigSet::SYNCHRONOUS);
        let from = if synchronous.is_empty() { candidates } else { synchronous };
        (!from.is_empty()).then(|| from.0.trailing_zeros() + 1)
    }

    /// Takes over all that another set has: what is to be dropped, once nobody holds a lock.
    pub fn absorb(&mut self, mut other: Pending) {
        if self.queue.is_empty() {
            core::mem::swap(self, &mut other);
            return;
        }
        while let Some(queued) = other.queue.front_mut().remove() {
            self.append(queued);
        }
    }

    /// Adds one that is on no set, to be dropped with the others.
    pub fn keep(&mut self, queued: Arc<Queued>) {
        if !queued.is_pending() {
            self.append(queued);
        }
    }

    /// Adds one of those that are to be dropped.
    fn append(&mut self, queued: Arc<Queued>) {
        self.length += 1;
        self.next_sequence += 1;
        // SAFETY: it is on no set, and nobody else uses this one.
        unsafe { *queued.sequence.get() = self.next_sequence };
        self.queue.insert(queued);
    }

    /// Takes the oldest entry of a pending signal.
    pub fn take(&mut self, signal: u32) -> Option<Arc<Queued>> {
        if !self.set.contains(signal) {
            return None;
        }
        let mut cursor = self.queue.lower_bound_mut(Bound::Included(&(signal, 0)));
        let taken = cursor.remove()?;
        debug_assert_eq!(taken.signal(), signal);
        if cursor.get().is_none_or(|next| next.signal() != signal) {
            self.set = self.set.without(SigSet::of(&[signal]));
        }
        self.length -= 1;
        Some(taken)
    }

    #[cold]
    fn lose_all(&mut self) {
        while let Some(queued) = self.queue.front_mut().remove() {
            lose(&queued);
        }
    }

    /// Drops all, however many there are: another thread that is due runs in between. Called without locks.
    pub fn drain(mut self) {
        while let Some(queued) = self.queue.front_mut().remove() {
            lose(&queued);
            drop(queued);
            sched::cond_resched();
        }
    }

    /// Moves all entries of the signals in `which` to `removed`, which is dropped without locks.
    pub fn remove(&mut self, which: SigSet, removed: &mut Pending) {
        let mut all = usize::MAX;
        self.remove_some(which, &mut all, removed);
    }

    /// As [`Self::remove`], but no more than `most`, which becomes what is left of it. False if there may be more.
    pub fn remove_some(&mut self, which: SigSet, most: &mut usize, removed: &mut Pending) -> bool {
        let mut left = self.set.intersection(which);
        while !left.is_empty() {
            if *most == 0 {
                return false;
            }
            let signal = left.0.trailing_zeros() + 1;
            match self.take(signal) {
                Some(queued) => {
                    *most -= 1;
                    removed.append(queued);
                }
                None => left = left.without(SigSet::of(&[signal])),
            }
        }
        true
    }
}

/// Nobody takes the signal any more: its timer need not wait for that.
fn lose(queued: &Queued) {
    if let Some(timer) = queued.timer() {
        timer.signal_lost();
    }
}

impl Drop for Pending {
    #[inline]
    fn drop(&mut self) {
        // Most are empty: each hold of the process tree's lock has one.
        if !self.queue.is_empty() {
            self.lose_all();
        }
    }
}

impl core::default::Default for Pending {
    fn default() -> Self {
        Self::new()
    }
}
