//! What an address space shows of itself: the data behind `/proc/PID/{maps,smaps,status,statm,pagemap,cmdline,environ,auxv}`.

use alloc::string::String;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use super::entry::Entry;
use super::policy::Policy;
use super::space::{AddressSpace, Areas, Layout};
use super::tables::Resident;
use super::vma::{Kind, VmFlags, Vma};
use super::windows::Viewers;
use smallvec::SmallVec;

use super::{PAGE, Rights, TASK_SIZE};
use crate::errno::Result;
use crate::fs::File;
use crate::memory::PAGE_SHIFT;
use crate::memory::fallible::{self, TryVec};
use crate::memory::frame::Frame;

/// Areas that are looked at in one hold of the areas lock. Readers keep two such lists and more on their stacks, which have 16 KiB.
const SHOWN: usize = 8;

/// What an area is called.
#[derive(Clone)]
pub enum AreaName {
    None,
    /// `[heap]`, `[stack]`, `[vdso]`, `/SYSV00000000 (deleted)` ...
    Text(String),
    /// The path of the file.
    File(Arc<File>),
}

/// One line of maps.
#[derive(Clone)]
pub struct AreaView {
    pub range: Range<u64>,
    pub flags: VmFlags,
    /// Byte offset in what it maps; 0 for anonymous memory.
    pub offset: u64,
    /// Device number and inode number; 0 for anonymous memory.
    pub device: u64,
    pub inode: u64,
    pub name: AreaName,
    /// Bytes of its pages: the base page's, or a huge page's.
    pub page_size: u64,
    /// From which nodes its pages are to come.
    pub policy: Policy,
}

/// What smaps says of an area, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Usage {
    pub rss: u64,
    /// Each page divided by the number of its users.
    pub pss: u64,
    pub shared_clean: u64,
    pub shared_dirty: u64,
    pub private_clean: u64,
    pub private_dirty: u64,
    pub referenced: u64,
    pub anonymous: u64,
    pub shared_hugetlb: u64,
    pub private_hugetlb: u64,
    pub locked: u64,
}

impl core::ops::AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        self.rss += other.rss;
        self.pss += other.pss;
        self.shared_clean += other.shared_clean;
        self.shared_dirty += other.shared_dirty;
        self.private_clean += other.private_clean;
        self.private_dirty += other.private_dirty;
        self.referenced += other.referenced;
        self.anonymous += other.anonymous;
        self.shared_hugetlb += other.shared_hugetlb;
        self.private_hugetlb += other.private_hugetlb;
        self.locked += other.locked;
    }
}

/// The memory lines of `/proc/PID/status` and the columns of statm, in bytes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Summary {
    pub size: u64,
    pub peak: u64,
    pub locked: u64,
    pub high_water: u64,
    pub resident: Resident,
    pub data: u64,
    pub stack: u64,
    /// Executable code of the program, and all other executable areas.
    pub code: u64,
    pub libraries: u64,
    pub tables: u64,
}

impl AreaView {
    fn new(layout: &Layout, vma: &Vma) -> Self {
        let (offset, (device, inode)) = match &vma.kind {
            Kind::Anonymous | Kind::Special(_) => (0, (0, 0)),
            Kind::File(area) => (vma.first << PAGE_SHIFT, area.link.cache().id()),
            Kind::Huge(huge) => (vma.first << PAGE_SHIFT, huge.id()),
            Kind::Region(region) => (0, region.id()),
        };
        let name = match vma.file() {
            Some(file) => AreaName::File(file.clone()),
            None => match vma.name() {
                Some(name) => AreaName::Text(name),
                None if layout.is_heap(vma) => AreaName::Text("[heap]".into()),
                None if layout.is_stack(vma) => AreaName::Text("[stack]".into()),
                None => AreaName::None,
            },
        };
        let (page_size, policy) = (vma.page_size(), vma.policy);
        Self { range: vma.range(), flags: vma.flags, offset, device, inode, name, page_size, policy }
    }
}

impl AddressSpace {
    /// The first areas that end after `address`, in order: as many as are shown at a time.
    pub fn areas_from(&self, address: u64) -> SmallVec<[AreaView; SHOWN]> {
        let areas = self.read();
        let range = address..TASK_SIZE;
        areas.set.overlapping(range).take(SHOWN).map(|vma| AreaView::new(&areas.layout, vma)).collect()
    }

