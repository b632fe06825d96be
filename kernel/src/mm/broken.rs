//! MADV_HWPOISON and MADV_SOFT_OFFLINE: memory that counts as broken, and memory that is left before it breaks.
//!
//! Huge pages are the library's affair, which knows who maps them. Who has an anonymous page is found by looking: every address space is
//! asked for the page at the same address, which is where a fork leaves it. Who has it elsewhere (mremap(2) after a fork), or holds it
//! and is no process (a pipe), keeps it, and the caller is told so: a page is moved only while each reference to it is known.

use core::cell::Cell;
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use linux_raw_sys::general as abi;

use super::PAGE;
use super::entry::Entry;
use super::fault::{Access, FaultError, copy_page};
use super::gather::Gather;
use super::space::AddressSpace;
use super::vma::Kind;
use crate::errno::{Errno, Result};
use crate::memory::broken;
use crate::memory::frame::Frame;
use crate::signal::{self, SigInfo};
use crate::sync::Mutex;
use crate::{process, sched};

/// `vm.enable_soft_offline`.
pub static SOFT_OFFLINE: AtomicBool = AtomicBool::new(true);

impl AddressSpace {
    /// The pages of a range break, or (`soft`) are moved to other memory; the memory that they had is never used again. A caller who
    /// breaks a page that he maps gets the signal of an access to it.
    pub(super) fn advise_broken(&self, range: Range<u64>, soft: bool) -> Result<()> {
        if !process::current().credentials().capable(abi::CAP_SYS_ADMIN) {
            return Err(Errno::EPERM);
        }
        let mut at = range.start;
        while at < range.end {
            // The first address of a huge page need not be the page's.
            at += self.break_at(at, soft)?;
            sched::cond_resched();
        }
        Ok(())
    }

    /// Breaks or moves the page at an address. Returns its size.
    fn break_at(&self, at: u64, soft: bool) -> Result<u64> {
        loop {
            self.fault(at, Access::Read).map_err(|error| match error {
                FaultError::OutOfMemory => Errno::ENOMEM,
                _ => Errno::EFAULT,
            })?;
            // Relaxed: a setting of its own.
            if soft && !SOFT_OFFLINE.load(Ordering::Relaxed) {
                return Err(Errno::EOPNOTSUPP);
            }
            let (done, size) = {
                let areas = self.read();
                let vma = areas.set.find(at).ok_or(Errno::EFAULT)?;
                let done = match &vma.kind {
                    Kind::Huge(huge) if soft => Some(huge.replace_page(at)?),
                    Kind::Huge(huge) => Some(huge.break_page(at)?),
                    Kind::Anonymous => None,
                    // A page of the file's own stays.
                    Kind::File(_) if self.tables.lock().leaf(at).has(Entry::ANON) => None,
                    Kind::File(_) => return Err(Errno::EBUSY),
                    Kind::Special(_) | Kind::Region(_) => return Err(Errno::EBUSY),
                };
                (done, vma.page_size())
            };
            // Without the areas lock: it takes those of all others.
            let is_done = match done {
                Some(is_done) => is_done,
                None => self.break_anonymous(at, soft)?,
            };
            if is_done {
                if !soft {
                    signal::force_signal(SigInfo::poison(at, size.trailing_zeros()));
                }
                return Ok(size);
            }
            // Another thread took the page away: the next access says what there is.
            self.check_killed()?;
        }
    }

    fn check_killed(&self) -> Result<()> {
        sched::cond_resched();
        if process::current().kill_pending() { Err(Errno::EINTR) } else { Ok(()) }
    }

    /// Breaks or moves the anonymous page at an address, for all who have it. False when there is no page; `EBUSY` when it is no
    /// anonymous one, or somebody has it whom this does not find.
    fn break_anonymous(&self, at: u64, soft: bool) -> Result<bool> {
        let frame = {
            let tables = self.tables.lock();
            let _kept = tables.keep_shared(at);
            let entry = tables.leaf(at);
            if !entry.is_mapped() {
                return Ok(false);
            }
            if !entry.has(Entry::ANON) || !entry.owns_frame() {
                return Err(Errno::EBUSY);
            }
            // SAFETY: under the lock the entry's reference does not go away.
            unsafe { Frame::share_raw(entry.address()) }
        };
        if soft { self.move_anonymous(at, frame) } else { self.lose_anonymous(at, frame) }
    }

    /// Takes the page from all who have it. The caller has the signal of an access even if somebody keeps it.
    fn lose_anonymous(&self, at: u64, frame: Frame) -> Result<bool> {
        let taken = self.take_from_all(at, &frame);
        // Some have lost it: it is broken, whatever kept the walk from the others.
        let is_held = taken.is_err() || frame.count() != 1;
        lose(frame);
        if is_held {
            signal::force_signal(SigInfo::poison(at, PAGE.trailing_zeros()));
            return Err(taken.err().unwrap_or(Errno::EBUSY));
        }
        Ok(true)
    }

    fn take_from_all(&self, at: u64, frame: &Frame) -> Result<()> {
        loop {
            let mut found = false;
            for process in process::processes() {
                if let Some(space) = process.mm() {
                    found |= space.part_with(at, frame)?;
                }
                self.check_killed()?;
            }
            // Race: who was asked already got it again by a fork of who was not.
            if frame.count() == 1 || !found {
                return Ok(());
            }
        }
    }

