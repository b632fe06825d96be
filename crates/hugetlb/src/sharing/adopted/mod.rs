//! Tables that mappings adopt from one another: what `unfenced`, `file-lock` and `vma-lock` have in common.
//!
//! A mapping that faults in an empty slot which it covers wholly adopts the table of a partner: another mapping of the
//! file that has one for the same part, congruent modulo 1 GiB and with the same permissions. From then on their faults
//! fill one table.
//!
//! * A [`Table`] counts the mappings attached to it, and nothing else; the count rises from 1 or more only. A mapping that
//!   detaches clears its PUD entry, flushes its TLBs, and only *then* is counted out. So a count of 1 means that no
//!   other TLB holds anything of the table.
//! * Entries of a table that several mappings are attached to are added (under the fault mutex of their index) but never
//!   changed or taken away. Whoever wants to change entries detaches; or, when it is alone, *closes* the table to newcomers,
//!   changes them in place, flushes, and opens it again.
//! * The last that is counted out takes the entries down and retires the frame.

mod state;
mod table;

use core::ops::Range;

use filetables::{Entry, EntryValue, Format, Level, Protection, Slot, Space};

use state::{AreaState, FileState, Waiting, area_state, file_state};
use table::Table;

use super::{Batch, Change, Fault, Protocol, Purpose, next_slot, publish, seam};
use crate::addr::{PageIndex, VirtAddr};
use crate::area::{Area, Exclusive, Placement};
use crate::error::{FaultError, OutOfMemory};
use crate::file::File;
use crate::machine::Machine;
use crate::mutant::Mutant;
use crate::pool::Page;
use crate::range_list::Search;
use crate::state::State;
use crate::stats::Fallback;
use crate::sync::{Arc, Ordering, ReadGuard, WriteGuard};

/// What keeps a fault from writing into a table that its mapping has lost: all that the protocols with adopted tables
/// differ in.
pub(super) trait Fence<M: Machine>: Send + Sync {
    /// What the fence keeps with each file.
    fn file_state(&self) -> State;

    /// See [`Protocol::fault_fence`].
    fn fault_fence<'f>(&self, file: &'f File<M>) -> Option<ReadGuard<'f, M, ()>>;

    /// See [`Protocol::change_fence`].
    fn change_fence<'f>(&self, file: &'f File<M>) -> Option<WriteGuard<'f, M, ()>>;

    /// See [`Protocol::fault`].
    fn fault(&self, fault: &Fault<'_, M>) -> Result<Arc<Page<M>>, FaultError>;

    /// See [`Protocol::unmap_for_good`].
    fn unmap_for_good(&self, file: &File<M>, run: Range<u64>, unmap: &dyn Fn(Range<u64>));
}

/// A protocol with adopted tables.
pub(super) struct Adopted<F>(pub(super) F);

impl<M: Machine, F: Fence<M>> Protocol<M> for Adopted<F> {
    fn file_state(&self) -> State {
        State::new(FileState::<M>::new(self.0.file_state()))
    }

    fn area_state(&self) -> State {
        State::new(AreaState::<M>::new())
    }