    /// What of the area at `start` is in memory; zeroes when there is none any more.
    pub fn usage(&self, start: u64) -> Usage {
        let areas = self.read();
        areas.set.find(start).map_or_else(Usage::default, |vma| self.usage_of(vma))
    }

    /// What is in memory of all areas together.
    pub(super) fn usage_of_all(&self) -> Usage {
        let mut sum = Usage::default();
        let mut next = 0;
        loop {
            let areas = self.read();
            let Some(vma) = areas.set.find_from(next) else { return sum };
            sum += self.usage_of(vma);
            next = vma.end;
            drop(areas);
            crate::sched::cond_resched();
        }
    }

    fn usage_of(&self, vma: &Vma) -> Usage {
        let mut usage = Usage::default();
        if let Kind::Huge(huge) = &vma.kind {
            (usage.shared_hugetlb, usage.private_hugetlb) = huge.resident_bytes();
            return usage;
        }
        if let Kind::Region(region) = &vma.kind {
            return region.usage();
        }
        // The file's tables say neither who stored nor who looked: all of them did, as far as anybody can tell.
        self.each_shown(vma, |shown| {
            let bytes = shown.pages * PAGE;
            usage.rss += bytes;
            usage.pss += bytes / shown.sharers;
            *(if shown.sharers > 1 { &mut usage.shared_dirty } else { &mut usage.private_dirty }) += bytes;
            usage.referenced += bytes;
        });
        let mut viewers = Viewers::new(vma);
        let mut at = vma.start;
        while at < vma.end {
            crate::sched::cond_resched();
            let tables = self.tables.lock();
            at = tables.read(at..vma.end, 1024, |address, entry, sharers| {
                if !entry.owns_frame() {
                    return;
                }
                // A file's page has one reference from its cache, which is no user.
                let cached = u32::from(!entry.has(Entry::ANON));
                // All who share the table have one reference together.
                let references = Frame::count_at(entry.address()).saturating_sub(cached).max(1);
                let own = u64::from(references) + u64::from(sharers.max(1)) - 1;
                let users = own + if cached != 0 { viewers.of(vma.index_of(address)) } else { 0 };
                let dirty = entry.has(Entry::DIRTY);
                usage.rss += PAGE;
                usage.pss += PAGE / users;
                *match (users > 1, dirty) {
                    (true, true) => &mut usage.shared_dirty,
                    (true, false) => &mut usage.shared_clean,
                    (false, true) => &mut usage.private_dirty,
                    (false, false) => &mut usage.private_clean,
                } += PAGE;
                if entry.has(Entry::ACCESSED) {
                    usage.referenced += PAGE;
                }
                if entry.has(Entry::ANON) {
                    usage.anonymous += PAGE;
                }
            });
        }
        if vma.flags.contains(VmFlags::LOCKED) {
            usage.locked = usage.pss;
        }
        usage
    }

    /// What `status` and `statm` tell of the areas together. Areas are looked at only for what they show through tables of files.
    pub fn summary(&self) -> Summary {
        let areas = self.read();
        let Areas { set, layout, .. } = &*areas;
        let program_code = layout.code.end.next_multiple_of(PAGE) - layout.code.start / PAGE * PAGE;
        let resident = self.resident_in(&areas);
        let tables = self.tables.lock();
        Summary {
            size: set.total * PAGE,
            peak: set.peak * PAGE,
            locked: set.locked * PAGE,
            high_water: tables.peak.max(resident.total()) * PAGE,
            resident,
            data: set.data * PAGE,
            stack: set.stack * PAGE,
            code: program_code,
            libraries: (set.code * PAGE).saturating_sub(program_code),
            tables: tables.count * PAGE,
        }
    }

    /// Bytes of huge pages that the tables lead to.
    pub fn huge_bytes(&self) -> u64 {
        let mut sum = 0;
        let mut next = 0;
        loop {
            // Some areas at a time: others may want to change them.
            let areas = self.read();
            let mut some = areas.set.overlapping(next..TASK_SIZE).take(SHOWN).peekable();
            if some.peek().is_none() {
                return sum;
            }
            for vma in some {
                if let Kind::Huge(huge) = &vma.kind {
                    let (shared, private) = huge.resident_bytes();
                    sum += shared + private;
                }
                next = vma.end;
            }
            drop(areas);
            crate::sched::cond_resched();
        }
    }

