//! The files that show a process's memory.

use alloc::boxed::Box;
use alloc::sync::{Arc, Weak};
use alloc::vec::Vec;
use core::sync::atomic::{AtomicUsize, Ordering};

use linux_raw_sys::general as abi;

use super::super::bytes;
use super::super::system::put;
use super::{Target, query};
use crate::errno::{Errno, Result};
use crate::fs::file::{File, FileOps, Whence};
use crate::fs::inode::{Inode, InodeOps, SetAttributes};
use crate::fs::iobuf::{Sink, Source};
use crate::fs::path::Path;
use crate::fs::pseudo::text_seek;
use crate::fs::{DeviceId, caller};
use crate::memory::fallible::Text;
use crate::memory::{PAGE_SIZE, node};
use crate::mm::policy::Policy;
use crate::mm::view::{AreaName, AreaView, Usage};
use crate::mm::{AddressSpace, Rights, TASK_SIZE, VmFlags};
use crate::process;
use crate::sync::Mutex;

/// Bytes that are copied through the kernel at a time.
const CHUNK: usize = PAGE_SIZE;
/// `/proc/PID/maps` puts names in this column.
const NAME_COLUMN: usize = 72;

/// The address space; `None` for a zombie, whose files are empty.
fn space(target: &Target) -> Result<Option<Arc<AddressSpace>>> {
    Ok(target.process()?.mm())
}

pub fn cmdline(target: &Target) -> Result<Vec<u8>> {
    space(target)?.map_or_else(|| Ok(Vec::new()), |mm| mm.command_line())
}

pub fn environ(target: &Target) -> Result<Vec<u8>> {
    target.memory()?.map_or_else(|| Ok(Vec::new()), |mm| mm.environment())
}

pub fn auxv(target: &Target) -> Result<Vec<u8>> {
    let words = target.memory()?.map_or_else(Vec::new, |mm| mm.auxiliary_vector());
    Ok(words.iter().flat_map(|w| w.to_ne_bytes()).collect())
}

pub fn statm(target: &Target) -> Result<Vec<u8>> {
    let sum = space(target)?.map(|mm| mm.summary()).unwrap_or_default();
    let pages = |bytes: u64| bytes / PAGE_SIZE as u64;
    let shared = sum.resident.file + sum.resident.shmem;
    bytes(alloc::format!(
        "{} {} {shared} {} 0 {} 0\n",
        pages(sum.size),
        sum.resident.total(),
        pages(sum.code),
        pages(sum.data + sum.stack),
    ))
}

/// One line of maps.
fn area_line(out: &mut Text, area: &AreaView) {
    let begin = out.len();
    let flag = |flag, letter| if area.flags.contains(flag) { letter } else { '-' };
    let device = DeviceId::decode(area.device);
    put!(
        out,
        "{:08x}-{:08x} {}{}{}{} {:08x} {:02x}:{:02x} {} ",
        area.range.start,
        area.range.end,
        flag(VmFlags::READ, 'r'),
        flag(VmFlags::WRITE, 'w'),
        flag(VmFlags::EXEC, 'x'),
        if area.flags.contains(VmFlags::SHARED) { 's' } else { 'p' },
        area.offset,
        device.major,
        device.minor,
        area.inode,
    );
    let to_column = |out: &mut Text| (out.len() - begin..=NAME_COLUMN).for_each(|_| out.push(' '));
    match &area.name {
        AreaName::None => {}
        AreaName::Text(text) => {
            to_column(out);
            out.push_str(text);
        }
        AreaName::File(file) => {
            to_column(out);
            // What is too long for a path is left out.
            let path = file.path().display(&caller::root()).unwrap_or_default();
            put_path(out, &path, &['\n']);
        }
    }
    out.push('\n');
}

/// A path, with certain characters as octal numbers. It may become four times as long: more than a page.
fn put_path(out: &mut Text, path: &[u8], special: &[char]) {
    for chunk in path.utf8_chunks() {
        for character in chunk.valid().chars() {
            if special.contains(&character) {
                put!(out, "\\{:03o}", u32::from(character));
            } else {
                out.push(character);
            }
        }
        if !chunk.invalid().is_empty() {
            out.push(char::REPLACEMENT_CHARACTER);
        }
    }
}

fn row(out: &mut Text, name: &str, bytes: u64) {
    put!(out, "{name:<16}{:>8} kB\n", bytes >> 10);
}

