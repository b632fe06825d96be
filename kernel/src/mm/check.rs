//! A checker for the invariants of page tables, for debug builds and tests.
//!
//! It walks what the hardware walks. Of base pages:
//!
//! * A leaf that is mapped lies in an area, and gives no right that the area does not.
//! * A counted page has at least one reference; a writable anonymous page has exactly one.
//! * The counters of resident pages and tables are what the tables say.
//! * A table that is shared since a fork is reached without the right to store, has a reference for this
//!   space, leaves of anonymous areas and files only, and no more pages than are noted for it.
//!
//! * An entry that leads to a table of a file is where one area covers all that the table shows, gives no right that the area does not, and
//!   leads to the file's table for these pages, which says what the file says.
//!
//! Of huge pages: a leaf or a shared table is only where an area of huge pages is, and what these lead to is what the file has
//! there, see `hugetlb::Mapping::check`. Of regions: all of one is attached where an area says so, with the rights of that area.

use alloc::string::String;
use core::sync::atomic::{AtomicU64, Ordering};

use super::entry::Entry;
use super::fork_files::Note;
use super::space::AddressSpace;
use super::tables::{ENTRIES, Resident, entries, span};
use super::vma::{Kind, VmFlags, Vma, VmaSet};
use crate::memory::PhysAddr;
use crate::memory::frame::{Frame, FrameState, Use, state_of};

impl AddressSpace {
    /// What is wrong with the tables, if anything is.
    pub fn check(&self) -> Result<(), String> {
        let areas = self.read();
        if areas.set.known_gaps().is_some_and(|gaps| !gaps.matches(areas.set.iter())) {
            return Err("the gaps are not what the areas leave free".into());
        }
        let tables = self.tables.lock();
        let mut found = Found::default();
        check_level(&areas.set, tables.root(), 4, 0, &mut found)?;
        let counted = tables.resident;
        let seen = found.resident;
        if (counted.anonymous, counted.file, counted.shmem) != (seen.anonymous, seen.file, seen.shmem) {
            return Err(alloc::format!("resident pages: counted {counted:?}, found {seen:?}"));
        }
        if tables.forked != found.forked {
            return Err(alloc::format!("shared tables: counted {}, found {}", tables.forked, found.forked));
        }
        if tables.count != found.tables {
            return Err(alloc::format!("tables: counted {}, found {}", tables.count, found.tables));
        }
        Ok(())
    }

    /// As [`AddressSpace::check`], and what huge pages lead to. `round` gets to know what was found.
    pub fn check_huge(&self, round: &mut crate::hugetlb::CheckRound) -> Result<(), String> {
        self.check()?;
        let areas = self.read();
        for vma in areas.set.iter() {
            match &vma.kind {
                Kind::Huge(huge) => huge.check(round)?,
                _ => self.check_windows(vma)?,
            }
            if let Kind::Region(region) = &vma.kind {
                region.check_complete(self, vma)?;
            }
        }
        Ok(())
    }
}

/// Checks a huge leaf, or the entry of a table that address spaces share. The page-table lock is held, which keeps this CPU from a
/// quiescent point: a table that the entry named is not freed meanwhile.
fn check_huge_entry(set: &VmaSet, slot: &AtomicU64, level: u32, address: u64) -> Result<(), String> {
    let entry = Entry(slot.load(Ordering::SeqCst));
    if !entry.is_present() {
        return Ok(());
    }
    if let Some(vma) = set.find(address)
        && let Kind::Region(region) = &vma.kind
    {
        return region.check_entry(vma, level, address, entry);
    }
    // Areas that have no page yet may lie in the slot as well, at its beginning too: whose table it is, is not told by the address.
    // Not so as to give way: the page-table lock is held.
    let areas = || set.overlapping_at_once(address..address + span(level));
    let mut wrong = None;
    if entry.leads_to_shared(level) {
        for checked in
            areas().filter(|vma| !vma.is_huge()).filter_map(|vma| check_window(vma, entry, level, address))
        {
            match checked {
                Ok(()) => return Ok(()),
                Err(error) => wrong = Some(error),
            }
        }
    }
    if !areas().any(|vma| vma.is_huge()) {
        if let Some(error) = wrong {
            return Err(error);
        }
        return Err(alloc::format!(
            "invariant 6: a huge page or a shared table where no huge pages are mapped: entry {:#x} of level {level} at {address:#x}",
            entry.0
        ));
    }
    // The allocator of frames knows nothing of the library, and the library nothing of it: what both say is likely true.
    let state = state_of(entry.address().page_number());
    let right = match entry.has(Entry::HUGE) {
        true => matches!(state, FrameState::Huge { .. }),
        false => matches!(state, FrameState::Used { by: Use::PageTable, references: 1 }),
    };
    // A page that a hole punch has just taken away may be free by now, but then its entry has gone before.
    if !right && slot.load(Ordering::SeqCst) == entry.0 {
        let which = if entry.has(Entry::HUGE) { "2: a mapped page" } else { "4: a table in use" };
        return Err(alloc::format!(
            "invariant {which} is {state:?}: entry {:#x} of level {level} at {address:#x}",
            entry.0
        ));
    }
    Ok(())
}

