//! The mutants that a model has to catch: which, under which protocol, with which checker, and what is seen then.

/// A mutant and who catches it.
pub(super) struct Mutant {
    pub(super) name: &'static str,
    pub(super) model: &'static str,
    pub(super) protocol: &'static str,
    pub(super) checker: &'static str,
    /// What the failure says.
    pub(super) message: &'static str,
}

const fn loom(
    name: &'static str,
    model: &'static str,
    protocol: &'static str,
    message: &'static str,
) -> Mutant {
    Mutant { name, model, protocol, checker: "loom", message }
}

const VMA: &str = "vma-lock";
const FILE: &str = "file-tables";
const FENCE: &str = "file-lock";

const RETIRED_CACHED: &str = "a table is retired that a paging-structure cache leads to";

pub(super) const MUTANTS: &[Mutant] = &[
    loom("FlushForgotten", "fault_against_discard", VMA, RETIRED_CACHED),
    loom("SharersNotFlushed", "fault_against_truncate", FILE, "that a TLB leads to"),
    loom("TablesNotFlushed", "fault_against_discard", VMA, RETIRED_CACHED),
    loom("ReleaseBeforeFlush", "fault_against_munmap", VMA, RETIRED_CACHED),
    loom("TablesNotFlushed", "wide_fault_against_leaving", FILE, RETIRED_CACHED),
    loom("DetachBeforeFlush", "fault_against_reclaim", FILE, RETIRED_CACHED),
    loom("DetachBeforeFlush", "wide_attach_against_exit", FILE, RETIRED_CACHED),
    loom("ChildNotLinked", "two_first_faults_below_a_wide_table", FILE, "the access faults all the same"),
    loom(
        "ChildNotCounted",
        "wide_fault_against_leaving",
        FILE,
        "a table is retired that a table above leads to",
    ),
    loom(
        "UnlockedFlush",
        "truncation_holds_a_lock_that_is_freed",
        VMA,
        "a truncation took another file's entry",
    ),
    loom("LeaveBeforeFlush", "punch_against_munmap", FILE, "a page is freed that a TLB leads to"),
    loom(
        "DeadMappingKeepsPages",
        "truncation_holds_a_lock_that_is_freed",
        FILE,
        "counts entries, and nobody maps the file",
    ),
    loom("LostRightNotFlushed", "fault_against_protect", FILE, "a right that was lost is used"),
    loom("LostRightNotFlushed", "protect_against_adoption", VMA, "a right that was lost is used"),
    loom("CrowdedSlotKept", "punch_against_a_neighbour", FILE, "a slot that was asked for stays shared"),
    loom("CrowdedSlotNotFlushed", "punch_against_a_neighbour", FILE, "a TLB contradicts the tables"),
    loom("StrangersTableTaken", "punch_against_a_neighbour", FILE, "the access faults all the same"),
    loom("SplitSlotKept", "fault_against_split", VMA, "a table of the library in a slot without mappings"),
    loom(
        "SharedAgainInSplit",
        "cve_2025_38084_shared_again_before_the_split",
        FILE,
        "a table of the library in a slot without mappings",
    ),
    loom("IndexNotLocked", "two_first_faults", FILE, "on an `Err` value: Bus"),
    loom("NoteKept", "punch_against_split", FILE, "the access faults all the same"),
    loom("PageNotZeroed", "fault_against_a_walk", VMA, "before the zeroes"),
    loom("LeafWithoutRelease", "fault_against_a_walk", VMA, "before the zeroes"),
    loom("ShownWithoutRelease", "fault_against_a_walk", FILE, "before the zeroes"),
    loom("EntryNotCounted", "first_fault_against_punch", VMA, "counts entries, and nobody maps the file"),
    loom("CopyShownBeforeFlush", "private_store_against_a_reader", VMA, "a reader sees the origin of a copy"),
    loom(
        "CopyOfRelatives",
        "store_against_fork_of_private_pages",
        VMA,
        "the child writes into the parent's page",
    ),
    loom(
        "ShareDroppedBeforeFlush",
        "private_store_against_exit_of_the_child",
        VMA,
        "the child sees its parent's store",
    ),
    Mutant {
        name: "SharesCountedByReferences",
        model: "discard_against_fault_of_a_promised_page",
        protocol: FILE,
        // loom does not know that references order anything.
        checker: "pct",
        message: "a promise was lost in a discard",
    },
    loom("RobbedWithoutLook", "robbing_spares_other_pages", VMA, "a copy of its own was robbed"),
    loom(
        "ForkUnlockedEarly",
        "truncate_against_fork_of_private_pages",
        VMA,
        "a child keeps a page that was truncated",
    ),
    loom("WalkEndsEarly", "punch_meets_all_of_many", VMA, "a mapping keeps a page that was punched"),
    loom("FirstWindowsDetached", "a_large_mapping_goes_as_a_whole", FILE, "a table outlives its mapping"),
    loom(
        "MapWithoutSizeLock",
        "truncate_against_mmap_with_promises",
        VMA,
        "a size without its promise, or the reverse",
    ),
    loom("AccessNotChecked", "promises_are_kept", VMA, "a store that is not permitted"),
    loom("ForkNotFlushed", "store_against_fork_of_private_pages", VMA, "a TLB contradicts the tables"),
    loom("SizeSetLast", "fault_against_truncate", VMA, "a store that was made is lost in a truncation"),
    loom("MappedAgainNotMet", "fault_against_punch", VMA, "a page is freed that a TLB leads to"),
    loom("FenceBehindIndex", "fault_against_punch", FENCE, "deadlock"),
    loom(
        "IndexUnlockedEarly",
        "fresh_page_against_a_new_table",
        FILE,
        "the page that was taken is still seen",
    ),
    loom("EndNotLookedAtAgain", "fault_against_truncate", FILE, "a page appeared behind the end"),
    loom("RemovedButShown", "fresh_page_against_a_new_table", FILE, "a page is freed that"),
    loom("DyingTableAdopted", "fault_against_discard", VMA, "a table is used behind its end"),
    loom("ClosedTableAdopted", "protect_against_adoption", VMA, "a TLB contradicts the tables"),
    loom("OtherRightsAdopted", "protect_against_adoption", VMA, "the access faults all the same"),
    loom("SharerNotCounted", "fault_against_discard", VMA, "a table is retired that a PUD entry leads to"),
    loom(
        "SharersNotNoticed",
        "cve_2026_23100_sharing_not_noticed_by_a_reader",
        VMA,
        "the access faults all the same",
    ),
    loom(
        "CountedByReferences",
        "cve_2024_57883_share_count_is_no_reference_count",
        VMA,
        "a page is freed that an entry leads to",
    ),
    loom(
        "SlotNotLookedAtAgain",
        "first_faults_of_one_process",
        VMA,
        "a slot that was asked for stays shared",
    ),
    loom("UpperEntryKept", "fault_against_discard", VMA, "a table is retired that a PUD entry leads to"),
    loom("UpperEntryKept", "fault_against_munmap", FILE, "a table of the library in a slot without mappings"),
    loom("AdoptedDuringRemoval", "punch_against_adoption", VMA, "a page is freed that an entry leads to"),
    loom("MappingUnlockedEarly", "fault_against_discard", VMA, "behind its end"),
    loom("FaultNotFenced", "fault_against_discard", FENCE, "behind its end"),
    loom("ChangeNotFenced", "fault_against_discard", FENCE, "behind its end"),
    Mutant {
        name: "PagesBeforeFlush",
        model: "punch_against_munmap_of_a_part",
        protocol: FILE,
        checker: "pct",
        message: "a page is freed that a TLB leads to",
    },
    loom(
        "AttachmentNotCounted",
        "fault_against_munmap",
        FILE,
        "a table is retired that a PUD entry leads to",
    ),
    loom("TableNotFilled", "allocate_against_mmap", FILE, "the table says EntryValue(0x0), the content Some"),
    loom(
        "FreshPageNotShown",
        "punch_against_split",
        FILE,
        "the table says EntryValue(0x0), the content Some",
    ),
    loom("SlotAttachedTwice", "two_first_faults", FILE, "page tables leaked"),
    loom(
        "TableMadeTwice",
        "first_faults_of_one_process",
        FILE,
        "a table is retired that a PUD entry leads to",
    ),
    loom("SpaceNotJoined", "punch_against_munmap", FILE, "a page is freed that a TLB leads to"),
    loom("PromiseTakenAlong", "fault_against_truncate_with_promises", VMA, "invariant 5"),
    loom("PageOnItsWayPromised", "fault_against_two_truncations", FILE, "invariant 5"),
    loom("PromiseOfMappingLost", "promises_are_kept", VMA, "a private mapping ends"),
    loom("PromiseOutlivesPunch", "promises_are_kept", VMA, "an empty pool gives a page"),
    loom("PromisedPageTaken", "promises_are_kept", VMA, "a page that is promised to another is taken"),
    loom("PromiseNotRenewed", "promises_are_kept", VMA, "a discard renews the promise"),
    loom("PromiseNotUsedUp", "promises_are_kept", VMA, "one used up"),
    loom("GrownFileNotShown", "promises_are_kept", FILE, "the table says EntryValue(0x0), the content Some"),
    loom("NotEnlisted", "punch_against_munmap_of_a_part", FILE, "a page is freed that a TLB leads to"),
];
