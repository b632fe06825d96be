//! Mappings as values that unmap themselves.

use nix::errno::Errno;

pub const R: i32 = libc::PROT_READ;
pub const RW: i32 = libc::PROT_READ | libc::PROT_WRITE;
pub const NONE: i32 = libc::PROT_NONE;
pub const SHARED: i32 = libc::MAP_SHARED;
pub const POPULATE: i32 = libc::MAP_POPULATE;
pub const PRIVATE: i32 = libc::MAP_PRIVATE;
pub const ANON: i32 = libc::MAP_ANONYMOUS;
pub const FIXED: i32 = libc::MAP_FIXED;
pub const NORESERVE: i32 = libc::MAP_NORESERVE;

/// A mapping; unmapped when dropped.
#[derive(Debug)]
pub struct Map {
    pub address: usize,
    pub length: usize,
}

/// mmap with all its arguments; gives the address.
pub fn mmap(
    address: usize,
    length: usize,
    protection: i32,
    flags: i32,
    fd: i32,
    offset: i64,
) -> Result<usize, Errno> {
    // SAFETY: only MAP_FIXED can harm memory in use, and tests give it addresses that they have reserved.
    let result = unsafe { libc::mmap(address as *mut _, length, protection, flags, fd, offset) };
    if result == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(result as usize) }
}

pub fn munmap(address: usize, length: usize) -> Result<(), Errno> {
    // SAFETY: tests unmap what they have mapped.
    super::sys::check(unsafe { libc::munmap(address as *mut _, length) }).map(drop)
}

pub fn mprotect(address: usize, length: usize, protection: i32) -> Result<(), Errno> {
    // SAFETY: tests protect what they have mapped.
    super::sys::check(unsafe { libc::mprotect(address as *mut _, length, protection) }).map(drop)
}

pub fn madvise(address: usize, length: usize, advice: i32) -> Result<(), Errno> {
    // SAFETY: tests advise on what they have mapped.
    super::sys::check(unsafe { libc::madvise(address as *mut _, length, advice) }).map(drop)
}

/// mremap; `target` only with MREMAP_FIXED.
pub fn mremap(address: usize, old: usize, new: usize, flags: i32, target: usize) -> Result<usize, Errno> {
    // SAFETY: tests move what they have mapped, to where they have reserved.
    let result = unsafe { libc::mremap(address as *mut _, old, new, flags, target) };
    if result == libc::MAP_FAILED { Err(Errno::last()) } else { Ok(result as usize) }
}

/// Which base pages are resident.
pub fn mincore(address: usize, length: usize) -> Result<Vec<bool>, Errno> {
    let mut pages = vec![0u8; length.div_ceil(4096)];
    // SAFETY: the vector has one byte a page.
    super::sys::check(unsafe { libc::mincore(address as *mut _, length, pages.as_mut_ptr()) })?;
    Ok(pages.into_iter().map(|page| page & 1 != 0).collect())
}

impl Map {
    pub fn new(length: usize, protection: i32, flags: i32, fd: i32, offset: i64) -> Result<Map, Errno> {
        Map::at(0, length, protection, flags, fd, offset)
    }

    pub fn at(
        address: usize,
        length: usize,
        protection: i32,
        flags: i32,
        fd: i32,
        offset: i64,
    ) -> Result<Map, Errno> {
        mmap(address, length, protection, flags, fd, offset).map(|address| Map { address, length })
    }

    /// Anonymous private memory.
    pub fn anonymous(length: usize) -> Map {
        Map::new(length, RW, PRIVATE | ANON, -1, 0).expect("mmap of anonymous memory")
    }

    /// Address space without memory, at a multiple of `align`, for MAP_FIXED to go into.
    pub fn reserve(length: usize, align: usize) -> Map {
        let whole = Map::new(length + align, NONE, PRIVATE | ANON | NORESERVE, -1, 0).expect("reserve");
        let start = whole.address.next_multiple_of(align);
        let end = whole.address + whole.length;
        if start > whole.address {
            munmap(whole.address, start - whole.address).expect("munmap");
        }
        if end > start + length {
            munmap(start + length, end - start - length).expect("munmap");
        }
        std::mem::forget(whole);
        Map { address: start, length }
    }

    fn pointer(&self, offset: usize, size: usize) -> *mut u8 {
        assert!(offset + size <= self.length, "{offset} lies outside of the mapping");
        (self.address + offset) as *mut u8
    }

    pub fn get(&self, offset: usize) -> u8 {
        // SAFETY: inside the mapping; what the kernel makes of the access is what is tested.
        unsafe { self.pointer(offset, 1).read_volatile() }
    }

    pub fn set(&self, offset: usize, value: u8) {
        // SAFETY: inside the mapping, which Rust knows nothing of.
        unsafe { self.pointer(offset, 1).write_volatile(value) }
    }

    pub fn get_u64(&self, offset: usize) -> u64 {
        // SAFETY: inside the mapping; all callers use multiples of eight.
        unsafe { self.pointer(offset, 8).cast::<u64>().read_volatile() }
    }

    pub fn set_u64(&self, offset: usize, value: u64) {
        // SAFETY: inside the mapping; all callers use multiples of eight.
        unsafe { self.pointer(offset, 8).cast::<u64>().write_volatile(value) }
    }

    /// A word as an atomic; the mapping has to stay.
    pub fn atomic(&self, offset: usize) -> &std::sync::atomic::AtomicU32 {
        // SAFETY: inside the mapping, which lives as long as `self`.
        unsafe { std::sync::atomic::AtomicU32::from_ptr(self.pointer(offset, 4).cast()) }
    }

    pub fn is_all(&self, offset: usize, length: usize, value: u8) -> bool {
        (offset..offset + length).step_by(8).all(|at| self.get_u64(at) == u64::from_ne_bytes([value; 8]))
    }

    /// Unmaps now and says how that went.
    pub fn unmap(self) -> Result<(), Errno> {
        let result = munmap(self.address, self.length);
        std::mem::forget(self);
        result
    }
}

impl Drop for Map {
    fn drop(&mut self) {
        // Tests may have unmapped it already, in parts or wholly: that is no error.
        let _ = munmap(self.address, self.length);
    }
}
