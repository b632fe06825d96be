//! A PMD table of the library, and the count of the mappings attached to it.

use filetables::{EntryValue, Format, Level, Protection, TableEntries};

use crate::addr::{PageIndex, PhysAddr};
use crate::file::File;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::sync::{Arc, Spin};

/// What the table lock guards.
struct State {
    /// Mappings attached, those included that wait for their flush to be counted out. The count is not the
    /// lifetime of the frame's references or of the `Arc`: mixing those up was CVE-2024-57883.
    sharers: usize,
    /// Changes in place under way: no newcomer may see entries whose flush knows only the old sharer.
    closed: usize,
    /// What the leaves permit.
    protection: Protection,
}

/// A PMD table that mappings of one file can share: it maps 512 pages from `base` on.
pub(crate) struct Table<M: Machine> {
    frame: PhysAddr,
    base: PageIndex,
    state: Spin<M, State>,
}

impl<M: Machine> Table<M> {
    /// An empty table, attached once.
    pub(super) fn new(frame: PhysAddr, base: PageIndex, protection: Protection) -> Table<M> {
        Table { frame, base, state: Spin::<M, _>::new(State { sharers: 1, closed: 0, protection }) }
    }

    pub(super) fn frame(&self) -> PhysAddr {
        self.frame
    }

    pub(super) fn entries<'m>(&self, machine: &'m M) -> &'m TableEntries {
        machine.table(self.frame)
    }

    /// Counts a further mapping in, unless the table is dying, is being changed, or permits something else.
    pub(super) fn adopt(&self, protection: Protection) -> bool {
        let mut state = self.state.lock();
        // A count of 0 never rises: its last sharer is taking the entries down.
        if (state.sharers == 0 && !Mutant::DyingTableAdopted.is_on())
            || (state.closed != 0 && !Mutant::ClosedTableAdopted.is_on())
            || (state.protection != protection && !Mutant::OtherRightsAdopted.is_on())
        {
            return false;
        }
        state.sharers += usize::from(!Mutant::SharerNotCounted.is_on());
        true
    }

    /// Closes the table to newcomers if there is but one sharer; returns whether there was.
    pub(super) fn close(&self) -> bool {
        let mut state = self.state.lock();
        if state.sharers != 1 && !Mutant::SharersNotNoticed.is_on() {
            return false;
        }
        state.closed += 1;
        true
    }

    /// Ends a change in place: its flush is done.
    pub(super) fn open(&self) {
        self.state.lock().closed -= 1;
    }

    /// The mappings attached, for checks.
    pub(super) fn sharers(&self) -> u64 {
        self.state.lock().sharers as u64
    }

    /// What the leaves permit from now on; the table is closed.
    pub(super) fn set_protection(&self, protection: Protection) {
        self.state.lock().protection = protection;
    }

    /// What the leaves permit.
    pub(super) fn protection(&self) -> Protection {
        self.state.lock().protection
    }

    /// Counts a mapping out whose PUD entry is clear and whose TLBs were flushed; the last one takes the table down.
    pub(super) fn release(self: &Arc<Self>, file: &File<M>) {
        let last = {
            let mut state = self.state.lock();
            state.sharers -= 1;
            if Mutant::CountedByReferences.is_on() {
                Arc::strong_count(self) == 1
            } else {
                state.sharers == 0
            }
        };
        file.hugetlb().counters().attachments.subtract(1);
        file.hugetlb().counters().reached.subtract(1);
        if !last {
            file.hugetlb().counters().unshares.add(1);
            return;
        }
        // Nobody is attached and nobody can be: the entries are ours, and no TLB holds any of them.
        let machine = file.hugetlb().machine();
        for (entry, index) in self.entries(machine).iter().zip(self.base.0..) {
            let old = entry.swap(EntryValue::default(), crate::sync::Ordering::AcqRel);
            if M::Format::is_leaf(Level::Pmd, old)
                && let Some(page) = file.content().get(index)
            {
                page.remove_entry();
            }
        }
        machine.retire_table(self.frame);
        file.hugetlb().counters().tables.subtract(1);
    }
}
