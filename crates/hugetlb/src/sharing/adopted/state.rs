//! What the protocols with adopted tables keep: with a file, with a mapping, and until a flush.

use alloc::vec::Vec;

use summary_tree::SummaryTree;

use super::table::Table;
use crate::addr::PageIndex;
use crate::area::Area;
use crate::error::OutOfMemory;
use crate::file::File;
use crate::machine::Machine;
use crate::sharing::Later;
use crate::sharing::batch::MOST_TABLES;
use crate::state::State;
use crate::sync::{Arc, Mutex, Spin};

/// Whether mappings may adopt tables just now.
pub(super) struct Attach {
    /// Removals of pages under way that must not see an entry come back by adoption.
    paused: usize,
}

impl Attach {
    /// Whether a mapping may adopt a partner's table.
    pub(super) fn may_adopt(&self) -> bool {
        self.paused == 0
    }

    /// From now on nobody adopts, until as many calls of [`Attach::resume`].
    pub(super) fn pause(&mut self) {
        self.paused += 1;
    }

    pub(super) fn resume(&mut self) {
        self.paused -= 1;
    }
}

/// What is kept with a file.
pub(super) struct FileState<M: Machine> {
    /// Serialises that mappings adopt tables.
    pub(super) attach: Mutex<M, Attach>,
    /// What the fence keeps.
    pub(super) fence: State,
}

impl<M: Machine> FileState<M> {
    pub(super) fn new(fence: State) -> FileState<M> {
        FileState { attach: Mutex::<M, _>::new(Attach { paused: 0 }), fence }
    }
}

/// Adopted tables by the file index at the start of their slot. An entry without a table is one outside of the tree.
type Tables<M> = SummaryTree<PageIndex, Option<Arc<Table<M>>>, ()>;
/// Memory for one of them.
pub(super) type Room<M> = summary_tree::Entry<PageIndex, Option<Arc<Table<M>>>, ()>;

/// What is kept with a mapping: its tables. They are added to under the file's attach mutex, removed from under the mapping
/// lock for writing.
pub(super) struct AreaState<M: Machine>(Spin<M, Tables<M>>);

impl<M: Machine> AreaState<M> {
    pub(super) fn new() -> AreaState<M> {
        AreaState(Spin::<M, _>::new(SummaryTree::new()))
    }

    /// The managed table of the slot with file index `first` at its start.
    pub(super) fn table(&self, first: PageIndex) -> Option<Arc<Table<M>>> {
        self.0.lock().get(&first).cloned().flatten()
    }

    /// Memory for the table of the slot with file index `first` at its start.
    pub(super) fn room(machine: &M, first: PageIndex) -> Result<Room<M>, OutOfMemory> {
        machine.take_step()?;
        Room::try_new(first, None).map_err(|_| OutOfMemory)
    }

    /// Sets the table of a slot that has none.
    pub(super) fn set(&self, mut room: Room<M>, table: Arc<Table<M>>) {
        room.change(|_, place| *place = Some(table));
        let added = self.0.lock().insert_entry(room);
        debug_assert!(added.is_ok(), "a slot has one table");
    }

    /// Takes the table of a slot out.
    pub(super) fn take(&self, first: PageIndex) -> Option<Arc<Table<M>>> {
        // Freed after the lock.
        let room = self.0.lock().remove_entry(&first);
        room?.into_pair().1
    }

    /// Moves the tables of the slots from an index on to another mapping.
    pub(super) fn split(&self, from: PageIndex, upper: &AreaState<M>) {
        let next = || {
            let mut tables = self.0.lock();
            let index = tables.find_from(&from, |index, _| Some(*index))?;
            tables.remove_entry(&index)
        };
        while let Some(room) = next() {
            let added = upper.0.lock().insert_entry(room);
            debug_assert!(added.is_ok(), "two mappings have no slot in common");
        }
    }
}

/// What is kept with a file.
pub(super) fn file_state<M: Machine>(file: &File<M>) -> Option<&FileState<M>> {
    let state = file.state().get();
    debug_assert!(state.is_some(), "the file is of another protocol");
    state
}

/// What is kept with a mapping.
pub(super) fn area_state<M: Machine>(area: &Area<M>) -> Option<&AreaState<M>> {
    let state = area.state().get();
    debug_assert!(state.is_some(), "the mapping is of another protocol");
    state
}

/// Tables that wait for a flush.
pub(super) struct Waiting<M: Machine> {
    /// They were detached from, and are to be counted out.
    pub(super) released: Vec<Arc<Table<M>>>,
    /// They were closed for a change in place, and are to be opened.
    pub(super) closed: Vec<Arc<Table<M>>>,
}

impl<M: Machine> Default for Waiting<M> {
    fn default() -> Waiting<M> {
        Waiting { released: Vec::new(), closed: Vec::new() }
    }
}

impl<M: Machine> Later<M> for Waiting<M> {
    fn is_due(&self) -> bool {
        self.released.len() >= MOST_TABLES || self.closed.len() >= MOST_TABLES
    }

    fn flushed(&mut self, file: &File<M>) {
        self.released.drain(..).for_each(|table| table.release(file));
    }

    fn changed(&mut self) {
        self.closed.drain(..).for_each(|table| table.open());
    }
}
