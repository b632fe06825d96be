//! ELF files: checking them, and mapping their segments.

use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ops::Range;

use elf::abi::{EM_X86_64, ET_DYN, ET_EXEC, PF_R, PF_W, PF_X, PT_GNU_STACK, PT_INTERP, PT_LOAD, PT_PHDR};
use elf::endian::LittleEndian;
use elf::file::{Class, FileHeader, parse_ident};
use elf::segment::{ProgramHeader, SegmentTable};
use linux_raw_sys::general as abi;

use super::origins::{Origins, Shape};
use crate::errno::{Errno, Result};
use crate::fs::File;
use crate::memory::fallible;
use crate::mm::map::MapRequest;
use crate::mm::windows::WINDOW;
use crate::mm::{AddressSpace, PAGE, Rights, TASK_SIZE, layout, page_down, page_up};

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
/// Longest path of an interpreter, with its end.
const PATH_MAX: u64 = 4096;

/// A checked ELF file.
pub struct Binary {
    header: FileHeader<LittleEndian>,
    segments: Vec<ProgramHeader>,
}

/// Where a file was mapped.
pub struct Mapped {
    /// What was added to the addresses in the file.
    pub bias: u64,
    pub entry: u64,
    /// Address of the program headers; 0 when they are not mapped.
    pub headers: u64,
    pub code: Range<u64>,
    pub data: Range<u64>,
    /// End of the memory of all segments.
    pub end: u64,
}

/// The span of no segment: its ends give way to those of any other.
#[allow(clippy::reversed_empty_ranges)]
const NOTHING: core::ops::Range<u64> = u64::MAX..0;

impl Binary {
    /// Reads the headers; `bad` when it is no ELF file for this machine.
    pub fn read(file: &Arc<File>, bad: Errno) -> Result<Self> {
        let mut bytes = [0; HEADER];
        if file.read_kernel(0, &mut bytes)? < HEADER {
            return Err(bad);
        }
        let ident = parse_ident::<LittleEndian>(&bytes).map_err(|_| bad)?;
        if ident.1 != Class::ELF64 {
            return Err(bad);
        }
        let header = FileHeader::parse_tail(ident, &bytes[16..]).map_err(|_| bad)?;
        let count = usize::from(header.e_phnum);
        let good = matches!(header.e_type, ET_EXEC | ET_DYN)
            && header.e_machine == EM_X86_64
            && usize::from(header.e_phentsize) == PROGRAM_HEADER
            && count > 0
            && count * PROGRAM_HEADER <= 65536;
        if !good {
            return Err(bad);
        }
        let mut table = fallible::filled(0, count * PROGRAM_HEADER)?;
        if file.read_kernel(header.e_phoff, &mut table)? < table.len() {
            return Err(bad);
        }
        let segments = fallible::collect(SegmentTable::new(header.endianness, header.class, &table).iter())?;
        let binary = Self { header, segments };
        if binary.is_sound() { Ok(binary) } else { Err(bad) }
    }

    fn loads(&self) -> impl DoubleEndedIterator<Item = &ProgramHeader> {
        self.segments.iter().filter(|segment| segment.p_type == PT_LOAD)
    }

    /// Are all segments within user space and the file's range, in order, and mappable by pages?
    fn is_sound(&self) -> bool {
        let mut last = 0;
        let mut any = false;
        for load in self.loads() {
            let Some(end) = load.p_vaddr.checked_add(load.p_memsz) else { return false };
            let good = load.p_filesz <= load.p_memsz
                && end <= TASK_SIZE
                && load.p_vaddr >= last
                && load.p_offset.checked_add(load.p_filesz).is_some_and(|end| end <= i64::MAX as u64)
                && load.p_vaddr % PAGE == load.p_offset % PAGE;
            if !good {
                return false;
            }
            last = load.p_vaddr;
            any = true;
        }
        any
    }

    pub fn header_count(&self) -> u64 {
        u64::from(self.header.e_phnum)
    }

    /// Does it ask for a stack that code may run on? Without the header: no, as on Linux for 64-bit programs.
    pub fn executable_stack(&self) -> bool {
        let stack = self.segments.iter().find(|segment| segment.p_type == PT_GNU_STACK);
        stack.is_some_and(|segment| segment.p_flags & PF_X != 0)
    }

    /// The path of its interpreter.
    pub fn interpreter(&self, file: &Arc<File>) -> Result<Option<Vec<u8>>> {
        let Some(segment) = self.segments.iter().find(|segment| segment.p_type == PT_INTERP) else {
            return Ok(None);
        };
        if segment.p_filesz < 2 || segment.p_filesz > PATH_MAX {
            return Err(Errno::ENOEXEC);
        }
        let mut path = alloc::vec![0; segment.p_filesz as usize];
        if file.read_kernel(segment.p_offset, &mut path)? < path.len() {
            return Err(Errno::EIO);
        }
        if path.pop() != Some(0) {
            return Err(Errno::ENOEXEC);
        }
        let end = path.iter().position(|byte| *byte == 0).unwrap_or(path.len());
        path.truncate(end);
        Ok(Some(path))
    }

    /// The pages that all segments span.
    fn span(&self) -> Range<u64> {
        let start = self.loads().next().map_or(0, |load| page_down(load.p_vaddr));
        let end = self.loads().map(|load| load.p_vaddr + load.p_memsz).max().unwrap_or(0);
        start..page_up(end).unwrap_or(end)
    }

