//! What address spaces do to a table that they share since a fork: those who share it have no lock in common.
//!
//! [`fork_tables`](super::fork_tables) has the protocol, and its races by name. The crate `kernel-models` builds this file
//! with loom's atomics: copies against each other, against an exit, a second fork and stores of other threads.

use super::entry::Entry;
use super::tables::entries;
use crate::memory::PhysAddr;
use crate::memory::frame::Frame;
use crate::sched;
use crate::sync::grace;
use crate::sync::mutant::{self, Mutant};
use crate::sync::primitive::{AtomicU64, Ordering, fence};

/// Pages that are freed without a look at who else wants to run. Each takes some 500 instructions in a checked kernel, which looks at the
/// allocator's locks.
pub(super) const FREED: usize = 64;

/// How a table became a space's own.
pub(super) enum Owned {
    /// The space was the only one left.
    TakenBack,
    /// It has a copy now. This is its reference to the shared table, for [`let_go`].
    Copied(Frame),
}

/// There was no table at hand to copy the shared one to.
pub(super) struct WantsTable;

/// Has the entry `child` of another space lead to the table that `own` leads to, whose leaves are `own`'s or shared already.
/// The page-table locks of both are held, and the areas lock of `own`'s space until its CPUs are flushed.
pub(super) fn share(own: &AtomicU64, child: &AtomicU64) {
    let above = Entry::load(own);
    let table = above.address();
    if !above.is_forked(2) {
        // Race: threads of this space store here until the flush at the end of the fork.
        own.store(Entry::forked(table).0, Ordering::SeqCst);
    }
    // SAFETY: the entry has a reference, and its space's lock is held.
    let shared = unsafe { Frame::share_raw(table) };
    child.store(Entry::forked(shared.into_raw()).0, Ordering::SeqCst);
}

/// Makes the table to which the forked entry `slot` leads the space's own, by a copy in `spare` if others have it as well. `flush` has the CPUs that
/// run the space forget what they know by the entry. The page-table lock is held. `keep` takes
/// [`keep_leaves`](super::fork_files::keep_leaves)'s if the table has pages of files: for the copy, and not for the flush, since all
/// who share the table wait there for each other.
pub(super) fn own<Kept>(
    slot: &AtomicU64,
    spare: &mut Option<Frame>,
    keep: impl FnOnce() -> Kept,
    flush: impl FnOnce(),
) -> Result<Owned, WantsTable> {
    let table = Entry::load(slot).address();
    if Frame::count_at(table) == 1 {
        if !mutant::is(Mutant::AloneWithoutFence) {
            // Acquire: with who dropped its reference before. Its copy took WRITABLE from leaves.
            fence(Ordering::Acquire);
        }
        // Rights are only added: a CPU that does not know faults once and looks again.
        slot.store(Entry::table(table).0, Ordering::SeqCst);
        return Ok(Owned::TakenBack);
    }
    let copy = spare.take().ok_or(WantsTable)?;
    if mutant::is(Mutant::LetGoBeforeCopied) {
        // SAFETY: none; this is what must not be done.
        let_go(unsafe { Frame::from_raw(table) });
    }
    {
        let _kept = keep();
        copy_leaves(table, &copy);
    }
    // SeqCst: the hardware sees the leaves before the entry, and the flush comes after it.
    slot.store(Entry::table(copy.into_raw()).0, Ordering::SeqCst);
    if mutant::is(Mutant::CopiedWithoutFlush) {
        // SAFETY: as below.
        return Ok(Owned::Copied(unsafe { Frame::from_raw(table) }));
    }
    // Before the reference goes: no CPU may go on in the shared table when another space takes it back.
    flush();
    // SAFETY: the entry owned this reference, and is gone.
    Ok(Owned::Copied(unsafe { Frame::from_raw(table) }))
}

/// Copies the shared table at `table`, to which an entry of this space leads, to `copy`.
fn copy_leaves(table: PhysAddr, copy: &Frame) {
    // SAFETY: the reference of this space's entry keeps the one; the other is ours alone.
    let (from, to) = unsafe { (entries(table), entries(copy.phys())) };
    for (old, new) in from.iter().zip(to) {
        let mut leaf = Entry::load(old);
        if leaf.owns_frame() && !leaf.has(Entry::ANON) && !leaf.has(Entry::ACCESSED) {
            // A file's page that nobody missed so far: it comes back by a fault.
            leaf = Entry(0);
        }
        if leaf.owns_frame() {
            if leaf.has(Entry::WRITABLE) {
                // Race: another one copies the table as well, or takes it back when we have let it go.
                // The page is in two tables now, and the leaf that stays behind must not be writable. No
                // CPU has it as writable: no entry above has been since its flush.
                if !mutant::is(Mutant::WritableInTwoTables) {
                    old.fetch_and(!Entry::WRITABLE, Ordering::SeqCst);
                }
                leaf = leaf.without(Entry::WRITABLE);
            }
            if !mutant::is(Mutant::CopiesCountNoPages) {
                // SAFETY: the shared table's leaf has a reference as long as we have one to the table.
                let _ = unsafe { Frame::share_raw(leaf.address()) }.into_raw();
            }
        }
        // Relaxed: nobody knows the copy yet.
        new.store(leaf.0, Ordering::Relaxed);
    }
}

/// Takes a forked entry out. Returns its reference, for [`let_go`] when the CPUs that run the space are flushed. The
/// page-table lock is held.
pub(super) fn leave(slot: &AtomicU64) -> Frame {
    // SeqCst: before the flush.
    let above = Entry(slot.swap(0, Ordering::SeqCst));
    // SAFETY: the entry owned this reference, and is gone.
    unsafe { Frame::from_raw(above.address()) }
}

/// Gives up a reference to a table that is or was shared. No entry of its space leads to it, and no CPU that
/// runs the space has one in a cache. No spin lock is held: the last one frees all that is in it.
pub(super) fn let_go(table: Frame) {
    // Race: others copy the table or leave it. The last one has it alone.
    let Some(table) = table.into_unique() else { return };
    // SAFETY: the table is ours alone.
    for leaves in unsafe { entries(table.phys()) }.chunks(FREED) {
        for leaf in leaves {
            // Relaxed: ours alone, after all that others did. All of them have flushed their TLBs.
            let leaf = Entry(leaf.load(Ordering::Relaxed));
            if leaf.owns_frame() {
                // SAFETY: the table's leaves own these references, and nobody reads them any more.
                drop(unsafe { Frame::from_raw(leaf.address()) });
            }
        }
        sched::cond_resched();
    }
    // Race: a walker without a lock reads the table on behalf of a space that has left it.
    grace::retire(table);
}
