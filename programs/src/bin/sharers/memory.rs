//! What the processes share, and how each of them gets it.

use std::mem::ManuallyDrop;
use std::sync::OnceLock;

use nix::errno::Errno;
use roundtable_programs::file::Fd;
use roundtable_programs::huge::GIB;
use roundtable_programs::mem::{ANON, Map, NORESERVE, PRIVATE, R, RW, SHARED, mremap};
use roundtable_programs::sys::check;

/// Where all processes have the memory.
static PLACE: OnceLock<usize> = OnceLock::new();

/// Looks for a place for so many bytes, for this process and those that it starts: at a multiple of 1 GiB, as sharing on Linux
/// demands, and where the kernel puts mappings, so that it has the upper tables that each process has anyway. What it costs is its lower
/// tables alone. Above it is room for what the kernel places by itself, and for moves.
pub fn find_place(length: usize) {
    let room = Map::reserve(5 * length.next_multiple_of(GIB) + 4 * GIB, GIB);
    PLACE.get_or_init(|| room.address + GIB);
}

fn place() -> usize {
    *PLACE.get().expect("a place was looked for")
}

/// How it is mapped.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Shared.
    Shared,
    /// Private and read-only: the same huge pages, but a table that no kernel shares.
    Unshared,
    /// Shared, at an address at which each process has tables of its own.
    Apart,
}

impl Kind {
    fn place(self) -> usize {
        // Not congruent with the file: no kernel can share a table there.
        if self == Kind::Apart { place() + 4096 } else { place() }
    }
}

/// Kinds of base pages, by their names on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    Tmpfs,
    Memfd,
    SysV,
    Inherited,
}

impl Source {
    const ALL: [(&'static str, Source); 4] = [
        ("tmpfs", Source::Tmpfs),
        ("memfd", Source::Memfd),
        ("sysv", Source::SysV),
        ("inherited", Source::Inherited),
    ];

    pub fn parse(name: &str) -> Result<Source, String> {
        let found = Source::ALL.into_iter().find(|(known, _)| *known == name);
        found.map(|(_, source)| source).ok_or(format!("{name} is none of tmpfs, memfd, sysv, inherited"))
    }

    /// What it is.
    pub fn title(self) -> &'static str {
        match self {
            Source::Tmpfs => "file on tmpfs",
            Source::Memfd => "memfd",
            Source::SysV => "System V segment",
            Source::Inherited => "shared anonymous mapping",
        }
    }
}

/// The memory.
pub enum Memory {
    /// Each process maps it.
    File(Fd),
    /// Each process attaches the segment.
    Segment(i32),
    /// The parent has it mapped, and the children from it.
    Inherited(ManuallyDrop<Map>),
}

impl Memory {
    /// So many bytes, without pages.
    pub fn new(source: Source, length: usize) -> Result<Memory, Errno> {
        find_place(length);
        let file = match source {
            Source::Tmpfs => Fd::temporary(),
            Source::Memfd => Fd::memfd("sharers", 0)?,
            Source::SysV => {
                // SAFETY: takes integers.
                let id = unsafe { libc::shmget(libc::IPC_PRIVATE, length, 0o600) };
                return check(id).map(|id| Memory::Segment(id as i32));
            }
            Source::Inherited => {
                let flags = SHARED | ANON | libc::MAP_FIXED_NOREPLACE;
                let map = Map::at(place(), length, RW, flags, -1, 0)?;
                return Ok(Memory::Inherited(ManuallyDrop::new(map)));
            }
        };
        file.truncate(length as u64)?;
        Ok(Memory::File(file))
    }

    /// Before processes are started that have it as `kind` says.
    pub fn ready(&mut self, kind: Kind) -> Result<(), Errno> {
        if let Memory::Inherited(map) = self
            && map.address != kind.place()
        {
            // By a detour: old and new place overlap.
            for place in [place() + 2 * map.length.next_multiple_of(GIB), kind.place()] {
                let flags = libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED;
                map.address = mremap(map.address, map.length, map.length, flags, place)?;
            }
        }
        Ok(())
    }

    /// A mapping to write to, for the parent.
    pub fn writable(&self, length: usize) -> Result<Map, Errno> {
        match self {
            Memory::File(file) => file.map(length, RW, SHARED),
            Memory::Segment(id) => segment(*id, 0, 0, length),
            Memory::Inherited(map) => mremap_alias(map, length),
        }
    }

    /// A process's own way to it, to read.
    pub fn attach(&self, length: usize, kind: Kind) -> Result<Map, Errno> {
        match self {
            Memory::File(file) => {
                let sharing = if kind == Kind::Unshared { PRIVATE | NORESERVE } else { SHARED };
                let flags = sharing | libc::MAP_FIXED_NOREPLACE;
                Map::at(kind.place(), length, R, flags, file.raw(), 0)
            }
            Memory::Segment(id) => segment(*id, kind.place(), libc::SHM_RDONLY, length),
            Memory::Inherited(map) => Ok(Map { address: map.address, length }),
        }
    }
}

fn segment(id: i32, address: usize, flags: i32, length: usize) -> Result<Map, Errno> {
    // SAFETY: nothing is at the address: without SHM_REMAP that would be an error.
    let address = check(unsafe { libc::shmat(id, address as *const _, flags) as i64 })?;
    Ok(Map { address, length })
}

/// The same memory once more: what mremap(2) does with an old length of 0.
fn mremap_alias(map: &Map, length: usize) -> Result<Map, Errno> {
    let address = mremap(map.address, 0, length, libc::MREMAP_MAYMOVE, 0)?;
    Ok(Map { address, length })
}

impl Drop for Memory {
    fn drop(&mut self) {
        match self {
            Memory::File(_) => {}
            Memory::Segment(id) => {
                // SAFETY: takes integers and no buffer.
                let _ = unsafe { libc::shmctl(*id, libc::IPC_RMID, std::ptr::null_mut()) };
            }
            // SAFETY: not used again.
            Memory::Inherited(map) => drop(unsafe { ManuallyDrop::take(map) }),
        }
    }
}
