//! What is asked of a process's memory without text: `PROCMAP_QUERY` of `/proc/PID/maps` gives one area, found by an address, and
//! `PAGEMAP_SCAN` of `/proc/PID/pagemap` the pages of certain kinds.

use alloc::vec::Vec;

use crate::errno::{Errno, Result};
use crate::fs::path::PATH_MAX;
use crate::fs::stat::DeviceId;
use crate::fs::{File, caller};
use crate::memory::PAGE_SIZE;
use crate::mm::scan::{self, Found, Region, Request, Stop};
use crate::mm::uaccess::{check_range, copy_from_user, copy_to_user, read_user, write_user};
use crate::mm::view::{AreaName, AreaView};
use crate::mm::{AddressSpace, VmFlags};

/// `_IOWR('f', 17, struct procmap_query)`.
pub const PROCMAP_QUERY: u32 = 0xc068_6611;

/// `_IOWR('f', 16, struct pm_scan_arg)`.
pub const PAGEMAP_SCAN: u32 = 0xc060_6610;

/// What an area must be; the bits are the interface's.
const PERMISSIONS: [(u64, VmFlags); 4] =
    [(1, VmFlags::READ), (2, VmFlags::WRITE), (4, VmFlags::EXEC), (8, VmFlags::SHARED)];
/// The next such area, where none covers the address.
const OR_NEXT: u64 = 1 << 4;
/// Of a file.
const FILE_BACKED: u64 = 1 << 5;

/// `struct procmap_query`.
#[derive(Clone, Copy)]
#[repr(C)]
struct Query {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    area_flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    major: u32,
    minor: u32,
    name_size: u32,
    build_id_size: u32,
    name: u64,
    build_id: u64,
}

const SIZE: usize = size_of::<Query>();
/// Flags and address have to be there.
const LEAST: usize = 24;

impl Query {
    /// Reads one of `size` bytes; what is not given is 0, and what a later version has beyond must be.
    fn read(argument: usize) -> Result<(Self, usize)> {
        let size: u64 = read_user(argument)?;
        if size > PAGE_SIZE as u64 {
            return Err(Errno::E2BIG);
        }
        let size = size as usize;
        if size < LEAST {
            return Err(Errno::EINVAL);
        }
        let mut bytes = [0u8; SIZE];
        let known = size.min(SIZE);
        copy_from_user(&mut bytes[..known], argument)?;
        for index in SIZE..size {
            if read_user::<u8>(argument + index)? != 0 {
                return Err(Errno::E2BIG);
            }
        }
        // SAFETY: plain integers without gaps between them, of the same size.
        Ok((unsafe { core::mem::transmute::<[u8; SIZE], Self>(bytes) }, known))
    }

    fn write(&self, argument: usize, known: usize) -> Result<()> {
        // SAFETY: as above.
        let bytes = unsafe { core::mem::transmute::<Self, [u8; SIZE]>(*self) };
        copy_to_user(argument, &bytes[..known])
    }

    fn matches(&self, area: &AreaView) -> bool {
        let permitted =
            PERMISSIONS.iter().all(|(bit, flag)| self.flags & bit == 0 || area.flags.contains(*flag));
        permitted && (self.flags & FILE_BACKED == 0 || area.inode != 0)
    }

    /// The area that is asked for.
    fn find(&self, mm: &AddressSpace) -> Result<AreaView> {
        let mut next = self.address;
        loop {
            let some = mm.areas_from(next);
            let last = some.last().ok_or(Errno::ENOENT)?.range.end;
            for area in some {
                let or_next = self.flags & OR_NEXT != 0;
                if self.matches(&area) && (or_next || area.range.contains(&self.address)) {
                    return Ok(area);
                }
                if !or_next {
                    return Err(Errno::ENOENT);
                }
            }
            next = last;
            crate::sched::cond_resched();
        }
    }
}

/// The ioctl, of the memory `mm`.
pub fn query(mm: &AddressSpace, argument: usize) -> Result<usize> {
    let (mut query, known) = Query::read(argument)?;
    let flags = PERMISSIONS.iter().fold(OR_NEXT | FILE_BACKED, |all, (bit, _)| all | bit);
    if query.flags & !flags != 0
        || (query.name_size != 0) != (query.name != 0)
        || (query.build_id_size != 0) != (query.build_id != 0)
    {
        return Err(Errno::EINVAL);
    }
    let area = query.find(mm)?;
    let device = DeviceId::decode(area.device);
    (query.start, query.end) = (area.range.start, area.range.end);
    let set = PERMISSIONS.iter().filter(|(_, flag)| area.flags.contains(*flag));
    query.area_flags = set.fold(0, |all, (bit, _)| all | bit);
    query.page_size = area.page_size;
    (query.offset, query.inode) = (area.offset, area.inode);
    (query.major, query.minor) = (device.major, device.minor);
    let mut build_id = Vec::new();
    if query.build_id_size != 0 {
        build_id = match &area.name {
            AreaName::File(file) => find_build_id(file)?,
            _ => Vec::new(),
        };
        if build_id.len() > query.build_id_size as usize {
            return Err(Errno::ENAMETOOLONG);
        }
        query.build_id_size = build_id.len() as u32;
    }
    let mut name = Vec::new();
    if query.name_size != 0 {
        let room = (query.name_size as usize).min(PATH_MAX);
        name = match &area.name {
            AreaName::None => Vec::new(),
            AreaName::Text(text) => text.as_bytes().to_vec(),
            AreaName::File(file) => file.path().display(&caller::root())?,
        };
        // Asked first: there may be no room for one byte more.
        if name.len() >= room {
            return Err(Errno::ENAMETOOLONG);
        }
        if !name.is_empty() {
            name.push(0);
        }
        query.name_size = name.len() as u32;
    }
    copy_to_user(query.name as usize, &name)?;
    copy_to_user(query.build_id as usize, &build_id)?;
    query.write(argument, known)?;
    Ok(0)
}

