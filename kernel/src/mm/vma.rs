//! Virtual memory areas: the ranges of an address space, and what backs them.

use alloc::boxed::Box;
use alloc::string::String;
use alloc::sync::{Arc, Weak};
use core::ops::Range;
use core::sync::atomic::{AtomicBool, Ordering};

use bitflags::bitflags;

pub use self::costs::Costs;
pub use self::set::VmaSet;

use super::AddressSpace;
use super::backing::Link;
use super::layout::SLOT;
use super::mshare::RegionArea;
use super::policy::Policy;
use super::shm::Attachment;
use super::userfault;
use super::vdso::SpecialPages;
use crate::errno::{Errno, Result};
use crate::fs::File;
use crate::hugetlb::{HUGE_FILE, HugeArea};
use crate::memory::{PAGE_SHIFT, PAGE_SIZE};

mod costs;
mod set;

const PAGE: u64 = PAGE_SIZE as u64;

bitflags! {
    /// What an area allows and how it behaves.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct VmFlags: u32 {
        /// PROT_READ.
        const READ = 1 << 0;
        /// PROT_WRITE.
        const WRITE = 1 << 1;
        /// PROT_EXEC.
        const EXEC = 1 << 2;
        /// MAP_SHARED.
        const SHARED = 1 << 3;
        /// mprotect(2) may add READ.
        const MAY_READ = 1 << 4;
        /// mprotect(2) may add WRITE.
        const MAY_WRITE = 1 << 5;
        /// mprotect(2) may add EXEC.
        const MAY_EXEC = 1 << 6;
        /// Grows towards lower addresses when touched below: a stack.
        const GROWS_DOWN = 1 << 7;
        /// mlock(2): pages stay resident. Ours always do; this is for the account.
        const LOCKED = 1 << 8;
        /// mlock2(MLOCK_ONFAULT).
        const LOCK_ON_FAULT = 1 << 9;
        /// MADV_DONTFORK: a child does not get it.
        const DONT_FORK = 1 << 10;
        /// MADV_WIPEONFORK: a child gets it empty.
        const WIPE_ON_FORK = 1 << 11;
        /// MADV_DONTDUMP.
        const DONT_DUMP = 1 << 12;
        /// mremap(2) may not grow it.
        const DONT_EXPAND = 1 << 13;
        /// MAP_NORESERVE.
        const NO_RESERVE = 1 << 14;
        /// Its pages count as committed memory.
        const ACCOUNT = 1 << 15;
        /// MADV_SEQUENTIAL.
        const SEQUENTIAL = 1 << 16;
        /// MADV_RANDOM.
        const RANDOM = 1 << 17;
        /// MADV_HUGEPAGE.
        const HUGE_PAGE = 1 << 18;
        /// MADV_NOHUGEPAGE.
        const NO_HUGE_PAGE = 1 << 19;
        /// MADV_MERGEABLE.
        const MERGEABLE = 1 << 20;
        /// MAP_DROPPABLE.
        const DROPPABLE = 1 << 21;
        /// userfaultfd: faults on missing pages are told of.
        const USERFAULT_MISSING = 1 << 22;
        /// userfaultfd: stores to pages from which they are withheld are told of.
        const USERFAULT_WP = 1 << 23;
        /// userfaultfd: faults on pages that the file has are told of.
        const USERFAULT_MINOR = 1 << 24;
        /// All of userfaultfd's.
        const USERFAULT = 0b111 << 22;
        /// mseal(2): it is not changed or unmapped any more.
        const SEALED = 1 << 25;
        /// memfd_secret(2): nobody accesses it but by the program's own page tables.
        const SECRET = 1 << 26;
        /// READ, WRITE and EXEC.
        const ACCESS = 0b111;
    }
}

/// A mapping of base pages of a file, or of shared anonymous memory.
pub struct FileArea {
    pub(super) link: Link,
    /// The open file; `None` for shared anonymous and SysV memory.
    pub(super) file: Option<Arc<File>>,
    /// SysV: counts as one attachment of the segment.
    pub(super) attachment: Option<Attachment>,
}

