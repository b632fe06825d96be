//! An area of an address space that maps huge pages: the library's mapping, and what keeps it alive.

use alloc::string::String;
use alloc::sync::Arc;
use core::ops::Range;

use ::hugetlb::Protection;
use ::hugetlb::{Access, FaultError, MapOptions, MapRequest, Mapping, Presence, VirtAddr};

use super::SpaceToken;
use super::file::HugeFile;
use super::machine::Kernel;
use super::{CheckRound, errno};
use crate::errno::{Errno, Result};
use crate::fs::File;
use crate::memory::{PAGE_SIZE, PhysAddr};
use crate::memory::{broken, reserve};
use crate::mm::fault::zero_page;
use crate::mm::shm::Attachment;
use crate::mm::{NoMemory, VmFlags};

/// Counts a shared mapping through which stores reach the file, as long as it lives.
struct Writable(Arc<HugeFile>);

impl Writable {
    fn new(file: &Arc<HugeFile>, flags: VmFlags) -> Option<Self> {
        flags.contains(VmFlags::SHARED | VmFlags::MAY_WRITE).then(|| {
            file.count_writable(true);
            Self(file.clone())
        })
    }
}

impl Drop for Writable {
    fn drop(&mut self) {
        self.0.count_writable(false);
    }
}

/// An area of huge pages.
pub struct HugeArea {
    mapping: Mapping<Kernel>,
    keeps: HugeLeftover,
    writable: Option<Writable>,
}

/// What is left of an area when its pages are unmapped: dropped without locks.
pub struct HugeLeftover {
    file: Arc<HugeFile>,
    opened: Option<Arc<File>>,
    attachment: Option<Attachment>,
}

impl HugeLeftover {
    /// What an area of `file` holds.
    pub fn new(file: Arc<HugeFile>, opened: Option<Arc<File>>, attachment: Option<Attachment>) -> Self {
        Self { file, opened, attachment }
    }

    fn duplicate(&self) -> Self {
        Self { file: self.file.clone(), opened: self.opened.clone(), attachment: self.attachment.clone() }
    }
}

fn protection(flags: VmFlags) -> Protection {
    let mut protection = Protection::empty();
    protection.set(Protection::READ, flags.contains(VmFlags::READ));
    protection.set(Protection::WRITE, flags.contains(VmFlags::WRITE));
    protection.set(Protection::EXECUTE, flags.contains(VmFlags::EXEC));
    protection
}

impl HugeArea {
    /// Maps `range` from byte `offset` of the file on.
    pub fn new(
        token: &mut SpaceToken,
        keeps: HugeLeftover,
        range: Range<u64>,
        offset: u64,
        flags: VmFlags,
    ) -> Result<Self> {
        let _library = reserve::library();
        let options = MapOptions {
            shared: flags.contains(VmFlags::SHARED),
            no_reserve: flags.contains(VmFlags::NO_RESERVE),
            protection: protection(flags),
        };
        let (start, length) = (VirtAddr(range.start), range.end - range.start);
        let file = &keeps.file;
        let request = MapRequest { start, length, offset, options };
        let mapping = file.content().map(token, request).map_err(errno)?;
        let writable = Writable::new(file, flags);
        Ok(Self { mapping, keeps, writable })
    }

    /// Gives the shared table in the slot of `address` up, if it has one there: a table of the address space takes its place. The
    /// areas lock is held.
    pub fn leave_slot(&self, address: u64) -> Result<(), NoMemory> {
        let _library = reserve::library();
        self.mapping.leave_slot(VirtAddr(address)).map(|_| ()).map_err(|_| NoMemory)
    }