/// The rows that smaps and smaps_rollup have in common.
fn usage_rows(out: &mut Text, usage: &Usage, parts: Option<[u64; 3]>) {
    row(out, "Rss:", usage.rss);
    row(out, "Pss:", usage.pss);
    // A dirty page's share: exact for private pages, and an upper bound for shared ones.
    row(out, "Pss_Dirty:", usage.pss.min(usage.private_dirty + usage.shared_dirty));
    if let Some([anonymous, file, shmem]) = parts {
        row(out, "Pss_Anon:", anonymous);
        row(out, "Pss_File:", file);
        row(out, "Pss_Shmem:", shmem);
    }
    row(out, "Shared_Clean:", usage.shared_clean);
    row(out, "Shared_Dirty:", usage.shared_dirty);
    row(out, "Private_Clean:", usage.private_clean);
    row(out, "Private_Dirty:", usage.private_dirty);
    row(out, "Referenced:", usage.referenced);
    row(out, "Anonymous:", usage.anonymous);
    row(out, "KSM:", 0);
    row(out, "LazyFree:", 0);
    row(out, "AnonHugePages:", 0);
    row(out, "ShmemPmdMapped:", 0);
    row(out, "FilePmdMapped:", 0);
    row(out, "Shared_Hugetlb:", usage.shared_hugetlb);
    row(out, "Private_Hugetlb:", usage.private_hugetlb);
    row(out, "Swap:", 0);
    row(out, "SwapPss:", 0);
    row(out, "Locked:", usage.locked);
}

/// What smaps says of an area.
fn area_rows(out: &mut Text, mm: &AddressSpace, area: &AreaView) {
    let usage = mm.usage(area.range.start);
    area_line(out, area);
    row(out, "Size:", area.range.end - area.range.start);
    row(out, "KernelPageSize:", area.page_size);
    row(out, "MMUPageSize:", area.page_size);
    usage_rows(out, &usage, None);
    put!(out, "THPeligible:    {:>8}\n", 0);
    out.push_str("VmFlags:");
    let huge = area.page_size > PAGE_SIZE as u64;
    let shared = area.flags.contains(VmFlags::SHARED);
    // As Linux: through a file that is open for reading alone nobody ever stores, so such a mapping is shared to look at only.
    let may_share_stores = shared
        && match &area.name {
            AreaName::File(file) => file.writable(),
            _ => area.flags.contains(VmFlags::MAY_WRITE),
        };
    let names = [
        (area.flags.contains(VmFlags::READ), "rd"),
        (area.flags.contains(VmFlags::WRITE), "wr"),
        (area.flags.contains(VmFlags::EXEC), "ex"),
        (may_share_stores, "sh"),
        (area.flags.contains(VmFlags::MAY_READ), "mr"),
        (area.flags.contains(VmFlags::MAY_WRITE), "mw"),
        (area.flags.contains(VmFlags::MAY_EXEC), "me"),
        (shared, "ms"),
        (area.flags.contains(VmFlags::GROWS_DOWN), "gd"),
        (area.flags.contains(VmFlags::USERFAULT_MISSING), "um"),
        (area.flags.contains(VmFlags::USERFAULT_WP), "uw"),
        (area.flags.contains(VmFlags::LOCKED), "lo"),
        (area.flags.contains(VmFlags::SEQUENTIAL), "sr"),
        (area.flags.contains(VmFlags::RANDOM), "rr"),
        (area.flags.contains(VmFlags::DONT_FORK), "dc"),
        (huge || area.flags.contains(VmFlags::DONT_EXPAND), "de"),
        (area.flags.contains(VmFlags::ACCOUNT), "ac"),
        (area.flags.contains(VmFlags::NO_RESERVE), "nr"),
        (huge, "ht"),
        (area.flags.contains(VmFlags::WIPE_ON_FORK), "wf"),
        (area.flags.contains(VmFlags::DONT_DUMP), "dd"),
        (area.flags.contains(VmFlags::HUGE_PAGE), "hg"),
        (area.flags.contains(VmFlags::NO_HUGE_PAGE), "nh"),
        (area.flags.contains(VmFlags::MERGEABLE), "mg"),
        (area.flags.contains(VmFlags::USERFAULT_MINOR), "ui"),
        (area.flags.contains(VmFlags::SEALED), "sl"),
    ];
    for (_, name) in names.iter().filter(|(set, _)| *set) {
        put!(out, " {name}");
    }
    out.push_str(" \n");
}