    /// One word for each page of `range`, as `/proc/PID/pagemap` has it, with frame numbers if the reader may see them.
    pub fn pagemap(&self, range: Range<u64>, with_frames: bool) -> Result<Vec<u64>> {
        const PRESENT: u64 = 1 << 63;
        const FILE: u64 = 1 << 61;
        const EXCLUSIVE: u64 = 1 << 56;
        const USERFAULT_WP: u64 = 1 << 57;
        const FRAME: u64 = (1 << 55) - 1;
        let areas = self.read();
        let mut words = fallible::with_capacity(((range.end - range.start) / PAGE) as usize)?;
        let mut at = range.start;
        while at < range.end {
            let Some(vma) = areas.set.find_in(at..range.end) else {
                words.resize(((range.end - range.start) / PAGE) as usize, 0);
                break;
            };
            while at < vma.start.min(range.end) {
                words.push(0);
                at += PAGE;
            }
            let mut viewers = Viewers::new(vma);
            while at < vma.end.min(range.end) {
                let word = match &vma.kind {
                    Kind::Region(_) => self.tables.lookup(at).map(|(address, leaf)| {
                        (address.0 >> PAGE_SHIFT & FRAME, leaf.has(Entry::ANON), false)
                    }),
                    Kind::Huge(_) => self.tables.lookup(at).map(|(address, _)| {
                        (address.0 >> PAGE_SHIFT & FRAME, !vma.flags.contains(VmFlags::SHARED), false)
                    }),
                    _ => {
                        let (entry, sharers) = self.tables.lock().leaf_and_sharers(at);
                        let own = entry.is_mapped().then(|| {
                            let cached = u32::from(!entry.has(Entry::ANON));
                            let alone = entry.owns_frame()
                                && sharers <= 1
                                && Frame::count_at(entry.address()) == 1 + cached
                                && (cached == 0 || viewers.of(vma.index_of(at)) == 0);
                            (entry.address().0 >> PAGE_SHIFT & FRAME, entry.has(Entry::ANON), alone)
                        });
                        own.or_else(|| {
                            let (address, _) = self.tables.lookup(at).filter(|_| self.shows(vma, at))?;
                            // The file has one reference.
                            let alone = Frame::count_at(address) == 1 && viewers.of(vma.index_of(at)) == 1;
                            Some((address.0 >> PAGE_SHIFT & FRAME, false, alone))
                        })
                    }
                };
                let withheld = if self.is_withheld(vma, at) { USERFAULT_WP } else { 0 };
                words.push(
                    withheld
                        | word.map_or(0, |(frame, anonymous, alone)| {
                            PRESENT
                                | if with_frames { frame } else { 0 }
                                | if anonymous { 0 } else { FILE }
                                | if alone { EXCLUSIVE } else { 0 }
                        }),
                );
                at += PAGE;
            }
        }
        Ok(words)
    }

    /// `/proc/PID/cmdline`: the arguments as the program has them now, each with its end.
    pub fn command_line(&self) -> Result<Vec<u8>> {
        let (arguments, environment) = {
            let areas = self.read();
            (areas.layout.arguments.clone(), areas.layout.environment.clone())
        };
        let mut text = self.read_range(arguments.clone())?;
        // A program that writes its title over the arguments and goes on into the environment has overwritten the last end.
        if text.last().is_some_and(|byte| *byte != 0) {
            text.try_extend_from_slice(&self.read_range(environment)?)?;
            let end = text.iter().position(|byte| *byte == 0).unwrap_or(text.len());
            text.truncate(end);
        }
        Ok(text)
    }

    /// `/proc/PID/environ`: the first environment, as it is in memory now.
    pub fn environment(&self) -> Result<Vec<u8>> {
        let range = self.read().layout.environment.clone();
        self.read_range(range)
    }

    /// `/proc/PID/auxv`: pairs of type and value.
    pub fn auxiliary_vector(&self) -> Vec<u64> {
        self.read().layout.auxv.clone()
    }

    fn read_range(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let mut bytes = fallible::filled(0, (range.end - range.start) as usize)?;
        let len = self.read_remote(range.start, &mut bytes, Rights::Forced).unwrap_or(0);
        bytes.truncate(len);
        Ok(bytes)
    }

    /// Addresses for `/proc/PID/stat`: begin and end of the code, begin of the stack, of data, of the heap, ranges of arguments and
    /// environment.
    pub fn layout(&self) -> Layout {
        self.read().layout.clone()
    }

    /// Bytes of address space.
    pub fn size(&self) -> u64 {
        self.read().set.total * PAGE
    }
}