    /// Something else has left the slot of `address`: the area shares a table there again, if it can. The areas lock is held for
    /// writing.
    pub fn settle(&self, address: u64) {
        let _library = reserve::library();
        self.mapping.settle(VirtAddr(address));
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> u64 {
        self.keeps.file.page_size()
    }

    /// What it maps.
    pub fn content(&self) -> &Arc<HugeFile> {
        &self.keeps.file
    }

    /// The open file that it maps; `None` for memory without a file.
    pub fn file(&self) -> Option<&Arc<File>> {
        self.keeps.opened.as_ref()
    }

    /// SysV: its hold on the segment.
    pub fn attachment(&self) -> Option<&Attachment> {
        self.keeps.attachment.as_ref()
    }

    /// What maps call it when it has no open file.
    pub fn name(&self) -> Option<String> {
        match (&self.keeps.opened, &self.keeps.attachment) {
            (Some(_), _) => None,
            (None, Some(attachment)) => Some(attachment.name()),
            (None, None) => Some("/anon_hugepage (deleted)".into()),
        }
    }

    /// Device and inode number of what it maps.
    pub fn id(&self) -> (u64, u64) {
        self.keeps.file.id()
    }
}

impl HugeArea {
    /// Ends the area at `at`, and returns the rest. `EINVAL` when that is not at a huge page.
    pub fn split_off(&mut self, at: u64) -> Result<Self> {
        let _library = reserve::library();
        let mapping = self.mapping.split(VirtAddr(at)).map_err(errno)?;
        let writable = self.writable.as_ref().map(|writable| {
            writable.0.count_writable(true);
            Writable(writable.0.clone())
        });
        Ok(Self { mapping, keeps: self.keeps.duplicate(), writable })
    }

    /// Unmaps everything, and returns what else the area held.
    pub fn unmap(self, token: &mut SpaceToken) -> HugeLeftover {
        let _library = reserve::library();
        let Self { mapping, keeps, writable } = self;
        mapping.unmap(token);
        drop(writable);
        keeps
    }

    /// Makes `address` accessible.
    pub fn fault(&self, address: u64, access: Access) -> Result<(), FaultError> {
        let _library = reserve::library();
        self.mapping.fault(VirtAddr(address), access)
    }

    /// Keeps the area out of tables that others share, for good; `ENOMEM`. The areas lock is held for writing.
    pub fn keep_unshared(&self) -> Result<()> {
        let _library = reserve::library();
        self.mapping.keep_unshared().map_err(|_| Errno::ENOMEM)
    }

    /// Withholds stores from the pages of `range`, or permits them. `EINVAL` unless that is of whole pages.
    pub fn withhold_stores(&self, range: Range<u64>, withhold: bool) -> Result<()> {
        let _library = reserve::library();
        self.mapping.withhold_stores(VirtAddr(range.start)..VirtAddr(range.end), withhold).map_err(errno)
    }

    /// Whether stores to the page of an address are withheld.
    pub fn is_withheld(&self, address: u64) -> bool {
        self.mapping.is_withheld(VirtAddr(address))
    }

    /// Whether this address space has an entry for the page of an address.
    pub fn is_resident(&self, address: u64) -> bool {
        self.mapping.is_resident(VirtAddr(address))
    }

    /// Poisons the page of an address, where there is no entry: false if there is one.
    pub fn poison(&self, address: u64) -> Result<bool> {
        let _library = reserve::library();
        self.mapping.poison(VirtAddr(address)).map_err(|_| Errno::ENOMEM)
    }

    /// The page of an address is not poisoned any more, unless it is broken.
    pub fn lift_poison(&self, address: u64) {
        self.mapping.lift_poison(VirtAddr(address));
    }

    /// The memory at an address is broken: accesses to its page fail from now on. False when there is no page.
    pub fn break_page(&self, address: u64) -> Result<bool> {
        let _library = reserve::library();
        self.mapping
            .break_page(VirtAddr(address), |frame| self.note_broken(frame, address))
            .map_err(|_| Errno::ENOMEM)
    }

    /// The page of an address moves to other memory, and what it had at the address is never used again. False when there is no page.
    pub fn replace_page(&self, address: u64) -> Result<bool> {
        let _library = reserve::library();
        let was_resident = self.mapping.is_resident(VirtAddr(address));
        let moved = self
            .mapping
            .replace_page(VirtAddr(address), |frame| self.note_broken(frame, address))
            .map_err(|_| Errno::ENOMEM)?;
        // Race: a hole punch may have taken the page since, and nobody is to get a fresh one for that.
        let is_there =
            matches!(self.mapping.presence(VirtAddr(address)), Presence::InFile | Presence::Copied);
        if moved && was_resident && is_there {
            // As Linux, where the entry leads to the new page at once. Otherwise the next access finds it.
            let _ = self.mapping.fault(VirtAddr(address), Access::Read);
        }
        Ok(moved)
    }

    fn note_broken(&self, frame: ::hugetlb::PhysAddr, address: u64) {
        broken::note(PhysAddr(frame.0 + (address & (self.page_size() - 1))));
    }

