//! Points at which a test can break the library on purpose: see [`filetables::mutant`].

/// As of `core`, but not while the library is broken on purpose: then the models have to see it, not the library itself.
macro_rules! debug_assert {
    ($($what:tt)*) => {
        if cfg!(debug_assertions) && !$crate::mutant::is_broken() {
            assert!($($what)*);
        }
    };
}

/// As [`debug_assert`].
macro_rules! debug_assert_eq {
    ($($what:tt)*) => {
        if cfg!(debug_assertions) && !$crate::mutant::is_broken() {
            assert_eq!($($what)*);
        }
    };
}

filetables::mutants! {
    /// A batch does not flush the addresses that it noted.
    FlushForgotten,
    /// A batch does not flush those who are attached to the file's tables.
    SharersNotFlushed,
    /// A flush of a cleared PUD entry leaves the paging-structure caches alone.
    TablesNotFlushed,
    /// Pages are counted out before the TLBs are flushed.
    PagesBeforeFlush,
    /// A walk over the mappings on a file's list ends behind the first few.
    WalkEndsEarly,
    /// Of the windows that a batch detached only the first is counted out.
    FirstWindowsDetached,
    /// An adopted table is counted out before the TLBs are flushed.
    ReleaseBeforeFlush,
    /// A table of the file is counted out before the TLBs are flushed.
    DetachBeforeFlush,
    /// The mapping lock is let go before the flush of an unmapping.
    UnlockedFlush,
    /// An address space is forgotten by the file before its TLBs are flushed.
    LeaveBeforeFlush,
    /// A mapping keeps its page indices when it goes: a walk that meets it late takes what came to its place.
    DeadMappingKeepsPages,
    /// A right that a mapping loses is not flushed.
    LostRightNotFlushed,
    /// A mapping that is asked for its slot keeps the shared table.
    CrowdedSlotKept,
    /// A mapping that is asked for its slot does not flush.
    CrowdedSlotNotFlushed,
    /// A slot that a split cuts keeps its shared table.
    SplitSlotKept,
    /// A slot that a split cuts is attached again before the cut: CVE-2025-38084.
    SharedAgainInSplit,
    /// The fault mutex of a page index keeps nobody out.
    IndexNotLocked,
    /// A page that is taken out of the file stays the one that its fault mutex has noted.
    NoteKept,
    /// mmap makes its promise and its size without the size lock.
    MapWithoutSizeLock,
    /// A fault does not look whether the mapping permits the access.
    AccessNotChecked,
    /// A fresh page is not zeroed.
    PageNotZeroed,
    /// A leaf is written without a release, so that it may be seen before the zeroes.
    LeafWithoutRelease,
    /// An entry is written and not counted.
    EntryNotCounted,
    /// A private copy shows before the TLBs have forgotten the origin.
    CopyShownBeforeFlush,
    /// A copy that relatives hold too is written to.
    CopyOfRelatives,
    /// Whether a private page is shared is decided by the references to it: CVE-2024-57883 once more.
    SharesCountedByReferences,
    /// An owner takes the private pages of all relatives away, whichever pages they are.
    RobbedWithoutLook,
    /// A mapping's share of a private page is given up before its TLBs are flushed.
    ShareDroppedBeforeFlush,
    /// A fork lets go of the parent's mapping before the child's is on the file's list.
    ForkUnlockedEarly,
    /// The entries that a fork makes read-only are not flushed.
    ForkNotFlushed,
    /// A truncation sets the size after it has taken the pages.
    SizeSetLast,
    /// A page that was mapped again between the passes of a removal is not unmapped once more.
    MappedAgainNotMet,
    /// The fence of a removal is taken behind the fault mutex.
    FenceBehindIndex,
    /// The fault mutex of a page that is removed is let go before the flush.
    IndexUnlockedEarly,
    /// A table is adopted whose last sharer is taking it down.
    DyingTableAdopted,
    /// A table is adopted while its entries change.
    ClosedTableAdopted,
    /// A table is adopted whose entries permit something else.
    OtherRightsAdopted,
    /// Who adopts a table is not counted.
    SharerNotCounted,
    /// A table is changed in place whoever shares it: CVE-2026-23100.
    SharersNotNoticed,
    /// A table goes with the last reference to it, not with the last sharer: CVE-2024-57883.
    CountedByReferences,
    /// The second of two first faults does not look again under the lock.
    SlotNotLookedAtAgain,
    /// A mapping that leaves a table keeps its PUD entry.
    UpperEntryKept,
    /// Mappings adopt tables while a page is removed from them.
    AdoptedDuringRemoval,
    /// A fault lets its mapping go before it writes the leaf (protocol `vma-lock`).
    MappingUnlockedEarly,
    /// Faults do not take the fence of the file (protocol `file-lock`).
    FaultNotFenced,
    /// Changes do not take the fence of the file (protocol `file-lock`).
    ChangeNotFenced,
    /// A mapping with entries in tables of the host is not on the file's list.
    NotEnlisted,
    /// A fault that a truncation overtook does not leave the promise behind that its page used up.
    PromiseTakenAlong,
    /// A truncation takes the promise back of a page that a fault has taken for it and not brought yet.
    PageOnItsWayPromised,
    /// The promise of a private mapping is not given back with it.
    PromiseOfMappingLost,
    /// A hole punch leaves the promises of its pages.
    PromiseOutlivesPunch,
    /// A page that is promised to somebody is taken by somebody else.
    PromisedPageTaken,
    /// A page that goes back with its promise is not promised again.
    PromiseNotRenewed,
    /// A page that is taken by a promise leaves the promise.
    PromiseNotUsedUp,
}

pub(crate) use filetables::mutant::is_broken;

/// All mutants, those of the tables included: the name, and what is dropped.
#[cfg(roundtable_model)]
pub fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    filetables::mutant::ALL.iter().chain(ALL).map(|(name, dropped)| (*name, dropped.trim()))
}

#[cfg(roundtable_model)]
pub use filetables::mutant::select;
