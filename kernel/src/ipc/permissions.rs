//! Owner, key and permission bits of a System V object.

use linux_raw_sys::general as abi;

use crate::errno::{Errno, Result};
use crate::namespaces::ipc::here;
use crate::process;

/// A key that every call makes a new object for.
pub const IPC_PRIVATE: i32 = 0;
/// The object may be read / changed by its permission bits.
pub const READ: u32 = 0o4;
pub const WRITE: u32 = 0o2;

/// Owner, key and permissions.
#[derive(Clone, Copy, Debug)]
pub struct Permissions {
    /// `IPC_PRIVATE` once a segment is marked for removal.
    pub key: i32,
    pub uid: u32,
    pub gid: u32,
    pub creator_uid: u32,
    pub creator_gid: u32,
    /// Nine permission bits; of segments also `SHM_DEST` and `SHM_LOCKED`.
    pub mode: u32,
}

/// `struct ipc64_perm`.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct IpcPerm {
    pub key: i32,
    pub uid: u32,
    pub gid: u32,
    pub cuid: u32,
    pub cgid: u32,
    pub mode: u32,
    pub seq: u16,
    pub pad: [u16; 3],
    pub unused: [u64; 2],
}

impl Permissions {
    /// Those of an object that the caller makes.
    pub fn new(key: i32, mode: u32) -> Self {
        let who = process::current().credentials();
        Self {
            key,
            uid: who.euid,
            gid: who.egid,
            creator_uid: who.euid,
            creator_gid: who.egid,
            mode: mode & 0o777,
        }
    }

    /// `EACCES` unless the caller may do `want` with it, a mix of `READ`, `WRITE` and 1 for execution.
    pub fn check(&self, want: u32) -> Result<()> {
        let who = process::current().credentials();
        let bits = if who.euid == self.uid || who.euid == self.creator_uid {
            self.mode >> 6
        } else if who.in_group(self.gid) || who.in_group(self.creator_gid) {
            self.mode >> 3
        } else {
            self.mode
        };
        if want & !bits & 7 == 0 || who.capable_in(&here().head.user, abi::CAP_IPC_OWNER) {
            Ok(())
        } else {
            Err(Errno::EACCES)
        }
    }

    /// `EPERM` unless the caller owns it.
    pub fn check_owner(&self) -> Result<()> {
        let who = process::current().credentials();
        if who.capable_in(&here().head.user, abi::CAP_SYS_ADMIN) { Ok(()) } else { self.check_may_lock() }
    }

    /// `EPERM` unless the caller owns it, by its numbers: a capability that is for something else does not help.
    pub fn check_may_lock(&self) -> Result<()> {
        let own = process::current().credentials().euid;
        if own == self.uid || own == self.creator_uid { Ok(()) } else { Err(Errno::EPERM) }
    }

    /// IPC_SET: a new owner and new permission bits.
    pub fn set(&mut self, new: &IpcPerm) -> Result<()> {
        if new.uid == u32::MAX || new.gid == u32::MAX {
            return Err(Errno::EINVAL);
        }
        let who = process::current().credentials();
        let (uid, gid) = (who.kernel_uid(new.uid), who.kernel_gid(new.gid));
        self.uid = uid.ok_or(Errno::EINVAL)?;
        self.gid = gid.ok_or(Errno::EINVAL)?;
        self.mode = self.mode & !0o777 | new.mode & 0o777;
        Ok(())
    }

    /// As IPC_STAT shows them for the object with identifier `id`.
    pub fn to_user(self, id: i32) -> IpcPerm {
        let who = process::current().credentials();
        IpcPerm {
            key: self.key,
            uid: who.shown_uid(self.uid),
            gid: who.shown_gid(self.gid),
            cuid: who.shown_uid(self.creator_uid),
            cgid: who.shown_gid(self.creator_gid),
            mode: self.mode,
            seq: super::ids::sequence_of(id),
            pad: [0; 3],
            unused: [0; 2],
        }
    }
}