    /// Whether the page of an address is poisoned.
    pub fn is_poisoned(&self, address: u64) -> bool {
        self.mapping.is_poisoned(VirtAddr(address))
    }

    /// What a fault at an address would find.
    pub fn presence(&self, address: u64) -> Presence {
        self.mapping.presence(VirtAddr(address))
    }

    /// The frame of a private mapping's own page, whether it has an entry or not.
    pub fn copy_at(&self, address: u64) -> Option<PhysAddr> {
        if self.presence(address) != Presence::Copied {
            return None;
        }
        let _library = reserve::library();
        let frame = self.mapping.inspect(VirtAddr(address), |frame| frame).ok().flatten();
        frame.map(|frame| PhysAddr(frame.0))
    }

    /// Whether the file has a page at an address, whether the mapping has a copy or not.
    pub fn is_in_file(&self, address: u64) -> bool {
        self.mapping.is_in_file(VirtAddr(address))
    }

    /// Puts a page there that `fill` writes through the direct map before anybody sees it. False when there is one.
    pub fn fill(&self, address: u64, fill: &dyn Fn(*mut u8)) -> Result<bool, FaultError> {
        let _library = reserve::library();
        let fill = |frame: ::hugetlb::PhysAddr| fill(PhysAddr(frame.0).as_ptr());
        self.mapping.fill(VirtAddr(address), &fill)
    }

    /// Sets what the area allows.
    pub fn protect(&mut self, flags: VmFlags) {
        let _library = reserve::library();
        self.mapping.protect(protection(flags));
    }

    /// The same area in a child.
    pub fn fork(&self, child: &mut SpaceToken, flags: VmFlags) -> Result<Self> {
        let _library = reserve::library();
        let mapping = self.mapping.fork(child).map_err(|_| Errno::ENOMEM)?;
        Ok(Self { mapping, keeps: self.keeps.duplicate(), writable: Writable::new(&self.keeps.file, flags) })
    }

    /// Moves the whole area to where nothing else is.
    pub fn move_to(&mut self, start: u64) -> Result<()> {
        let _library = reserve::library();
        self.mapping.move_to(VirtAddr(start)).map_err(errno)
    }

    /// MADV_DONTNEED. The end is rounded down to a huge page, as on Linux.
    pub fn discard(&self, range: Range<u64>) -> Result<()> {
        let _library = reserve::library();
        let end = range.end & !(self.page_size() - 1);
        let range = range.start..end.max(range.start);
        self.mapping.discard(VirtAddr(range.start)..VirtAddr(range.end)).map_err(errno)
    }

    /// Bytes that this address space has entries for: shared, private.
    pub fn resident_bytes(&self) -> (u64, u64) {
        let resident = self.mapping.resident();
        (resident.shared, resident.private)
    }

    /// What is wrong with its entries, if anything is. `round` gets to know what was found.
    pub fn check(&self, round: &mut CheckRound) -> core::result::Result<(), String> {
        let _library = reserve::library();
        self.mapping.check(round)
    }

    /// Calls `work` with the direct map's pointer to what `address` reads, whatever the area permits. `work` stays within the base page.
    pub fn inspect(&self, address: u64, work: &mut impl FnMut(*mut u8)) -> Result<(), FaultError> {
        let _library = reserve::library();
        let within = address & (self.page_size() - 1);
        let zeroes = || PhysAddr(zero_page().0 + (address & (PAGE_SIZE as u64 - 1)));
        let work = |frame: Option<::hugetlb::PhysAddr>| {
            work(frame.map_or_else(zeroes, |frame| PhysAddr(frame.0 + within)).as_ptr());
        };
        self.mapping.inspect(VirtAddr(address), work)
    }

    /// Calls `work` with the direct map's pointer to `address`, made accessible first. `work` stays within the base page.
    pub fn with_memory(
        &self,
        address: u64,
        access: Access,
        work: &mut impl FnMut(*mut u8),
    ) -> Result<(), FaultError> {
        let _library = reserve::library();
        let within = address & (self.page_size() - 1);
        let work = |frame: ::hugetlb::PhysAddr| work(PhysAddr(frame.0 + within).as_ptr());
        self.mapping.fault_then(VirtAddr(address), access, work)
    }
}
