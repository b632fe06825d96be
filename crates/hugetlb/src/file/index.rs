//! The fault mutexes of page indices, as guards that other functions ask to see.
//!
//! A file has fault mutexes of its own, so a slow operation on one file never holds up a fault on another. They are made with
//! the file's first page. Each has a cache line alone, and notes the page that a fault found last: the next fault on that page takes
//! no lock but the mutex, so CPUs that fault on different pages of a file store to no common line.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::Cell;
use core::ops::Range;

use filetables::REMOVED_AT_A_TIME;
use once_cell::race::OnceBox;

use super::File;
use crate::addr::PageIndex;
use crate::error::OutOfMemory;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::sync::{Arc, Line, Mutex, MutexGuard};

/// Fault mutexes of a file. The pages of a run have different ones.
const FAULT_MUTEXES: usize = 2 * REMOVED_AT_A_TIME as usize;

/// The page that the last fault found, with its index. While it stands here the content has it: who takes it out holds the mutex.
type Note<M> = Cell<Option<(PageIndex, Arc<Page<M>>)>>;

type Mutexes<M> = [Line<Mutex<M, Note<M>>>; FAULT_MUTEXES];

/// The fault mutexes of a file.
pub(crate) struct FaultMutexes<M: Machine>(OnceBox<Mutexes<M>>);

impl<M: Machine> FaultMutexes<M> {
    pub(super) fn new() -> FaultMutexes<M> {
        FaultMutexes(OnceBox::new())
    }

    fn get_or_make(&self) -> Result<&Mutexes<M>, OutOfMemory> {
        self.0.get_or_try_init(|| {
            let mut mutexes = Vec::new();
            mutexes.try_reserve_exact(FAULT_MUTEXES).map_err(|_| OutOfMemory)?;
            mutexes.resize_with(FAULT_MUTEXES, || Line(Mutex::<M, _>::new(Cell::new(None))));
            let mutexes: Result<Box<_>, _> = mutexes.into_boxed_slice().try_into();
            mutexes.map_err(|_| OutOfMemory)
        })
    }
}

/// The fault mutex of one page index of a file, held: faults on the page and the page's removal come one after the other.
///
/// What changes the content at an index asks for it, so that the compiler finds who forgot to lock.
pub(crate) struct IndexLock<'f, M: Machine> {
    index: PageIndex,
    note: MutexGuard<'f, M, Note<M>>,
}

impl<M: Machine> IndexLock<'_, M> {
    /// The index that is locked.
    pub(crate) fn index(&self) -> PageIndex {
        self.index
    }

    /// The page that is noted is not the content's any more.
    pub(crate) fn forget(&self) {
        self.note.set(None);
    }

    /// The file's page at the index.
    #[inline]
    pub(crate) fn page(&self, file: &File<M>) -> Option<Arc<Page<M>>> {
        match self.note.take() {
            Some((index, page)) if index == self.index => {
                self.note.set(Some((index, page.clone())));
                Some(page)
            }
            _ => self.look(file),
        }
    }

    /// The same, when another page is noted or none.
    #[inline(never)]
    fn look(&self, file: &File<M>) -> Option<Arc<Page<M>>> {
        let page = file.content().get(self.index.0)?;
        self.note.set(Some((self.index, page.clone())));
        Some(page)
    }
}

/// The fault mutexes of a run of pages, at most [`REMOVED_AT_A_TIME`]. Only a removal holds more than one, and the size lock
/// admits one removal at a time.
pub(crate) struct RunLock<'f, M: Machine> {
    run: Range<u64>,
    _mutexes: [Option<MutexGuard<'f, M, Note<M>>>; REMOVED_AT_A_TIME as usize],
}

impl<M: Machine> RunLock<'_, M> {
    /// The indices that are locked.
    pub(crate) fn run(&self) -> Range<u64> {
        self.run.clone()
    }
}

impl<M: Machine> File<M> {
    /// Takes the fault mutex of an index. Several indices share a mutex: a thread holds one at a time.
    ///
    /// # Errors
    ///
    /// [`OutOfMemory`] when the file has no page yet, and there is no memory for its mutexes.
    #[inline]
    pub(crate) fn lock_index(&self, index: PageIndex) -> Result<IndexLock<'_, M>, OutOfMemory> {
        let mutexes = self.fault_mutexes.get_or_make()?;
        Ok(IndexLock { index, note: mutexes[self.place(index.0)].0.lock() })
    }

    /// Takes the fault mutexes of a run of pages, and drops their notes; `None` when the file never had a page.
    pub(crate) fn lock_run(&self, run: Range<u64>) -> Option<RunLock<'_, M>> {
        let mutexes = self.fault_mutexes.0.get()?;
        let mut guards = [const { None }; REMOVED_AT_A_TIME as usize];
        for (guard, index) in guards.iter_mut().zip(run.clone()) {
            let mutex = mutexes[self.place(index)].0.lock();
            if !Mutant::NoteKept.is_on() {
                mutex.set(None);
            }
            *guard = Some(mutex);
        }
        Some(RunLock { run, _mutexes: guards })
    }

    fn place(&self, index: u64) -> usize {
        // A mutant that locks nothing locks another mutex.
        let index = if Mutant::IndexNotLocked.is_on() { self.hugetlb.next_id() } else { index };
        index as usize % FAULT_MUTEXES
    }
}