/// What is behind an area.
pub enum Kind {
    /// Private anonymous memory.
    Anonymous,
    /// Base pages of a page cache.
    File(Box<FileArea>),
    /// Huge pages.
    Huge(Box<HugeArea>),
    /// A region with areas and tables of its own.
    Region(Box<RegionArea>),
    /// Pages of the kernel's: the vDSO and its data.
    Special(&'static SpecialPages),
}

/// One range with the same rights and backing throughout.
pub struct Vma {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) flags: VmFlags,
    /// Page index in the backing of the page at `start`; the page number for anonymous memory.
    pub(super) first: u64,
    pub(super) kind: Kind,
    /// From which nodes its pages are to come.
    pub(super) policy: Policy,
    /// May there be anonymous pages in it? Fork has nothing to copy where there are none.
    pub(super) touched: AtomicBool,
    /// Who is told of its faults, if anybody is; then `flags` say of which.
    pub(super) userfault: Option<Arc<userfault::Context>>,
}

impl Vma {
    /// An anonymous area.
    pub(super) fn anonymous(range: Range<u64>, flags: VmFlags) -> Self {
        Self {
            start: range.start,
            end: range.end,
            flags,
            first: range.start >> PAGE_SHIFT,
            kind: Kind::Anonymous,
            policy: Policy::default(),
            touched: AtomicBool::new(false),
            userfault: None,
        }
    }

    /// Its addresses.
    pub fn range(&self) -> Range<u64> {
        self.start..self.end
    }

    /// Bytes.
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    /// Base pages.
    pub fn pages(&self) -> u64 {
        self.len() >> PAGE_SHIFT
    }

    /// Index in its backing of the page at `address`.
    pub fn index_of(&self, address: u64) -> u64 {
        self.first + ((address - self.start) >> PAGE_SHIFT)
    }

    /// From where a page is to come: the area's policy, and the page's number in what it maps.
    pub(super) fn placing(&self, address: u64) -> (Policy, u64) {
        let in_pages = self.page_size().trailing_zeros() as usize - PAGE_SHIFT;
        (self.policy, self.index_of(address) >> in_pages)
    }

    /// Does it consist of huge pages?
    pub fn is_huge(&self) -> bool {
        matches!(self.kind, Kind::Huge(_))
    }

    /// Do the leaves of its pages belong to the address space alone?
    pub fn has_own_leaves(&self) -> bool {
        !matches!(self.kind, Kind::Huge(_) | Kind::Region(_))
    }

    /// Does it consist of huge pages whose tables other processes share?
    pub fn shares_tables(&self) -> bool {
        self.is_huge() && self.flags.contains(VmFlags::SHARED)
    }

    /// Smallest unit that it can be cut at, bytes: all of it for a region.
    pub fn granule(&self) -> u64 {
        match &self.kind {
            Kind::Region(_) => self.len(),
            _ => self.page_size(),
        }
    }

    /// Bytes of its pages.
    pub fn page_size(&self) -> u64 {
        match &self.kind {
            Kind::Huge(huge) => huge.page_size(),
            _ => PAGE,
        }
    }

    /// Bytes of the kernel's own memory that it takes, about: its part of the set's tree, what it consists of, its entry in a file's list,
    /// and shared memory that lives only by it.
    fn kernel_bytes(&self) -> usize {
        const NODE: usize = 2 * size_of::<Vma>();
        const LINK: usize = 160;
        const SHARED_MEMORY: usize = 1024;
        NODE + match &self.kind {
            Kind::Anonymous | Kind::Special(_) => 0,
            Kind::File(area) if area.file.is_none() => size_of::<FileArea>() + SHARED_MEMORY,
            Kind::File(_) => size_of::<FileArea>() + LINK,
            // Memory without a file has one all the same. Of its parts the first counts it.
            Kind::Huge(huge) if huge.file().is_none() && self.first == 0 => {
                2 * size_of::<HugeArea>() + HUGE_FILE
            }
            Kind::Huge(_) => 2 * size_of::<HugeArea>(),
            Kind::Region(_) => size_of::<RegionArea>() + LINK,
        }
    }

    /// Slots that its huge pages are in: each has a table in the end.
    fn windows(&self) -> usize {
        if self.is_huge() { (self.end.div_ceil(SLOT) - self.start / SLOT) as usize } else { 0 }
    }

    /// Is it memory of its process alone that stores go to: what RLIMIT_DATA and the commit limit count?
    pub fn is_private_writable(&self) -> bool {
        self.flags & (VmFlags::WRITE | VmFlags::SHARED) == VmFlags::WRITE
    }

    /// Does the area belong to RLIMIT_DATA?
    pub(super) fn is_data(&self) -> bool {
        self.is_private_writable() && !self.flags.contains(VmFlags::GROWS_DOWN)
    }

    /// Does it hold code of the program or of a library?
    fn is_code(&self) -> bool {
        self.flags & (VmFlags::EXEC | VmFlags::WRITE | VmFlags::GROWS_DOWN) == VmFlags::EXEC
    }