/// A line of numa_maps: the policy, what is mapped, and its pages.
fn numa_line(out: &mut Text, mm: &AddressSpace, area: &AreaView, policy: Policy) {
    let usage = mm.usage(area.range.start);
    let policy = if area.policy == Policy::default() { policy } else { area.policy };
    put!(out, "{:08x} {policy}", area.range.start);
    match &area.name {
        AreaName::Text(name) if name == "[heap]" => out.push_str(" heap"),
        AreaName::Text(name) if name == "[stack]" => out.push_str(" stack"),
        // Memory without a name in the tree is a file's all the same.
        AreaName::Text(name) if name.starts_with('/') => put_file(out, name.as_bytes()),
        AreaName::Text(_) | AreaName::None => {}
        AreaName::File(file) => {
            let path = file.path().display(&caller::root()).unwrap_or_default();
            put_file(out, &path);
        }
    }
    let huge = area.page_size > PAGE_SIZE as u64;
    let (resident, anonymous, dirty) = if huge {
        out.push_str(" huge");
        let resident = usage.shared_hugetlb + usage.private_hugetlb;
        let private = !area.flags.contains(VmFlags::SHARED);
        (resident, if private { usage.private_hugetlb } else { 0 }, resident)
    } else {
        (usage.rss, usage.anonymous, usage.private_dirty + usage.shared_dirty)
    };
    let pages = |bytes: u64| bytes / area.page_size;
    if resident > 0 {
        for (name, bytes) in [("anon", anonymous), ("dirty", dirty)] {
            if bytes > 0 {
                put!(out, " {name}={}", pages(bytes));
            }
        }
        if resident != anonymous && resident != dirty {
            put!(out, " mapped={}", pages(resident));
        }
        if node::count() == 1 {
            put!(out, " N0={}", pages(resident));
        } else {
            let by_node = mm.pages_by_node(area.range.start);
            for (node, pages) in by_node.iter().enumerate().filter(|(_, pages)| **pages > 0) {
                put!(out, " N{node}={pages}");
            }
        }
        put!(out, " kernelpagesize_kB={}", area.page_size >> 10);
    }
    out.push('\n');
}

/// The word for a file, without what would end it.
fn put_file(out: &mut Text, path: &[u8]) {
    out.push_str(" file=");
    put_path(out, path, &['\\', ' ', '\t', '\n', '=']);
}

pub fn smaps_rollup(target: &Target) -> Result<Vec<u8>> {
    let mut out = Text::new();
    let Some(mm) = target.memory()? else { return Err(Errno::ESRCH) };
    let mut sum = Usage::default();
    let mut extent = 0..0;
    // Shares of anonymous pages, of files, of shared memory; an area is taken as one kind.
    let mut parts = [0; 3];
    for area in areas_of(&mm) {
        if extent.end == 0 {
            extent.start = area.range.start;
        }
        extent.end = area.range.end;
        let usage = mm.usage(area.range.start);
        let part = if usage.anonymous >= usage.rss {
            0
        } else if matches!(area.name, AreaName::File(_)) {
            1
        } else {
            2
        };
        parts[part] += usage.pss;
        sum += usage;
    }
    put!(out, "{:08x}-{:08x} ---p 00000000 00:00 0", extent.start, extent.end);
    for _ in out.len()..=NAME_COLUMN {
        out.push(' ');
    }
    out.push_str("[rollup]\n");
    usage_rows(&mut out, &sum, Some(parts));
    bytes(out)
}

/// All areas in order. What changes meanwhile is seen or not.
fn areas_of(mm: &AddressSpace) -> impl Iterator<Item = AreaView> {
    let mut next = 0;
    core::iter::from_fn(move || {
        let some = mm.areas_from(next);
        next = some.last()?.range.end;
        crate::sched::cond_resched();
        Some(some)
    })
    .flatten()
}

/// The files whose contents are a process's memory, or made from it piece by piece.
#[derive(Clone, Copy)]
pub enum Kind {
    Memory,
    Pagemap,
    Maps,
    Smaps,
    NumaMaps,
}

/// The inode of such a file. They show the memory that the process has when they are opened; once that is gone, nothing.
pub struct MemoryInode {
    pub target: Target,
    pub kind: Kind,
}

impl InodeOps for MemoryInode {
    fn open(&self, _: &Path, _: u32) -> Result<Arc<dyn FileOps>> {
        let mm = self.target.memory()?;
        let mm = mm.as_ref().map_or_else(Weak::new, Arc::downgrade);
        Ok(match self.kind {
            Kind::Memory => Arc::new(Memory(mm)),
            Kind::Pagemap => Arc::new(Pagemap(mm)),
            Kind::Maps => {
                let text = AreaText::new(mm, |out, _, area| area_line(out, area));
                Arc::new(AreaText { answers_queries: true, ..text })
            }
            Kind::Smaps => Arc::new(AreaText::new(mm, area_rows)),
            Kind::NumaMaps => {
                let policy = self.target.thread()?.memory_policy.get();
                Arc::new(AreaText::new(mm, move |out, mm, area| numa_line(out, mm, area, policy)))
            }
        })
    }