/// PAGEMAP_SCAN, of the memory `mm`: writes regions, and how far it came, and returns how many.
pub fn scan(mm: &AddressSpace, argument: usize) -> Result<usize> {
    const WALK_END: usize = 32;
    const REGION: usize = size_of::<Region>();
    const SIZE: u64 = 96;
    const PAGE: u64 = PAGE_SIZE as u64;
    let [size, flags, start, end, _, vec, vec_len, max_pages, inverted, all_of, any_of, told]: [u64; 12] =
        read_user(argument)?;
    if size != SIZE
        || flags & !(scan::WP_MATCHING | scan::CHECK_WPASYNC) != 0
        || (inverted | all_of | any_of | told) & !scan::CATEGORIES != 0
        || !start.is_multiple_of(PAGE)
    {
        return Err(Errno::EINVAL);
    }
    check_range(start as usize, end.wrapping_sub(start) as usize)?;
    if vec == 0 && vec_len != 0 {
        return Err(Errno::EINVAL);
    }
    check_range(vec as usize, (vec_len as usize).saturating_mul(REGION))?;
    let range = start..end.next_multiple_of(PAGE);
    let request = Request { flags, range, inverted, all_of, any_of, told };
    let wanted = if max_pages == 0 { u64::MAX } else { max_pages };
    let mut found = Found::new((vec_len != 0).then_some(vec_len), wanted)?;
    let (mut at, mut written) = (start, 0);
    let mut give = |found: &mut Found| {
        for region in found.take() {
            write_user(vec as usize + written * REGION, &region)?;
            written += 1;
        }
        Ok(written)
    };
    let result = loop {
        if at >= request.range.end {
            break give(&mut found);
        }
        if crate::process::current().kill_pending() {
            break Err(Errno::EINTR);
        }
        match mm.scan_some(&request, at, &mut found) {
            Ok((next, stop)) => {
                at = next;
                if stop == Some(Stop::Full) {
                    let given = give(&mut found);
                    if given.is_err() || found.is_done() {
                        break given;
                    }
                } else if stop.is_some() {
                    break give(&mut found);
                }
            }
            Err(error) => {
                at = request.range.end;
                let given = give(&mut found);
                break given.and(Err(error));
            }
        }
        crate::sched::cond_resched();
    };
    write_user(argument + WALK_END, &at)?;
    result
}

/// The build ID in the notes of a 64-bit ELF file; empty for another file, and where there is none.
fn find_build_id(file: &File) -> Result<Vec<u8>> {
    /// Headers are looked at so far, and notes of so many bytes.
    const MOST_HEADERS: u64 = 128;
    const MOST_NOTES: u64 = 4096;
    const PT_NOTE: u32 = 4;
    const NT_GNU_BUILD_ID: u32 = 3;
    const HEADER: usize = 56;
    let word = |bytes: &[u8], at: usize| -> Option<u32> {
        Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
    };
    let long = |bytes: &[u8], at: usize| -> Option<u64> {
        Some(u64::from_ne_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
    };
    let mut elf = [0; 64];
    if file.inode().kind != crate::fs::FileType::Regular
        || file.ops().read_at(file, 0, &mut crate::fs::Sink::kernel(&mut elf))? < elf.len()
        || elf[..5] != *b"\x7fELF\x02"
    {
        return Ok(Vec::new());
    }
    let headers = long(&elf, 32).unwrap_or(0);
    let count = u64::from(word(&elf, 56).unwrap_or(0) & 0xffff).min(MOST_HEADERS);
    for index in 0..count {
        let mut header = [0; HEADER];
        let at = headers.saturating_add(index * HEADER as u64);
        if read(file, at, &mut header)? < HEADER || word(&header, 0) != Some(PT_NOTE) {
            continue;
        }
        let (offset, length) = (long(&header, 8).unwrap_or(0), long(&header, 32).unwrap_or(0));
        let mut notes = crate::memory::fallible::filled(0, length.min(MOST_NOTES) as usize)?;
        let got = read(file, offset, &mut notes)?;
        let mut rest = &notes[..got];
        // Sizes of name and content, the type; then both, each up to a multiple of four bytes.
        while let (Some(name), Some(content), Some(kind)) = (word(rest, 0), word(rest, 4), word(rest, 8)) {
            let begin = 12 + (name as usize).next_multiple_of(4);
            let end = begin.saturating_add(content as usize);
            if kind == NT_GNU_BUILD_ID && rest.get(12..16) == Some(b"GNU\0") && (1..=20).contains(&content) {
                return Ok(rest.get(begin..end).unwrap_or_default().to_vec());
            }
            let Some(next) = rest.get(end.next_multiple_of(4)..) else { break };
            rest = next;
        }
    }
    Ok(Vec::new())
}

/// Reads what there is; nothing for an offset that no file has.
fn read(file: &File, offset: u64, bytes: &mut [u8]) -> Result<usize> {
    if offset > i64::MAX as u64 {
        return Ok(0);
    }
    file.ops().read_at(file, offset, &mut crate::fs::Sink::kernel(bytes))
}
