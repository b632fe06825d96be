//! One huge page in use, which returns to its pool when the last owner is gone.

use super::broken::Successor;
use super::{Pool, Subpool};
use crate::addr::{PageSize, PhysAddr};
use crate::machine::Machine;
use crate::payer::{PageCharge, PagePayers};
use crate::sync::{Arc, AtomicBool, AtomicU64, Flag, Ordering};

/// A huge page outside the free list.
///
/// Who holds an `Arc` of it keeps it: a file's page cache, the private map of a `MAP_PRIVATE` mapping (after a fork of
/// several), a fault, a reader of the file for as long as it copies, and an unmap between clearing an entry and the flush.
/// Nothing is decided by how many those are. Entries of page tables hold nothing: they exist only while the page is in the
/// cache or in the private map.
pub(crate) struct Page<M: Machine> {
    frame: PhysAddr,
    pool: Arc<Pool<M>>,
    subpool: Option<Arc<Subpool<M>>>,
    /// The reservation that the page used up is still promised: see [`Page::restore`].
    restore: AtomicBool,
    /// No table shows the page: it is being moved, or broken.
    hidden: Flag,
    /// Its memory is broken: an access to it fails.
    broken: Flag,
    /// Its memory is broken, or about to be: the frame does not come back to the pool.
    leaves: Flag,
    /// The pool does not count it any more.
    counted_out: Flag,
    /// What was paid for it is its successor's.
    succeeded: Flag,
    /// Entries that lead here from tables that are not the file's. An entry is subtracted only after its flush. The file's own
    /// tables are not counted: they are behind the same lock as the page.
    mapped: AtomicU64,
    /// Mappings that have it as a private page, see [`crate::area::Share`].
    shares: AtomicU64,
    payers: PagePayers<M::Payer>,
}

impl<M: Machine> Page<M> {
    pub(crate) fn new(
        frame: PhysAddr,
        pool: Arc<Pool<M>>,
        subpool: Option<Arc<Subpool<M>>>,
        charge: PageCharge<M::Payer>,
    ) -> Page<M> {
        Page::of(frame, pool, subpool, charge.into_payers())
    }

    fn of(
        frame: PhysAddr,
        pool: Arc<Pool<M>>,
        subpool: Option<Arc<Subpool<M>>>,
        payers: PagePayers<M::Payer>,
    ) -> Page<M> {
        let no = || Flag::new(false);
        Page {
            frame,
            pool,
            subpool,
            restore: AtomicBool::new(false),
            hidden: no(),
            broken: no(),
            leaves: no(),
            counted_out: no(),
            succeeded: no(),
            mapped: AtomicU64::new(0),
            shares: AtomicU64::new(0),
            payers,
        }
    }

    /// The page that takes this one's place: what was paid for this one is its own, and what was counted, too, unless the pool counts
    /// the successor by itself. This one is whole for those who read it yet, and goes without its frame coming back to the pool.
    pub(crate) fn succeed(&self, successor: &Successor) -> Page<M> {
        let next = Page::of(successor.frame, self.pool.clone(), self.subpool.clone(), self.payers.clone());
        next.restore.store(self.restore.load(Ordering::SeqCst), Ordering::SeqCst);
        self.succeeded.store(true, Ordering::SeqCst);
        self.counted_out.store(!successor.is_counted, Ordering::SeqCst);
        self.leaves.store(true, Ordering::SeqCst);
        next
    }

    /// From now on no table comes to show the page. The fault mutex of its index is held.
    pub(crate) fn hide(&self) {
        self.hidden.store(true, Ordering::SeqCst);
    }

    /// An access to the page fails from now on, and its frame will not come back to the pool. The fault mutex of its index is held.
    pub(crate) fn break_down(&self) {
        self.leaves.store(true, Ordering::SeqCst);
        self.broken.store(true, Ordering::SeqCst);
    }