    fn fault_fence<'f>(&self, file: &'f File<M>) -> Option<ReadGuard<'f, M, ()>> {
        self.0.fault_fence(file)
    }

    fn change_fence<'f>(&self, file: &'f File<M>) -> Option<WriteGuard<'f, M, ()>> {
        self.0.change_fence(file)
    }

    fn fault(&self, fault: &Fault<'_, M>) -> Result<Arc<Page<M>>, FaultError> {
        self.0.fault(fault)
    }

    /// Notes of a new mapping what of it cannot share.
    fn attach(&self, file: &File<M>, area: &Arc<Area<M>>, placement: &Placement) {
        if area.is_listed() {
            return;
        }
        let last = placement.start + ((placement.pages - 1) << file.page_size().shift());
        let ends = [placement.start, last].map(|address| area.extent(placement).slot(address, Level::Pud));
        let is_one = ends[0] == ends[1];
        let partial = ends.iter().flatten().skip(usize::from(is_one)).filter(|slot| !slot.whole).count();
        file.hugetlb().counters().fall_back(Fallback::NotCovered, partial as u64);
    }

    /// Partners are found by the list.
    fn lists_all(&self) -> bool {
        true
    }

    fn prepare_change(
        &self,
        area: &Area<M>,
        placement: &Exclusive<'_, M>,
        address: VirtAddr,
        purpose: Purpose,
        batch: &mut Batch<'_, M>,
    ) -> (Change, Option<VirtAddr>) {
        let change = match whole_slot(area, placement, address) {
            Some(slot) => prepare_change(area, placement, &slot, purpose, batch),
            None => Change::Host,
        };
        (change, next_slot(address))
    }

    fn leave_cut_slot(
        &self,
        area: &Area<M>,
        placement: &Exclusive<'_, M>,
        at: VirtAddr,
        batch: &mut Batch<'_, M>,
    ) -> bool {
        let cut = whole_slot(area, placement, at).filter(|slot| slot.address != at);
        if let Some(slot) = cut {
            let change = prepare_change(area, placement, &slot, Purpose::Leave, batch);
            debug_assert!(!matches!(change, Change::InPlace(_)), "the table was to be given up");
        }
        false
    }

    fn split(&self, lower: &Area<M>, _: &Exclusive<'_, M>, from: u64, upper: &Area<M>) {
        if let (Some(lower), Some(upper)) = (area_state(lower), area_state(upper)) {
            lower.split(PageIndex(from), upper);
        }
    }

    /// Adopted tables are for whole slots, in which nothing else can be.
    fn leave_slot(
        &self,
        _: &Area<M>,
        _: &Exclusive<'_, M>,
        _: VirtAddr,
        _: &mut Batch<'_, M>,
    ) -> Result<bool, OutOfMemory> {
        Ok(false)
    }

    fn unmap_for_good(&self, file: &File<M>, run: Range<u64>, unmap: &dyn Fn(Range<u64>)) {
        self.0.unmap_for_good(file, run, unmap);
    }

    fn table(&self, area: &Area<M>, first: u64) -> Option<seam::Table> {
        let table = area_state(area)?.table(PageIndex(first))?;
        Some(seam::Table { frame: table.frame(), sharers: table.sharers() })
    }
}

/// Where a fault is to write its leaf.
pub(super) enum Target<'f, M: Machine> {
    /// Into a table of the library, at an entry.
    Shared(&'f M, Arc<Table<M>>, usize),
    /// Into an entry of a table of the host.
    Host(&'f Entry, Protection),
}

impl<M: Machine> Target<'_, M> {
    /// Writes the leaf, unless a sharer has. What keeps the target from going meanwhile is the protocol's business.
    pub(super) fn publish(&self, page: &Page<M>) {
        match self {
            Target::Shared(machine, table, entry) => {
                publish::<M>(&table.entries(*machine)[*entry], page, table.protection());
            }
            Target::Host(entry, protection) => publish::<M>(entry, page, *protection),
        }
    }
}

/// The slot of a PUD entry around an address, if the mapping covers all of it with pages of 2 MiB.
fn whole_slot<M: Machine>(area: &Area<M>, placement: &Placement, address: VirtAddr) -> Option<Slot> {
    area.extent(placement).slot(address, Level::Pud).filter(|slot| slot.whole)
}

/// A fault that lets go of its mapping before it clears the page (long), and writes into the table that it found before. What keeps
/// the table meanwhile, if anything, is the protocol's business.
pub(super) fn fault_letting_go<M: Machine>(fault: &Fault<'_, M>) -> Result<Arc<Page<M>>, FaultError> {
    let target = {
        let placement = fault.lock_mapping()?;
        find_target(fault, &placement)?
    };
    let page = fault.page()?;
    target.publish(&page);
    Ok(page)
}

/// The place for the leaf of a fault; attaches the mapping to a table on need.
pub(super) fn find_target<'f, M: Machine>(
    fault: &Fault<'f, M>,
    placement: &Placement,
) -> Result<Target<'f, M>, FaultError> {
    let sharable = whole_slot(fault.area, placement, fault.address).filter(|_| !fault.area.is_unshared());
    let table = match sharable {
        Some(slot) => table_for_fault(fault.file, fault.area, &slot, placement.protection)?,
        None => None,
    };
    let entry = Level::Pmd.index(fault.address);
    Ok(match table {
        Some(table) => Target::Shared(fault.file.hugetlb().machine(), table, entry),
        None => Target::Host(fault.host_entry()?, fault.permitted(placement.protection)),
    })
}

