//! Seals: what may no longer be done to a file in memory, by anybody.
//!
//! A file that is sealed against writing has no mapping through which stores reach it, and gets none. So who makes such a
//! mapping says so before, by [`Seals::admit_writable_mapping`], and a seal that comes until the mapping is counted is
//! refused as if the mapping were there.

use alloc::sync::Arc;
use core::sync::atomic::{AtomicU32, Ordering};

use linux_raw_sys::general as abi;

use super::file::File;
use crate::errno::{Errno, Result};
use crate::sync::Mutex;

const ALL: u32 = abi::F_SEAL_SEAL
    | abi::F_SEAL_SHRINK
    | abi::F_SEAL_GROW
    | abi::F_SEAL_WRITE
    | abi::F_SEAL_FUTURE_WRITE
    | abi::F_SEAL_EXEC;
/// Either forbids new ways of writing.
const READ_ONLY: u32 = abi::F_SEAL_WRITE | abi::F_SEAL_FUTURE_WRITE;

/// The seals of one file.
pub struct Seals {
    set: AtomicU32,
    /// Writable mappings that are admitted and not counted yet.
    arriving: AtomicU32,
    /// Held while seals are added, and while it is decided on a mapping.
    deciding: Mutex<()>,
}

/// A writable mapping that is being made; dropped when it is counted among the file's mappings, or failed.
pub struct Arriving(Arc<Seals>);

impl Drop for Arriving {
    fn drop(&mut self) {
        self.0.arriving.fetch_sub(1, Ordering::SeqCst);
    }
}

/// The permissions and the first seals of a file that memfd_create(2) makes with these flags.
pub fn of_memfd(flags: u32) -> (u32, u32) {
    // As Linux: a file that must never become executable can be sealed, else sealing is to be asked for.
    if flags & abi::MFD_NOEXEC_SEAL != 0 {
        (0o666, abi::F_SEAL_EXEC)
    } else if flags & abi::MFD_ALLOW_SEALING != 0 {
        (0o777, 0)
    } else {
        (0o777, abi::F_SEAL_SEAL)
    }
}

impl Seals {
    /// Seals to begin with: `F_SEAL_SEAL` for a file that cannot be sealed.
    pub fn new(set: u32) -> Arc<Self> {
        Arc::new(Self { set: AtomicU32::new(set), arriving: AtomicU32::new(0), deciding: Mutex::new(()) })
    }

    fn has(&self, seals: u32) -> bool {
        self.set.load(Ordering::SeqCst) & seals != 0
    }

    /// `EPERM` when the size may not change from `old` to `new`.
    pub fn check_resize(&self, old: u64, new: u64) -> Result<()> {
        let refused = new < old && self.has(abi::F_SEAL_SHRINK) || new > old && self.has(abi::F_SEAL_GROW);
        if refused { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// `EPERM` when the content may not be written or taken away.
    pub fn check_write(&self) -> Result<()> {
        if self.has(READ_ONLY) { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// May the file become longer?
    pub fn allow_growth(&self) -> bool {
        !self.has(abi::F_SEAL_GROW)
    }

    /// May the permissions to execute change?
    pub fn allow_change_of_execution(&self) -> bool {
        !self.has(abi::F_SEAL_EXEC)
    }

    /// Allows a shared mapping through which stores are to reach the file, now or after mprotect(2); `EPERM` when none may be made.
    pub fn admit_writable_mapping(self: &Arc<Self>) -> Result<Arriving> {
        let _deciding = self.deciding.lock();
        self.check_write()?;
        self.arriving.fetch_add(1, Ordering::SeqCst);
        Ok(Arriving(self.clone()))
    }

    /// `F_ADD_SEALS` and `F_GET_SEALS` of fcntl(2); `EINVAL` for other commands.
    pub fn fcntl(
        &self,
        file: &File,
        command: u32,
        argument: usize,
        has_writable_mapping: impl FnOnce() -> bool,
    ) -> Result<usize> {
        match command {
            abi::F_ADD_SEALS => {
                if !file.writable() {
                    return Err(Errno::EPERM);
                }
                let mut new = argument as u32;
                if new & !ALL != 0 {
                    return Err(Errno::EINVAL);
                }
                let _writers = file.inode().lock.lock();
                // A program that stays executable must stay the same program.
                if new & abi::F_SEAL_EXEC != 0 && file.inode().attributes().permissions & 0o111 != 0 {
                    new |= abi::F_SEAL_SHRINK | abi::F_SEAL_GROW | READ_ONLY;
                }
                self.add(new, has_writable_mapping).map(|()| 0)
            }
            abi::F_GET_SEALS => Ok(self.set.load(Ordering::SeqCst) as usize),
            _ => Err(Errno::EINVAL),
        }
    }

    fn add(&self, new: u32, has_writable_mapping: impl FnOnce() -> bool) -> Result<()> {
        let _deciding = self.deciding.lock();
        if self.has(abi::F_SEAL_SEAL) {
            return Err(Errno::EPERM);
        }
        let becomes_read_only = new & abi::F_SEAL_WRITE != 0 && !self.has(abi::F_SEAL_WRITE);
        // In this order: a mapping that no longer arrives is counted.
        if becomes_read_only && (self.arriving.load(Ordering::SeqCst) != 0 || has_writable_mapping()) {
            return Err(Errno::EBUSY);
        }
        self.set.fetch_or(new, Ordering::SeqCst);
        Ok(())
    }
}