    /// Whether an access to the page fails.
    #[inline]
    pub(crate) fn is_broken(&self) -> bool {
        // Relaxed: who faults holds the fault mutex, as who broke it did; others may be late.
        self.broken.load(Ordering::Relaxed)
    }

    /// The pool counts the broken page no longer, though somebody has it still.
    pub(crate) fn count_out(&self) {
        if !self.counted_out.swap(true, Ordering::SeqCst) {
            self.pool.count_out();
        }
    }

    pub(crate) fn frame(&self) -> PhysAddr {
        self.frame
    }

    pub(crate) fn size(&self) -> PageSize {
        self.pool.page_size()
    }

    /// Makes the return of the page promise it anew to whom it was promised before: the page was not used after all, or
    /// a private owner gave it up and keeps the right to a fresh one.
    pub(crate) fn restore(&self) {
        self.restore.store(true, Ordering::SeqCst);
    }

    /// Whether the page goes, and is promised anew: see [`Page::restore`].
    pub(crate) fn is_restored(&self) -> bool {
        self.restore.load(Ordering::SeqCst)
    }

    pub(crate) fn zero(&self) {
        self.pool.machine().zero(self.frame, self.size().bytes());
    }

    pub(crate) fn copy_from(&self, other: &Page<M>) {
        self.pool.machine().copy_huge(self.size(), other.frame, self.frame);
    }

    /// Counts an entry that is about to be written.
    pub(crate) fn add_entry(&self) {
        self.mapped.fetch_add(1, Ordering::SeqCst);
    }

    /// Counts out an entry that was cleared and flushed.
    pub(crate) fn remove_entry(&self) {
        let before = self.mapped.fetch_sub(1, Ordering::SeqCst);
        debug_assert!(before > 0, "an entry was removed twice");
    }

    /// Counts a private mapping in.
    pub(crate) fn add_share(&self) {
        // Relaxed: whoever adds has a share, or the page is not known to anybody else.
        self.shares.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a private mapping out whose TLBs were flushed.
    pub(crate) fn remove_share(&self) {
        // Release: what the mapping read of the page comes before the stores of who is alone with it then.
        self.shares.fetch_sub(1, Ordering::Release);
    }

    /// Private mappings that have the page.
    pub(crate) fn shares(&self) -> u64 {
        // Acquire: with who let go.
        self.shares.load(Ordering::Acquire)
    }

    /// Whether the pool believes that nobody has its frame, for checks.
    pub(crate) fn is_free(&self) -> bool {
        self.pool.is_free(self.frame)
    }

    pub(crate) fn is_mapped(&self) -> bool {
        self.mapped.load(Ordering::SeqCst) != 0
    }

    /// The frame goes back to nobody.
    #[cold]
    fn lose(&self) {
        if !self.succeeded.load(Ordering::SeqCst) {
            if let Some(subpool) = &self.subpool {
                // What the mount was promised shrinks by the page: a promise without a page is none.
                subpool.forget(1);
            }
            self.payers.discharge(self.size());
        }
        self.count_out();
        self.pool.machine().free_broken(self.size(), self.frame);
    }
}

impl<M: Machine> filetables::Frame for Page<M> {
    fn frame(&self) -> PhysAddr {
        self.frame
    }

    fn is_shown(&self) -> bool {
        // Relaxed: who hides takes the lock under which this is asked afterwards.
        !self.hidden.load(Ordering::Relaxed)
    }
}

impl<M: Machine> Drop for Page<M> {
    fn drop(&mut self) {
        debug_assert!(!self.is_mapped(), "a page returns to the pool under entries that lead to it");
        // Relaxed: who gave up the last reference before us did so after the store.
        if self.leaves.load(Ordering::Relaxed) {
            self.lose();
            return;
        }
        let mut restore = self.restore.load(Ordering::SeqCst);
        if !restore && let Some(subpool) = &self.subpool {
            // The mount keeps its minimum: what it does not hand on stays promised to it.
            restore = subpool.put(1) == 0;
        }
        self.payers.discharge(self.size());
        self.pool.give(self.frame, restore);
    }
}