/// The table of a slot; `None` when the host has one there.
fn table_for_fault<M: Machine>(
    file: &File<M>,
    area: &Area<M>,
    slot: &Slot,
    protection: Protection,
) -> Result<Option<Arc<Table<M>>>, FaultError> {
    let (Some(of_file), Some(of_area)) = (file_state(file), area_state(area)) else { return Ok(None) };
    let first = PageIndex(slot.window.first);
    if let Some(table) = of_area.table(first) {
        return Ok(Some(table));
    }
    // Two first faults, in one process or in two, must not make two tables for one part of the file. Only a slot's
    // first fault in a process comes here.
    let attach = of_file.attach.lock();
    if let Some(table) = of_area.table(first).filter(|_| !Mutant::SlotNotLookedAtAgain.is_on()) {
        return Ok(Some(table));
    }
    let counters = file.hugetlb().counters();
    let entry = area.space().entry(slot.address, slot.level)?.ok_or(FaultError::SlotShared)?;
    // Acquire: pairs with the host's release when it installs a table of its own.
    if M::Format::is_present(entry.load(Ordering::Acquire)) {
        counters.fall_back(Fallback::Occupied, 1);
        return Ok(None);
    }
    let room = AreaState::room(file.hugetlb().machine(), first)?;
    let partner = if attach.may_adopt() { adopt(file, area, first, protection) } else { None };
    let is_adopted = partner.is_some();
    let table = match partner {
        Some(table) => table,
        None => {
            let frame = file.hugetlb().machine().allocate_table().ok_or(OutOfMemory)?;
            counters.tables.add(1);
            Arc::new(Table::new(frame, first, protection))
        }
    };
    counters.shares.add(u64::from(is_adopted));
    counters.attachments.add(1);
    counters.reached.add(1);
    // Release: a walker that follows the entry finds the table's content.
    entry.store(M::Format::managed(table.frame(), Protection::all()), Ordering::Release);
    // Behind the entry: else a fault that finds the table here resolves nothing, and comes again until the entry is there.
    of_area.set(room, table.clone());
    Ok(Some(table))
}

/// A partner's table, with this mapping counted in already.
fn adopt<M: Machine>(
    file: &File<M>,
    area: &Area<M>,
    first: PageIndex,
    protection: Protection,
) -> Option<Arc<Table<M>>> {
    let search = Search { indices: first.0..first.0 + 1, ages: 0..u64::MAX };
    file.mappings().read().find(&search, None, |_, other| {
        // The partner may be detaching just now. It is counted out only after its flush, and `adopt` refuses a count of 0:
        // what we get is alive and stays so.
        let table = if other.id() == area.id() { None } else { area_state(other)?.table(first) };
        table.filter(|table| table.adopt(protection))
    })
}

/// Gives the table of a slot up, or keeps others out of it while its entries change.
fn prepare_change<M: Machine>(
    area: &Area<M>,
    _: &Exclusive<'_, M>,
    slot: &Slot,
    purpose: Purpose,
    batch: &mut Batch<'_, M>,
) -> Change {
    let first = PageIndex(slot.window.first);
    let Some(state) = area_state(area) else { return Change::Host };
    let Some(table) = state.table(first) else { return Change::Host };
    if purpose != Purpose::Leave && table.close() {
        if let Purpose::Protect(protection) = purpose {
            table.set_protection(protection);
        }
        let frame = table.frame();
        batch.later(|waiting: &mut Waiting<M>| waiting.closed.push(table));
        return Change::InPlace(frame);
    }
    state.take(first);
    if let Some(entry) = area.space().find_entry(slot.address, slot.level) {
        // From here the hardware cannot walk into the table any more; what TLBs still hold goes with the batch's flush,
        // and the table counts this mapping until then.
        if !Mutant::UpperEntryKept.is_on() {
            entry.store(EntryValue::default(), Ordering::Release);
        }
    }
    batch.later(|waiting: &mut Waiting<M>| waiting.released.push(table));
    batch.flush_tables(area, slot.address, slot.level);
    Change::Done
}

/// The walk visits mappings in turn. Without the pause a mapping behind the walker could adopt the table of one before it,
/// with the entry still in.
pub(super) fn unmap_for_good<M: Machine>(file: &File<M>, run: Range<u64>, unmap: &dyn Fn(Range<u64>)) {
    let state = file_state(file).filter(|_| !Mutant::AdoptedDuringRemoval.is_on());
    // Taken alone: a mapping that holds the mutex holds its own lock too, for which the walk waits.
    if let Some(state) = state {
        state.attach.lock().pause();
    }
    unmap(run);
    if let Some(state) = state {
        state.attach.lock().resume();
    }
}

/// What the fence keeps with a file.
pub(super) fn fence<M: Machine>(file: &File<M>) -> Option<&State> {
    Some(&file_state(file)?.fence)
}
