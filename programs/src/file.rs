//! Files by descriptor, with the calls that Rust's `File` does not have.

use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use nix::errno::Errno;

use crate::mem::Map;
use crate::sys::{PAGE, c_string, check};

/// An open file.
#[derive(Debug)]
pub struct Fd(pub OwnedFd);

impl AsRawFd for Fd {
    fn as_raw_fd(&self) -> i32 {
        self.0.as_raw_fd()
    }
}

impl Fd {
    pub fn open(path: &str, flags: i32) -> Result<Fd, Errno> {
        let path = c_string(path);
        // SAFETY: the path is NUL-terminated.
        check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, 0o644) }).map(Fd::own)
    }

    /// Takes a descriptor over.
    pub fn own(fd: usize) -> Fd {
        // SAFETY: the caller has just got it from the kernel.
        Fd(unsafe { OwnedFd::from_raw_fd(fd as i32) })
    }

    pub fn memfd(name: &str, flags: u32) -> Result<Fd, Errno> {
        let name = c_string(name);
        // SAFETY: the name is NUL-terminated.
        check(unsafe { libc::memfd_create(name.as_ptr(), flags) }).map(Fd::own)
    }

    /// A file without a name on a tmpfs.
    pub fn temporary() -> Fd {
        Fd::memfd("temporary", libc::MFD_CLOEXEC).expect("memfd_create")
    }

    /// Such a file of so many pages, the first full of ones, the second of twos, and so on.
    pub fn of_pages(pages: usize) -> Fd {
        let file = Fd::temporary();
        let bytes: Vec<u8> = (0..pages * PAGE).map(|at| (at / PAGE + 1) as u8).collect();
        assert_eq!(file.write_at(&bytes, 0), Ok(bytes.len()));
        file
    }

    pub fn raw(&self) -> i32 {
        self.0.as_raw_fd()
    }

    pub fn truncate(&self, length: u64) -> Result<(), Errno> {
        // SAFETY: takes integers.
        check(unsafe { libc::ftruncate(self.raw(), length as i64) }).map(drop)
    }

    pub fn fallocate(&self, mode: i32, offset: u64, length: u64) -> Result<(), Errno> {
        // SAFETY: takes integers.
        check(unsafe { libc::fallocate(self.raw(), mode, offset as i64, length as i64) }).map(drop)
    }

    pub fn punch(&self, offset: u64, length: u64) -> Result<(), Errno> {
        self.fallocate(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE, offset, length)
    }

    pub fn read_at(&self, buffer: &mut [u8], offset: u64) -> Result<usize, Errno> {
        // SAFETY: the buffer is as long as we say.
        check(unsafe {
            libc::pread(self.raw(), buffer.as_mut_ptr().cast(), buffer.len(), offset as i64) as i64
        })
    }

    pub fn write_at(&self, buffer: &[u8], offset: u64) -> Result<usize, Errno> {
        // SAFETY: the buffer is as long as we say.
        check(unsafe { libc::pwrite(self.raw(), buffer.as_ptr().cast(), buffer.len(), offset as i64) as i64 })
    }

    pub fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        // SAFETY: the buffer is as long as we say.
        check(unsafe { libc::read(self.raw(), buffer.as_mut_ptr().cast(), buffer.len()) as i64 })
    }

    pub fn write(&self, buffer: &[u8]) -> Result<usize, Errno> {
        // SAFETY: the buffer is as long as we say.
        check(unsafe { libc::write(self.raw(), buffer.as_ptr().cast(), buffer.len()) as i64 })
    }

    pub fn stat(&self) -> libc::stat {
        // SAFETY: a stat of zeros is valid, and the call fills it.
        unsafe {
            let mut stat: libc::stat = std::mem::zeroed();
            check(libc::fstat(self.raw(), &mut stat)).expect("fstat");
            stat
        }
    }

    pub fn statfs(&self) -> libc::statfs {
        // SAFETY: a statfs of zeros is valid, and the call fills it.
        unsafe {
            let mut stat: libc::statfs = std::mem::zeroed();
            check(libc::fstatfs(self.raw(), &mut stat)).expect("fstatfs");
            stat
        }
    }

    pub fn map(&self, length: usize, protection: i32, flags: i32) -> Result<Map, Errno> {
        Map::new(length, protection, flags, self.raw(), 0)
    }

    pub fn map_at(&self, offset: u64, length: usize, protection: i32, flags: i32) -> Result<Map, Errno> {
        Map::new(length, protection, flags, self.raw(), offset as i64)
    }
}

/// A pipe: the end to read from, the end to write to.
pub fn pipe(flags: i32) -> (Fd, Fd) {
    let mut ends = [0; 2];
    // SAFETY: the array has room for two descriptors.
    check(unsafe { libc::pipe2(ends.as_mut_ptr(), flags | libc::O_CLOEXEC) }).expect("pipe2");
    (Fd::own(ends[0] as usize), Fd::own(ends[1] as usize))
}
