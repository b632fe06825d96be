//! The protocol `file-lock`: every fault on a file is fenced by one lock of the file.
//!
//! **The fence.** All faults on the file hold its lock for reading from beginning to end; truncate, punch, mmap, munmap,
//! mprotect, mremap, fork and exit hold it for writing as long as they walk and flush. So a fault that found a table
//! writes into it without looking again, and without its mapping's lock.
//!
//! **The price.** Whoever takes entries away from one mapping holds up the faults of all, those on files that never share
//! included, and a fault that clears a huge page holds up the change. Linux used the lock of the file's list of mappings
//! (`i_mmap_rwsem`) for it from 5.7 to 6.0.

use core::ops::Range;

use super::Fault;
use super::adopted::{self, Adopted, Fence};
use crate::error::FaultError;
use crate::file::File;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::state::State;
use crate::sync::{Arc, Line, ReadGuard, RwLock, WriteGuard};

pub(super) struct FileLock;

pub(super) const PROTOCOL: Adopted<FileLock> = Adopted(FileLock);

/// Held by all faults (for reading) and by what takes away (for writing).
fn fence<M: Machine>(file: &File<M>) -> Option<&RwLock<M, ()>> {
    let fence = adopted::fence(file)?.get::<Line<RwLock<M, ()>>>();
    debug_assert!(fence.is_some(), "the file has no fence");
    fence.map(|fence| &fence.0)
}

impl<M: Machine> Fence<M> for FileLock {
    fn file_state(&self) -> State {
        // What each fault stores to lies apart from what it reads.
        State::new(Line(RwLock::<M, ()>::new(())))
    }

    fn fault_fence<'f>(&self, file: &'f File<M>) -> Option<ReadGuard<'f, M, ()>> {
        fence(file).filter(|_| !Mutant::FaultNotFenced.is_on()).map(|fence| fence.read())
    }

    fn change_fence<'f>(&self, file: &'f File<M>) -> Option<WriteGuard<'f, M, ()>> {
        fence(file).filter(|_| !Mutant::ChangeNotFenced.is_on()).map(|fence| fence.write())
    }

    fn fault(&self, fault: &Fault<'_, M>) -> Result<Arc<Page<M>>, FaultError> {
        // The file's fence is held over all of it.
        adopted::fault_letting_go(fault)
    }

    // It needs no pause: its caller holds the fence for writing, and who adopts is a fault.
    fn unmap_for_good(&self, _: &File<M>, run: Range<u64>, unmap: &dyn Fn(Range<u64>)) {
        unmap(run);
    }
}
