//! The ways in which models break the kernel.

macro_rules! mutants {
    ($($(#[doc = $dropped:literal])* $name:ident,)*) => {
        /// A way to break the kernel.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        pub enum Mutant {
            $($(#[doc = $dropped])* $name,)*
        }

        /// All of them.
        #[allow(dead_code)] // For the models.
        pub const ALL: &[Mutant] = &[$(Mutant::$name,)*];
    };
}

mutants! {
    /// A thread looks at its condition before it announces its sleep.
    AnnouncedLate,
    /// The announcement of a sleep is not ordered before the look at the condition.
    AnnouncedWithoutFence,
    /// A wake is not ordered behind the change of the condition.
    WokenWithoutFence,
    /// A thread goes to sleep though a wake has overtaken its announcement.
    ParkedAnyway,
    /// A thread is queued while its CPU still uses its stack.
    QueuedOnCpu,
    /// A waiter looks at its condition before it joins the queue.
    JoinedLate,
    /// A waiter does not count itself before it looks at its condition.
    CountedLate,
    /// A wake does not look at the number of users behind a fence.
    UsersWithoutFence,
    /// A waiter that found what it waits for before it slept keeps a wake-up that came meanwhile.
    WakeKept,
    /// A CPU halts without a look at its queue.
    HaltsWithoutALook,
    /// A CPU does not say that it idles.
    IdleLate,
    /// Whoever queues a thread looks at what the CPU runs without a fence behind the queueing.
    AskedWithoutFence,
    /// A lock's waiter forgets that it was told to try again after it has tried.
    RetryClearedLate,
    /// A lock's holder leaves without telling those who wait.
    ReleaseTellsNobody,
    /// A lock's waiter whose wait a signal ends keeps to itself that the lock is free.
    LeavesQuietly,
    /// An interrupt that comes early does not set the hardware again.
    EarlyIsForgotten,
    /// An interrupt believes that the hardware is still set.
    StaysArmed,
    /// An earlier deadline does not set the hardware.
    EarlierNotSet,
    /// A space's entries lead to a region before shootdowns know of it.
    AttachedBeforeListed,
    /// A space's place on the list is not ordered before its entries.
    ListedWithoutFence,
    /// Shootdowns do not know any more of a space whose CPUs still know its entries.
    UnlistedBeforeDetached,
    /// The end of one attachment takes all others of the region off the list.
    AllUnlisted,
    /// Who copies a table of a fork leaves its pages writable in the shared one.
    WritableInTwoTables,
    /// The leaves of a copied table have no references to their pages.
    CopiesCountNoPages,
    /// Who copies a table of a fork gives up its reference first.
    LetGoBeforeCopied,
    /// CPUs that use a table of a fork are not flushed when their space has a copy.
    CopiedWithoutFlush,
    /// Who finds itself alone with a table does not see what the others have done.
    AloneWithoutFence,
}