    /// Largest alignment that a segment asks for.
    fn alignment(&self) -> u64 {
        let asked = self.loads().map(|load| load.p_align).filter(|align| align.is_power_of_two());
        asked.max().unwrap_or(PAGE).clamp(PAGE, 1 << 30)
    }

    /// How the span must lie for the file's tables to show the largest segment that is not written and has a whole window: its start modulo
    /// a window.
    fn window_phase(&self) -> Option<u64> {
        let readers = self.loads().filter(|load| load.p_flags & PF_W == 0);
        let largest = readers.max_by_key(|load| load.p_filesz)?;
        let reach = layout::Placement::windows(largest.p_filesz, largest.p_offset).align;
        let phase = (self.span().start + largest.p_offset).wrapping_sub(largest.p_vaddr) & (WINDOW - 1);
        (reach >= WINDOW && phase.is_multiple_of(self.alignment())).then_some(phase)
    }

    /// Has it no addresses of its own?
    fn is_movable(&self) -> bool {
        self.header.e_type != ET_EXEC
    }

    /// What decides where it goes, if it has no addresses of its own.
    pub fn movable_shape(&self) -> Option<Shape> {
        self.is_movable().then(|| self.shape())
    }

    fn shape(&self) -> Shape {
        let span = self.span();
        let mut writers = self.loads().filter(|load| load.p_flags & PF_W != 0);
        let written = writers.next().map_or(span.end, |load| page_down(load.p_vaddr))..span.end;
        let written = written.start - span.start..written.end - span.start;
        Shape { len: span.end - span.start, granule: self.alignment(), phase: self.window_phase(), written }
    }

    /// Maps the segments. A program goes where `origins` says if it is position-independent, another such file where mmap(2) would put it.
    pub fn map(&self, space: &AddressSpace, file: &Arc<File>, origins: Option<&Origins>) -> Result<Mapped> {
        let bias = if self.is_movable() {
            let shape = self.shape();
            let start = match origins {
                Some(origins) => origins.program(&shape),
                None => {
                    let Shape { len, granule, phase, .. } = shape;
                    let (align, phase) = phase.map_or((granule, 0), |phase| (WINDOW, phase));
                    let place = layout::Placement { align, phase, granule, ..layout::Placement::pages(len) };
                    layout::choose(&mut space.write(), 0, &place)?
                }
            };
            start.wrapping_sub(self.span().start)
        } else {
            0
        };
        let mut mapped = Mapped {
            bias,
            entry: self.header.e_entry.wrapping_add(bias),
            headers: 0,
            code: NOTHING,
            data: NOTHING,
            end: 0,
        };
        for load in self.loads() {
            self.map_segment(space, file, load, bias)?;
            let start = bias.wrapping_add(load.p_vaddr);
            let file_end = start + load.p_filesz;
            if load.p_flags & PF_X != 0 {
                mapped.code = mapped.code.start.min(start)..mapped.code.end.max(file_end);
            }
            mapped.data = mapped.data.start.min(start)..mapped.data.end.max(file_end);
            if mapped.data.start < start {
                // The last segment that begins furthest up is the data, as Linux has it.
                mapped.data.start = start;
            }
            mapped.end = mapped.end.max(start + load.p_memsz);
            let headers = load.p_offset..load.p_offset + load.p_filesz;
            if headers.contains(&self.header.e_phoff) {
                mapped.headers = start + (self.header.e_phoff - load.p_offset);
            }
        }
        if let Some(headers) = self.segments.iter().find(|segment| segment.p_type == PT_PHDR) {
            mapped.headers = bias.wrapping_add(headers.p_vaddr);
        }
        if mapped.code.start > mapped.code.end {
            mapped.code = 0..0;
        }
        Ok(mapped)
    }

    /// Maps one segment: its part of the file, and zeroes behind it.
    fn map_segment(
        &self,
        space: &AddressSpace,
        file: &Arc<File>,
        load: &ProgramHeader,
        bias: u64,
    ) -> Result<()> {
        let start = bias.wrapping_add(load.p_vaddr);
        let file_end = start + load.p_filesz;
        let end = start + load.p_memsz;
        let mut prot = 0;
        for (flag, right) in [(PF_R, abi::PROT_READ), (PF_W, abi::PROT_WRITE), (PF_X, abi::PROT_EXEC)] {
            if load.p_flags & flag != 0 {
                prot |= right;
            }
        }
        let flags = abi::MAP_PRIVATE | abi::MAP_FIXED;
        let base = page_down(start);
        let file_pages_end = if load.p_filesz > 0 { page_up(file_end).ok_or(Errno::ENOMEM)? } else { base };
        if load.p_filesz > 0 {
            space.map(MapRequest {
                address: base,
                len: file_end - base,
                prot,
                flags,
                file: Some(file.clone()),
                offset: page_down(load.p_offset),
            })?;
        }
        if end > file_pages_end {
            space.map(MapRequest {
                address: file_pages_end,
                len: end - file_pages_end,
                prot,
                flags: flags | abi::MAP_ANONYMOUS,
                file: None,
                offset: 0,
            })?;
        }
        // What the file has behind the segment in its last page must not show in the program's zeroes.
        let dirty = file_pages_end.min(end).saturating_sub(file_end);
        if load.p_memsz > load.p_filesz && load.p_filesz > 0 && dirty > 0 && prot & abi::PROT_WRITE != 0 {
            let tail = (file_pages_end - file_end) as usize;
            let zeroes = alloc::vec![0; tail];
            if space.write_remote(file_end, &zeroes, Rights::Forced).map_err(|_| Errno::ENOMEM)? < tail {
                return Err(Errno::ENOMEM);
            }
        }
        Ok(())
    }
}