    /// Could there be anonymous pages?
    pub(super) fn is_touched(&self) -> bool {
        self.touched.load(Ordering::SeqCst)
    }

    /// The open file that it maps.
    pub fn file(&self) -> Option<&Arc<File>> {
        match &self.kind {
            Kind::File(area) => area.file.as_ref(),
            Kind::Huge(huge) => huge.file(),
            Kind::Region(region) => Some(region.file()),
            Kind::Anonymous | Kind::Special(_) => None,
        }
    }

    /// Makes it end at `at` and returns the rest, an area of its own. `at` is inside and at a multiple of the granule; `EINVAL`
    /// for another multiple of the base page.
    pub(super) fn split_off(&mut self, at: u64, space: &Weak<AddressSpace>) -> Result<Vma> {
        debug_assert!(self.start < at && at < self.end);
        if !at.is_multiple_of(self.granule()) {
            return Err(Errno::EINVAL);
        }
        let first = self.index_of(at);
        if self.table_windows().is_some()
            && let Some(space) = space.upgrade()
        {
            // The caller works on the space, so this reference is not the last.
            space.leave_cut_window(self, at);
        }
        let kind = match &mut self.kind {
            Kind::Anonymous => Kind::Anonymous,
            Kind::Special(pages) => Kind::Special(pages),
            Kind::File(area) => {
                // The new entry first: an unmapping in between finds the upper part twice, never not at all.
                let pages = (self.end - at) >> PAGE_SHIFT;
                let writable = self.flags.contains(VmFlags::SHARED | VmFlags::MAY_WRITE);
                let link = Link::new(area.link.cache().clone(), space.clone(), first, writable);
                if area.link.is_listed() {
                    link.enlist(at, pages);
                }
                link.join_as(&area.link);
                area.link.resize((at - self.start) >> PAGE_SHIFT);
                Kind::File(Box::new(FileArea {
                    link,
                    file: area.file.clone(),
                    attachment: area.attachment.clone(),
                }))
            }
            Kind::Huge(huge) => Kind::Huge(Box::new(huge.split_off(at)?)),
            // It is attached as a whole, so no address inside is a multiple of its granule.
            Kind::Region(_) => return Err(Errno::EINVAL),
        };
        let upper = Vma {
            start: at,
            end: self.end,
            flags: self.flags,
            first,
            kind,
            policy: self.policy,
            touched: AtomicBool::new(self.is_touched()),
            userfault: self.userfault.clone(),
        };
        self.end = at;
        Ok(upper)
    }

    /// Could `next`, which begins where this ends, be one area with it?
    pub(super) fn can_merge(&self, next: &Vma) -> bool {
        let same_userfault = match (&self.userfault, &next.userfault) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        };
        let alike = self.flags == next.flags && self.policy == next.policy && same_userfault;
        if self.end != next.start || !alike {
            return false;
        }
        match (&self.kind, &next.kind) {
            (Kind::Anonymous, Kind::Anonymous) => true,
            (Kind::File(a), Kind::File(b)) => {
                let same_file = match (&a.file, &b.file) {
                    (Some(a), Some(b)) => Arc::ptr_eq(a, b),
                    (None, None) => true,
                    _ => false,
                };
                same_file
                    && Arc::ptr_eq(a.link.cache(), b.link.cache())
                    && a.attachment.is_none()
                    && b.attachment.is_none()
                    && self.index_of(self.end) == next.first
            }
            _ => false,
        }
    }

    /// Takes over the range of `next`, for which `can_merge` was true.
    pub(super) fn merge(&mut self, next: Vma) {
        self.end = next.end;
        if next.is_touched() {
            self.touched.store(true, Ordering::SeqCst);
        }
        if let (Kind::File(area), Kind::File(other)) = (&self.kind, &next.kind) {
            if other.link.is_listed() {
                area.link.enlist(self.start, self.pages());
            }
            area.link.join_as(&other.link);
            area.link.resize(self.pages());
        }
        // Only now its entry in the file's list goes, so no page is ever without one.
        drop(next);
    }

    /// What maps calls it, apart from heap and stack.
    pub(super) fn name(&self) -> Option<String> {
        match &self.kind {
            Kind::Special(pages) => Some(pages.name.into()),
            Kind::File(area) if area.file.is_none() => Some(match &area.attachment {
                Some(attachment) => attachment.name(),
                None => "/dev/zero (deleted)".into(),
            }),
            Kind::Huge(huge) => huge.name(),
            _ => None,
        }
    }
}