/// Checks an entry that leads an area of base pages to a table of its file. `None` if the area has no window there.
fn check_window(vma: &Vma, entry: Entry, level: u32, address: u64) -> Option<Result<(), String>> {
    let checked = vma.check_window(entry.address(), level, address, false)?;
    let flags = vma.flags;
    if !flags.intersects(VmFlags::ACCESS)
        || entry.has(Entry::WRITABLE) && !flags.contains(VmFlags::WRITE)
        || !entry.has(Entry::NO_EXECUTE) && !flags.contains(VmFlags::EXEC)
    {
        return Some(Err(alloc::format!(
            "invariant 3: a table of a file with rights that the area does not have: entry {:#x} of level {level} at {address:#x}",
            entry.0
        )));
    }
    Some(checked)
}

#[derive(Default)]
struct Found {
    resident: Resident,
    tables: u64,
    forked: u64,
}

fn check_level(
    set: &VmaSet,
    table: PhysAddr,
    level: u32,
    base: u64,
    found: &mut Found,
) -> Result<(), String> {
    let count = if level == 4 { ENTRIES / 2 } else { ENTRIES };
    // SAFETY: the page-table lock is held for `tables`, so no table goes away.
    let slots = unsafe { entries(table) };
    for (index, slot) in slots.iter().take(count).enumerate() {
        let entry = Entry(slot.load(Ordering::SeqCst));
        let address = base + index as u64 * span(level);
        if entry.is_forked(level) {
            check_forked(set, entry, address, found)?;
            continue;
        }
        if level > 1 {
            if entry.is_end(level) {
                check_huge_entry(set, slot, level, address)?;
                continue;
            }
            found.tables += 1;
            check_level(set, entry.address(), level - 1, address, found)?;
            continue;
        }
        if !entry.is_mapped() {
            if entry.without(Entry::USERFAULT_WP | Entry::POISON).0 != 0 {
                return Err(alloc::format!(
                    "entry {:#x} at {address:#x} is neither empty nor mapped",
                    entry.0
                ));
            }
            continue;
        }
        check_leaf(set, entry, address)?;
        found.resident.add(entry);
    }
    Ok(())
}

/// Checks a table that address spaces share since a fork, and to which `above` leads.
fn check_forked(set: &VmaSet, above: Entry, base: u64, found: &mut Found) -> Result<(), String> {
    let bad = |what: &str| Err(alloc::format!("{what}: entry {:#x} of level 2 at {base:#x}", above.0));
    found.forked += 1;
    if above.has(Entry::WRITABLE) {
        return bad("a table is shared since a fork, and may be stored through");
    }
    match state_of(above.address().page_number()) {
        FrameState::Used { by: Use::PageTable, references } if references > 0 => {}
        _ => return bad("a table that is shared since a fork is none"),
    }
    let note = Note::at(above.address());
    let mut seen = Resident::default();
    // SAFETY: the page-table lock is held, and the entry keeps the table.
    for (index, slot) in unsafe { entries(above.address()) }.iter().enumerate() {
        let entry = Entry::load(slot);
        let address = base + index as u64 * span(1);
        if entry.0 == 0 {
            continue;
        }
        let checked = match set.find(address) {
            _ if entry.is_marker() => bad("a marker in a table that is shared since a fork"),
            Some(vma) if matches!(vma.kind, Kind::Anonymous) => check_leaf(set, entry, address),
            Some(vma) if note.is_mixed() && matches!(vma.kind, Kind::File(_)) => {
                check_leaf(set, entry, address)
            }
            _ => bad("a shared table shows more than anonymous areas and files"),
        };
        // Another space that copies the table takes the right to store from a leaf before it takes a
        // reference to the page.
        if checked.is_err() && Entry::load(slot).0 == entry.0 {
            return checked;
        }
        seen.add(entry);
    }
    let noted = note.pages();
    // Pages may have left a file since.
    let (least, most) = (if note.is_mixed() { 0 } else { noted.total() }, noted.total());
    if !(least..=most).contains(&seen.total()) {
        return bad("a shared table has another number of pages than is noted");
    }
    found.resident.add_all(&noted);
    Ok(())
}

fn check_leaf(set: &VmaSet, entry: Entry, address: u64) -> Result<(), String> {
    let bad = |what: &str| Err(alloc::format!("{what}: entry {:#x} at {address:#x}", entry.0));
    let Some(vma) = set.find(address) else { return bad("a page outside of all areas") };
    if entry.is_present() && !vma.flags.intersects(VmFlags::ACCESS) {
        return bad("a page that PROT_NONE does not keep away");
    }
    if entry.has(Entry::WRITABLE) && !vma.flags.contains(VmFlags::WRITE) {
        return bad("a writable page in an area that is not");
    }
    if entry.is_present() && !entry.has(Entry::NO_EXECUTE) && !vma.flags.contains(VmFlags::EXEC) {
        return bad("an executable page in an area that is not");
    }
    if entry.owns_frame() {
        let users = Frame::count_at(entry.address());
        if users == 0 {
            return bad("a page without a reference");
        }
        let private = entry.has(Entry::ANON | Entry::WRITABLE);
        // A reader from outside may hold a reference for a moment, but never under this lock.
        if private && users != 1 {
            return bad("a writable private page that is shared");
        }
    }
    if entry.has(Entry::ANON) && vma.flags.contains(VmFlags::SHARED) {
        return bad("a private page in a shared area");
    }
    if matches!(vma.kind, Kind::Special(_)) != entry.has(Entry::SPECIAL)
        && !matches!(vma.kind, Kind::Anonymous)
    {
        return bad("a page of the wrong kind");
    }
    Ok(())
}