    /// Gives all who have the page another one with the same content.
    fn move_anonymous(&self, at: u64, frame: Frame) -> Result<bool> {
        /// A fault has the page for a moment, or a fork makes it another's: as often as Linux tries.
        const TRIES: usize = 10;
        let next = Successor::new(Frame::alloc(frame.used_for()).ok_or(Errno::ENOMEM)?);
        // The stamps of a walk are one walk's.
        let mut walks = WALKS.lock();
        for _ in 0..TRIES {
            // How many have it, before anything is changed. Ours is one reference.
            let mut references = 1;
            *walks += 1;
            for process in process::processes() {
                self.check_killed()?;
                // Relaxed: who has the lock alone asks.
                if let Some(space) = process.mm()
                    && space.walk.swap(*walks, Ordering::Relaxed) != *walks
                    && space.has_alone(at, &frame)?
                {
                    references += 1;
                }
            }
            for process in process::processes() {
                self.check_killed()?;
                let Some(space) = process.mm() else { continue };
                match space.exchange(at, &frame, &next, references)? {
                    Exchanged::Done => references -= 1,
                    Exchanged::NotThere => {}
                    Exchanged::Held => break,
                }
            }
            if frame.count() == 1 {
                lose(frame);
                return Ok(true);
            }
        }
        // Of several who shared it since a fork some may have the other one by now: both say the same.
        Err(Errno::EBUSY)
    }

    /// Whether the anonymous page is at this address. The table is the space's own then, and the entry a reference of its own.
    fn has_alone(&self, at: u64, page: &Frame) -> Result<bool> {
        let _areas = self.read();
        if !leads_to(self.tables.lock().leaf(at), page) {
            return Ok(false);
        }
        self.own_window(at).map_err(|_| Errno::ENOMEM)?;
        Ok(leads_to(self.tables.lock().leaf(at), page))
    }

    /// Takes an anonymous page out, if it is at this address: an access meets poison from now on. Returns whether the page was there.
    fn part_with(&self, at: u64, page: &Frame) -> Result<bool> {
        // Forks of this space wait.
        let _areas = self.read();
        if !leads_to(self.tables.lock().leaf(at), page) {
            return Ok(false);
        }
        self.own_window(at).map_err(|_| Errno::ENOMEM)?;
        let mut gather = Gather::new(self);
        let mut tables = self.tables.lock();
        let Some(slot) = tables.own_leaf(at).map_err(|_| Errno::EBUSY)? else { return Ok(false) };
        if !leads_to(Entry::load(slot), page) {
            return Ok(false);
        }
        let old = Entry(slot.swap(Entry::POISON, Ordering::SeqCst));
        tables.resident.remove(old);
        // SAFETY: the entry owned this reference, and is gone.
        gather.page(at, unsafe { Frame::from_raw(old.address()) });
        drop(tables);
        Ok(true)
    }

    /// Puts the successor in the place of an anonymous page, if that is at this address and has so many references.
    fn exchange(&self, at: u64, page: &Frame, next: &Successor, references: u32) -> Result<Exchanged> {
        // Forks of this space wait.
        let _areas = self.read();
        if !leads_to(self.tables.lock().leaf(at), page) {
            return Ok(Exchanged::NotThere);
        }
        let mut gather = Gather::new(self);
        let tables = self.tables.lock();
        // A fork since `has_alone` has made the table several spaces'.
        let Ok(slot) = tables.own_leaf(at) else { return Ok(Exchanged::Held) };
        let Some(slot) = slot.filter(|slot| leads_to(Entry::load(slot), page)) else {
            return Ok(Exchanged::NotThere);
        };
        // As a copy on write: empty first, flush, and nobody stores to the old page any more. One that several have is stored to by
        // nobody: our reference, too, makes each store a copy.
        let old = Entry(slot.swap(0, Ordering::SeqCst));
        gather.flush_range(at..at + PAGE);
        gather.flush();
        // Only now nobody gets it by this entry. Who has it beside those that were counted may store to it, or wait for stores.
        if page.count() != references {
            slot.store(old.0, Ordering::SeqCst);
            return Ok(Exchanged::Held);
        }
        next.copy_once(page);
        let bits = old.0 ^ old.address().0;
        slot.store(Entry::new(next.page.clone().into_raw(), bits).0, Ordering::SeqCst);
        // SAFETY: the entry owned this reference, and leads elsewhere.
        gather.page(at, unsafe { Frame::from_raw(old.address()) });
        drop(tables);
        Ok(Exchanged::Done)
    }
}

/// How a page fared in one address space.
enum Exchanged {
    Done,
    NotThere,
    /// Somebody has it whom the walk did not count.
    Held,
}

/// A page in the place of another.
struct Successor {
    page: Frame,
    is_copied: Cell<bool>,
}

impl Successor {
    fn new(page: Frame) -> Self {
        Self { page, is_copied: Cell::new(false) }
    }

    /// Copies the content, if that is not done. It stays what it is: with our reference each store makes a copy, but for a page that one
    /// space has alone.
    fn copy_once(&self, from: &Frame) {
        if !self.is_copied.replace(true) {
            copy_page(&self.page, from);
        }
    }
}

/// How many walks there were; who has the lock walks.
static WALKS: Mutex<u64> = Mutex::new(0);

/// Does the entry lead to this anonymous page?
fn leads_to(entry: Entry, page: &Frame) -> bool {
    entry.is_mapped() && entry.has(Entry::ANON) && entry.address() == page.phys()
}

/// Keeps a page from everybody who could get it.
fn lose(page: Frame) {
    broken::note(page.phys());
    // This reference keeps it out of the allocator for ever.
    page.into_raw();
}
