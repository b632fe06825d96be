//! What can go wrong, and the errno it becomes.

use core::fmt;

/// The result of an operation that can fail with an [`Error`].
pub type Result<T, E = Error> = core::result::Result<T, E>;

pub use filetables::OutOfMemory;

/// Why an operation failed; each value is an errno of Linux.
#[non_exhaustive]
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Error {
    /// ENOMEM: no reservation to be had, or no frame for a page table.
    NoMemory,
    /// ENOSPC: the pool, the mount's `size=` or its `nr_inodes=` is used up.
    NoSpace,
    /// EINVAL: an argument is not aligned, out of range, or makes no sense together with others.
    Invalid,
    /// EOPNOTSUPP: a mode that hugetlbfs does not know.
    NotSupported,
    /// EINTR: the caller's interruption check said stop.
    Interrupted,
    /// EFBIG: beyond the largest file.
    TooBig,
    /// ENODEV: the machine has no pages of that size.
    NoSuchSize,
}

impl Error {
    /// The errno of Linux (positive).
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            Error::Interrupted => 4,
            Error::NoMemory => 12,
            Error::NoSuchSize => 19,
            Error::Invalid => 22,
            Error::TooBig => 27,
            Error::NoSpace => 28,
            Error::NotSupported => 95,
        }
    }
}

impl From<OutOfMemory> for Error {
    fn from(_: OutOfMemory) -> Error {
        Error::NoMemory
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::NoMemory => "cannot allocate memory",
            Error::NoSpace => "no space left",
            Error::Invalid => "invalid argument",
            Error::NotSupported => "operation not supported",
            Error::Interrupted => "interrupted",
            Error::TooBig => "file too large",
            Error::NoSuchSize => "no such page size",
        })
    }
}

impl core::error::Error for Error {}

/// Why a fault could not be resolved: the host's own memory can use it as well, so that one name goes from the page to the trap.
///
/// Not `#[non_exhaustive]`: a host has to answer each of them in its own way, and wants to be told of a new one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FaultError {
    /// SIGBUS with BUS_ADRERR: beyond the end of the file, or the pool or the mount's quota is empty.
    Sigbus,
    /// SIGBUS with BUS_MCEERR_AR: what is there counts as broken ([`crate::Mapping::poison`]). With the length of it as
    /// a power of two, bytes: `si_addr_lsb`.
    Poisoned(u32),
    /// No frame for a page table: the host's out-of-memory handling, then the access again.
    OutOfMemory,
    /// SIGSEGV with SEGV_ACCERR: the mapping does not permit the access.
    Access,
    /// SIGSEGV with SEGV_MAPERR: the address is not, or no longer, in this mapping.
    NotMapped,
    /// No signal: another mapping in the slot of the address has a shared table there. The host asks the mappings in the
    /// slot to leave it ([`crate::Mapping::leave_slot`]), then the access is tried again.
    SlotShared,
}

impl FaultError {
    /// The errno of Linux (positive) for a system call that comes upon it in memory of its caller's.
    #[must_use]
    pub const fn errno(self) -> i32 {
        match self {
            FaultError::OutOfMemory => 12,
            FaultError::Poisoned(_) => 133,
            FaultError::Sigbus | FaultError::Access | FaultError::NotMapped | FaultError::SlotShared => 14,
        }
    }
}

impl From<OutOfMemory> for FaultError {
    fn from(_: OutOfMemory) -> FaultError {
        FaultError::OutOfMemory
    }
}

impl fmt::Display for FaultError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            FaultError::Sigbus => "no page to be had there",
            FaultError::Poisoned(_) => "the page is poisoned",
            FaultError::OutOfMemory => "no memory for a page table",
            FaultError::Access => "the mapping does not permit the access",
            FaultError::NotMapped => "the address is not in the mapping",
            FaultError::SlotShared => "another mapping has a shared table in the slot",
        })
    }
}

impl core::error::Error for FaultError {}