    fn set_attributes(&self, _: &Inode, change: &SetAttributes) -> Result<()> {
        if change.uid.is_some() || change.gid.is_some() { Err(Errno::EPERM) } else { Ok(()) }
    }
}

/// An open `maps` or `smaps`. Its text is made for some areas at a time, as it is read: it is never in memory as a whole, and a read costs what
/// it gives, however many areas there are.
struct AreaText {
    mm: Weak<AddressSpace>,
    write: Write,
    piece: Mutex<Piece>,
    /// Bytes that the piece takes, for those who must not sleep.
    size: AtomicUsize,
    /// May one ask for single areas?
    answers_queries: bool,
}

/// Writes what there is of one area.
type Write = Box<dyn Fn(&mut Text, &AddressSpace, &AreaView) + Send + Sync>;

/// The text that was made last.
#[derive(Default)]
struct Piece {
    /// Where it begins in the file.
    offset: u64,
    text: Text,
    /// The areas behind this address come next.
    next: u64,
}

impl AreaText {
    fn new(
        mm: Weak<AddressSpace>,
        write: impl Fn(&mut Text, &AddressSpace, &AreaView) + Send + Sync + 'static,
    ) -> Self {
        let piece = Mutex::new(Piece::default());
        Self { mm, write: Box::new(write), piece, size: AtomicUsize::new(0), answers_queries: false }
    }

    /// The next piece; false at the end.
    fn advance(&self, mm: &AddressSpace, piece: &mut Piece) -> Result<bool> {
        piece.offset += piece.text.len() as u64;
        piece.text.clear();
        for area in mm.areas_from(piece.next) {
            (self.write)(&mut piece.text, mm, &area);
            piece.next = area.range.end;
            crate::sched::cond_resched();
        }
        Ok(!piece.text.as_bytes()?.is_empty())
    }
}

impl FileOps for AreaText {
    fn seekable(&self) -> bool {
        true
    }

    fn read_at(&self, _: &File, offset: u64, sink: &mut Sink) -> Result<usize> {
        // Before the lock, so that it is dropped behind it: it may be the last.
        let mm = self.mm.upgrade();
        let mut piece = self.piece.lock();
        let result = match &mm {
            Some(mm) => self.read_some(mm, &mut piece, offset, sink),
            None => Ok(0),
        };
        // A reader that has met the end rarely comes back, and may stay open for long. Where the piece begins is known further on.
        if matches!(result, Ok(0)) && sink.remaining() > 0 && piece.text.capacity() > PAGE_SIZE {
            piece.offset += piece.text.len() as u64;
            piece.text = Text::new();
        }
        // Relaxed: a statistic.
        self.size.store(piece.text.capacity(), Ordering::Relaxed);
        result
    }

    fn kernel_bytes(&self) -> u64 {
        // Relaxed: as above.
        self.size.load(Ordering::Relaxed) as u64
    }

    fn seek(&self, _: &File, whence: Whence, offset: i64, position: u64) -> Result<u64> {
        text_seek(whence, offset, position)
    }

    fn ioctl(&self, _: &File, command: u32, argument: usize) -> Result<usize> {
        match command {
            query::PROCMAP_QUERY if self.answers_queries => {
                query::query(&*self.mm.upgrade().ok_or(Errno::ESRCH)?, argument)
            }
            _ => Err(Errno::ENOTTY),
        }
    }
}

impl AreaText {
    fn read_some(&self, mm: &AddressSpace, piece: &mut Piece, offset: u64, sink: &mut Sink) -> Result<usize> {
        if offset < piece.offset || offset == 0 {
            *piece = Piece::default();
        }
        let mut done = 0;
        while sink.remaining() > 0 {
            let within = usize::try_from(offset + done as u64 - piece.offset).unwrap_or(usize::MAX);
            let rest = piece.text.as_bytes()?.get(within..).unwrap_or_default();
            if !rest.is_empty() {
                match sink.write(rest) {
                    Err(_) if done > 0 => break,
                    other => done += other?,
                }
            } else if process::current().kill_pending() {
                break;
            } else {
                match self.advance(mm, piece) {
                    Ok(true) => {}
                    Err(error) if done == 0 => {
                        // What there is has a gap.
                        *piece = Piece::default();
                        return Err(error);
                    }
                    Ok(false) | Err(_) => break,
                }
            }
        }
        Ok(done)
    }
}

