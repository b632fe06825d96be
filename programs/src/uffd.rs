//! userfaultfd(2): a descriptor with its calls, for tests.

use libc::SYS_userfaultfd;
use nix::errno::Errno;

use crate::file::Fd;
use crate::kinds::{Answer, call};
use crate::mem::Map;

pub const API: usize = 0xc018_aa3f;
pub const REGISTER: usize = 0xc020_aa00;
pub const UNREGISTER: usize = 0x8010_aa01;
pub const WAKE: usize = 0x8010_aa02;
pub const COPY: usize = 0xc028_aa03;
pub const ZEROPAGE: usize = 0xc020_aa04;
pub const MOVE: usize = 0xc028_aa05;
pub const WRITEPROTECT: usize = 0xc018_aa06;
pub const CONTINUE: usize = 0xc020_aa07;
pub const POISON: usize = 0xc020_aa08;

pub const MISSING: u64 = 1;
pub const WP: u64 = 2;
pub const MINOR: u64 = 4;

pub const FLAG_WRITE: u64 = 1;
pub const FLAG_WP: u64 = 2;
pub const FLAG_MINOR: u64 = 4;

pub const PAGEFAULT_FLAG_WP: u64 = 1 << 0;
pub const EVENT_FORK: u64 = 1 << 1;
pub const EVENT_REMAP: u64 = 1 << 2;
pub const EVENT_REMOVE: u64 = 1 << 3;
pub const MISSING_HUGE: u64 = 1 << 4;
pub const MISSING_SHMEM: u64 = 1 << 5;
pub const EVENT_UNMAP: u64 = 1 << 6;
pub const SIGBUS: u64 = 1 << 7;
pub const THREAD_ID: u64 = 1 << 8;
pub const MINOR_HUGE: u64 = 1 << 9;
pub const MINOR_SHMEM: u64 = 1 << 10;
pub const EXACT: u64 = 1 << 11;
pub const WP_FILES: u64 = 1 << 12;
pub const WP_UNPOPULATED: u64 = 1 << 13;
pub const POISONS: u64 = 1 << 14;
pub const WP_ASYNC: u64 = 1 << 15;
pub const MOVES: u64 = 1 << 16;
pub const ALL_KINDS: u64 =
    PAGEFAULT_FLAG_WP | MISSING_HUGE | MISSING_SHMEM | MINOR_HUGE | MINOR_SHMEM | WP_FILES;

/// A descriptor of userfaultfd(2).
pub struct Uffd(pub Fd);

/// Address, flags and thread of a fault.
pub struct Message {
    pub address: usize,
    pub flags: u64,
    pub thread: u32,
}

impl Uffd {
    pub fn bare(flags: i32) -> Uffd {
        let fd = call(SYS_userfaultfd, [(flags | libc::O_CLOEXEC) as usize, 0, 0, 0, 0, 0]);
        Uffd(Fd::own(fd.expect("userfaultfd")))
    }

    pub fn new(features: u64) -> Uffd {
        let uffd = Uffd::bare(0);
        uffd.api(features).expect("UFFDIO_API");
        uffd
    }

    pub fn ioctl<const N: usize>(&self, command: usize, words: &mut [u64; N]) -> Answer {
        let argument = words.as_mut_ptr() as usize;
        call(libc::SYS_ioctl, [self.0.raw() as usize, command, argument, 0, 0, 0])
    }

    pub fn api(&self, features: u64) -> Answer {
        self.ioctl(API, &mut [0xaa, features, 0])
    }

    pub fn register(&self, map: &Map, mode: u64) -> Answer {
        self.register_at(map.address, map.length, mode)
    }

    pub fn register_at(&self, address: usize, length: usize, mode: u64) -> Answer {
        self.ioctl(REGISTER, &mut [address as u64, length as u64, mode, 0])
    }

    pub fn copy(&self, to: usize, from: &[u8], mode: u64) -> Result<i64, Errno> {
        let mut words = [to as u64, from.as_ptr() as u64, from.len() as u64, mode, 0];
        self.ioctl(COPY, &mut words).map(|_| words[4] as i64)
    }

    pub fn of_range(&self, command: usize, address: usize, length: usize, mode: u64) -> Result<i64, Errno> {
        let mut words = [address as u64, length as u64, mode, 0];
        self.ioctl(command, &mut words).map(|_| words[3] as i64)
    }

    pub fn protect(&self, address: usize, length: usize, mode: u64) -> Answer {
        self.ioctl(WRITEPROTECT, &mut [address as u64, length as u64, mode])
    }

    pub fn wake(&self, address: usize, length: usize) -> Answer {
        self.ioctl(WAKE, &mut [address as u64, length as u64])
    }

    pub fn next(&self) -> Message {
        let mut bytes = [0u8; 32];
        assert_eq!(self.0.read(&mut bytes), Ok(32), "a message");
        assert_eq!(bytes[0], 0x12, "a page fault");
        let word = |at: usize| u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        Message { address: word(16) as usize, flags: word(8), thread: word(24) as u32 }
    }
}