/// An open `mem`: the memory that the process had when it was opened. Once that is gone, reads and writes find nothing.
struct Memory(Weak<AddressSpace>);

impl FileOps for Memory {
    fn seekable(&self) -> bool {
        true
    }

    fn read_at(&self, _: &File, offset: u64, sink: &mut Sink) -> Result<usize> {
        let Some(mm) = self.0.upgrade() else { return Ok(0) };
        let mut buffer = alloc::vec![0; CHUNK.min(sink.remaining())];
        let mut done = 0;
        while sink.remaining() > 0 {
            if done > 0 && process::current().kill_pending() {
                break;
            }
            let want = sink.remaining().min(CHUNK);
            let count =
                match mm.read_remote(offset.wrapping_add(done as u64), &mut buffer[..want], Rights::Forced) {
                    Err(_) if done > 0 => break,
                    other => other?,
                };
            match sink.write(&buffer[..count]) {
                Err(_) if done > 0 => break,
                other => done += other?,
            }
            if count < want {
                break;
            }
        }
        Ok(done)
    }

    fn write_at(&self, _: &File, offset: &mut u64, source: &mut Source) -> Result<usize> {
        let Some(mm) = self.0.upgrade() else { return Ok(0) };
        let mut buffer = alloc::vec![0; CHUNK.min(source.remaining())];
        let mut done = 0;
        while source.remaining() > 0 {
            if done > 0 && process::current().kill_pending() {
                break;
            }
            let want = source.remaining().min(CHUNK);
            let got = match source.read(&mut buffer[..want]) {
                Err(_) if done > 0 => break,
                other => other?,
            };
            let count =
                match mm.write_remote(offset.wrapping_add(done as u64), &buffer[..got], Rights::Forced) {
                    Err(_) if done > 0 => break,
                    other => other?,
                };
            done += count;
            if count < got {
                break;
            }
        }
        Ok(done)
    }

    fn seek(&self, _: &File, whence: Whence, offset: i64, position: u64) -> Result<u64> {
        match whence {
            // Addresses may be above what fits into a signed number.
            Whence::Start => Ok(offset as u64),
            Whence::Current => Ok(position.wrapping_add_signed(offset)),
            _ => Err(Errno::EINVAL),
        }
    }
}

/// An open `pagemap`: a word of 8 bytes for each page.
struct Pagemap(Weak<AddressSpace>);

impl FileOps for Pagemap {
    fn seekable(&self) -> bool {
        true
    }

    fn read_at(&self, _: &File, offset: u64, sink: &mut Sink) -> Result<usize> {
        const WORD: u64 = 8;
        if !offset.is_multiple_of(WORD) || !(sink.remaining() as u64).is_multiple_of(WORD) {
            return Err(Errno::EINVAL);
        }
        let Some(mm) = self.0.upgrade() else { return Ok(0) };
        let with_frames = process::current().credentials().capable(abi::CAP_SYS_ADMIN);
        let page = PAGE_SIZE as u64;
        let mut done = 0;
        let mut at = (offset / WORD).saturating_mul(page);
        while sink.remaining() > 0 && at < TASK_SIZE {
            if done > 0 && process::current().kill_pending() {
                break;
            }
            let pages = (sink.remaining() as u64 / WORD).min(256).min((TASK_SIZE - at).div_ceil(page));
            let words = mm.pagemap(at..at + pages * page, with_frames)?;
            let raw: Vec<u8> = words.iter().flat_map(|w| w.to_ne_bytes()).collect();
            match sink.write(&raw) {
                Err(_) if done > 0 => break,
                other => done += other?,
            }
            at += pages * page;
            crate::sched::cond_resched();
        }
        Ok(done)
    }

    fn ioctl(&self, _: &File, command: u32, argument: usize) -> Result<usize> {
        match command {
            query::PAGEMAP_SCAN => query::scan(&*self.0.upgrade().ok_or(Errno::ESRCH)?, argument),
            _ => Err(Errno::EINVAL),
        }
    }

    fn seek(&self, _: &File, whence: Whence, offset: i64, position: u64) -> Result<u64> {
        match whence {
            Whence::Start => u64::try_from(offset).map_err(|_| Errno::EINVAL),
            Whence::Current => position.checked_add_signed(offset).ok_or(Errno::EINVAL),
            _ => Err(Errno::EINVAL),
        }
    }
}
